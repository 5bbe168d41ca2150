"""Requests to upstream, and the redirects they lead through.

Everything here blocks and runs in a transfer thread: a slow DNS, a slow disk or a TLS handshake holds up nobody, and a
request is never cancelled half way through a connect (httpcore leaks its pool slot then). httpx does requests, each hop
of a redirect, TLS, proxies and headers.
"""

import http.cookiejar
import ssl
import time
from collections.abc import Set
from itertools import repeat

import httpx
import truststore

from ..config import Settings
from ..errors import ConfigError, UpstreamError
from ..rules.entry import Headers, field
from ..version import VERSION
from .egress import Egress, Refused
from .exchange import Exchange, Redirect
from .location import VerbatimUrl, endpoint, node, redirected, shown
from .wire import Stale, Wire, Wires
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


class Upstream:
    """A pool of connections with the proxies, certificates and timeouts of the settings."""

    def __init__(self, settings: Settings, via: str) -> None:
        """`via`: the name of this cache in Via (RFC 9110 §7.6.3)."""
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
        self._read_timeout = float(fill.read_timeout)
        self._via = f"1.1 {via}"

    def open(
        self, url: str, *, method: str = "GET", headers: Headers = (), at: str | None = None
    ) -> Exchange:
        """Send one request and wait for the head of the answer, whatever its status; redirects are followed.

        The credentials of the mirror whose URL it is replace such fields in `headers`. Neither go any further once a
        redirect leads to another scheme, host or port, not even back. `at`: where the redirects of `url` have led
        before, to be asked right away.
        Close the result. Raises UpstreamError with the cause named: DNS, refused, TLS, proxy, timeout, protocol.
        """
        here, came_by = at or url, field(headers, "via")
        headers = (*_without(headers, {"via"}), ("via", f"{came_by}, {self._via}" if came_by else self._via))
        secrets = next((fields for base, fields in self._credentials if url.startswith(base)), ())
        fields = (*secrets, *_without(headers, {name.lower() for name, _ in secrets}))
        redirects: tuple[Redirect, ...] = (Redirect(url, ()),) if at else ()
        if node(here) != node(url):
            fields = _without(headers, SECRET)
        for _ in range(MAX_REDIRECTS + 1):
            exchange = self._send(method, here, fields, redirects)
            location = next((value for name, value in exchange.headers if name == "location"), "")
            if exchange.status not in REDIRECTS or not location:
                return exchange
            with exchange:
                redirects += (Redirect(here, exchange.headers),)
                here = redirected(here, location, url)
                if node(here) != exchange.node:
                    fields = _without(headers, SECRET)
        raise UpstreamError(
            f"{url} redirects more than {MAX_REDIRECTS} times, last to {shown(here)}. nothing was fetched"
        )

    def _send(self, method: str, here: str, fields: Headers, redirects: tuple[Redirect, ...]) -> Exchange:
        """The answer of `here`, where `redirects` have led. Raises UpstreamError."""
        url = redirects[0].url if redirects else here
        request = self._client.build_request(
            method,
            here,
            headers=[
                (name.encode("latin-1"), value.encode("latin-1"))
                for name, value in (*_without(USUAL, {name.lower() for name, _ in fields}), *fields)
            ],
        )
        request.url = VerbatimUrl(here)
        asked_at = time.monotonic()
        try:
            self._egress.check_literal(*endpoint(request.url))
            response = self._answer(request)
        except Refused as error:
            raise refused(error, here, url) from error
        # httpx reads a Location too, before we do, and raises InvalidURL for some; UnicodeError is IDNA's.
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise translated(error, here, url) from error
        exchange = Exchange(response, here, redirects, self._read_timeout, time.monotonic() - asked_at)
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
                response = self._client.send(request, stream=True)
            except Stale:
                continue
            wire: Wire = response.extensions["network_stream"]
            if not wire.awaits_head:
                return response
            # It came before the request, behind the answer to another one (RFC 9112 §9.2).
            response.close()

    def close(self) -> None:
        self._client.close()


def _without(headers: Headers, names: Set[str]) -> Headers:
    return tuple(each for each in headers if each[0].lower() not in names)
