"""Who fetches: for each key one Fill, whoever asks and however many.

In this process the table decides; between processes the flock of the key does. A fill's task belongs to this table,
never to a request: a client that goes away cancels nothing.
"""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ..config import Settings
from ..errors import DigestMismatch, UpstreamError
from ..log import events, log
from ..rules.entry import Entry, Headers
from ..rules.health import Health
from ..rules.mirrors import Target
from ..stats import Stats
from ..store.janitor import Janitor
from ..store.pseudonym import pseudonym
from ..store.store import Store
from ..upstream.client import Upstream
from ..upstream.exchange import Exchange
from .checksums import Checksums
from .fill import Fill
from .origin import Rooms, first_answer
from .passthrough import Passage, open_passage

REFUSES_HEAD = frozenset({400, 403, 405, 501})
"""Answers to HEAD that say nothing of GET: not allowed, not implemented, or a URL signed for GET alone."""
THREADS = 256
"""Transfers at once. Each blocks on its socket; more fills than this wait for a thread."""
STOP_SECONDS = 3.0
"""How long stopped fills may take to put away what they have."""
DISTRUST_SECONDS = 600.0
"""How long a mirror whose body of a key had not the expected digest is passed over for it, while there are others."""


class Flights:
    def __init__(
        self, store: Store, janitor: Janitor, settings: Settings, stats: Stats, clock: Callable[[], float]
    ) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "transfer")
        self._via = pseudonym(store.root)
        upstream = Upstream(settings, self._via)
        self._rooms = Rooms(store, janitor, upstream, settings.file.fill, self._threads, stats, Health(), clock)
        self._fills: dict[str, Fill] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._distrusted: dict[str, tuple[float, frozenset[str]]] = {}
        """By key: until when, and which URLs."""
        self._is_closing = False
        self.checksums = Checksums(store, self.join, self.open_passage, clock)

    def reload(self, settings: Settings) -> None:
        """Settings for fills that start from now on."""
        self._rooms = replace(self._rooms, upstream=Upstream(settings, self._via), settings=settings.file.fill)

    def running(self) -> Iterable[Fill]:
        return tuple(self._fills.values())

    def get(self, key: str) -> Fill | None:
        """The fill of `key` that can be joined, if there is one."""
        fill = self._fills.get(key)
        return None if fill is None or fill.is_over or fill.is_stopped else fill

    async def join(self, target: Target, stale: Entry | None, condition: Headers, *, keep: bool) -> tuple[Fill, bool]:
        """The fill of the target's key, and whether this call began it. `keep`: this client lets the body be stored."""
        while True:
            fill = self.get(target.key)
            if fill:
                fill.is_wanted = fill.is_wanted or keep
                return fill, False
            if not (ending := self._tasks.get(target.key)):
                break
            # Its outcome is settled, its files are being put away: wait, and look again.
            await asyncio.wait([ending])
        if self._is_closing:
            raise UpstreamError(f"fetching {target.url} cannot begin: fetchonce is stopping")
        avoid = self._avoided(target.key)
        fill = Fill(target, stale, condition, self._rooms, self.checksums.expected, avoid)
        fill.is_wanted = keep
        self._fills[target.key] = fill
        self._tasks[target.key] = task = asyncio.create_task(fill.run(), name=f"fill {target.key[:12]}")
        task.add_done_callback(lambda _: self._landed(target.key))
        return fill, True

    async def ask_head(self, target: Target, fields: Headers) -> Exchange:
        """What the first mirror that has something to say answers to HEAD, 200 or one of REFUSES_HEAD. Close it."""
        return await first_answer(
            self._rooms, target.urls_for(fields), fields, method="HEAD", wanted={200, *REFUSES_HEAD}
        )

    async def open_passage(self, target: Target, fields: Headers) -> Passage:
        """The body of `target` for one client alone."""
        return await open_passage(target, self._rooms, self.checksums.expected, fields)

    def _avoided(self, key: str) -> frozenset[str]:
        until, urls = self._distrusted.get(key, (0.0, frozenset()))
        return urls if self._rooms.clock() < until else frozenset()

    def _landed(self, key: str) -> None:
        fill = self._fills.pop(key)
        self.checksums.landed(key)
        if isinstance(fill.error, DigestMismatch) and fill.error.next_url:
            self._distrusted[key] = self._rooms.clock() + DISTRUST_SECONDS, self._avoided(key) | {fill.began_at}
        else:
            # It came well, or every mirror has had its turn: the next time they are asked from the first on.
            self._distrusted.pop(key, None)
        task = self._tasks.pop(key)
        if not task.cancelled() and (error := task.exception()):
            log(events, 40, "fill.bug", key=key[:12], error=repr(error))
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
        self._rooms.upstream.close()
        # A thread in a connect cannot be woken; it ends by its own timeout and touches nothing of ours.
        self._threads.shutdown(wait=False, cancel_futures=True)
