"""A body on its way from upstream into its partial: over one connection or several, taken up where it breaks.

The coordinator (`run`) lives on the event loop and owns every field. Transfers run in threads: they read a socket into
a buffer and write the buffer to the file, and tell the loop how far they are. A gap is a gap: the first bytes, a reader
far ahead, a broken transfer and a fill taken up after a restart are all "start a segment at the gap".
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection
from functools import partial
from logging import WARNING

from ..errors import UpstreamChanged, UpstreamError, UpstreamRange
from ..log import events, log
from ..rules import vary
from ..rules.entry import Headers, field
from ..rules.mirrors import Target
from ..rules.segments import BIG_BYTES, Ramp, end_of, plan, split
from ..rules.validators import resume_validator
from ..store.partial import PartialRecord
from .origin import Begun, Rooms, pause_after
from .sharing import Leader
from .transfer import Transfer, open_rest

WAKE_BYTES = 4 * 1024**2
"""Readers are woken for this much at once: each wake costs every reader a call. 1 MiB made eight readers 8 % slower."""
WAKE_SECONDS = 0.005
"""... or after this long, so that a slow upstream's bytes do not lie about."""
CHECKPOINT_BYTES = 128 * 1024**2
"""So much is lost at most in a power cut; smaller ones sync too often. A killed process alone loses next to nothing."""
MEASURE_SECONDS = 0.1
"""Over this long a fill's rate is taken, from when all its connections flow: short beside a big fill."""
RESUMABLE_BYTES = 4 * 1024**2
"""From here on a killed process's fill is taken up; less is fetched anew in no time, and costs no sync."""


class Ingest:
    """`run` it once; what it has brought is in `partial` at any moment, and `grown` is called when that is more."""

    def __init__(
        self,
        target: Target,
        urls: tuple[str, ...],
        condition: Headers,
        begun: Begun,
        rooms: Rooms,
        waiting: Collection[int],
        grown: Callable[[], None],
    ) -> None:
        """`waiting` is the caller's: the offsets where readers wait."""
        self.partial, self.head, self.length = begun.partial, begun.head, begun.head.length
        self.source = begun.source
        """The URL that gave the head."""
        self.fetched = 0
        """Bytes from upstream."""
        self._target, self._urls, self._fields = target, urls, vary.with_each(condition)
        self._rooms, self._waiting, self._grown = rooms, waiting, grown
        self._url = begun.exchange.url
        """Which of `urls` is asked now."""
        self._first = begun.first
        self._loop = asyncio.get_running_loop()
        self._running: list[Transfer] = []
        self._attention = asyncio.Event()
        self._is_stopped = False
        self._leader: Leader | None = None
        """While other processes may follow."""
        self._told = self.partial.extents.total
        self._wake_timer: asyncio.TimerHandle | None = None
        has_ranges = begun.exchange.status == 206 or field(begun.exchange.headers, "accept-ranges") == "bytes"
        is_told_apart = resume_validator(self.head.headers) is not None
        self._may_jump = has_ranges and self.length is not None and is_told_apart
        """Whether readers far ahead get connections of their own: upstream has ranges, and never failed us with one."""
        self._ramp = Ramp(rooms.settings.connections if (self.length or 0) >= BIG_BYTES else 1)
        self._measuring: asyncio.TimerHandle | None = None
        self._is_short = False
        """Whether a reader waits for a connection."""
        self._asks_whole = False
        """Whether ranges did not give what was asked for: then all of it is asked for, and compared."""
        self._failures = 0
        """Transfers that broke since the last byte."""
        self._last_error: BaseException | None = None
        self._saving: asyncio.Future[None] | None = None
        self._checkpointed = 0
        """Bytes that survive a power cut."""
        if self.length and self.length >= RESUMABLE_BYTES and is_told_apart:
            self._checkpoint()

    @property
    def is_whole(self) -> bool:
        return self.length is not None and self.partial.extents.total == self.length

    def record(self) -> PartialRecord:
        return PartialRecord(
            key=self._target.key,
            url=self._target.url,
            mirror=self._target.mirror.name,
            source=self.source,
            head=self.head,
            extents=list(self.partial.extents),
        )

    def look(self, offset: int) -> None:
        """A reader waits at `offset` now: nearer bytes come first."""
        for transfer in self._running:
            if transfer.serves(offset):
                transfer.is_wanted = True
                return
        if self._may_jump:
            self._attention.set()

    def stop(self) -> None:
        """Have `run` end soon, with an UpstreamError."""
        self._is_stopped = True
        self._attention.set()
        for transfer in self._running:
            transfer.cancel()

    async def run(self) -> None:
        """Run transfers until no gap is left; no thread writes any more when it ends.

        Raises the last error once retrying is of no use.
        """
        try:
            await self._run()
        finally:
            await self._end()

    async def _run(self) -> None:
        if self._first:
            self._start(self._first)
        if self._saving:  # it is told of: others may find it
            self._leader = await Leader.listen(self.partial, self._attention.set)
        while not self.is_whole:
            self._check_stopped()
            if not self._running and self._last_error:
                await self._back_off(self._last_error)
            if self.length is not None and (self._may_jump or not self._running):
                waiting = {*self._waiting, *(self._leader.waiting if self._leader else ())} if self._may_jump else ()
                for transfer in self._running:
                    transfer.is_wanted = transfer.is_wanted or any(map(transfer.serves, waiting))
                todo = plan(self.partial.extents, self.length, self._running, waiting, self._rooms.settings.connections)
                for given_up in todo.cancel:
                    assert isinstance(given_up, Transfer)
                    given_up.cancel()
                for offset, stop in todo.start:
                    self._start(Transfer(offset, stop, written=offset, is_wanted=offset in waiting))
                self._is_short = todo.is_short
                while self._may_jump and (part := split(self.partial.extents, self.length, self._running, self._ramp)):
                    self._start(Transfer(*part, written=part[0]))
            elif not self._running:
                self._start(Transfer(0, None))
            await self._attention.wait()
            self._attention.clear()

    async def _end(self) -> None:
        if self._measuring:
            self._measuring.cancel()
        if self._saving:
            await asyncio.wait([self._saving])
        for transfer in self._running:
            transfer.cancel()
        while self._running:
            self._attention.clear()
            await self._attention.wait()

    def close(self) -> None:
        """Let go of followers and of the fill; in the turn of the loop in which the right to fill is given back."""
        if self._leader:
            self._leader.close()
        self._grown = _nothing

    # -- trouble ------------------------------------------------------------------------------------------------------

    async def _back_off(self, error: BaseException) -> None:
        """Wait before the next try, or raise `error` if there is none.

        The mirror that broke is asked once more, then whoever failed longest ago.
        """
        self._failures += 1
        others = [url for url in self._urls if url != self._url]
        if isinstance(error, UpstreamChanged) and self._url != self.source and others:
            pass  # that mirror has something else; the first one may still have ours
        elif not isinstance(error, UpstreamError) or isinstance(error, UpstreamChanged):
            raise error
        delay = pause_after(error, self._failures, self._rooms.settings.retries)
        if self._failures > 1 or isinstance(error, UpstreamChanged):
            self._rooms.health.failed(self._url, self._loop.time())
            self._url = self._rooms.health.order(self._urls, self._loop.time())[0]
        log(events, WARNING, "fill.broken", key=self._target.key[:12], error=error, retry_in=delay, next=self._url)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                while not self._is_stopped:
                    await self._attention.wait()
                    self._attention.clear()
        self._check_stopped()
        self._last_error = None
        self._attention.set()

    def _check_stopped(self) -> None:
        if self._is_stopped:
            raise UpstreamError(f"fetching {self._target.url} was stopped; it goes on with the next request")

    # -- transfers ----------------------------------------------------------------------------------------------------

    def _start(self, transfer: Transfer) -> None:
        for other in self._running:
            if other.offset < transfer.offset and (other.stop is None or other.stop > transfer.offset):
                transfer.cut = other, other.stop
                other.stop = transfer.offset
        self._running.append(transfer)
        alone = len(self._running) == 1
        question = partial(
            open_rest,
            self._rooms.upstream,
            self._url,
            self.head,
            self.source,
            transfer,
            whole=alone and self._asks_whole,
            alone=alone,
            fields=self._fields,
        )
        tell = partial(self._loop.call_soon_threadsafe, self._arrived, transfer)
        done = self._loop.run_in_executor(self._rooms.threads, transfer.run, self.partial, question, tell)
        done.add_done_callback(lambda done: self._ended(transfer, done.exception()))

    def _arrived(self, transfer: Transfer) -> None:
        # The flag first: a write after this line tells again, one before it is seen below.
        transfer.is_told = False
        count = transfer.written - transfer.offset
        if not count:
            return
        extents = self.partial.extents
        before = extents.total
        extents.add(transfer.offset, transfer.offset + count)
        transfer.offset += count
        self.fetched += count
        self._rooms.stats.fetched_bytes += count
        if not transfer.is_flowing:
            transfer.is_flowing = True
            self._measure()
        if extents.total == before:
            return  # compared, not written
        self._failures = 0
        if self._is_short and transfer.is_turn_over:
            self._attention.set()
        if extents.total - self._checkpointed >= CHECKPOINT_BYTES:
            self._checkpoint()
        if self._told == 0 or extents.total - self._told >= WAKE_BYTES:
            self._tell()
        elif self._wake_timer is None:
            self._wake_timer = self._loop.call_later(WAKE_SECONDS, self._tell)

    def _ended(self, transfer: Transfer, error: BaseException | None) -> None:
        self._arrived(transfer)
        self._running.remove(transfer)
        if transfer.is_cancelled:
            pass  # whatever it ended with was our doing
        elif error is None:
            self.length = transfer.offset if self.length is None else self.length
        else:
            if transfer.cut and transfer.cut[0].stop == transfer.offset:
                # Nothing came: the other one does it after all.
                transfer.cut[0].stop = end_of(transfer.offset, self.partial.extents, self._running) or transfer.cut[1]
            # Whatever the reason, upstream likes one connection better; what runs goes on, and readers wait for it.
            self._may_jump = False
            self._asks_whole = self._asks_whole or isinstance(error, UpstreamRange)
            self._last_error = error
        self._tell()
        self._attention.set()

    # -- how many -----------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """Take the rate for a while, once all connections that may be there bring bytes, if there may be more."""
        if self._flowing() >= self._ramp.allowed < self._ramp.limit and not self._measuring:
            self._measuring = self._loop.call_later(MEASURE_SECONDS, self._judge, self._ramp.allowed, self.fetched)

    def _judge(self, connections: int, before: int) -> None:
        self._measuring = None
        if self._flowing() >= connections and self._may_jump:
            self._ramp.judge((self.fetched - before) / MEASURE_SECONDS)
            self._attention.set()

    def _flowing(self) -> int:
        return sum(transfer.is_flowing for transfer in self._running)

    # -- telling ------------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        if self._wake_timer:
            self._wake_timer.cancel()
            self._wake_timer = None
        if self.partial.extents.total != self._told:
            self._told = self.partial.extents.total
            self.partial.tell(self.partial.extents)
            if self._leader:
                self._leader.wake()
            self._grown()

    def _checkpoint(self) -> None:
        """Let what has come survive a power cut; one at a time, in a thread."""
        if self._saving and not self._saving.done():
            return
        self._checkpointed = self.partial.extents.total
        self._saving = self._loop.run_in_executor(self._rooms.threads, self.partial.save, self.record())
        self._saving.add_done_callback(self._saved_or_not)

    def _saved_or_not(self, saving: asyncio.Future[None]) -> None:
        if error := saving.exception():
            log(events, WARNING, "fill.not_saved", key=self._target.key[:12], error=error)


def _nothing() -> None: ...
