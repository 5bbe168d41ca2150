"""Connections that are used again, and one request over one of them."""

import http.cookiejar
import ssl
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import lru_cache

import httpx

from ..errors import UpstreamError
from ..rules.entry import Headers, field
from ..rules.headers import has_body
from ..version import VERSION
from .egress import Egress, Refused
from .exchange import Exchange, Redirect
from .lane import Begun, Lane
from .location import VerbatimUrl, endpoint, node
from .wire import Resuming, Stale, UsedWire, Wire
from .wording import refused, translated

KEPT_SECONDS = 30
USUAL: Headers = (
    ("accept", "*/*"),
    ("accept-encoding", "identity"),
    ("user-agent", f"fetchonce/{VERSION}"),
)
# Threads bound the number of requests; a second bound here could only make one wait for nothing. httpcore counts busy
# connections among those that are kept, so that a bound there would keep none on a busy day.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEPT_SECONDS)


def no_cookies() -> http.cookiejar.CookieJar:
    return http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))


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
    redirects: tuple[Redirect, ...] = ()

    @property
    def all_fields(self) -> Headers:
        return all_fields(self.fields)


def all_fields(fields: Headers) -> Headers:
    """With those that every request has."""
    return (*without(USUAL, {name.lower() for name, _ in fields}), *fields)


@lru_cache(maxsize=256)
def field_lines(fields: Headers) -> bytes | None:
    """The fields of a request as they are sent, with the line that ends them; None where they hold line breaks."""
    lines = [f"{name}: {value}" for name, value in all_fields(fields)]
    if any("\n" in line or "\r" in line for line in lines):
        return None
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@dataclass(frozen=True, slots=True)
class Pool:
    """A client of httpx, and what may be asked by it. Blocks, and runs in transfer threads."""

    client: httpx.Client
    trust: ssl.SSLContext
    read_timeout: float
    """Seconds without a byte of a large body."""
    egress: Egress | None = None
    """None: any address may be asked."""
    lane: Lane | None = None
    """It gets connections that have become idle."""

    def send(self, asked: Asked, begun: Begun | None = None) -> Exchange:
        """The answer of `asked.here`. `begun`: it was sent already. Raises UpstreamError."""
        here, url = asked.here, asked.url
        request = self.client.build_request(
            asked.method,
            here,
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in asked.all_fields],
        )
        request.url = VerbatimUrl(here)
        asked_at = begun.asked_at if begun else time.monotonic()
        try:
            if self.egress:
                self.egress.check_literal(*endpoint(request.url))
            response = self._answer(request, begun, node(here))
        except Refused as error:
            raise refused(error, here, url) from error
        # httpx reads a Location too, before we do, and raises InvalidURL for some; UnicodeError is IDNA's.
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise translated(error, here, url) from error
        wire: Wire = response.extensions["network_stream"]
        response.stream = _Closing(response, wire, self.lane if wire.is_direct else None, node(here))
        exchange = Exchange(response, here, asked.redirects, self.read_timeout, time.monotonic() - asked_at)
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
                elif self.lane and (stream := self.lane.take(node)):
                    response = self._send_over(UsedWire(stream), request)
                else:
                    response = self.client.send(request, stream=True)
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
        transport = httpx.HTTPTransport(verify=self.trust)
        transport._pool._network_backend = Resuming(wire)
        response = transport.handle_request(request)
        response.request = request
        return response

    def close(self) -> None:
        self.client.close()


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


def without(headers: Headers, names: Set[str]) -> Headers:
    return tuple(each for each in headers if each[0].lower() not in names)
