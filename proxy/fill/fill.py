"""One object on its way into the cache, as all see it who have to do with it.

A Fill belongs to the cache, not to the client who caused it; clients only read. What brings it forward is its
Coordinator (coordinator.py). Nothing here knows HTTP to the client.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..errors import ProxyError, StoreError, UpstreamError
from ..rules import vary
from ..rules.bucket import digest_in
from ..rules.entry import Entry, Head, Headers
from ..rules.mirrors import Target
from ..rules.splice import Held, Known
from .context import FillContext
from .ingest import Ingest
from .origin import Mishaps, Origin
from .passthrough import Passthrough
from .states import Arrived, Asking, Complete, Confirmed, Failed, Incoming, Passed, Small, State, Streaming
from .verify import AskChecksums

T = TypeVar("T")

READ_SECONDS_MAX = 10.0
"""So long, at most, a body that is whole waits for those who read it before it is hashed and stored."""


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
        mishaps: Mishaps,
    ) -> None:
        self.target, self.question, self.mishaps = target, question, mishaps
        self.state: State = Asking()
        self.readers = 0
        self.started_at = context.clock()
        self.is_stopped = False
        """Whether it is on its way to its end, and nobody may join."""
        self.is_wanted = question.keep
        """Whether any client lets the body be stored."""
        self._context, self._ask_checksums = context, ask_checksums
        self._passthrough: Passthrough | None = None
        """In Passed, for the client that began this, until it takes it."""
        self._work: asyncio.Task[Any] | None = None
        """The task in whose work `stop` breaks in; a task for each such work would cost more than most of them."""
        self._has_ended = self._is_awaited = False
        self._changed = asyncio.Event()

    # -- for readers --------------------------------------------------------------------------------------------------

    @property
    def incoming(self) -> Incoming | Small | None:
        """The body, from Streaming or Arrived on."""
        return self.state.incoming

    @property
    def streamed(self) -> Incoming | None:
        """The body, if it comes by way of a file."""
        incoming = self.state.incoming
        return incoming if isinstance(incoming, Incoming) else None

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
        return not isinstance(self.state, (Asking, Streaming, Arrived))

    @property
    def is_whole(self) -> bool:
        """Every byte is here, stored already or about to be."""
        return self.incoming is not None and self.incoming.received == self.incoming.length

    @property
    def arrived(self) -> Entry | None:
        """What is about to be stored, for policy: the body is whole, and its digest not settled. None until then."""
        if not isinstance(self.state, (Streaming, Arrived)) or not self.is_whole or not self.is_wanted:
            return None
        incoming, target = self.state.incoming, self.target
        if incoming.is_hidden:
            return None
        head, at = replace(incoming.head, length=incoming.length), incoming.answered_at
        return Entry(target.key, target.url, target.mirror.name, head, sha256="", stored_at=at, validated_at=at)

    @property
    def fetched(self) -> int:
        """Bytes this fill got from upstream; less than it has where an earlier one had begun."""
        match self.incoming:
            case Incoming(ingest=Ingest() as ingest):
                return ingest.fetched
            case Small(body=body):
                return len(body)
        return 0

    @property
    def length(self) -> int | None:
        """Bytes of the whole body, once known."""
        return self.incoming.length if self.incoming else self.head.length if self.head else None

    @property
    def received(self) -> int:
        """Bytes that are there."""
        return self.incoming.received if self.incoming else 0

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
        self.hurry()
        while not self.is_over:
            await self._changed.wait()

    def hurry(self) -> None:
        """Somebody waits for more than bytes: for the digest, or for what is stored."""
        self._is_awaited = True
        self._notify()

    async def wait_read(self, seconds: float) -> None:
        """The body is whole: wait while clients read it and nobody waits for more than bytes; at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, READ_SECONDS_MAX)):
                while self.readers and not self._is_awaited:
                    await self._changed.wait()

    @contextlib.contextmanager
    def attach(self) -> Iterator[None]:
        """While a client reads: the files stay open. The last one to leave may pause the fill (`on_abandon`)."""
        self.readers += 1
        try:
            yield
        finally:
            self.readers -= 1
            if not self.readers:
                if self._context.settings.on_abandon == "pause" and not self.is_whole:
                    self.stop()
                self._notify()
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
            case Failed(_, Incoming(head, url)):  # of a Small nothing is missing
                known = Known(head, url, Held.PASSED)
            case _:
                return None
        return self.pass_through(known) if known.can_resume else None

    def stop(self) -> None:
        """End the fill where it is; what came is kept for the next one, if upstream lets us go on there."""
        self.is_stopped = True
        work, self._work = self._work, None
        if work:
            work.cancel()

    # -- for the coordinator ------------------------------------------------------------------------------------------

    def to(self, state: State) -> None:
        """Go on to a state; everybody who waits for one looks."""
        self.state = state
        self._notify()

    def offer(self, passthrough: Passthrough, state: Passed) -> None:
        """The body is not kept: `passthrough` brings it to the client that began this."""
        self._passthrough = passthrough
        self.to(state)
        self._close_unused()

    def pass_through(self, known: Known) -> Passthrough:
        """A way to the known body past the disk. Close it."""
        origin = Origin(self.target, vary.that_select(self.question.fields), self._context)
        target = replace(self.target, digest=self.target.digest or digest_in(known.url))
        return Passthrough(target, origin, known, self._context, self._ask_checksums)

    async def stoppable(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which `stop` cancels. Raises UpstreamError then."""
        if self.is_stopped:
            work.close()
            raise self._stopped()
        task = self._work = asyncio.current_task()
        try:
            return await work
        except asyncio.CancelledError:
            # As asyncio.timeout does it: `stop` has asked for one, and another one is somebody else's.
            if self.is_stopped and task and not task.uncancel():
                raise self._stopped() from None
            raise
        finally:
            self._work = None

    def _stopped(self) -> UpstreamError:
        return UpstreamError(f"fetching {self.target.url} was stopped; it goes on with the next request")

    def _notify(self) -> None:
        # A fresh Event each time: waiters need no lock, late waiters cannot miss a step.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def end(self) -> None:
        """Nobody writes any more; the file stays open for those who still read."""
        self._has_ended = True
        self._close_unused()

    def _close_unused(self) -> None:
        if self.readers:
            return
        if passthrough := self.take_passthrough():
            passthrough.close()
        if self._has_ended and self.streamed:
            self.streamed.growing.close()

