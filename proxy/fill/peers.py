"""Other servers of ours, as sources of a fill: asked before the mirrors, and left at once when they are of no help.

What a peer passes on of upstream is taken as upstream's, since its Age, validators and Cache-Control are. Trouble of
its own is no answer: the next one is asked, in the end the mirrors.
"""

import json
from logging import INFO, WARNING

from ..errors import PeerFailed, Unhelpful, UpstreamError, UpstreamStatus
from ..log import events, log
from ..rules.entry import Headers, field
from ..rules.fleet import CAUSED_BY_US, is_of_upstream, is_ours, remembered
from ..rules.health import Circuits
from ..stats import Stats
from ..upstream.exchange import Exchange
from ..upstream.peers import Peers

OURS = "no-transform, stale-if-error=0"
"""Asked of every peer: upstream's own bytes, and no stale answer while upstream itself may have a fresh one."""
LOOP = 508
MESSAGE_BYTES = 16 * 1024
SOON_SECONDS = 0.1


class KnownPeers:
    """How the peers of one process do: who is of no help is left alone for a while. Lives on the event loop."""

    def __init__(self, stats: Stats) -> None:
        self.circuits = Circuits()
        self._stats = stats
        self._asked: set[str] = set()

    def status(self) -> dict[str, str]:
        """Of each that was asked: "answers", or "left alone"."""
        return {base: "left alone" if base in self.circuits.open else "answers" for base in sorted(self._asked)}

    def answered(self, base: str, kind: str) -> None:
        self._asked.add(base)
        self._stats.peers[kind, "answered"] += 1
        if self.circuits.answered(base):
            log(events, INFO, "peer.back", peer=base)

    def failed(self, base: str, kind: str, error: UpstreamError, now: float) -> None:
        """It has not given what it was asked for."""
        self._asked.add(base)
        self._stats.peers[kind, "failed"] += 1
        is_down = not isinstance(error, PeerFailed) or error.why not in (Unhelpful.CIRCLE, Unhelpful.UNABLE)
        if is_down and self.circuits.failed(base, now):
            log(events, WARNING, "peer.down", peer=base, error=error, again_in=self.circuits.SECONDS)


def ask_peer(peers: Peers, url: str, method: str, headers: Headers) -> Exchange:
    """In a thread: the answer of another server of ours, if it is one about the object. Close it.

    Raises UpstreamStatus for an error of upstream's that it passes on, PeerFailed for all else.
    """
    wishes = field(headers, "cache-control")
    fields = (*(line for line in headers if line[0] != "cache-control"),)
    fields += (("cache-control", f"{wishes}, {OURS}" if wishes else OURS),)
    exchange = peers.open(url, method, fields)
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
