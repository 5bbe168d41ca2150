"""One request to one upstream URL, and its body as bytes into a buffer.

The only file that knows httpx. Everything here blocks and runs in a transfer thread: a slow DNS, a slow disk or a
TLS handshake holds up nobody, and a request is never cancelled half way through a connect (httpcore leaks its pool
slot then). httpx does request, each hop of a redirect, TLS, proxies and headers. A large body framed by Content-Length
is read from the socket itself, `recv_into` one buffer: through httpx and h11 it comes at a quarter of the speed.
"""

import http.cookiejar
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterable, Set
from itertools import repeat
from types import TracebackType
from typing import Self

import httpx
import truststore

from ..config import Settings
from ..errors import ConfigError, UpstreamError, UpstreamStatus, UpstreamTimeout
from ..rules.entry import Headers, field
from ..rules.headers import delta_seconds, parse_http_date
from ..version import VERSION
from .egress import Guard, Refused

MAX_REDIRECTS = 10
DIRECT_BYTES = 1024**2
"""A body with less than this left is read through httpx, so that its connection can be used again."""
USUAL: Headers = (
    ("accept", "*/*"),
    ("accept-encoding", "identity"),
    ("user-agent", f"fetchonce/{VERSION}"),
)
SECRET = frozenset({"authorization", "cookie", "proxy-authorization"})
"""Of a client's fields what is for the host it asked, and for no other."""
WAY_OUT = "look at upstream.proxy, HTTP_PROXY, HTTPS_PROXY, the system's proxy settings, and the mirror's upstreams"
"""Where a loop comes from."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Upstream:
    """The way out: a pool of connections with the proxies, certificates and timeouts of the settings."""

    def __init__(self, settings: Settings, via: str) -> None:
        """`via`: the name under which this cache stands in Via (RFC 9110 §7.6.3)."""
        fill, upstream = settings.file.fill, settings.file.upstream
        try:
            trust = (
                ssl.create_default_context(cafile=upstream.ca_bundle)
                if upstream.ca_bundle
                else truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            )
        except OSError as error:
            raise ConfigError(f"upstream.ca_bundle: {upstream.ca_bundle}: no certificates in it: {error}") from error
        self._client = httpx.Client(
            verify=trust,
            proxy=upstream.proxy if upstream.proxy not in ("env", "") else None,
            trust_env=upstream.proxy == "env",
            timeout=httpx.Timeout(fill.read_timeout, connect=fill.connect_timeout, pool=fill.connect_timeout),
            cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[])),  # none at all
            # Threads bound the number of requests; a second bound here could only make one wait for nothing.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=30),
        )
        try:
            named = [_endpoint(httpx.URL(base)) for mirror in settings.mirrors for base in mirror.upstreams]
        except httpx.InvalidURL as error:
            raise ConfigError(f"an upstream of a mirror is no URL: {error}") from error
        self._guard = Guard(frozenset(named))
        # httpx has no argument for it, and with a transport of our own it would leave the environment's proxies unread.
        # Those have pools of their own, whose connections go to the proxy.
        self._client._transport._pool._network_backend = self._guard  # type: ignore[attr-defined]
        # Mirrors without credentials are in it too: they may lie below another's base. The longest base comes first.
        self._credentials = sorted(
            (
                (base, fields)
                for mirror in settings.mirrors
                for base, fields in zip(mirror.upstreams, mirror.credentials or repeat(()), strict=False)
            ),
            key=lambda each: -len(each[0]),
        )
        self._read_timeout = float(fill.read_timeout)
        self._via = f"1.1 {via}"

    def open(self, url: str, *, method: str = "GET", headers: Headers = ()) -> "Exchange":
        """Send one request and wait for the head of the answer, whatever its status; redirects are followed.

        With the credentials of the mirror whose URL it is, in place of such fields in `headers`. Neither go any further
        once a redirect leads to another scheme, host or port, not even back.
        Close the result. Raises UpstreamError with the cause named: DNS, refused, TLS, proxy, timeout, protocol.
        """
        here, came_by = url, field(headers, "via")
        headers = (*_without(headers, {"via"}), ("via", f"{came_by}, {self._via}" if came_by else self._via))
        secrets = next((fields for base, fields in self._credentials if url.startswith(base)), ())
        fields = (*secrets, *_without(headers, {name.lower() for name, _ in secrets}))
        for _ in range(MAX_REDIRECTS + 1):
            request = self._client.build_request(
                method,
                here,
                headers=[
                    (name.encode("latin-1"), value.encode("latin-1"))
                    for name, value in (*_without(USUAL, {name.lower() for name, _ in fields}), *fields)
                ],
            )
            request.url = _VerbatimUrl(here)
            asked_at = time.monotonic()
            try:
                self._guard.judge_literal(*_endpoint(request.url))
                response = self._client.send(request, stream=True)
            except Refused as error:
                raise _refused(error, here, url) from error
            # httpx reads a Location too, before we do, and raises InvalidURL for some; UnicodeError is IDNA's.
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                raise _translated(error, here, url) from error
            location = response.headers.get("location")
            if response.status_code not in REDIRECTS or location is None:
                return Exchange(response, url, here, self._read_timeout, time.monotonic() - asked_at)
            response.close()
            here = _redirected(here, location, url)
            if _origin(httpx.URL(here)) != _origin(request.url):
                fields = _without(headers, SECRET)
        raise UpstreamError(
            f"{url} redirects more than {MAX_REDIRECTS} times, last to {_shown(here)}. nothing was fetched"
        )

    def close(self) -> None:
        self._client.close()


class _VerbatimUrl(httpx.URL):
    """httpx would normalise the path; it goes out byte for byte.

    Its extension "target" does that too, but it also takes the place of what is said to a proxy: the whole URL, or
    CONNECT's host and port.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._target = _target(url)

    @property
    def raw_path(self) -> bytes:
        return self._target


class Exchange:
    """One answer: its head, then its body once. A context manager; used by one thread, but for `abort`."""

    def __init__(self, response: httpx.Response, url: str, final_url: str, read_timeout: float, delay: float) -> None:
        self.url = url
        self.delay = delay
        """Seconds from the question to this head."""
        self.final_url = final_url
        self.status = response.status_code
        self.headers: Headers = tuple(
            (key.decode("latin-1").lower(), value.decode("latin-1")) for key, value in response.headers.raw
        )
        self.length = _content_length(self.headers)
        """Bytes of this answer's body; None if it says only at the end."""
        self._response = response
        self._stream = response.extensions["network_stream"]
        self._chunks = response.iter_raw()
        self._rest = memoryview(b"")
        self._socket: socket.socket | None = None
        self._received = 0
        self._read_timeout = read_timeout
        self._aborted = threading.Event()

    def read_into(self, buffer: memoryview) -> int:
        """Bytes put at the start of `buffer`; 0 at the true end of the body. Raises UpstreamError if it ends early."""
        try:
            count = self._read_into(buffer)
        except (httpx.HTTPError, OSError) as error:
            raise self._broken(error) from error
        if self._aborted.is_set():
            raise UpstreamError(f"the transfer of {self.url} was stopped")
        self._received += count
        if not count and self.length is not None and self._received < self.length:
            raise self._broken(None)
        return count

    def _read_into(self, buffer: memoryview) -> int:
        if self._socket:
            wanted = len(buffer) if self.length is None else min(len(buffer), self.length - self._received)
            return self._socket.recv_into(buffer[:wanted]) if wanted else 0
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        if count and not self._rest:
            self._go_direct(self._received + count)
        return count

    def _go_direct(self, received: int) -> None:
        # h11 hands out all it has buffered with each chunk, so between two chunks every further body byte is still
        # in the socket. That holds for Content-Length framing only: chunk heads must pass through h11.
        raw = self._stream.get_extra_info("socket")
        if (
            self.length is None
            or self.length - received < DIRECT_BYTES
            or field(self.headers, "transfer-encoding")
            or not isinstance(raw, socket.socket)
            # TLS inside a TLS proxy: the socket carries the outer layer.
            or (self._stream.get_extra_info("ssl_object") is not None and not isinstance(raw, ssl.SSLSocket))
        ):
            return
        raw.settimeout(self._read_timeout)
        self._socket = raw

    def abort(self) -> None:
        """From any thread: the reading thread gets an UpstreamError at once."""
        self._aborted.set()
        raw = self._stream.get_extra_info("socket")
        if isinstance(raw, socket.socket):
            try:
                # The plain method: SSLSocket's own would drop the TLS layer, and the reader take ciphertext for body.
                socket.socket.shutdown(raw, socket.SHUT_RDWR)
            except OSError:
                return  # already closed

    def close(self) -> None:
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _broken(self, error: Exception | None) -> UpstreamError:
        of = f"byte {self._received} of {self.length}" if self.length is not None else f"byte {self._received}"
        if isinstance(error, (httpx.TimeoutException, TimeoutError)):
            return UpstreamTimeout(f"{self.url} sent nothing for {self._read_timeout:g} s at {of}")
        return UpstreamError(f"{self.url} broke off at {of}: {_cause(error) if error else 'connection closed'}")


def first_error(errors: list[UpstreamError]) -> UpstreamError:
    """Of what several mirrors said, what the client is told: an answer about the object, else the first trouble."""
    return next((each for each in errors if each.status < 500), errors[0])


def status_error(exchange: Exchange) -> UpstreamStatus:
    """The error for an answer that is no success."""
    hint = {
        401: "it wants a login; `headers` or `netrc` of its [[mirror]] can hold one",
        403: "it refuses access",
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
    error.fields = exchange.headers
    seconds, at = delta_seconds(given), parse_http_date(given)
    since = parse_http_date(field(exchange.headers, "date"))
    error.retry_after = float(seconds) if seconds is not None else max(0.0, at - since) if at and since else None
    return error


def _content_length(headers: Headers) -> int | None:
    value = field(headers, "content-length")
    if value is None or field(headers, "transfer-encoding"):
        return None
    return int(value.split(",")[0])  # h11 has refused anything but equal decimal numbers


def _target(url: str) -> bytes:
    parts = urllib.parse.urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # A Location may carry spaces or raw UTF-8; only what may not stand in a request line is encoded.
    return urllib.parse.quote(target, safe="".join(map(chr, range(0x21, 0x7F)))).encode("ascii")


def _without(headers: Headers, names: Set[str]) -> Headers:
    return tuple(each for each in headers if each[0].lower() not in names)


def _shown(url: str) -> str:
    """A URL that upstream made, for people: its query may be as good as a password."""
    return url.partition("?")[0]


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    """RFC 6454 §4."""
    return url.scheme, *_endpoint(url)


def _endpoint(url: httpx.URL) -> tuple[str, int]:
    """Host and port that a connection for `url` goes to, as httpx reads it: another parser could read another host."""
    # Not `host`, which reads IDNA back and raises for what is none.
    return url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)


def _redirected(here: str, location: str, url: str) -> str:
    """Where a redirect from `here` leads. Raises UpstreamError if we do not go there."""
    try:
        there = urllib.parse.urldefrag(urllib.parse.urljoin(here, location)).url
        parsed = httpx.URL(there)
    except (ValueError, httpx.InvalidURL) as error:
        raise UpstreamError(f"{url} redirects to {_shown(location)!r}, which is no URL. nothing was fetched") from error
    if parsed.scheme not in ("http", "https") or not parsed.raw_host:
        raise UpstreamError(f"{url} redirects to {_shown(there)}, which is no http(s) URL. nothing was fetched")
    if parsed.userinfo:
        # Nobody means it well (RFC 9110 §4.2.4), and it would make httpx log in.
        raise UpstreamError(f"{url} redirects to a URL with a user in it. nothing was fetched")
    return there


def _refused(error: Refused, here: str, url: str) -> UpstreamError:
    parts = urllib.parse.urlsplit(here)
    where = url if here == url else f"{url} redirects to {_shown(here)}: it"
    return UpstreamError(
        f"{where} was not fetched: {error}, and such a one is asked only if a mirror names it. "
        f"if you trust it, start with --mirror NAME={parts.scheme}://{parts.netloc}/"
    )


def _translated(error: Exception, here: str, url: str) -> UpstreamError:
    where = url if here == url else f"{url} (redirected to {_shown(here)})"
    host = urllib.parse.urlsplit(here).netloc
    if isinstance(error, httpx.ProxyError):
        # CONNECT has no Via, and 405 is what we say to it ourselves.
        hint = f"if it is fetchonce itself: {WAY_OUT}" if str(error).startswith("405") else "check upstream.proxy"
        return UpstreamError(f"the proxy on the way to {where} failed: {_cause(error)}. {hint}")
    if isinstance(error, httpx.ConnectTimeout):
        return UpstreamTimeout(f"{host} did not accept a connection in time, asked for {where}. is the network up?")
    if isinstance(error, httpx.TimeoutException):
        return UpstreamTimeout(f"{host} did not answer in time, asked for {where}")
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            return UpstreamError(
                f"the name {host} cannot be resolved ({cause.strerror}), asked for {where}. are you offline?"
            )
        if isinstance(cause, ConnectionRefusedError):
            return UpstreamError(f"{host} refused the connection, asked for {where}")
        if isinstance(cause, ssl.SSLError):
            return UpstreamError(
                f"TLS with {host} failed: {_cause(cause)}, asked for {where}. "
                "behind a company proxy, name its certificate in upstream.ca_bundle"
            )
    broken = UpstreamError(f"{where} cannot be fetched: {_cause(error)}")
    broken.is_transient = True
    return broken


def _causes(error: BaseException) -> Iterable[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _cause(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
