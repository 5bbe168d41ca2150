"""What brings a fill forward, from the question to the stored entry.

It waits for the lock of the key and reads along with the process that has it, asks the origin, brings the bytes in
(ingest.py), verifies and stores them.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from logging import INFO, WARNING

from ..errors import DigestMismatch, OutOfSpace, ProxyError, StoreError, UpstreamChanged, UpstreamError
from ..log import events, log
from ..rules import vary
from ..rules.bucket import digest_in
from ..rules.digests import Digest
from ..rules.entry import Entry, Head, refreshed
from ..rules.freshness import is_storable
from ..rules.splice import Held, Known
from ..stats import Failure, mirror_label
from ..store.locks import Lock
from ..store.partial import Partial, PartialRecord
from .asking import Another, Answer, Rest, Unchanged, Whole
from .context import FillContext
from .fill import Fill
from .growing import Growing
from .ingest import Ingest
from .origin import Origin
from .sharing import Follower
from .states import Arrived, Complete, Confirmed, Failed, Incoming, Passed, Small, Streaming
from .transfer import read_equal
from .verify import AskChecksums, Verifier, has_checksums

Saved = tuple[PartialRecord, Partial]
"""What an earlier fill left of a body."""


class Coordinator:
    """Of one fill: `run` it once."""

    def __init__(self, fill: Fill, origin: Origin, context: FillContext, ask_checksums: AskChecksums) -> None:
        self._fill, self._origin, self._context, self._ask_checksums = fill, origin, context, ask_checksums
        self._target, self._question = fill.target, fill.question

    async def run(self) -> None:
        """From the question to the stored entry. Never raises but on a bug; the outcome is in `state`."""
        lock: Lock | None = None
        try:
            if self._fill.is_stopped or not (lock := self._context.store.try_lock(self._target.key)):
                lock = await self._fill.stoppable(self._wait_lock())
            entry, saved = await self._context.store.look(self._target.key)
            with contextlib.ExitStack() as stack:
                if saved:
                    stack.callback(saved[1].close)
                if not await self._is_settled(entry):
                    stack.pop_all()
                    await self._bring(saved)
            self._count(self._fill.state.name)
        except ProxyError as error:
            self._fail(error)
            await self._put_away(error)
        except asyncio.CancelledError:
            self._fail(UpstreamError(f"fetching {self._target.url} was stopped"))
            raise
        except BaseException as error:
            # A bug: no reader may be left waiting.
            self._fail(ProxyError(f"fetching {self._target.url} failed: internal error: {error!r}"))
            raise
        finally:
            incoming = self._fill.streamed
            if incoming:
                await incoming.verifier.close()
            # In one turn of the loop: followers find the last page, and the lock free.
            if incoming and incoming.ingest:
                incoming.ingest.close()
            if incoming:
                self._context.janitor.release(incoming.growing.partial)
            if lock:
                lock.close()
            self._fill.end()

    async def _wait_lock(self) -> Lock:
        """Wait for the lock of the key; meanwhile read along with the process that has it."""
        follower = Follower(self._context.store, self._target.key)
        found = await follower.find()
        if isinstance(found, Lock):
            return found
        record, partial = found
        growing = Growing(partial, record.head.length)
        # That process verifies, and what comes of it is seen in what it stores.
        self._fill.to(Streaming(self._received(record.head, record.source, growing, is_followed=True)))
        log(events, INFO, "fill.follows", key=self._target.key[:12], have=growing.received)
        return await follower.follow(growing)

    async def _is_settled(self, entry: Entry | None) -> bool:
        """Whether another process has done already what this fill is for. `entry` is what is stored now."""
        if not (incoming := self._fill.streamed):
            if entry is None or entry == self._question.stale:
                return False
            # It was finished between our client's look and our having the lock.
            self._fill.to(Confirmed(entry))
            return True
        growing = incoming.growing
        if entry and entry.head.generation == incoming.head.generation:
            growing.add(0, entry.size)
            await incoming.verifier.confirm(entry, incoming.url)
            self._fill.to(Complete(incoming, entry))
            return True
        if growing.is_whole and not growing.partial.path.exists():
            # It was not stored: its own client forbade it, or it is the wrong one.
            incoming.verifier.begin()
            await self._verify(incoming)
            self._fill.to(Complete(incoming, None))
            return True
        return False

    async def _bring(self, saved: Saved | None) -> None:
        """Ask upstream, and do what the answer says. `saved` is what an earlier fill left."""
        answer: Answer | None = None
        if resumed := await self._resumed(saved):
            known, partial = resumed
            with contextlib.ExitStack() as stack:
                stack.callback(partial.close)
                gaps = partial.extents.gaps(known.head.length or 0)
                answer = await self._fill.stoppable(self._origin.open(gaps[0] if gaps else None, known))
                if isinstance(answer, Rest) and answer.compare and known.held is Held.SAVED:
                    answer = await self._fill.stoppable(self._compared(answer, partial))
                if isinstance(answer, (Rest, Unchanged)) and await self._has_room(known, partial, answer):
                    stack.pop_all()
                    await self._go_on(known, partial, answer)
                    return
                await self._context.store.discard(partial)
            answer = answer.whole if isinstance(answer, Another) else None
        if answer is None:
            answer = await self._fill.stoppable(self._origin.open(None, None))
        match answer:
            case Whole():
                await self._begin(answer)
            case Unchanged(url, head, ago):
                assert self._question.stale
                entry = refreshed(self._question.stale, head, self._context.clock() - ago)
                # What a 304 says to credentials alone, of an answer that is for everybody, is not said to the others.
                if not vary.login(self._question.fields) or is_storable(entry.head, self._question.fields):
                    kept = replace(entry.head, nominated=vary.without_login(entry.head.nominated))
                    entry = await self._context.store.refresh(replace(entry, head=kept))
                self._fill.to(Confirmed(entry))
                log(events, INFO, "fill.unchanged", key=self._target.key[:12], url=url)

    async def _compared(self, rest: Rest, partial: Partial) -> Answer:
        """What another node gives of a saved body; Another if it differs. Nobody has read it: nobody need notice."""
        exchange = rest.exchange
        comparing = asyncio.get_running_loop().run_in_executor(
            self._origin.threads, read_equal, exchange, partial, rest.start
        )
        try:
            end = await asyncio.shield(comparing)
        except UpstreamError:
            end = None
        except BaseException:
            exchange.abort()
            await asyncio.wait([comparing])
            comparing.cancelled() or comparing.exception()
            exchange.drop()
            raise
        if end is None:
            exchange.drop()
            return Another(None)
        return Rest(exchange, end, compare=False)

    async def _resumed(self, saved: Saved | None) -> tuple[Known, Partial] | None:
        """What an earlier fill left, if upstream can tell whether it is still the same. Close the partial.

        Raises UpstreamError where it is not the body that was followed: readers want the rest of exactly that one.
        """
        followed = self._fill.streamed
        if saved:
            record, partial = saved
            known = Known(record.head, record.source, Held.READ if followed else Held.SAVED)
            is_wanted = vary.is_for(self._question.fields, record.head)
            if followed:
                is_wanted = record.head.generation == followed.head.generation
            if known.can_resume and is_wanted:
                if followed:
                    have = partial.extents.total
                    log(events, INFO, "fill.taken_over", key=self._target.key[:12], have=have)
                return known, partial
            if not followed:
                await self._context.store.discard(partial)
            partial.close()
        if followed:
            raise UpstreamError(f"the process that fetched {self._target.url} gave up. ask again")
        return None

    async def _has_room(self, known: Known, partial: Partial, answer: Rest | Unchanged) -> bool:
        """Whether there is room for the rest. If not, what is there goes: its own bytes may be what is missing."""
        try:
            await self._context.janitor.take_up(partial, self._target.url, known.head.length or 0)
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
        if followed := self._fill.streamed:
            followed.growing.go_on_in(partial)
            incoming = replace(followed, source=source, is_followed=False)
        else:
            growing = Growing(partial, known.head.length)
            incoming = replace(self._received(known.head, known.url, growing), source=source)
        await self._stream(replace(known, held=Held.READ), incoming, rest)

    async def _begin(self, whole: Whole) -> None:
        """Fetch a new body; or pass it through, if it may not be kept or there is no room for it."""
        head = self._kept(whole.head)
        try:
            if not is_storable(whole.head, self._question.fields):
                why = f"{whole.url} is not to be kept: its Cache-Control or Vary forbids it"
                self._pass_on(whole, UpstreamError(why))
                return
            partial = None
            if not await self._is_small(whole):
                partial = await self._context.janitor.create(self._target.key, self._target.url, head)
        except StoreError as error:
            self._pass_on(whole, error)
            return
        except BaseException:
            whole.exchange.drop()
            raise
        if partial is None:
            assert whole.body is not None
            self._origin.fetched(len(whole.body), whole.exchange)
            at = self._answered_at() - whole.ago
            await self._keep(Small(head, whole.url, whole.exchange.final_url, at, whole.body))
            return
        growing = Growing(partial, head.length)
        incoming = self._received(head, whole.url, growing)
        incoming = replace(incoming, source=whole.exchange.final_url, answered_at=incoming.answered_at - whole.ago)
        known = Known(head, whole.url, Held.READ)
        await self._stream(known, incoming, Rest(whole.exchange, 0, compare=False))

    async def _is_small(self, whole: Whole) -> bool:
        """Whether the body is stored from memory: all of it is there, nothing is to be verified, and there is room."""
        if whole.body is None or self._target.digest or has_checksums(self._target, len(whole.body)):
            return False
        return await self._context.janitor.admit(len(whole.body))

    async def _keep(self, small: Small) -> None:
        """Store a body from memory, behind the answers."""
        body = small.body
        self._fill.to(Arrived(small))
        sha256 = hashlib.sha256(body).hexdigest()
        entry = None
        try:
            if self._fill.is_wanted:
                entry = await self._context.janitor.keep(self._entry(small, {"sha256": sha256}, None), body)
        finally:
            self._context.janitor.dismiss(len(body))
        self._complete(small, entry, sha256)

    async def _stream(self, known: Known, incoming: Incoming, rest: Rest | None) -> None:
        """From the first byte that is missing to the stored entry."""
        growing, key = incoming.growing, self._target.key[:12]
        ingest = Ingest(self._target, self._origin, known, growing, self._context)
        incoming = replace(incoming, ingest=ingest)
        if recalled := self._origin.recalled:
            incoming.verifier.expect(Digest("sha256", recalled.sha256))
        incoming.verifier.begin()
        self._fill.to(Streaming(incoming))
        what = "fill.resumed" if growing.received else "fill.started"
        log(events, INFO, what, key=key, url=incoming.url, have=growing.received, bytes=growing.length)
        begun = time.monotonic()
        try:
            await self._fill.stoppable(ingest.run(rest, lambda: self._fill.readers > 0))
        finally:
            if rest:
                rest.exchange.drop()  # nothing runs any more; where it never began this ends it
        if not growing.is_withheld:
            # Readers need the processor more than the digest. Those that take as long again wait for something else.
            await self._fill.wait_read(time.monotonic() - begun)
        verified = await self._verify(incoming)
        digests = incoming.verifier.digests
        entry = None
        if self._fill.is_wanted:
            entry = await self._context.janitor.commit(growing.partial, self._entry(incoming, digests, verified))
        else:
            await self._context.store.discard(growing.partial)
        self._complete(incoming, entry, digests["sha256"])

    def _complete(self, incoming: Incoming | Small, entry: Entry | None, sha256: str) -> None:
        self._fill.to(Complete(incoming, entry))
        # A server of ours that gave it puts it into the bucket; all who had it from there would only send it once more.
        # What nobody has put there is found in the index later (behind.py).
        if entry and not self._origin.asks_neighbour:
            self._context.tier.push(entry)
        seconds = round(self._context.clock() - self._fill.started_at, 3)
        self._context.stats.fill_duration.observe(seconds)
        key = self._target.key[:12]
        log(events, INFO, "fill.complete", key=key, bytes=incoming.length, s=seconds, sha256=sha256)

    async def _verify(self, incoming: Incoming) -> str | None:
        others = [url for url in self._origin.urls if url != incoming.url]
        try:
            verified = await incoming.verifier.verify(await incoming.growing.wait_length(), incoming.url, others)
        except DigestMismatch:
            await self._origin.discard_recalled()
            raise
        recalled = self._origin.recalled
        return recalled.verified if recalled and not self._target.digest else verified

    def _entry(self, incoming: Incoming | Small, digests: Mapping[str, str], verified: str | None) -> Entry:
        stale = self._question.stale
        return Entry(
            key=self._target.key,
            url=self._target.url,
            mirror=self._target.mirror.name,
            head=_of_length(incoming.head, incoming.length),
            sha256=digests["sha256"],
            stored_at=self._context.clock(),
            validated_at=incoming.answered_at,
            pinned=bool(stale and stale.pinned),
            sha512=digests.get("sha512"),
            verified=verified,
        )

    def _kept(self, head: Head) -> Head:
        """The head as it is stored."""
        has_login = bool(self._target.mirror.credentials) or vary.login(self._question.fields) is not None
        by_login = head.by_login or (has_login and not self._origin.recalled)
        return replace(head, nominated=vary.without_login(head.nominated), by_login=by_login)

    def _received(self, head: Head, url: str, growing: Growing, *, is_followed: bool = False) -> Incoming:
        source = f"another process, from {url}" if is_followed else url
        verifier = Verifier(self._target, growing, self._ask_checksums, self._context)
        if digest := digest_in(url):  # whoever gives the rest, and also where another process fetches
            verifier.expect(digest)
        return Incoming(head, url, source, self._answered_at(), growing, verifier, is_followed)

    def _answered_at(self) -> float:
        """Unix time at which upstream has said what the head is."""
        recalled = self._origin.recalled
        return recalled.validated_at if recalled else self._context.clock()

    def _pass_on(self, whole: Whole, error: ProxyError) -> None:
        known = Known(whole.head, whole.url, Held.PASSED)
        passthrough = self._fill.pass_through(known)
        passthrough.begin(whole.exchange)
        self._fill.offer(passthrough, Passed(known, self._answered_at() - whole.ago, error))
        is_trouble = isinstance(error, StoreError)
        if is_trouble:
            self._context.stats.noted(self._failure(error, "passed on without being stored: "))
        log(events, WARNING if is_trouble else INFO, "fill.not_kept", key=self._target.key[:12], reason=error)

    def _fail(self, error: ProxyError) -> None:
        incoming = self._fill.incoming
        self._fill.to(Failed(error, incoming))
        if isinstance(incoming, Incoming):
            incoming.growing.fail(error)
        self._count("failed")
        if not self._fill.is_stopped:
            self._context.stats.failed(self._failure(error))
        log(events, INFO if self._fill.is_stopped else WARNING, "fill.failed", key=self._target.key[:12], error=error)

    def _failure(self, error: ProxyError, what: str = "") -> Failure:
        url, mirror = self._target.url.partition("?")[0], mirror_label(self._target.mirror)
        return Failure(self._context.clock(), url, mirror, error.cause, f"{what}{error.message}")

    def _count(self, outcome: str) -> None:
        self._context.stats.fills[mirror_label(self._target.mirror), outcome] += 1

    async def _put_away(self, error: ProxyError) -> None:
        """Of a fill that failed, keep what the next one can go on with; nothing where space is what was missing."""
        incoming = self._fill.streamed
        if not incoming or not incoming.ingest:
            return
        growing, store = incoming.growing, self._context.store
        try:
            is_useless = isinstance(error, (UpstreamChanged, DigestMismatch, OutOfSpace)) or not growing.received
            known = Known(incoming.head, incoming.url, Held.SAVED)
            if self._fill.is_wanted and known.can_resume and not is_useless:
                await store.save(growing.partial, incoming.ingest.record())
                return
            is_short = isinstance(error, OutOfSpace) and not growing.is_whole
            if is_short:
                growing.lose()
            await store.discard(growing.partial, at_once=is_short)
        except StoreError as trouble:
            log(events, WARNING, "fill.not_saved", key=self._target.key[:12], error=trouble)


def _of_length(head: Head, length: int | None) -> Head:
    return head if length == head.length else replace(head, length=length)
