"""Requests to other servers of ours: on the way to upstream, past every proxy and every rule about addresses."""

import ssl

import httpx

from ..config import Settings
from ..errors import PeerFailed, Unhelpful, UpstreamError
from ..rules.entry import Headers
from ..rules.fleet import Fleet
from .exchange import Exchange
from .pool import LIMITS, Asked, Pool, no_cookies, without
from .wire import Wires

CONNECT_SECONDS = 1.0
"""A machine that is off says nothing: for so long the first client waits, and upstream is asked."""
SOON_SECONDS = 1.0
"""For so long the rest of an answer that has begun is read: a small body, or what an error says."""


class Peers:
    """Of one set of settings."""

    def __init__(self, settings: Settings, trust: ssl.SSLContext, via: str) -> None:
        self.fleet: Fleet = settings.fleet
        self._via = f"1.1 {via} ({self.fleet.own})" if self.fleet.own else f"1.1 {via}"
        self.timeout = timeout = float(settings.file.fleet.timeout)
        client = httpx.Client(
            verify=trust,
            trust_env=False,
            timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS),
            cookies=no_cookies(),
            limits=LIMITS,
        )
        client._transport._pool._network_backend = Wires()  # type: ignore[attr-defined]
        self._pool = Pool(client, trust, timeout)

    @property
    def patience(self) -> float:
        """Seconds for an answer, whatever holds it up."""
        return CONNECT_SECONDS + self.timeout + SOON_SECONDS

    def open(self, url: str, method: str, headers: Headers) -> Exchange:
        """The answer of another server of ours, whatever its status. Close it. Raises PeerFailed.

        The token goes as one for a proxy: a server that does not know it would send Authorization on to upstream.
        """
        came_by = [value for name, value in headers if name == "via"]
        fields = (*without(headers, {"via", "authorization"}), ("via", ", ".join((*came_by, self._via))))
        if self.fleet.token:
            fields = (*fields, ("proxy-authorization", f"Bearer {self.fleet.token}"))
        try:
            return self._pool.send(Asked(url, method, url, fields, fields))
        except UpstreamError as error:
            why = Unhelpful.SLOW if isinstance(error.__cause__, httpx.ReadTimeout) else Unhelpful.GONE
            raise PeerFailed(error.message, why) from error

    def close(self) -> None:
        self._pool.close()
