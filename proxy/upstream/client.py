"""Requests to upstream, and the redirects they lead through.

Everything here blocks and runs in a transfer thread: a slow DNS, a slow disk or a TLS handshake holds up nobody, and a
request is never cancelled half way through a connect (httpcore leaks its pool slot then). httpx does requests, each hop
of a redirect, TLS, proxies and headers.
"""

import re
import ssl
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import repeat

import httpx
import truststore

from ..config import Settings
from ..errors import ConfigError, UpstreamError
from ..rules.entry import Headers, field
from .egress import Egress
from .exchange import Exchange, Ready, Redirect
from .lane import Begun, Lane, Plain
from .location import endpoint, node, redirected, request_line, shown
from .peers import Peers
from .pool import LIMITS, Asked, Pool, field_lines, no_cookies, without
from .wire import Wires

MAX_REDIRECTS = 10
REDIRECTS = frozenset({301, 302, 303, 307, 308})
SECRET = frozenset({"authorization", "cookie", "proxy-authorization"})
"""A client's fields that are for the host it asked, and for no other."""
_COMMENT = re.compile(r"[ \t]*\([^()]*\)")


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
        client = httpx.Client(
            verify=trust,
            proxy=upstream.proxy if upstream.proxy not in ("env", "") else None,
            trust_env=upstream.proxy == "env",
            timeout=httpx.Timeout(fill.read_timeout, connect=fill.connect_timeout, pool=fill.connect_timeout),
            cookies=no_cookies(),
            limits=LIMITS,
        )
        try:
            named = [endpoint(httpx.URL(base)) for mirror in settings.mirrors for base in mirror.upstreams]
        except httpx.InvalidURL as error:
            raise ConfigError(f"an upstream of a mirror is no URL: {error}") from error
        egress = Egress(frozenset(named))
        # httpx has no argument for it, and with a transport of our own it would not read the environment's proxies.
        # Those have pools of their own, whose connections go to the proxy.
        client._transport._pool._network_backend = egress  # type: ignore[attr-defined]
        for transport in filter(None, client._mounts.values()):
            transport._pool._network_backend = Wires()  # type: ignore[attr-defined]
        self._pool = Pool(client, trust, float(fill.read_timeout), egress, lane)
        self.peers = Peers(settings, trust, via)
        """The way to other servers of ours."""
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
        self._via = f"1.1 {via}"

    async def begin(
        self, url: str, *, method: str = "GET", headers: Headers = (), at: str | None = None
    ) -> Ready | Started | None:
        """As `open`, on the event loop, if a connection is at hand: the answer, or what a thread gives to `resume`.

        None: nothing was asked.
        """
        if (lane := self._pool.lane) is None:
            return None
        asked = self._asked(url, method, headers, at)
        try:
            if not (rest := field_lines(asked.fields)):
                return None  # h11 says what is wrong
            request = request_line(method, asked.here) + rest
            found = await lane.ask(node(asked.here), request, method, self._pool.read_timeout)
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
            exchange = self._pool.send(asked, begun)
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

    def leave(self) -> None:
        """Keep no connections any more: what runs goes on, and others ask elsewhere."""
        if self._pool.lane:
            self._pool.lane.close()

    def close(self) -> None:
        self.leave()
        self._pool.close()
        self.peers.close()


@lru_cache(maxsize=256)  # a client's fields are the same each time
def forwarded(headers: Headers, secrets: Headers, via: str) -> tuple[Headers, Headers]:
    """A client's fields as they go to the mirror with the credentials `secrets`, and as they go to any other server."""
    came_by = _COMMENT.sub("", field(headers, "via") or "")  # where a server of ours is reached is for ours alone
    headers = (*without(headers, {"via"}), ("via", f"{came_by}, {via}" if came_by else via))
    fields = (*secrets, *without(headers, {name.lower() for name, _ in secrets}))
    return fields, without(headers, SECRET)
