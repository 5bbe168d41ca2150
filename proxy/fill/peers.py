"""Other servers of ours, as sources of a fill: asked before the mirrors, and left at once when they are of no help.

What a peer passes on of upstream is taken as upstream's, since its Age, validators and Cache-Control are. Trouble of
its own is no answer: the next one is asked, in the end the mirrors.
"""

import json
from dataclasses import replace
from logging import INFO, WARNING

from cachetools import LRUCache

from ..errors import PeerFailed, Unhelpful, UpstreamError, UpstreamStatus
from ..log import events, log
from ..rules.circuit import ABSENT_SECONDS, Circuit
from ..rules.entry import Headers
from ..rules.fleet import CAUSED_BY_US, asked_of, is_of_upstream, is_ours, remembered
from ..stats import Stats
from ..upstream.exchange import Exchange
from ..upstream.peers import SOON_SECONDS, Peers

LOOP = 508
SLOW_SECONDS = 10.0
"""A server that has answered something so lately is there, be it slow with something else."""
MAX_PEERS = 256
"""So many are remembered: where machines come and go, each that had the lease of an object is another one."""
MESSAGE_BYTES = 16 * 1024


class KnownPeers:
    """How the peers of one process do: who is of no help is left alone for a while. Lives on the event loop."""

    def __init__(self, stats: Stats) -> None:
        self._circuits: LRUCache[str, Circuit] = LRUCache(MAX_PEERS)
        """By base URL."""
        self._stats = stats
        self._answered: LRUCache[str, float] = LRUCache(MAX_PEERS)
        """When each of those that were asked last answered."""

    def status(self) -> dict[str, str]:
        """Of each that was asked: "answers", or "left alone"."""
        left_alone = {base for base, circuit in self._circuits.items() if circuit.is_given_up}
        return {base: "left alone" if base in left_alone else "answers" for base in sorted(self._answered)}

    def may_ask(self, base: str, now: float) -> bool:
        """As Circuit.may_ask."""
        return self._circuit(base).may_ask(now)

    def is_absent(self, base: str, now: float) -> bool:
        """As Circuit.is_absent."""
        return self._circuit(base).is_absent(now)

    def answered(self, base: str, kind: str, now: float) -> None:
        self._stats.peers[kind, "answered"] += 1
        self._is_there(base, now)

    def failed(self, base: str, kind: str, why: Unhelpful, error: UpstreamError, now: float) -> None:
        """It has not given what it was asked for."""
        last = self._answered.setdefault(base, float("-inf"))
        self._stats.peers[kind, "failed"] += 1
        match why:
            case Unhelpful.CIRCLE | Unhelpful.UNABLE:
                self._is_there(base, now)
            case Unhelpful.BROKEN:
                pass
            case Unhelpful.SLOW if now - last < SLOW_SECONDS:
                pass
            case _:
                if self._circuit(base).failed(now):
                    log(events, WARNING, "peer.down", peer=base, error=error, again_in=ABSENT_SECONDS)

    def _is_there(self, base: str, now: float) -> None:
        self._answered[base] = now
        if self._circuit(base).answered():
            log(events, INFO, "peer.back", peer=base)

    def _circuit(self, base: str) -> Circuit:
        return self._circuits.setdefault(base, Circuit())


def ask_peer(peers: Peers, url: str, method: str, headers: Headers) -> Exchange:
    """In a thread: the answer of another server of ours, if it is one about the object. Close it.

    Raises UpstreamStatus for an error of upstream's that it passes on, PeerFailed for all else.
    """
    exchange = peers.open(url, method, headers)
    status, given = exchange.status, exchange.headers
    if is_ours(given) and status in (200, 206, 304):
        return exchange
    with exchange:
        if not is_ours(given):
            raise PeerFailed(f"{url} answered {status}, and not as fetchonce does", Unhelpful.FOREIGN)
        message = _message(exchange) or f"{url} answered {status}"
        if is_of_upstream(status, given):
            told = UpstreamStatus(message, status)
            told.fields = remembered(given)
            told.cache_status = replace(told.cache_status, asked=asked_of(given))
            raise told
        why = Unhelpful.FOREIGN if status in CAUSED_BY_US else Unhelpful.CIRCLE if status == LOOP else Unhelpful.UNABLE
        raise PeerFailed(f"{message} (says {url})", why)


def _message(exchange: Exchange) -> str | None:
    """What the JSON of an error says; None if it is not here soon."""
    if exchange.length is None or exchange.length > MESSAGE_BYTES:
        return None
    try:
        return str(json.loads(exchange.read_small(exchange.length, SOON_SECONDS) or b"")["message"])
    except (ValueError, TypeError, KeyError):
        return None
