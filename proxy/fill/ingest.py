"""A body on its way from upstream into its partial: over one connection or several, resumed where it breaks.

`run` lives on the event loop. It keeps transfers running for the gaps: the first bytes, a reader far ahead, the rest of
a broken transfer and of a fill resumed after a restart are all "open the gap at the origin, and copy".
"""

import asyncio
import enum
import functools
from collections.abc import Callable
from logging import WARNING

from ..errors import UpstreamError, UpstreamRange
from ..log import events, log
from ..rules.entry import field
from ..rules.mirrors import Target
from ..rules.segments import BIG_BYTES, READERS, Plan, Ramp, Segment, end_of, plan, schedule
from ..rules.splice import Known
from ..store.partial import PartialRecord
from .asking import Gap, Rest
from .context import FillContext
from .growing import Growing
from .origin import Origin
from .sharing import Leader
from .transfer import Transfer

CHECKPOINT_BYTES = 128 * 1024**2
CHECKPOINT_SECONDS = 5.0
"""A power cut loses what came since the last checkpoint: so many bytes, or what came in so many seconds if that is
more. A killed process alone loses next to nothing. Eight readers of 1 GiB that comes as fast as it can took 1.47 s with
eight checkpoints and 1.37 with one (medians of nine)."""
MEASURE_SECONDS = 0.1
"""A fill's rate is taken over this long, from when all its connections flow: short beside a big fill."""
RESUMABLE_BYTES = 4 * 1024**2
"""From here on a killed process's fill is resumed; less is fetched anew in no time, and costs no sync."""


class Mode(enum.Enum):
    SEVERAL = "several"
    """Upstream honours ranges: readers far ahead and big bodies get more connections."""
    ONE = "one"
    """One connection at a time. Whatever the reason for a failure, upstream likes that better."""


class Ingest:
    """`run` it once, and `close` it. What it has brought is in `growing` at any moment; cancel `run` to stop."""

    def __init__(self, target: Target, origin: Origin, known: Known, growing: Growing, context: FillContext) -> None:
        self.fetched = 0
        """Bytes from upstream."""
        self._target, self._origin, self._known, self._growing = target, origin, known, growing
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._mode = Mode.ONE
        self._limit = target.mirror.connections or context.settings.connections
        self._ramp = Ramp(self._limit if (growing.length or 0) >= BIG_BYTES else 1)
        self._running: dict[Segment, asyncio.Task[None]] = {}
        self._flowing: set[Segment] = set()
        """Those of which bytes have come."""
        self._is_due = True
        """Whether the schedule must be made anew, whatever readers want."""
        self._is_short = False
        """Whether a reader waits for a connection."""
        self._broken: UpstreamError | None = None
        """What the front's transfer ended with: the one for the first byte that is missing."""
        self._failure: Exception | None = None
        """What the origin gave up with, or trouble of our own."""
        self._measuring: asyncio.TimerHandle | None = None
        self._saving: asyncio.Future[None] | None = None
        self._checkpointed, self._checkpointed_at = 0, 0.0
        """Bytes that survive a power cut, and since when by the loop's clock."""
        self._leader: Leader | None = None
        """While other processes may follow."""

    def record(self) -> PartialRecord:
        """What is known of the body, to go on with it later."""
        return PartialRecord(
            key=self._target.key,
            url=self._target.url,
            mirror=self._target.mirror.name,
            source=self._known.url,
            head=self._known.head,
            extents=list(self._growing.partial.extents),
        )

    async def run(self, first: Rest | None, is_read: Callable[[], bool]) -> None:
        """Fetch until no gap is left. `first` is the answer that began it; None if there is no gap.

        `is_read`: whether clients here read it; for nobody it gives up sooner.

        No thread writes any more when it ends. Raises the last error once retrying is of no use, StoreError at once.
        """
        growing = self._growing
        try:
            if first:
                exchange = first.exchange
                has_ranges = exchange.status == 206 or field(exchange.headers, "accept-ranges") == "bytes"
                takes_more = has_ranges and self._known.can_resume and self._origin.takes_more
                self._mode = Mode.SEVERAL if takes_more else Mode.ONE
                if self._origin.asks_neighbour:
                    self._ramp = Ramp(1)  # it takes as many of upstream as make it faster
                follows = None if first.compare and exchange.status == 200 else first.start + 1
                stop = growing.partial.extents.next_start(follows) if follows else None
                self._start(Segment(first.start, stop or growing.length), first)
            if self._known.can_resume and (growing.length or 0) >= RESUMABLE_BYTES:
                self._checkpoint()
                self._leader = await Leader.listen(growing)
            while not growing.is_whole:
                self._raise_trouble(is_read)
                if self._is_due or not self._is_served():
                    self._is_due = False
                    self._start_what_is_due()
                await growing.demand.wait()
                growing.demand.clear()
        finally:
            await self._end()

    async def _end(self) -> None:
        if self._measuring:
            self._measuring.cancel()
        for segment, task in self._running.items():
            if segment.stop is None or segment.offset < segment.stop:  # else it only gives its connection back
                task.cancel()
        ending = [*self._running.values(), *((self._saving,) if self._saving else ())]
        if ending:
            await asyncio.wait(ending)

    def close(self) -> None:
        """Let go of followers: in the turn of the loop in which the lock is given back."""
        if self._leader:
            self._leader.close()

    # -- what runs ----------------------------------------------------------------------------------------------------

    def _raise_trouble(self, is_read: Callable[[], bool]) -> None:
        if self._failure:
            raise self._failure
        if self._broken:
            self._origin.broke(self._broken, is_awaited=is_read() or bool(self._growing.wanted))
            self._broken = None

    def _is_served(self) -> bool:
        """Whether each reader need only wait for what runs. Cheap: it is asked each time a reader begins to wait."""
        if self._mode is Mode.ONE:
            return True
        for offset in self._growing.wanted:
            serving = next((segment for segment in self._running if segment.serves(offset)), None)
            if serving is None:
                return False
            serving.is_wanted = True
        return True

    def _start_what_is_due(self) -> None:
        growing, extents = self._growing, self._growing.partial.extents
        if growing.length is None:
            if not self._running:
                self._start(Segment(0, None))
            return
        running = list(self._running)
        for segment in running:
            segment.is_wanted = segment.is_wanted or any(map(segment.serves, growing.wanted))
        if self._mode is Mode.SEVERAL:
            limit = max(self._limit, READERS) if self._limit > 1 else 1
            needed = plan(extents, growing.length, running, growing.wanted, limit)
            step = schedule(extents, growing.length, running, needed, self._ramp)
        else:
            front = extents.reach(0)
            end = end_of(front, extents, running) or growing.length
            is_served = any(each.offset <= front < (each.stop or growing.length) for each in running)
            step = schedule(extents, growing.length, running, Plan(() if is_served else ((front, end),)), Ramp(1))
        for segment in step.cancel:
            self._running[segment].cancel()
        for segment, stop in step.trim:
            segment.stop = stop
        for offset, stop in step.start:
            self._start(Segment(offset, stop, is_wanted=offset in growing.wanted))
        self._is_short = step.is_short

    def _start(self, segment: Segment, answer: Rest | None = None) -> None:
        is_front = segment.offset <= self._growing.partial.extents.reach(0) or not self._running
        fetching = self._fetch(segment, answer, is_front=is_front)
        task = self._running[segment] = asyncio.create_task(fetching, name=f"transfer {self._target.key[:12]}")
        task.add_done_callback(functools.partial(self._ended, segment, answer))

    def _ended(self, segment: Segment, answer: Rest | None, task: asyncio.Task[None]) -> None:
        if answer and task.cancelled():  # it may never have begun
            answer.exchange.drop()
        del self._running[segment]
        self._flowing.discard(segment)
        self._is_due = True
        self._growing.demand.set()

    async def _fetch(self, segment: Segment, answer: Rest | None, *, is_front: bool) -> None:
        """One segment, from the question to its last byte. The task ends well: trouble is noted for `run`.

        The fill lives by the front's transfer. Whatever upstream does to another one only ends splitting.
        """
        try:
            answer = answer or await self._ask((segment.offset, segment.stop), is_front=is_front)
            segment.offset = answer.start
            if answer.compare and answer.exchange.status == 206 and not self._can_compare(answer.start):
                answer.exchange.drop()
                raise UpstreamRange(f"{answer.exchange.url} gives a part that nothing here can be compared with")
            if answer.exchange.status == 200 and answer.compare:
                segment.stop = segment.asked = self._growing.length
            await self._copy(Transfer(segment, answer.exchange, compare=answer.compare))
        except UpstreamError as error:
            self._mode = Mode.ONE
            self._broken = error if is_front else self._broken
        except Exception as error:
            self._failure = error

    def _can_compare(self, start: int) -> bool:
        extents = self._growing.partial.extents
        return not extents.total or extents.reach(start) > start

    async def _ask(self, gap: Gap, *, is_front: bool) -> Rest:
        if not is_front:
            return await self._origin.open_beside(gap, self._known)
        try:
            answer = await self._origin.open(gap, self._known)
        except UpstreamError as error:
            self._failure = error
            raise
        assert isinstance(answer, Rest)
        return answer

    async def _copy(self, transfer: Transfer) -> None:
        segment, growing = transfer.segment, self._growing
        tell = functools.partial(self._loop.call_soon_threadsafe, self._arrived, transfer)
        copying = self._loop.run_in_executor(self._origin.threads, transfer.run, growing.partial, tell)
        try:
            await asyncio.shield(copying)
        except asyncio.CancelledError:
            transfer.cancel()
            copying.add_done_callback(_look)
            await asyncio.wait([copying])
            raise
        finally:
            self._arrived(transfer)
        if growing.length is None:
            growing.finish(segment.offset)

    def _arrived(self, transfer: Transfer) -> None:
        # The flag first: a write after this line tells again, one before it is seen below.
        transfer.is_told = False
        segment, growing = transfer.segment, self._growing
        count = transfer.written - segment.offset
        if not count:
            return
        before = growing.received
        segment.offset += count
        growing.add(segment.offset - count, segment.offset)
        self.fetched += count
        self._origin.fetched(count, transfer.exchange)
        if segment not in self._flowing:
            self._flowing.add(segment)
            self._measure()
        if growing.received == before:
            return  # compared, not written
        self._origin.progressed()
        if self._is_short and segment.is_turn_over:
            self._is_due = True
            growing.demand.set()
        is_much = growing.received - self._checkpointed >= CHECKPOINT_BYTES
        if is_much and self._loop.time() - self._checkpointed_at >= CHECKPOINT_SECONDS:
            self._checkpoint()

    # -- how many -----------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """Take the rate for a while, once all connections that may be there bring bytes, if there may be more."""
        if len(self._flowing) >= self._ramp.allowed < self._ramp.limit and not self._measuring:
            begun = self._loop.time(), self._ramp.allowed, self.fetched
            self._measuring = self._loop.call_later(MEASURE_SECONDS, self._measured, *begun)

    def _measured(self, since: float, connections: int, before: int) -> None:
        self._measuring = None
        if len(self._flowing) >= connections and self._mode is Mode.SEVERAL:
            self._ramp.judge((self.fetched - before) / (self._loop.time() - since))  # on a busy machine it is late
            self._measure()
            self._is_due = True
            self._growing.demand.set()

    # -- what survives ------------------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Let what has come survive a power cut; one at a time, in a thread."""
        if self._saving and not self._saving.done():
            return
        self._checkpointed, self._checkpointed_at = self._growing.received, self._loop.time()
        save = self._growing.partial.save
        self._saving = self._loop.run_in_executor(self._context.threads.disk, save, self.record())
        self._saving.add_done_callback(self._saved_or_not)

    def _saved_or_not(self, saving: asyncio.Future[None]) -> None:
        if not saving.cancelled() and (error := saving.exception()):
            log(events, WARNING, "fill.not_saved", key=self._target.key[:12], error=error)


def _look(copying: asyncio.Future[None]) -> None:
    """Whatever a cancelled transfer ended with was our doing."""
    if not copying.cancelled():
        copying.exception()
