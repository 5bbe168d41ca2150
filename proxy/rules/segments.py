"""Which parts of a body are fetched next, and over how many connections.

Pure: the fill tells what is on disk, what is running and where readers wait; the plan says what to start and stop.
Readers' offsets come first, the rest follows in order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .extents import Extents

NEAR_BYTES = 4 * 1024**2
"""A reader this close ahead of a running transfer waits for it: less than what a new connection would cost."""
TURN_BYTES = 8 * 1024**2
"""So much comes for readers at one place before their connection goes to others: each turn is a request upstream."""


@dataclass(slots=True, eq=False)
class Segment:
    """A part of the body on its way: up to `offset` it is in the extents, `stop` is where it ends (None: unknown)."""

    offset: int
    stop: int | None
    begun: int = -1
    """Where it began."""
    is_wanted: bool = False
    """Whether a reader has waited for its bytes."""

    def __post_init__(self) -> None:
        if self.begun < 0:
            self.begun = self.offset

    @property
    def is_turn_over(self) -> bool:
        return self.offset - self.begun >= TURN_BYTES

    def serves(self, offset: int) -> bool:
        """Whether a reader waiting at `offset` need only wait for this transfer."""
        is_near = self.offset <= offset <= self.offset + NEAR_BYTES
        return is_near and (self.stop is None or offset < self.stop)


@dataclass(frozen=True, slots=True)
class Plan:
    start: tuple[tuple[int, int], ...] = ()
    """(offset, stop) of new segments."""
    cancel: tuple[Segment, ...] = ()
    """Running segments that give their connection to a reader elsewhere."""
    is_short: bool = False
    """Whether a reader has to wait for a connection, until somebody's turn is over."""


def plan(extents: Extents, length: int, running: Sequence[Segment], waiting: Iterable[int], limit: int) -> Plan:
    """The next step of a fill of `length` bytes whose upstream honours ranges, with at most `limit` connections.

    Where there are more readers than connections, these go round.
    """
    wanted = [offset for offset in sorted(set(waiting)) if offset < length and extents.reach(offset) == offset]
    idle = [segment for segment in running if segment.is_turn_over or not segment.is_wanted]
    idle.sort(key=lambda segment: (segment.is_wanted, segment.begun - segment.offset))
    is_short = False
    start: list[tuple[int, int]] = []
    cancel: list[Segment] = []
    for offset in wanted:
        if any(segment.serves(offset) for segment in running) or any(
            begin <= offset <= begin + NEAR_BYTES for begin, _ in start
        ):
            continue
        if len(running) - len(cancel) + len(start) >= limit:
            if not idle:
                is_short = True
                break
            cancel.append(idle.pop(0))
        ends = [extents.next_start(offset), *(segment.offset for segment in running if segment not in cancel)]
        start.append((offset, min([end for end in ends if end is not None and end > offset], default=length)))
    if not start and len(running) == len(cancel) and (gaps := extents.gaps(length)):
        start.append(gaps[0])
    return Plan(tuple(start), tuple(cancel), is_short)


BIG_BYTES = 64 * 1024**2
"""From here on a body is worth several connections."""
SPLIT_BYTES = 8 * 1024**2
"""What a part must have left to be worth a connection for its second half."""
FAST_RATE = 100e6
"""Bytes a second from which nobody waits for another connection, and a mirror need not bear it."""
GAIN = 1.2
"""By so much twice the connections must be faster to be kept up."""


@dataclass(slots=True)
class Ramp:
    """How many connections a fill may have: one, then twice as many as long as that makes it faster."""

    limit: int
    allowed: int = 1
    _rate: float = 0.0

    def judge(self, rate: float) -> None:
        """Take note of the `rate`, in bytes a second, of as many connections as are allowed."""
        if rate >= FAST_RATE or rate < self._rate * GAIN:
            self.limit = self.allowed
        self._rate = rate
        self.allowed = min(self.limit, 2 * self.allowed)


def split(running: Sequence[Segment], allowed: int) -> tuple[int, int] | None:
    """(offset, stop) of one more segment, the second half of what has most left; None if none is allowed or worth it.

    A reader in front of the first half finds the second one there when it comes to it.
    """
    if not running or len(running) >= allowed:
        return None
    longest = max(running, key=lambda segment: (segment.stop or segment.offset) - segment.offset)
    if longest.stop is None or longest.stop - longest.offset < 2 * SPLIT_BYTES:
        return None
    return (longest.offset + longest.stop) // 2, longest.stop
