"""Connections that are used again, and one request over one of them."""

import http.cookiejar
import time
from collections.abc import Set
from dataclasses import dataclass

import httpx

from ..errors import UpstreamError
from ..rules.entry import Headers
from ..version import VERSION
from .egress import Egress, Refused
from .exchange import Exchange, Redirect
from .location import VerbatimUrl, endpoint
from .wire import Stale, Wire
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
class Pool:
    """A client of httpx, and what may be asked by it. Blocks, and runs in transfer threads."""

    client: httpx.Client
    read_timeout: float
    """Seconds without a byte of a large body."""
    egress: Egress | None = None
    """None: any address may be asked."""

    def send(self, method: str, here: str, fields: Headers, redirects: tuple[Redirect, ...]) -> Exchange:
        """The answer of `here`, where `redirects` have led. Raises UpstreamError."""
        url = redirects[0].url if redirects else here
        request = self.client.build_request(
            method,
            here,
            headers=[
                (name.encode("latin-1"), value.encode("latin-1"))
                for name, value in (*without(USUAL, {name.lower() for name, _ in fields}), *fields)
            ],
        )
        request.url = VerbatimUrl(here)
        asked_at = time.monotonic()
        try:
            if self.egress:
                self.egress.check_literal(*endpoint(request.url))
            response = self._answer(request)
        except Refused as error:
            raise refused(error, here, url) from error
        # httpx reads a Location too, before we do, and raises InvalidURL for some; UnicodeError is IDNA's.
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise translated(error, here, url) from error
        exchange = Exchange(response, here, redirects, self.read_timeout, time.monotonic() - asked_at)
        if exchange.has_body and "transfer-encoding" in response.headers and "content-length" in response.headers:
            # RFC 9112 §6.1, §6.3: one of the two is wrong, and nobody can say which.
            response.close()
            raise UpstreamError(f"{url} was not fetched: the answer has both Transfer-Encoding and Content-Length")
        return exchange

    def _answer(self, request: httpx.Request) -> httpx.Response:
        # RFC 9112 §9.3.1: whatever we ask may be asked again. Each stale connection leaves the pool, and a new one
        # cannot be stale: this ends.
        while True:
            try:
                response = self.client.send(request, stream=True)
            except Stale:
                continue
            wire: Wire = response.extensions["network_stream"]
            if not wire.awaits_head:
                return response
            # It came before the request, behind the answer to another one (RFC 9112 §9.2).
            response.close()

    def close(self) -> None:
        self.client.close()


def without(headers: Headers, names: Set[str]) -> Headers:
    return tuple(each for each in headers if each[0].lower() not in names)
