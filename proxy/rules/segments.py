"""Which parts of a body are fetched next, and over how many connections.

Pure: the fill says what is on disk, what is running and where readers wait; the schedule says what to start, cancel and
trim. Readers' offsets come first, the rest follows in order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .extents import Extents

NEAR_BYTES = 4 * 1024**2
"""A reader this close ahead of a running segment waits for it: that takes less time than a new connection."""
TURN_BYTES = 8 * 1024**2
"""A segment brings this much for its readers before its connection may go to others: each turn is a request."""
READERS = 16
"""So many readers far ahead have a connection each, as they would have had without us; beyond that they take turns."""
BIG_BYTES = 64 * 1024**2
"""From here on a body is worth several connections."""
SPLIT_BYTES = 8 * 1024**2
"""Less is not worth a connection of its own."""
FAST_RATE = 100e6
"""Bytes a second from which another connection gains nothing, and a mirror need not bear it."""
GAIN = 1.2
"""Twice the connections must be faster by this factor to be kept up."""


@dataclass(slots=True, eq=False)
class Segment:
    """A part of the body that is being fetched. Bytes before `offset` are in the extents; `stop` is its end or None."""

    offset: int
    stop: int | None
    begun: int = -1
    """Where it began."""
    is_wanted: bool = False
    """Whether a reader has waited for its bytes."""
    asked: int | None = -1
    """Where the range that was asked for ends; `stop` may have been trimmed below it."""

    def __post_init__(self) -> None:
        self.begun = self.offset if self.begun < 0 else self.begun
        self.asked = self.stop if self.asked == -1 else self.asked

    @property
    def is_turn_over(self) -> bool:
        return self.offset - self.begun >= TURN_BYTES

    def serves(self, offset: int) -> bool:
        """Whether a reader waiting at `offset` need only wait for this segment."""
        is_near = self.offset <= offset <= self.offset + NEAR_BYTES
        return is_near and (self.stop is None or offset < self.stop)


@dataclass(slots=True)
class Ramp:
    """How many connections a fill may have: one, then twice as many as long as that makes it faster."""

    limit: int
    allowed: int = 1
    _rate: float = 0.0
    _is_in_doubt: bool = False

    def judge(self, rate: float) -> None:
        """Take note of the `rate`, in bytes a second, of as many connections as are allowed.

        That they gain nothing must be seen twice: a machine may be busy for one moment, and a fill take hours.
        """
        if rate < self._rate * GAIN and not self._is_in_doubt:
            self._is_in_doubt = True
            return
        if rate >= FAST_RATE or rate < self._rate * GAIN:
            self.limit = self.allowed
        self._rate, self._is_in_doubt = rate, False
        self.allowed = min(self.limit, 2 * self.allowed)


@dataclass(frozen=True, slots=True)
class Plan:
    """What readers need: new segments as (offset, stop), and running ones whose connection they take."""

    start: tuple[tuple[int, int], ...] = ()
    cancel: tuple[Segment, ...] = ()
    is_short: bool = False
    """Whether a reader has to wait for a connection until a segment's turn is over."""


@dataclass(frozen=True, slots=True)
class Schedule(Plan):
    """The whole next step."""

    trim: tuple[tuple[Segment, int | None], ...] = ()
    """Running segments that get another end: earlier where a new one begins, later where nobody else goes on."""


def schedule(extents: Extents, length: int, running: Sequence[Segment], plan: Plan, ramp: Ramp) -> Schedule:
    """`plan` and, where `ramp` allows them, further segments that make a fill of `length` bytes faster."""
    kept = [segment for segment in running if segment not in plan.cancel]
    view = [replace(segment, stop=_end_of_running(segment, extents, kept)) for segment in kept]
    for offset, stop in plan.start:
        _take(view, offset, stop)
    while part := split(extents, length, view, ramp):
        _take(view, *part)
    start = tuple((each.offset, each.stop or length) for each in view[len(kept) :])
    trim = tuple((segment, now.stop) for segment, now in zip(kept, view, strict=False) if now.stop != segment.stop)
    return Schedule(start, plan.cancel, plan.is_short, trim)


def plan(extents: Extents, length: int, running: Sequence[Segment], waiting: Iterable[int], limit: int) -> Plan:
    """What readers need of a body of `length` bytes whose upstream honours ranges, with at most `limit` connections.

    Where there are more readers than connections, these go round. With nothing running the first gap is started.
    """
    wanted = [offset for offset in sorted(set(waiting)) if offset < length and extents.reach(offset) == offset]
    # The first connection asked for everything, and goes on unless it is the only one that there may be.
    idle = [each for each in running[limit > 1 :] if each.is_turn_over or not each.is_wanted]
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
        start.append((offset, end_of(offset, extents, [each for each in running if each not in cancel]) or length))
    if not start and len(running) == len(cancel) and (gaps := extents.gaps(length)):
        start.append(gaps[0])
    return Plan(tuple(start), tuple(cancel), is_short)


def split(extents: Extents, length: int, running: Sequence[Segment], ramp: Ramp) -> tuple[int, int] | None:
    """(offset, stop) of one more segment of a body of `length` bytes; None if none is allowed or worth it.

    It is the first part that no segment covers. Where there is none it is the far half of the segment that has most
    left. So the first connection, which asked for everything, is never cut for a piece: it goes on until it meets what
    the others have brought, and to the end if they fail. Halves of what is left take few requests.
    """
    if not running or len(running) >= ramp.allowed:
        return None
    for start, end in extents.gaps(length):
        for segment in sorted(running, key=lambda each: each.offset):
            if start < segment.offset < end:
                return start, segment.offset
            if segment.offset <= start < (segment.stop or length):
                start = segment.stop or length
        if start < end:
            return start, end
    longest = max(running, key=lambda segment: (segment.stop or segment.offset) - segment.offset)
    if longest.stop is None or longest.stop - longest.offset < 2 * SPLIT_BYTES:
        return None
    return longest.offset + (longest.stop - longest.offset) // 2, longest.stop


def end_of(offset: int, extents: Extents, running: Iterable[Segment]) -> int | None:
    """Where a segment from `offset` on meets what is there or being fetched; None if nothing follows."""
    ends = (extents.next_start(offset), *(segment.offset for segment in running))
    return min((end for end in ends if end is not None and end > offset), default=None)


def _end_of_running(segment: Segment, extents: Extents, running: Sequence[Segment]) -> int | None:
    """The end of a running segment: that of what it asked for, if the segment it was trimmed for has failed."""
    stop = segment.stop
    if stop is None or stop == segment.asked or extents.reach(stop) > stop:
        return stop
    if any(each.offset <= stop < (each.stop or each.offset + 1) for each in running if each is not segment):
        return stop
    following = end_of(stop, extents, running)
    return following if segment.asked is None else min(segment.asked, following or segment.asked)


def _take(view: list[Segment], offset: int, stop: int) -> None:
    """Add a segment; those that would have come to its bytes end before it."""
    for segment in view:
        if segment.offset < offset and (segment.stop is None or segment.stop > offset):
            segment.stop = offset
    view.append(Segment(offset, stop))
