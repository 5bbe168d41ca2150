"""One upstream transfer into one file.

A Fill belongs to the cache, not to the client who caused it; clients only read. States only go forward:
ASKING → STREAMING → COMPLETE | FAILED, or ASKING → UNCHANGED | PASSED | FAILED. Nothing here knows HTTP to the client.
While a digest is expected, or may yet turn out to be, nobody gets the last byte.

`run` goes the way: follow another process, ask, bring the bytes in (ingest.py), verify, store.
"""

import asyncio
import contextlib
import enum
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from logging import INFO, WARNING

from ..errors import DigestMismatch, OutOfSpace, ProxyError, StoreError, UpstreamChanged, UpstreamError
from ..log import events, log
from ..rules import vary
from ..rules.entry import Entry, Head, Headers, refreshed
from ..rules.mirrors import Target
from ..rules.validators import resume_validator
from ..store.partial import Partial, PartialRecord
from ..upstream.client import Exchange
from .ingest import Ingest
from .origin import Asking, Begun, NotModified, Passing, Rooms
from .passthrough import Passage
from .sharing import Follower
from .verify import AskChecksums, Verifier


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
        self.verifier = Verifier(target, ask_checksums, rooms.threads, self._publish, rooms.settings.checksum_timeout)
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
        self.readers = 0
        self.started_at = self.answered_at = rooms.clock()
        self.passage: Passage | None = None
        self._stale, self._condition = stale, condition
        self._ask_checksums = ask_checksums
        self._rooms = rooms
        self._partial: Partial | None = None
        self._former: Partial | None = None
        self._waiting: Counter[int] = Counter()
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._follower: Follower | None = None
        """While another process fills."""
        self._ingest: Ingest | None = None
        """From STREAMING on, where this one does."""
        self.began_at = target.url
        """The URL that gave the head."""
        self.is_following = False
        """Whether another process began it: what came is its work."""

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
    def fetched(self) -> int:
        """Bytes this fill got from upstream; less than `received` where an earlier one had begun."""
        return self._ingest.fetched if self._ingest else 0

    @property
    def is_withheld(self) -> bool:
        """The body is not verified yet, or is the wrong one: its last byte is kept back."""
        return self.verifier.is_withheld

    @property
    def is_over(self) -> bool:
        return self.state not in (FillState.ASKING, FillState.STREAMING)

    @property
    def is_stopped(self) -> bool:
        """Whether it is on its way to its end, and nobody may join."""
        return self._stopping.is_set()

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
            elif self._ingest:
                self._ingest.look(offset)
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
        self._stopping.set()
        if self._follower:
            self._follower.stop()
        if self._ingest:
            self._ingest.stop()

    # -- the coordinator ----------------------------------------------------------------------------------------------

    def _found(self, record: PartialRecord, partial: Partial) -> None:
        """Another process is filling it: its file is read along."""
        self._partial = partial
        self.head, self.length = record.head, record.head.length
        self.began_at = record.source
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
            if answer := await self._ask():
                await self._bring_in(answer)
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
            if self._ingest:
                self._ingest.close()
            if right is not None:
                os.close(right)

    async def _ask(self) -> Begun | None:
        """Ask what is to be fetched; None if nothing is."""
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
        return answer

    async def _bring_in(self, answer: Begun) -> None:
        # A send that is on its way holds the descriptor of what we followed, by its number.
        self._former, self._partial = self._partial, answer.partial
        self.head, self.length = answer.head, answer.head.length
        self.began_at, self.source = answer.source, answer.exchange.final_url
        self._rooms.health.answered(answer.exchange.url)
        self.answered_at = self._rooms.clock()
        self._ingest = Ingest(
            self.target, self.urls, self._condition, answer, self._rooms, self._waiting.keys(), self._grown
        )
        self.verifier.begin(self.partial, self.length)
        self.state = FillState.STREAMING
        self._publish()
        log(
            events,
            INFO,
            "fill.resumed" if self.received else "fill.started",
            key=self.target.key[:12],
            url=answer.exchange.url,
            have=self.received,
            bytes=self.length,
        )
        await self._ingest.run()
        self.length = self._ingest.length
        self._publish()

    def _grown(self) -> None:
        if not self.is_stopped:
            self.verifier.follow(self.partial.extents.reach(0))
        self._publish()

    def _pass(self, answer: Passing) -> None:
        self.head, self.length = answer.head, answer.head.length
        self.source, self.began_at = answer.exchange.final_url, answer.exchange.url
        forbidden = f"{self.began_at} is not to be kept: its Cache-Control or Vary forbids it"
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
        known = self.head, self.began_at, vary.with_each(self._condition)
        return Passage(self.target, self._rooms, self._ask_checksums, *known, exchange)

    async def _unchanged(self, answer: NotModified) -> None:
        assert self._stale
        self.entry = await self._rooms.store.refresh(refreshed(self._stale, answer.head, self._rooms.clock()))
        self.state = FillState.UNCHANGED
        self._publish()
        log(events, INFO, "fill.unchanged", key=self.target.key[:12], url=answer.url)

    async def _pause(self, seconds: float) -> None:
        """Wait; raises UpstreamError once the fill is stopped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self.is_stopped:
            raise UpstreamError(f"fetching {self.target.url} was stopped; it goes on with the next request")

    async def _finish(self) -> None:
        """Every byte is there: verify and store."""
        assert self.length is not None
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
        if not self._partial or not self._ingest:
            return
        keep = self.is_wanted and not isinstance(self.error, OutOfSpace)
        try:
            is_same = not isinstance(self.error, (UpstreamChanged, DigestMismatch))
            may_go_on = self.length is not None and self.received and resume_validator(self.head.headers)
            if keep and is_same and may_go_on:
                await self._rooms.store.save(self._partial, self._ingest.record())
            else:
                is_short = isinstance(self.error, OutOfSpace) and not self.is_whole
                await self._rooms.store.discard(self._partial, at_once=is_short)
        except StoreError as error:
            log(events, WARNING, "fill.not_saved", key=self.target.key[:12], error=error)

    def _publish(self) -> None:
        # A fresh Event each time: waiters need no lock, late waiters cannot miss a step.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
