"""One object on its way into the cache.

A Fill belongs to the cache, not to the client who caused it; clients only read. Nothing here knows HTTP to the client.

`run` goes the way: wait for the lock and read along with the process that has it, ask the origin, bring the bytes in
(ingest.py), verify, store.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from logging import INFO, WARNING
from typing import Any, TypeVar

from ..errors import DigestMismatch, OutOfSpace, ProxyError, StoreError, UpstreamChanged, UpstreamError
from ..log import events, log
from ..rules import vary
from ..rules.entry import Entry, Head, Headers, refreshed
from ..rules.freshness import is_storable
from ..rules.mirrors import Target
from ..rules.splice import Held, Known
from ..store.locks import Lock
from ..store.partial import Partial
from .asking import Another, Answer, Rest, Unchanged, Whole
from .context import FillContext
from .growing import Growing
from .ingest import Ingest
from .origin import Origin
from .passthrough import Passthrough
from .sharing import Follower
from .states import Asking, Complete, Confirmed, Failed, Incoming, Passed, State, Streaming
from .verify import AskChecksums, Verifier

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """What the client that begins a fill has us ask upstream."""

    fields: Headers
    stale: Entry | None = None
    """What is stored, and confirmed by a 304."""
    keep: bool = True
    """Whether this client lets the body be stored; no-store forbids it."""


class Fill:
    def __init__(
        self,
        target: Target,
        question: Question,
        context: FillContext,
        ask_checksums: AskChecksums,
        avoid: frozenset[str] = frozenset(),
    ) -> None:
        """`avoid`: upstream URLs to pass over as long as there are others."""
        self.target, self.question = target, question
        self.state: State = Asking()
        self.readers = 0
        self.started_at = context.clock()
        self.is_stopped = False
        """Whether it is on its way to its end, and nobody may join."""
        self.is_wanted = question.keep
        """Whether any client lets the body be stored."""
        self._context, self._ask_checksums = context, ask_checksums
        self._origin = Origin(target, question.fields, context, stale=question.stale, avoid=avoid)
        self._passthrough: Passthrough | None = None
        """In Passed, for the client that began this, until it takes it."""
        self._ingest: Ingest | None = None
        """From Streaming on, where this process fetches."""
        self._work: asyncio.Task[object] | None = None
        """What `stop` breaks off."""
        self._has_ended = False
        self._changed = asyncio.Event()

    # -- for readers --------------------------------------------------------------------------------------------------

    @property
    def incoming(self) -> Incoming | None:
        """The body, from Streaming on."""
        match self.state:
            case Streaming(incoming) | Complete(incoming, _) | Failed(_, incoming):
                return incoming
        return None

    @property
    def head(self) -> Head | None:
        """None until upstream has answered."""
        match self.state:
            case Confirmed(entry):
                return entry.head
            case Passed(known):
                return known.head
        return self.incoming.head if self.incoming else None

    @property
    def entry(self) -> Entry | None:
        """What it has stored, or what was confirmed."""
        return self.state.entry if isinstance(self.state, (Complete, Confirmed)) else None

    @property
    def error(self) -> ProxyError | None:
        return self.state.error if isinstance(self.state, (Failed, Passed)) else None

    @property
    def is_over(self) -> bool:
        return not isinstance(self.state, (Asking, Streaming))

    @property
    def is_whole(self) -> bool:
        """Every byte is on disk, stored already or about to be."""
        return self.incoming is not None and self.incoming.growing.is_whole

    @property
    def fetched(self) -> int:
        """Bytes this fill got from upstream; less than it has where an earlier one had begun."""
        return self._ingest.fetched if self._ingest else 0

    @property
    def length(self) -> int | None:
        """Bytes of the whole body, once known."""
        return self.incoming.growing.length if self.incoming else self.head.length if self.head else None

    @property
    def received(self) -> int:
        """Bytes on disk."""
        return self.incoming.growing.received if self.incoming else 0

    @property
    def source(self) -> str:
        """Where the bytes come from, for people."""
        return self.incoming.source if self.incoming else self.target.url

    @property
    def is_following(self) -> bool:
        """Another process fetches, and this one reads along."""
        return self.incoming is not None and self.incoming.is_followed

    @property
    def answered_at(self) -> float:
        """Unix time of upstream's answer; of the fill's beginning until then."""
        if isinstance(self.state, Passed):
            return self.state.answered_at
        return self.incoming.answered_at if self.incoming else self.started_at

    @property
    def age(self) -> float:
        """Seconds since the origin made the answer (RFC 9111 §4.2.3)."""
        return (self.head.age if self.head else 0.0) + max(0.0, self._context.clock() - self.answered_at)

    def want(self) -> None:
        """A client came that lets the body be stored."""
        self.is_wanted = True

    async def wait_head(self) -> None:
        """Wait until upstream has answered; raises the fill's error if it failed without."""
        while isinstance(self.state, Asking) or (isinstance(self.state, Streaming) and self.state.incoming.is_hidden):
            await self._changed.wait()
        if isinstance(self.state, Failed) and (self.state.incoming is None or self.state.incoming.is_hidden):
            raise self.state.error

    async def wait_over(self) -> None:
        """Wait until the fill has ended, well or not."""
        while not self.is_over:
            await self._changed.wait()

    @contextlib.contextmanager
    def attach(self) -> Iterator[None]:
        """While a client reads: the files stay open. The last one to leave may pause the fill (`on_abandon`)."""
        self.readers += 1
        try:
            yield
        finally:
            self.readers -= 1
            if not self.readers and self._context.settings.on_abandon == "pause":
                self.stop()
            self._close_unused()

    def take_passthrough(self) -> Passthrough | None:
        """In Passed: the transfer for the client that began this, once. It closes it."""
        passthrough, self._passthrough = self._passthrough, None
        return passthrough

    def bypass(self) -> Passthrough | None:
        """Another way to the bytes where they cannot be stored here; None where upstream gives no parts."""
        if not isinstance(self.error, StoreError):
            return None
        match self.state:
            case Passed(known):
                pass
            case Failed(_, Incoming(head, url)):
                known = Known(head, url, Held.PASSED)
            case _:
                return None
        return self._pass(known) if known.can_resume else None

    def stop(self) -> None:
        """End the fill where it is; what came is kept for the next one, if upstream lets us go on there."""
        self.is_stopped = True
        if self._work:
            self._work.cancel()

    # -- the coordinator ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From the question to the stored entry. Never raises but on a bug; the outcome is in `state`."""
        lock: Lock | None = None
        try:
            lock = await self._stoppable(self._wait_lock())
            if not await self._is_settled():
                await self._bring()
            self._context.stats.count_fill(self.state.name)
        except ProxyError as error:
            self._fail(error)
            await self._put_away(error)
        except asyncio.CancelledError:
            self._fail(UpstreamError(f"fetching {self.target.url} was stopped"))
            raise
        except BaseException as error:
            # A bug: no reader may be left waiting.
            self._fail(ProxyError(f"fetching {self.target.url} failed: internal error: {error!r}"))
            raise
        finally:
            incoming = self.incoming
            if incoming:
                await incoming.verifier.close()
            # In one turn of the loop: followers find the last page, and the lock free.
            if self._ingest:
                self._ingest.close()
            if incoming:
                self._context.janitor.release(incoming.growing.partial)
            if lock:
                lock.close()
            self._has_ended = True
            self._close_unused()

    async def _wait_lock(self) -> Lock:
        """Wait for the lock of the key; meanwhile read along with the process that has it."""
        follower = Follower(self._context.store, self.target.key)
        found = await follower.find()
        if isinstance(found, Lock):
            return found
        record, partial = found
        growing = Growing(partial, record.head.length)
        # That process verifies, and what comes of it is seen in what it stores.
        self._to(Streaming(self._received(record.head, record.source, growing, is_followed=True)))
        log(events, INFO, "fill.follows", key=self.target.key[:12], have=growing.received)
        return await follower.follow(growing)

    async def _is_settled(self) -> bool:
        """Whether another process has done already what this fill is for."""
        entry = await self._context.store.lookup(self.target.key)
        if not (incoming := self.incoming):
            if entry is None or entry == self.question.stale:
                return False
            # It was finished between our client's look and our having the lock.
            self._to(Confirmed(entry))
            return True
        growing = incoming.growing
        if entry and entry.head.generation == incoming.head.generation:
            growing.add(0, entry.size)
            await incoming.verifier.confirm(entry, incoming.url)
            self._to(Complete(incoming, entry))
            return True
        if growing.is_whole and not growing.partial.path.exists():
            # It was not stored: its own client forbade it, or it is the wrong one.
            incoming.verifier.begin()
            await self._verify(incoming)
            self._to(Complete(incoming, None))
            return True
        return False

    async def _bring(self) -> None:
        """Ask upstream, and do what the answer says."""
        answer: Answer | None = None
        if saved := await self._load_saved():
            known, partial = saved
            with contextlib.ExitStack() as stack:
                stack.callback(partial.close)
                gaps = partial.extents.gaps(known.head.length or 0)
                answer = await self._stoppable(self._origin.open(gaps[0] if gaps else None, known))
                if isinstance(answer, (Rest, Unchanged)) and await self._has_room(known, partial, answer):
                    stack.pop_all()
                    await self._go_on(known, partial, answer)
                    return
                await self._context.store.discard(partial)
            answer = answer.whole if isinstance(answer, Another) else None
        if answer is None:
            answer = await self._stoppable(self._origin.open(None, None))
        match answer:
            case Whole():
                await self._begin(answer)
            case Unchanged(url, head):
                assert self.question.stale
                entry = refreshed(self.question.stale, head, self._context.clock())
                self._to(Confirmed(await self._context.store.refresh(entry)))
                log(events, INFO, "fill.unchanged", key=self.target.key[:12], url=url)

    async def _load_saved(self) -> tuple[Known, Partial] | None:
        """What an earlier fill left, if upstream can tell whether it is still the same. Close the partial.

        Raises UpstreamError where it is not the body that was followed: readers want the rest of exactly that one.
        """
        followed = self.incoming
        saved = await self._context.store.resume(self.target.key)
        if saved:
            record, partial = saved
            known = Known(record.head, record.source, Held.READ if followed else Held.SAVED)
            if known.can_resume and (not followed or record.head.generation == followed.head.generation):
                if followed:
                    have = partial.extents.total
                    log(events, INFO, "fill.taken_over", key=self.target.key[:12], have=have)
                return known, partial
            if not followed:
                await self._context.store.discard(partial)
            partial.close()
        if followed:
            raise UpstreamError(f"the process that fetched {self.target.url} gave up. ask again")
        return None

    async def _has_room(self, known: Known, partial: Partial, answer: Rest | Unchanged) -> bool:
        """Whether there is room for the rest. If not, what is there goes: its own bytes may be what is missing."""
        try:
            await self._context.janitor.take_up(partial, self.target.url, known.head.length or 0)
        except BaseException as error:
            if isinstance(answer, Rest):
                answer.exchange.drop()
            if isinstance(error, StoreError) and known.held is Held.SAVED:
                return False
            raise
        return True

    async def _go_on(self, known: Known, partial: Partial, answer: Rest | Unchanged) -> None:
        """Fetch what is missing of a body that was begun by a process that is gone."""
        rest = answer if isinstance(answer, Rest) else None
        source = rest.exchange.final_url if rest else known.url
        if followed := self.incoming:
            followed.growing.go_on_in(partial)
            incoming = replace(followed, source=source, is_followed=False)
        else:
            growing = Growing(partial, known.head.length)
            incoming = replace(self._received(known.head, known.url, growing), source=source)
        await self._stream(known, incoming, rest)

    async def _begin(self, whole: Whole) -> None:
        """Fetch a new body; or pass it through, if it may not be kept or there is no room for it."""
        try:
            if not is_storable(whole.head, self.question.fields):
                why = f"{whole.url} is not to be kept: its Cache-Control or Vary forbids it"
                self._pass_on(whole, UpstreamError(why))
                return
            partial = await self._context.janitor.create(self.target.key, self.target.url, whole.head)
        except StoreError as error:
            self._pass_on(whole, error)
            return
        except BaseException:
            whole.exchange.drop()
            raise
        growing = Growing(partial, whole.head.length)
        incoming = self._received(whole.head, whole.url, growing)
        incoming = replace(incoming, source=whole.exchange.final_url)
        known = Known(whole.head, whole.url, Held.READ)
        await self._stream(known, incoming, Rest(whole.exchange, 0, compare=False))

    async def _stream(self, known: Known, incoming: Incoming, rest: Rest | None) -> None:
        """From the first byte that is missing to the stored entry."""
        growing, key = incoming.growing, self.target.key[:12]
        self._ingest = Ingest(self.target, self._origin, known, growing, self._context)
        incoming.verifier.begin()
        self._to(Streaming(incoming))
        what = "fill.resumed" if growing.received else "fill.started"
        log(events, INFO, what, key=key, url=incoming.url, have=growing.received, bytes=growing.length)
        try:
            await self._stoppable(self._ingest.run(rest))
        finally:
            if rest:
                rest.exchange.drop()  # nothing runs any more; where it never began this ends it
        verified = await self._verify(incoming)
        digests = incoming.verifier.digests
        entry = None
        if self.is_wanted:
            entry = await self._context.janitor.commit(growing.partial, self._entry(incoming, verified))
        else:
            await self._context.store.discard(growing.partial)
        self._to(Complete(incoming, entry))
        seconds = round(self._context.clock() - self.started_at, 3)
        log(events, INFO, "fill.complete", key=key, bytes=growing.length, s=seconds, sha256=digests["sha256"])

    async def _verify(self, incoming: Incoming) -> str | None:
        others = [url for url in self._origin.urls if url != incoming.url]
        return await incoming.verifier.verify(await incoming.growing.wait_length(), incoming.url, others)

    def _entry(self, incoming: Incoming, verified: str | None) -> Entry:
        stale, digests = self.question.stale, incoming.verifier.digests
        return Entry(
            key=self.target.key,
            url=self.target.url,
            mirror=self.target.mirror.name,
            head=replace(incoming.head, length=incoming.growing.length),
            sha256=digests["sha256"],
            stored_at=self._context.clock(),
            validated_at=incoming.answered_at,
            pinned=bool(stale and stale.pinned),
            sha512=digests.get("sha512"),
            verified=verified,
        )

    def _received(self, head: Head, url: str, growing: Growing, *, is_followed: bool = False) -> Incoming:
        source = f"another process, from {url}" if is_followed else url
        verifier = Verifier(self.target, growing, self._ask_checksums, self._context.threads)
        return Incoming(head, url, source, self._context.clock(), growing, verifier, is_followed)

    def _pass_on(self, whole: Whole, error: ProxyError) -> None:
        known = Known(whole.head, whole.url, Held.PASSED)
        self._passthrough = self._pass(known)
        self._passthrough.begin(whole.exchange)
        self._to(Passed(known, self._context.clock(), error))
        self._close_unused()
        level = WARNING if isinstance(error, StoreError) else INFO
        log(events, level, "fill.not_kept", key=self.target.key[:12], reason=error)

    def _pass(self, known: Known) -> Passthrough:
        origin = Origin(self.target, vary.with_each(self.question.fields), self._context)
        return Passthrough(self.target, origin, known, self._context, self._ask_checksums)

    def _fail(self, error: ProxyError) -> None:
        incoming = self.incoming
        self._to(Failed(error, incoming))
        if incoming:
            incoming.growing.fail(error)
        self._context.stats.count_fill("failed")
        log(events, INFO if self.is_stopped else WARNING, "fill.failed", key=self.target.key[:12], error=error)

    async def _put_away(self, error: ProxyError) -> None:
        """Of a fill that failed, keep what the next one can go on with; nothing where space is what was missing."""
        incoming = self.incoming
        if not incoming or not self._ingest:
            return
        growing, store = incoming.growing, self._context.store
        try:
            may_go_on = Known(incoming.head, incoming.url, Held.SAVED).can_resume and growing.received
            if self.is_wanted and may_go_on and not isinstance(error, (UpstreamChanged, DigestMismatch, OutOfSpace)):
                await store.save(growing.partial, self._ingest.record())
                return
            is_short = isinstance(error, OutOfSpace) and not growing.is_whole
            if is_short:
                growing.lose()
            await store.discard(growing.partial, at_once=is_short)
        except StoreError as trouble:
            log(events, WARNING, "fill.not_saved", key=self.target.key[:12], error=trouble)

    def _close_unused(self) -> None:
        """Close what only readers still had a use for."""
        if self.readers:
            return
        if passthrough := self.take_passthrough():
            passthrough.close()
        if self._has_ended and self.incoming:
            self.incoming.growing.close()

    async def _stoppable(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which `stop` cancels. Raises UpstreamError then."""
        stopped = UpstreamError(f"fetching {self.target.url} was stopped; it goes on with the next request")
        if self.is_stopped:
            work.close()
            raise stopped
        task = self._work = asyncio.create_task(work)
        try:
            return await task
        except asyncio.CancelledError:
            if self.is_stopped and task.cancelled() and not _is_cancelled():
                raise stopped from None
            raise
        finally:
            self._work = None

    def _to(self, state: State) -> None:
        self.state = state
        # A fresh Event each time: waiters need no lock, late waiters cannot miss a step.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
