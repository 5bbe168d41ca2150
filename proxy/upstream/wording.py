"""What goes wrong upstream, in words that name the cause and say what to do."""

import socket
import ssl
import urllib.parse
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx

from ..errors import UpstreamError, UpstreamStatus, UpstreamTimeout
from ..rules.chain import combined
from ..rules.entry import field
from ..rules.headers import challenges, delta_seconds, parse_http_date
from .egress import Refused
from .location import shown

if TYPE_CHECKING:
    from .exchange import Exchange

WAY_OUT = "look at upstream.proxy, HTTP_PROXY, HTTPS_PROXY, the system's proxy settings, and the mirror's upstreams"
"""Where a loop comes from."""


def first_error(errors: list[UpstreamError]) -> UpstreamError:
    """Which of several mirrors' errors the client is told: an answer about the object, else the first trouble."""
    return next((each for each in errors if each.status < 500), errors[0])


def status_error(exchange: "Exchange") -> UpstreamStatus:
    """The error for an answer that is no success."""
    hint = {
        401: "it wants a login; `headers` or `netrc` of its [[mirror]] can hold one, and a client's own goes to it if "
        "forward_authorization is true there",
        403: "it refuses access",
        407: "a proxy on the way wants a login",
        404: "it has no such file; is the URL right, or was the image removed?",
        410: "the file was removed",
        429: "it limits requests; wait a while",
        503: "it is overloaded or down; try again later",
        508: "the way to it leads back to fetchonce. " + WAY_OUT,
    }.get(exchange.status, "")
    given = field(exchange.headers, "retry-after")
    error = UpstreamStatus(
        f"{exchange.url} answered {exchange.status}{': ' + hint if hint else ''}", exchange.status, retry_after=given
    )
    error.fields = combined([each.headers for each in exchange.redirects], exchange.headers, ())
    error.headers += challenges(exchange.status, exchange.headers)
    seconds, at = delta_seconds(given), parse_http_date(given)
    since = parse_http_date(field(exchange.headers, "date"))
    error.retry_after = float(seconds) if seconds is not None else max(0.0, at - since) if at and since else None
    return error


def refused(error: Refused, here: str, url: str) -> UpstreamError:
    """The error for an address that may not be asked."""
    parts = urllib.parse.urlsplit(here)
    where = url if here == url else f"{url} redirects to {shown(here)}: it"
    return UpstreamError(
        f"{where} was not fetched: {error}, which is asked only if a mirror names it. "
        f"if you trust it, start with --mirror NAME={parts.scheme}://{parts.netloc}/"
    )


def translated(error: Exception, here: str, url: str) -> UpstreamError:
    """The error for a request to `here` that got no answer, on the way that began at `url`."""
    where = url if here == url else f"{url} (redirected to {shown(here)})"
    host = urllib.parse.urlsplit(here).netloc
    if isinstance(error, httpx.ProxyError):
        # CONNECT has no Via, and 405 is how we answer it ourselves.
        hint = f"if it is fetchonce itself: {WAY_OUT}" if str(error).startswith("405") else "check upstream.proxy"
        return UpstreamError(f"the proxy on the way to {where} failed: {cause(error)}. {hint}")
    if isinstance(error, httpx.ConnectTimeout):
        return UpstreamTimeout(f"{host} did not accept a connection in time, asked for {where}. is the network up?")
    if isinstance(error, httpx.TimeoutException):
        return UpstreamTimeout(f"{host} did not answer in time, asked for {where}")
    connecting = isinstance(error, httpx.ConnectError)
    for each in _chain(error):
        if isinstance(each, socket.gaierror):
            return UpstreamError(
                f"the name {host} cannot be resolved ({each.strerror}), asked for {where}. are you offline?"
            )
        if isinstance(each, ConnectionRefusedError):
            return UpstreamError(f"{host} refused the connection, asked for {where}")
        # A connection that is cut after its handshake is like a plain one that is: asking again may help.
        if isinstance(each, ssl.SSLError) and (connecting or not isinstance(each, ssl.SSLEOFError)):
            return UpstreamError(
                f"TLS with {host} failed: {cause(each)}, asked for {where}. "
                "behind a company proxy, name its certificate in upstream.ca_bundle"
            )
    broken = UpstreamError(f"{where} cannot be fetched: {cause(error)}")
    broken.is_transient = True
    return broken


def cause(error: BaseException) -> str:
    """What an exception says, in few words."""
    if any(isinstance(each, ssl.SSLEOFError) for each in _chain(error)):
        return "connection closed without TLS's close_notify"
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and what led to it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
