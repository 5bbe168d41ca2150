"""Requests to upstream, and the redirects they lead through.

Everything here blocks and runs in a transfer thread: a slow DNS, a slow disk or a TLS handshake holds up nobody, and a
request is never cancelled half way through a connect (httpcore leaks its pool slot then). httpx does requests, each hop
of a redirect, TLS, proxies and headers.
"""

import http.cookiejar
import ssl
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import repeat

import httpx
import truststore

from ..config import Settings
from ..errors import ConfigError, UpstreamError
from ..rules.entry import Headers, field
from ..rules.headers import has_body
from ..version import VERSION
from .egress import Egress, Refused
from .exchange import Exchange, Ready, Redirect
from .lane import Begun, Lane, Plain
from .location import VerbatimUrl, endpoint, node, redirected, request_line, shown
from .wire import Resuming, Stale, UsedWire, Wire, Wires
from .wording import refused, translated

MAX_REDIRECTS = 10
REDIRECTS = frozenset({301, 302, 303, 307, 308})
USUAL: Headers = (
    ("accept", "*/*"),
    ("accept-encoding", "identity"),
    ("user-agent", f"fetchonce/{VERSION}"),
)
SECRET = frozenset({"authorization", "cookie", "proxy-authorization"})
"""A client's fields that are for the host it asked, and for no other."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, and what has led to it."""

    url: str
    """What was to be fetched."""
    method: str
    here: str
    """What is asked now."""
    fields: Headers
    elsewhere: Headers
    """The fields for any other server than the first one."""
    redirects: tuple[Redirect, ...]

    @property
    def all_fields(self) -> Headers:
        return all_fields(self.fields)


@dataclass(frozen=True, slots=True)
class Started:
    """A request that was sent. It is given to `resume`, or closed."""

    asked: Asked
    begun: Begun

    def close(self) -> None:
        self.begun.close()


class Upstream:
    """A pool of connections with the proxies, certificates and timeouts of the settings."""

    def __init__(self, settings: Settings, via: str, lane: Lane | None = None) -> None:
        """`via`: the name of this cache in Via (RFC 9110 §7.6.3). `lane` gets connections that have become idle."""
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
            # Threads bound the number of requests; a second bound here could only make one wait for nothing. httpcore
            # counts busy connections among those that are kept, so that a bound there would keep none on a busy day.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30),
        )
        try:
            named = [endpoint(httpx.URL(base)) for mirror in settings.mirrors for base in mirror.upstreams]
        except httpx.InvalidURL as error:
            raise ConfigError(f"an upstream of a mirror is no URL: {error}") from error
        self._egress = Egress(frozenset(named))
        # httpx has no argument for it, and with a transport of our own it would not read the environment's proxies.
        # Those have pools of their own, whose connections go to the proxy.
        self._client._transport._pool._network_backend = self._egress  # type: ignore[attr-defined]
        for transport in filter(None, self._client._mounts.values()):
            transport._pool._network_backend = Wires()  # type: ignore[attr-defined]
        # Mirrors without credentials are in it too: they may lie below another's base. The longest base comes first.
        self._credentials = sorted(
            (
                (base, fields)
                for mirror in settings.mirrors
                for base, fields in zip(mirror.upstreams, mirror.credentials or repeat(()), strict=False)
            ),
            key=lambda each: -len(each[0]),
        )
        if not any(fields for _, fields in self._credentials):
            self._credentials = []
        self._read_timeout = float(fill.read_timeout)
        self._via = f"1.1 {via}"
        self._trust, self._lane = trust, lane

    async def begin(
        self, url: str, *, method: str = "GET", headers: Headers = (), at: str | None = None
    ) -> Ready | Started | None:
        """As `open`, on the event loop, if a connection is at hand: the answer, or what a thread gives to `resume`.

        None: nothing was asked.
        """
        if self._lane is None:
            return None
        asked = self._asked(url, method, headers, at)
        try:
            if not (rest := field_lines(asked.fields)):
                return None  # h11 says what is wrong
            request = request_line(method, asked.here) + rest
            found = await self._lane.ask(node(asked.here), request, method, self._read_timeout)
        except (httpx.InvalidURL, ValueError):
            return None
        match found:
            case Plain():
                return Ready(found, asked.here, asked.redirects, method)
            case Begun():
                return Started(asked, found)
        return None

    def resume(self, started: Started) -> Exchange:
        """As `open`, from where `begin` has left off."""
        return self._follow(started.asked, started.begun)

    def open(self, url: str, *, method: str = "GET", headers: Headers = (), at: str | None = None) -> Exchange:
        """Send one request and wait for the head of the answer, whatever its status; redirects are followed.

        The credentials of the mirror whose URL it is replace such fields in `headers`. Neither go any further once a
        redirect leads to another scheme, host or port, not even back. `at`: where the redirects of `url` have led
        before, to be asked right away.
        Close the result. Raises UpstreamError with the cause named: DNS, refused, TLS, proxy, timeout, protocol.
        """
        return self._follow(self._asked(url, method, headers, at), None)

    def _asked(self, url: str, method: str, headers: Headers, at: str | None) -> Asked:
        here = at or url
        secrets = next((fields for base, fields in self._credentials if url.startswith(base)), ())
        fields, elsewhere = forwarded(headers, secrets, self._via)
        asked = Asked(url, method, here, fields, elsewhere, (Redirect(url, ()),) if at else ())
        return replace(asked, fields=elsewhere) if at and node(here) != node(url) else asked

    def _follow(self, asked: Asked, begun: Begun | None) -> Exchange:
        for _ in range(MAX_REDIRECTS + 1):
            exchange = self._send(asked, begun)
            begun = None
            location = next((value for name, value in exchange.headers if name == "location"), "")
            if exchange.status not in REDIRECTS or not location:
                return exchange
            with exchange:
                here = redirected(asked.here, location, asked.url)
                asked = replace(asked, here=here, redirects=(*asked.redirects, Redirect(asked.here, exchange.headers)))
                if node(here) != exchange.node:
                    asked = replace(asked, fields=asked.elsewhere)
        raise UpstreamError(
            f"{asked.url} redirects more than {MAX_REDIRECTS} times, last to {shown(asked.here)}. nothing was fetched"
        )

    def _send(self, asked: Asked, begun: Begun | None) -> Exchange:
        """The answer of `here`. Raises UpstreamError."""
        here, url, redirects = asked.here, asked.url, asked.redirects
        request = self._client.build_request(
            asked.method,
            here,
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in asked.all_fields],
        )
        request.url = VerbatimUrl(here)
        asked_at = begun.asked_at if begun else time.monotonic()
        try:
            self._egress.check_literal(*endpoint(request.url))
            response = self._answer(request, begun, node(here))
        except Refused as error:
            raise refused(error, here, url) from error
        # httpx reads a Location too, before we do, and raises InvalidURL for some; UnicodeError is IDNA's.
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise translated(error, here, url) from error
        wire: Wire = response.extensions["network_stream"]
        response.stream = _Closing(response, wire, self._lane if wire.is_direct else None, node(here))
        exchange = Exchange(response, here, redirects, self._read_timeout, time.monotonic() - asked_at)
        if exchange.has_body and "transfer-encoding" in response.headers and "content-length" in response.headers:
            # RFC 9112 §6.1, §6.3: one of the two is wrong, and nobody can say which.
            response.close()
            raise UpstreamError(f"{url} was not fetched: the answer has both Transfer-Encoding and Content-Length")
        return exchange

    def _answer(self, request: httpx.Request, begun: Begun | None, node: str) -> httpx.Response:
        # RFC 9112 §9.3.1: whatever we ask may be asked again. Each stale connection leaves the pool, and a new one
        # cannot be stale: this ends.
        while True:
            try:
                if begun:
                    used, begun = UsedWire(begun.stream, begun.received, begun.heard_at), None
                    response = self._send_over(used, request)
                elif self._lane and (stream := self._lane.take(node)):
                    response = self._send_over(UsedWire(stream), request)
                else:
                    response = self._client.send(request, stream=True)
            except Stale:
                continue
            wire: Wire = response.extensions["network_stream"]
            if not wire.awaits_head:
                return response
            # It came before the request, behind the answer to another one (RFC 9112 §9.2).
            response.close()
            if isinstance(wire, UsedWire):
                wire.close()  # it is in no pool

    def _send_over(self, wire: UsedWire, request: httpx.Request) -> httpx.Response:
        """The answer to `request` over a pool of that one connection."""
        transport = httpx.HTTPTransport(verify=self._trust)
        transport._pool._network_backend = Resuming(wire)
        response = transport.handle_request(request)
        response.request = request
        return response

    def leave(self) -> None:
        """Keep no connections any more: what runs goes on, and others ask elsewhere."""
        if self._lane:
            self._lane.close()

    def close(self) -> None:
        self.leave()
        self._client.close()


class _Closing(httpx.SyncByteStream):
    """The body of an answer; once it is closed its connection goes to the lane, if it can be used again."""

    def __init__(self, response: httpx.Response, wire: Wire, lane: Lane | None, node: str) -> None:
        assert isinstance(response.stream, httpx.SyncByteStream)
        self._stream, self._wire, self._lane, self._node = response.stream, wire, lane, node
        self._request = wire.requests
        length = field(tuple(response.headers.multi_items()), "content-length")
        if not has_body(response.request.method, response.status_code):
            self._length: int | None = 0
        else:
            self._length = None if length is None else int(length.split(",")[0])

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def close(self) -> None:
        self._stream.close()
        is_in_step = self._wire.is_in_step(self._length)
        takes = self._lane and (not is_in_step or self._lane.has_room(self._node))
        if self._lane and takes and (stream := self._wire.take(self._request)):
            if is_in_step:
                self._lane.give(self._node, stream)
            else:
                stream.close()
        elif isinstance(self._wire, UsedWire):
            self._wire.close()  # it is in no pool


@lru_cache(maxsize=256)  # a client's fields are the same each time
def forwarded(headers: Headers, secrets: Headers, via: str) -> tuple[Headers, Headers]:
    """A client's fields as they go to the mirror with the credentials `secrets`, and as they go to any other server."""
    came_by = field(headers, "via")
    headers = (*_without(headers, {"via"}), ("via", f"{came_by}, {via}" if came_by else via))
    fields = (*secrets, *_without(headers, {name.lower() for name, _ in secrets}))
    return fields, _without(headers, SECRET)


def all_fields(fields: Headers) -> Headers:
    """With those that every request has."""
    return (*_without(USUAL, {name.lower() for name, _ in fields}), *fields)


@lru_cache(maxsize=256)
def field_lines(fields: Headers) -> bytes | None:
    """The fields of a request as they are sent, with the line that ends them; None where they hold line breaks."""
    lines = [f"{name}: {value}" for name, value in all_fields(fields)]
    if any("\n" in line or "\r" in line for line in lines):
        return None
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _without(headers: Headers, names: Set[str]) -> Headers:
    return tuple(each for each in headers if each[0].lower() not in names)
