"""One upstream transfer into one file.

A Fill belongs to the cache, not to the client who caused it; clients only read. States only go forward:
ASKING → STREAMING → COMPLETE | FAILED, or ASKING → UNCHANGED | PASSED | FAILED. Nothing here knows HTTP to the client.
While a digest is expected, or may yet turn out to be, nobody gets the last byte.

The coordinator (`run`) lives on the event loop and owns every field. Transfers run in threads: they read a socket into
a buffer and write the buffer to the file, and tell the loop how far they are. A gap is a gap: the first bytes, a reader
far ahead, a broken transfer and a fill taken up after a restart are all "start a segment at the gap".
"""

import asyncio
import contextlib
import enum
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from logging import INFO, WARNING

from .asking import BACKOFF_SECONDS, Asking, Begun, NotModified, Passing, Rooms
from .errors import (
    DigestMismatch,
    OutOfSpace,
    ProxyError,
    StoreError,
    UpstreamChanged,
    UpstreamError,
    UpstreamRange,
)
from .following import Follower, Leader
from .log import events, log
from .partial import Partial, PartialRecord
from .passage import Passage
from .rules import vary
from .rules.entry import Entry, Head, Headers, field, refreshed
from .rules.mirrors import Target
from .rules.segments import BIG_BYTES, Ramp, plan, split
from .rules.validators import resume_validator
from .transfer import Transfer, open_rest
from .upstream import Exchange
from .verify import AskChecksums, Verifier

WAKE_BYTES = 4 * 1024**2
"""Readers are woken for this much at once: each wake costs every reader a call. 1 MiB made eight readers 8 % slower."""
WAKE_SECONDS = 0.005
"""... or after this long, so that a slow upstream's bytes do not lie about."""
CHECKPOINT_BYTES = 128 * 1024**2
"""So much is lost at most in a power cut; smaller ones sync too often. A killed process alone loses next to nothing."""
MEASURE_SECONDS = 0.1
"""Over this long a fill's rate is taken, once its new connections flow: short beside a big fill."""
BACKOFF_MAX = 10.0
"""Retries are BACKOFF_SECONDS apart, doubled for each one that brought no byte, up to this."""
RESUMABLE_BYTES = 4 * 1024**2
"""From here on a killed process's fill is taken up; less is fetched anew in no time, and costs no sync."""
RETRY_AFTER_MAX = 120.0
"""Seconds upstream may ask us to wait in the middle of a body, with clients waiting for the rest."""


class FillState(enum.Enum):
    ASKING = "asking"
    """Nothing is known yet."""
    STREAMING = "streaming"
    """`head` and `fd` may be used; bytes come."""
    COMPLETE = "complete"
    """Every byte is there; `entry` is what was stored (None if no client wanted that)."""
    PASSED = "passed"
    """There is an answer, and it is not kept: `passage` is for who began this, others need one of their own."""
    UNCHANGED = "unchanged"
    """Nothing was to be fetched: `entry` is what we have, confirmed by upstream."""
    FAILED = "failed"
    """`error` says why; bytes that came can still be read, but where there is no room for them."""


class Fill:
    def __init__(
        self,
        target: Target,
        stale: Entry | None,
        condition: Headers,
        rooms: Rooms,
        ask_checksums: AskChecksums,
        avoid: frozenset[str] = frozenset(),
    ) -> None:
        self.target = target
        self.urls = tuple(url for url in target.urls_for(condition) if url not in avoid) or target.urls_for(condition)
        """Where bytes may come from, in the order to try."""
        self.verifier = Verifier(target, ask_checksums, rooms.threads, self._publish)
        self.state = FillState.ASKING
        self.head: Head
        self.length: int | None = None
        """Bytes of the whole body, once known."""
        self.entry: Entry | None = None
        self.error: ProxyError | None = None
        self.is_wanted = True
        """Whether any client lets the body be stored (no-store forbids it)."""
        self.source = target.url
        """Where bytes come from, for people."""
        self.fetched = 0
        """Bytes this fill got from upstream; less than `received` where an earlier one had begun."""
        self.readers = 0
        self.started_at = self.answered_at = rooms.clock()
        self.passage: Passage | None = None
        self._stale, self._condition = stale, condition
        self._fields = vary.with_each(condition)
        self._ask_checksums = ask_checksums
        self._rooms = rooms
        self._loop = asyncio.get_running_loop()
        self._partial: Partial | None = None
        self._former: Partial | None = None
        self._running: list[Transfer] = []
        self._waiting: Counter[int] = Counter()
        self._changed = asyncio.Event()
        self._attention = asyncio.Event()
        self._follower: Follower | None = None
        """While another process fills."""
        self._leader: Leader | None = None
        """While others may follow this one."""
        self._woken_total = 0
        self._wake_timer: asyncio.TimerHandle | None = None
        self._ramp = Ramp(rooms.settings.connections)
        self._may_jump = False
        """Whether readers far ahead get connections of their own: upstream has ranges, and never failed us with one."""
        self._first_url = self._url = target.url
        """Which of the target's URLs gave the head, and which is asked now."""
        self._asks_whole = False
        """Whether ranges did not give what was asked for: then all of it is asked for, and compared."""
        self._failures = 0
        """Transfers that broke since the last byte."""
        self._last_error: BaseException | None = None
        self._saving: asyncio.Future[None] | None = None
        self._checkpointed = 0
        """Bytes that survive a power cut."""
        self.is_following = False
        """Whether another process began it: what came is its work."""
        self.is_stopped = False
        """Whether it is on its way to its end, and nobody may join."""

    # -- for readers --------------------------------------------------------------------------------------------------

    @property
    def partial(self) -> Partial:
        """The growing file, from STREAMING on."""
        assert self._partial
        return self._partial

    @property
    def fd(self) -> int:
        return self.partial.fd

    @property
    def received(self) -> int:
        """Bytes on disk."""
        return self._partial.extents.total if self._partial else 0

    @property
    def is_whole(self) -> bool:
        """Every byte is on disk, be it stored already or on its way there."""
        return self.length is not None and self.received == self.length

    @property
    def began_at(self) -> str:
        """The URL that gave the head."""
        return self._first_url

    @property
    def is_withheld(self) -> bool:
        """The body is not verified yet, or is the wrong one: its last byte is kept back."""
        return self.verifier.is_withheld

    @property
    def is_over(self) -> bool:
        return self.state not in (FillState.ASKING, FillState.STREAMING)

    @property
    def age(self) -> float:
        """Seconds since the origin made the answer (RFC 9111 §4.2.3)."""
        return self.head.age + max(0.0, self._rooms.clock() - self.answered_at)

    def readable(self, offset: int) -> int:
        """Offset up to which a reader standing at `offset` may read now."""
        reach = self.partial.extents.reach(offset)
        if not self.is_withheld:
            return reach
        end = reach if self.length is None else self.length
        return min(reach, max(offset, end - 1))

    async def wait_head(self) -> None:
        """Wait until upstream has answered; raises the fill's error if it FAILED without."""
        # Of an empty body the head says all: where one must be verified, that is what is kept back.
        while self.state is FillState.ASKING or (self.length == 0 and self.is_withheld and not self.error):
            await self._changed.wait()
        if (
            self.error
            and self.state is FillState.FAILED
            and (not self._partial or (self.length == 0 and self.is_withheld))
        ):
            raise self.error

    async def wait_readable(self, offset: int) -> int:
        """Wait until `readable(offset) > offset`, and return it; `offset` itself at the end of the body.

        Raises the fill's error if it FAILED first.
        """
        if (stop := self.readable(offset)) > offset:
            return stop
        self._waiting[offset] += 1
        try:
            if self._follower:
                self._follower.look()
            elif self._may_jump and not any(transfer.serves(offset) for transfer in self._running):
                self._attention.set()
            while (stop := self.readable(offset)) <= offset and (offset != self.length or self.is_withheld):
                if self.error:
                    raise self.error
                await self._changed.wait()
            return stop
        finally:
            self._waiting[offset] -= 1
            if not self._waiting[offset]:
                del self._waiting[offset]
            if self._follower:
                self._follower.look()

    async def wait_length(self) -> int:
        """Wait until the length of the body is known."""
        while self.length is None:
            if self.error:
                raise self.error
            await self._changed.wait()
        return self.length

    async def wait_verified(self) -> dict[str, str]:
        """Wait until the whole body may be read, and return its digests by algorithm; raises as wait_readable does."""
        while not (digests := self.verifier.digests) or self.is_withheld:
            if self.error:
                raise self.error
            await self._changed.wait()
        return digests

    def detour(self) -> Passage | None:
        """Another way to the bytes where there is no room for them here; None where upstream gives no parts."""
        if not isinstance(self.error, OutOfSpace) or self.length is None or not resume_validator(self.head.headers):
            return None
        return self._passage()

    async def wait_over(self) -> None:
        """Wait until the fill has ended, well or not."""
        while not self.is_over:
            await self._changed.wait()

    @contextlib.contextmanager
    def attach(self) -> Iterator[None]:
        """For as long as a client reads; the last one to leave may pause the fill (`on_abandon`)."""
        self.readers += 1
        try:
            yield
        finally:
            self.readers -= 1
            if self.passage and not self.readers:
                self.passage.close()
            if not self.readers and self._rooms.settings.on_abandon == "pause":
                self.stop()

    def stop(self) -> None:
        """End the fill where it is; what came is kept for the next one, if upstream lets us go on there."""
        self.is_stopped = True
        self._attention.set()
        if self._follower:
            self._follower.stop()
        for transfer in self._running:
            transfer.cancel()

    # -- the coordinator ----------------------------------------------------------------------------------------------

    def _found(self, record: PartialRecord, partial: Partial) -> None:
        """Another process is filling it: its file is read along."""
        self._partial = partial
        self.head, self.length = record.head, record.head.length
        self._first_url = record.source
        self.source, self.is_following = f"another process, from {record.source}", True
        # That process verifies, and what comes of it is seen in what it stores.
        self.verifier.expect(self.length)
        self.state = FillState.STREAMING
        self._publish()
        log(events, INFO, "fill.follows", key=self.target.key[:12], have=self.received)

    async def run(self) -> None:
        """From the question to the stored entry. Never raises but on a bug; the outcome is in `state`."""
        right: int | None = None
        try:
            self._follower = Follower(self._rooms.store, self.target.key, self._waiting, self._found, self._publish)
            right = await self._follower.wait_right()
            self._follower = None
            self._check_stopped()
            first = await self._ask()
            if self.state is FillState.STREAMING:
                await self._stream(first)
                await self._finish()
            self._rooms.stats.count_fill(self.state.value)
        except ProxyError as error:
            self._fail(error)
            await self._put_away()
        except asyncio.CancelledError:
            self._fail(UpstreamError(f"fetching {self.target.url} was stopped"))
            raise
        except BaseException as error:
            # A bug: no reader may be left waiting.
            self._fail(ProxyError(f"fetching {self.target.url} failed: internal error: {error!r}"))
            raise
        finally:
            if self._partial:
                self._rooms.janitor.release(self._partial)
            self.verifier.close()
            self._follower = None
            if self._leader:
                self._leader.close()
            if right is not None:
                os.close(right)

    async def _ask(self) -> Transfer | None:
        """Ask what is to be fetched: the first transfer, or None if nothing is."""
        entry = await self._rooms.store.lookup(self.target.key)
        if self.is_following and entry and entry.head.generation == self.head.generation:
            self.partial.extents.add(0, entry.size)
            await self.verifier.confirm(self.partial, entry, self.began_at)
            self.entry, self.state = entry, FillState.COMPLETE
            self._publish()
            return None
        if not self.is_following and entry and entry != self._stale:
            # Somebody else finished it between our client's look and our having the right to fill.
            self.entry, self.state = entry, FillState.UNCHANGED
            self._publish()
            return None
        if self.is_following and self.is_whole and not self.partial.path.exists():
            # It was not stored: its own client forbade it, or it is the wrong one.
            self.verifier.begin(self.partial, self.length)
            await self._verify()
            self.state = FillState.COMPLETE
            self._publish()
            return None
        asking = Asking(self.target, self.urls, self._stale, self._condition, self._rooms, self._pause)
        # Of a body that is followed the process is dead, or has given up; our readers want the rest of that very one.
        answer = await asking.ask(self.head if self.is_following else None)
        if isinstance(answer, NotModified):
            await self._unchanged(answer)
            return None
        if isinstance(answer, Passing):
            self._pass(answer)
            return None
        self._begin(answer)
        return answer.first

    def _begin(self, answer: Begun) -> None:
        # A send that is on its way holds the descriptor of what we followed, by its number.
        self._former, self._partial = self._partial, answer.partial
        self.head, self.length = answer.head, answer.head.length
        self._first_url, self._url, self.source = answer.source, answer.exchange.url, answer.exchange.final_url
        self._rooms.health.answered(answer.exchange.url)
        has_ranges = answer.exchange.status == 206 or field(answer.exchange.headers, "accept-ranges") == "bytes"
        is_told_apart = resume_validator(self.head.headers) is not None
        self._may_jump = has_ranges and self.length is not None and is_told_apart
        self.answered_at = self._rooms.clock()
        if self.length and self.length >= RESUMABLE_BYTES and is_told_apart:
            self._checkpoint()
        self.verifier.begin(self.partial, self.length)
        self.state = FillState.STREAMING
        self._publish()
        kind = "fill.resumed" if self.received else "fill.started"
        log(events, INFO, kind, key=self.target.key[:12], url=self._url, have=self.received, bytes=self.length)

    def _pass(self, answer: Passing) -> None:
        self.head, self.length = answer.head, answer.head.length
        self.source, self._first_url = answer.exchange.final_url, answer.exchange.url
        forbidden = f"{self._first_url} is not to be kept: its Cache-Control or Vary forbids it"
        self.error = answer.error or UpstreamError(forbidden)
        self.answered_at = self._rooms.clock()
        self.passage = self._passage(answer.exchange)
        if not self.readers:
            self.passage.close()
        self.state = FillState.PASSED
        self._publish()
        level = WARNING if answer.error else INFO
        log(events, level, "fill.not_kept", key=self.target.key[:12], reason=self.error)

    def _passage(self, exchange: Exchange | None = None) -> Passage:
        known = self.head, self._first_url, self._fields
        return Passage(self.target, self._rooms, self._ask_checksums, *known, exchange)

    async def _unchanged(self, answer: NotModified) -> None:
        assert self._stale
        self.entry = await self._rooms.store.refresh(refreshed(self._stale, answer.head, self._rooms.clock()))
        self.state = FillState.UNCHANGED
        self._publish()
        log(events, INFO, "fill.unchanged", key=self.target.key[:12], url=answer.url)

    async def _stream(self, first: Transfer | None) -> None:
        """Run transfers until no gap is left. Raises the last error once retrying is of no use."""
        if first:
            self._start(first)
        if self._saving:  # it is told of: others may find it
            self._leader = await Leader.listen(self.partial, self._attention.set)
        if self._may_jump and self.length is not None and self.length >= BIG_BYTES:
            self._loop.call_later(MEASURE_SECONDS, self._measure, self.fetched)
        while not self.is_whole:
            self._check_stopped()
            if not self._running and self._last_error:
                await self._back_off(self._last_error)
            if self.length is not None and (self._may_jump or not self._running):
                waiting = {*self._waiting, *(self._leader.waiting if self._leader else ())} if self._may_jump else ()
                todo = plan(self.partial.extents, self.length, self._running, waiting, self._rooms.settings.connections)
                for transfer in todo.cancel:
                    assert isinstance(transfer, Transfer)
                    transfer.cancel()
                for offset, stop in todo.start:
                    self._start(Transfer(offset, stop, written=offset))
                while self._may_jump and (part := split(self._running, self._ramp.allowed)):
                    self._start(Transfer(*part, written=part[0]))
            elif not self._running:
                self._start(Transfer(0, None))
            await self._attention.wait()
            self._attention.clear()

    def _measure(self, before: int) -> None:
        """Every MEASURE_SECONDS: judge whether the connections we have are worth it, and whether more would be."""
        if self.is_over or self.is_whole or not self._may_jump:
            return
        flowing = sum(transfer.is_flowing for transfer in self._running)
        self._ramp.judge((self.fetched - before) / MEASURE_SECONDS, flowing)
        self._attention.set()
        self._loop.call_later(MEASURE_SECONDS, self._measure, self.fetched)

    async def _back_off(self, error: BaseException) -> None:
        """Wait before the next try, or raise `error` if there is none.

        The mirror that broke is asked once more, then whoever failed longest ago.
        """
        self._failures += 1
        others = [url for url in self.urls if url != self._url]
        if isinstance(error, UpstreamChanged) and self._url != self._first_url and others:
            pass  # that mirror has something else; the first one may still have ours
        elif not isinstance(error, UpstreamError) or isinstance(error, UpstreamChanged):
            raise error
        if self._failures > self._rooms.settings.retries:
            raise error
        if self._failures > 1 or isinstance(error, UpstreamChanged):
            self._rooms.health.failed(self._url, self._loop.time())
            self._url = self._rooms.health.order(self.urls, self._loop.time())[0]
        delay = max(min(BACKOFF_MAX, BACKOFF_SECONDS * 2 ** (self._failures - 1)), error.retry_after or 0.0)
        if delay > RETRY_AFTER_MAX:
            raise error
        log(events, WARNING, "fill.broken", key=self.target.key[:12], error=error, retry_in=delay, next=self._url)
        await self._pause(delay)
        self._last_error = None
        self._attention.set()

    async def _pause(self, seconds: float) -> None:
        """Wait; raises UpstreamError once the fill is stopped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.is_stopped:
                    await self._attention.wait()
                    self._attention.clear()
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self.is_stopped:
            raise UpstreamError(f"fetching {self.target.url} was stopped; it goes on with the next request")

    async def _finish(self) -> None:
        """Every byte is there: verify and store."""
        assert self.length is not None
        await self._end_transfers()
        verified = await self._verify()
        digest = self.verifier.digests["sha256"]
        if not self.is_wanted:
            await self._rooms.store.discard(self.partial)
        else:
            self.head = replace(self.head, length=self.length)
            entry = Entry(
                key=self.target.key,
                url=self.target.url,
                mirror=self.target.mirror.name,
                head=self.head,
                digest=digest,
                stored_at=self._rooms.clock(),
                validated_at=self.answered_at,
                pinned=bool(self._stale and self._stale.pinned),
                sha512=self.verifier.digests.get("sha512"),
                verified=verified,
            )
            self.entry = await self._rooms.janitor.commit(self.partial, entry)
        self.state = FillState.COMPLETE
        self._publish()
        seconds = round(self._rooms.clock() - self.started_at, 3)
        log(events, INFO, "fill.complete", key=self.target.key[:12], bytes=self.length, s=seconds, sha256=digest)

    async def _verify(self) -> str | None:
        assert self.length is not None
        others = [url for url in self.urls if url != self.began_at]
        return await self.verifier.verify(self.length, self.began_at, others)

    def _fail(self, error: ProxyError) -> None:
        self.error = error
        self.state = FillState.FAILED
        self._publish()
        self._rooms.stats.count_fill("failed")
        log(events, INFO if self.is_stopped else WARNING, "fill.failed", key=self.target.key[:12], error=error)

    async def _put_away(self) -> None:
        """Of a fill that failed, keep what the next one can go on with; nothing where space is what was missing."""
        await self._end_transfers()
        if not self._partial or not self._partial.is_ours:
            return
        keep = self.is_wanted and not isinstance(self.error, OutOfSpace)
        try:
            is_same = not isinstance(self.error, (UpstreamChanged, DigestMismatch))
            may_go_on = self.length is not None and self.received and resume_validator(self.head.headers)
            if keep and is_same and may_go_on:
                await self._rooms.store.save(self._partial, self._record())
            else:
                is_short = isinstance(self.error, OutOfSpace) and not self.is_whole
                await self._rooms.store.discard(self._partial, at_once=is_short)
        except StoreError as error:
            log(events, WARNING, "fill.not_saved", key=self.target.key[:12], error=error)

    # -- transfers ----------------------------------------------------------------------------------------------------

    def _start(self, transfer: Transfer) -> None:
        for other in self._running:
            if other.offset < transfer.offset and (other.stop is None or other.stop > transfer.offset):
                transfer.cut = other, other.stop
                other.stop = transfer.offset
        self._running.append(transfer)
        alone = len(self._running) == 1
        known = self.head, self._first_url, transfer
        question = partial(
            open_rest,
            self._rooms.upstream,
            self._url,
            *known,
            whole=alone and self._asks_whole,
            alone=alone,
            fields=self._fields,
        )
        tell = partial(self._loop.call_soon_threadsafe, self._arrived, transfer)
        done = self._loop.run_in_executor(self._rooms.threads, transfer.run, self.partial, question, tell)
        done.add_done_callback(lambda done: self._ended(transfer, done.exception()))

    def _checkpoint(self) -> None:
        """Let what has come survive a power cut; one at a time, in a thread."""
        if self._saving and not self._saving.done():
            return
        self._checkpointed = self.received
        self._saving = self._loop.run_in_executor(self._rooms.threads, self.partial.save, self._record())
        self._saving.add_done_callback(self._saved_or_not)

    def _saved_or_not(self, saving: asyncio.Future[None]) -> None:
        if error := saving.exception():
            log(events, WARNING, "fill.not_saved", key=self.target.key[:12], error=error)

    def _record(self) -> PartialRecord:
        return PartialRecord(
            key=self.target.key,
            url=self.target.url,
            mirror=self.target.mirror.name,
            source=self._first_url,
            head=self.head,
            extents=list(self.partial.extents),
        )

    async def _end_transfers(self) -> None:
        """Stop what still runs, and wait until no thread writes any more."""
        if self._saving:
            await asyncio.wait([self._saving])
        for transfer in self._running:
            transfer.cancel()
        while self._running:
            self._attention.clear()
            await self._attention.wait()

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
        transfer.is_flowing = True
        self.fetched += count
        self._rooms.stats.fetched_bytes += count
        if extents.total == before:
            return  # compared, not written
        self._failures = 0
        if not self.is_stopped:
            self.verifier.follow(extents.reach(0))
        if extents.total - self._checkpointed >= CHECKPOINT_BYTES:
            self._checkpoint()
        if self._woken_total == 0 or extents.total - self._woken_total >= WAKE_BYTES:
            self._publish()
        elif self._wake_timer is None:
            self._wake_timer = self._loop.call_later(WAKE_SECONDS, self._publish)

    def _ended(self, transfer: Transfer, error: BaseException | None) -> None:
        self._arrived(transfer)
        self._running.remove(transfer)
        if transfer.is_cancelled:
            pass  # whatever it ended with was our doing
        elif error is None:
            self.length = transfer.offset if self.length is None else self.length
        else:
            if transfer.cut and transfer.cut[0].stop == transfer.offset:
                transfer.cut[0].stop = transfer.cut[1]  # nothing came: the other one does it after all
            # Whatever the reason, upstream likes one connection better; what runs goes on, and readers wait for it.
            self._may_jump = False
            self._asks_whole = self._asks_whole or isinstance(error, UpstreamRange)
            self._last_error = error
        self._publish()
        self._attention.set()

    # -- waking -------------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        if self._wake_timer:
            self._wake_timer.cancel()
            self._wake_timer = None
        if self._partial and self._partial.is_ours and self.received != self._woken_total:
            self._partial.tell(self._partial.extents)
            if self._leader:
                self._leader.wake()
        self._woken_total = self.received
        # A fresh Event each time: waiters need no lock, late waiters cannot miss a step.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
