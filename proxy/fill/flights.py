"""Who fetches: for each key one Fill, whoever asks and however many.

In this process the table decides; between processes the lock of the key does. A fill's task belongs to this table,
never to a request: a client that goes away cancels nothing.
"""

import asyncio
import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from logging import ERROR

from cachetools import TTLCache

from ..config import Settings
from ..errors import DigestMismatch, UpstreamChanged, UpstreamError
from ..log import events, log
from ..rules.entry import Entry, Head, Headers, field
from ..rules.fleet import callers
from ..rules.health import Health
from ..rules.mirrors import Target
from ..rules.splice import Held, Known
from ..stats import Stats
from ..store.janitor import Janitor
from ..store.pseudonym import pseudonym
from ..store.store import Store
from ..upstream.client import Upstream
from ..upstream.lane import Lane
from .asking import Whole
from .checksums import Checksums
from .context import FillContext, Threads
from .coordinator import Coordinator
from .failures import Failures
from .fill import Fill, Question
from .lease import Leases, Turn
from .origin import Origin, Whom
from .passthrough import Passthrough
from .peers import KnownPeers
from .recall import Recall
from .states import Failed
from .tier import Tier

STOP_SECONDS = 3.0
"""How long stopped fills may take to put away what they have."""
DISTRUST_SECONDS = 600.0
"""How long a mirror whose body of a key had not the expected digest is passed over for it, while there are others."""
MAX_DISTRUSTED = 4096


class Flights:
    def __init__(
        self, store: Store, janitor: Janitor, settings: Settings, stats: Stats, clock: Callable[[], float]
    ) -> None:
        self._threads = Threads()
        self.peers = KnownPeers(stats)
        self._via = pseudonym(store.root)
        self._leases = Leases(settings, stats) if settings.file.lease.redis else None
        upstream = Upstream(settings, self._via, Lane())
        self.tier = Tier(store, stats, clock)
        self.tier.use(settings)
        self._context = FillContext(
            store=store,
            janitor=janitor,
            upstream=upstream,
            settings=settings.file.fill,
            threads=self._threads,
            stats=stats,
            health=Health(),
            peers=self.peers,
            tier=self.tier,
            clock=clock,
        )
        self._fills: dict[str, Fill] = {}
        self._origins: dict[str, Origin] = {}
        """Of the fills in `_fills`, as are `_turns`."""
        self._turns: dict[str, Turn] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._heads: dict[tuple[str, Headers], asyncio.Task[Head | None]] = {}
        """Questions by HEAD that are on their way, by key and fields."""
        self._distrusted: TTLCache[str, frozenset[str]] = TTLCache(MAX_DISTRUSTED, DISTRUST_SECONDS, clock)
        """URLs to pass over, by key."""
        self._is_closing = False
        self.checksums = Checksums(store, self, clock)
        self.failures = Failures(clock)

    def reload(self, settings: Settings) -> None:
        """Settings for fills that start from now on."""
        upstream = Upstream(settings, self._via, Lane())
        self.tier.use(settings)
        self._context.upstream.leave()
        self._context = replace(self._context, upstream=upstream, settings=settings.file.fill)

    @property
    def lease(self) -> str | None:
        """How Redis does, for people; None: there is none."""
        return self._leases.state if self._leases else None

    def running(self) -> Iterable[Fill]:
        return tuple(self._fills.values())

    def get(self, key: str) -> Fill | None:
        """The fill of `key` that can be joined, if there is one."""
        fill = self._fills.get(key)
        return None if fill is None or fill.is_over or fill.is_stopped else fill

    async def join(self, target: Target, question: Question) -> tuple[Fill, bool]:
        """The fill of the target's key, and whether this call began it. Attach to it before the next await."""
        while True:
            fill = self.get(target.key)
            if fill:
                self._origins[target.key].neighbours.called_by(callers(field(question.fields, "via")))
                if question.keep:
                    fill.want()
                return fill, False
            if not (ending := self._tasks.get(target.key)):
                break
            # Its outcome is settled, its files are being put away: wait, and look again.
            await asyncio.wait([ending])
        if self._is_closing:
            raise UpstreamError(f"fetching {target.url} cannot begin: fetchonce is stopping")
        avoid = self._distrusted.get(target.key, frozenset())
        context, ask = self._context, self.checksums.expected
        turn = self._leases.turn(target) if self._leases else None
        recall = self._recall(target, question.fields, question.stale)
        origin = Origin(target, question.fields, context, stale=question.stale, whom=Whom(avoid, turn, recall))
        fill = Fill(target, question, context, ask, origin.mishaps)
        coordinator = Coordinator(fill, origin, context, ask)
        if turn:
            self._turns[target.key] = turn
        self._fills[target.key], self._origins[target.key] = fill, origin
        self._tasks[target.key] = task = asyncio.create_task(coordinator.run(), name=f"fill {target.key[:12]}")
        task.add_done_callback(lambda _: self._landed(target.key))
        return fill, True

    async def ask_head(self, target: Target, fields: Headers) -> Head | None:
        """What upstream answers to HEAD; None if only GET can tell. Raises UpstreamError.

        All who ask the same at once share one question. Who leaves cancels nothing for the others.
        """
        question = target.key, fields
        asking = self._heads.get(question)
        if asking is None:
            recall = self._recall(target, fields, None)
            head = Origin(target, fields, self._context, whom=Whom(recall=recall)).head()
            asking = self._heads[question] = asyncio.create_task(head)
            asking.add_done_callback(functools.partial(self._answered, question))
        await asyncio.wait([asking])
        return asking.result()

    def _answered(self, question: tuple[str, Headers], asking: asyncio.Task[Head | None]) -> None:
        del self._heads[question]
        if not asking.cancelled():
            asking.exception()  # everybody may have left

    async def open_passthrough(self, target: Target, fields: Headers) -> Passthrough:
        """The body of `target` for one client alone, who closes it. Raises UpstreamError."""
        origin = Origin(target, fields, self._context)
        answer = await origin.open(None, None)
        assert isinstance(answer, Whole)
        known = Known(answer.head, answer.url, Held.PASSED)
        passthrough = Passthrough(target, origin, known, self._context, self.checksums.expected)
        passthrough.begin(answer.exchange)
        return passthrough

    def _recall(self, target: Target, fields: Headers, stale: Entry | None) -> Recall | None:
        is_on = self.tier.is_on
        return Recall(target, fields, stale, self._context, self.checksums.changed_at) if is_on else None

    def _landed(self, key: str) -> None:
        fill = self._fills.pop(key)
        del self._origins[key]
        if turn := self._turns.pop(key, None):
            turn.end(has_it=fill.entry is not None)
        self.checksums.landed(key)
        match fill.state:
            case Failed(trouble, None):
                if fill.question.stale and not fill.is_stopped and isinstance(trouble, UpstreamError):
                    self.failures.note(key, trouble)
            case _:
                self.failures.forget(key)
        match fill.state:
            case Failed(DigestMismatch(next_url=str()), incoming) if incoming:
                self._distrusted[key] = self._distrusted.get(key, frozenset()) | {incoming.url}
            case Failed(UpstreamChanged(), incoming) if incoming and incoming.url not in fill.target.urls:
                # Another server of ours began it, and who went on has another body.
                self._distrusted[key] = self._distrusted.get(key, frozenset()) | {incoming.url}
            case _:
                # It came well, or every mirror has had its turn: the next time they are asked from the first on.
                self._distrusted.pop(key, None)
        task = self._tasks.pop(key)
        if not task.cancelled() and (error := task.exception()):
            log(events, ERROR, "fill.bug", key=key[:12], error=repr(error))
            events.error("", exc_info=error)

    async def close(self) -> None:
        """Stop every fill where it is, and keep what can be gone on with."""
        self._is_closing = True
        for fill in self.running():
            fill.stop()
        tasks = list(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._leases:
            await self._leases.close()
        await self.tier.close()
        self._context.upstream.close()
        self._threads.close()
