"""Space: what goes so that the next body fits, before its first byte is asked for room.

Two limits hold: `max_size` for all that is in the cache directory, and `min_free` for its file system. What a running
fill will still write counts as written; what the fills of other processes will, their live pages tell. Room is made
before the first byte, after a commit, when a write finds the disk full, and regularly, since other processes write too.
What goes is the rule of rules/eviction.py.

One process evicts at a time (the right "janitor"). Of readers in other processes nothing needs to be known: an open
descriptor reads on after its file is gone.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from logging import INFO, WARNING
from pathlib import Path
from weakref import WeakKeyDictionary

from ..config import CacheSection
from ..errors import OutOfSpace, StoreError
from ..log import events, log
from ..rules.entry import Entry, Head
from ..rules.eviction import Candidate, Eviction, Space, choose, total
from .partial import MAKE_ROOM, Partial
from .store import PARTIAL, Store

TIDY_SECONDS = 60.0
"""Between two looks at what other processes wrote, and what else took the file system's space."""
RIGHT_SECONDS = 10.0
"""How long another process may evict before we do so beside it; both would only free more than needed."""
LOOK_SECONDS = 0.02
"""How often the right to evict is looked at again."""
RELIEF_SECONDS = 30.0
"""How long a write waits for room."""
SHARE = 10
"""min_free is at most this part of the file system: on a small volume the default would leave no room at all."""


class Janitor:
    """Make it, `await start()` once the store has started, and `await close()` before the store closes."""

    def __init__(self, store: Store, limits: CacheSection) -> None:
        self.limits = limits
        self._store = store
        self._promised: WeakKeyDictionary[Partial, int] = WeakKeyDictionary()
        """Running fills: the length of each, 0 while it is not known."""
        self._turn = asyncio.Lock()
        self._attention = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._surveyed: tuple[int, int] | None = None
        """Bytes of all blobs and in damaged/ at the last survey, and what had been committed by then."""

    async def start(self) -> None:
        self._task = asyncio.create_task(self._tidy_regularly(), name="janitor")

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # -- for fills ----------------------------------------------------------------------------------------------------

    async def create(self, key: str, url: str, head: Head) -> Partial:
        """A new partial with room for all of it; evicts for that. Raises OutOfSpace, with nothing evicted."""
        async with self._turn:
            partial = await self._store.create(key, head.generation)
            try:
                await self._reserve(partial, url, head.length)
            except StoreError:
                await self._store.discard(partial)
                raise
            return partial

    async def take_up(self, partial: Partial, url: str, length: int) -> None:
        """Room for the rest of a partial that was begun earlier. Raises OutOfSpace."""
        async with self._turn:
            await self._reserve(partial, url, length)

    async def commit(self, partial: Partial, entry: Entry) -> Entry:
        """As Store.commit; where the disk has no space for its records, what can be evicted is."""
        try:
            stored = await self._store.commit(partial, entry)
        except OutOfSpace:
            if not await self._relieve(len(entry.head.headers) * 1024):
                raise
            stored = await self._store.commit(partial, entry)
        self.release(partial)
        self._attention.set()
        return stored

    def release(self, partial: Partial) -> None:
        """The fill is over: it will write no more."""
        if self._promised.pop(partial, None) is not None:
            self._tell(partial, 0)
        partial.make_room = None

    def _tell(self, partial: Partial, promised: int) -> None:
        """Let other processes know."""
        partial.promised = promised
        partial.tell(partial.extents)

    def _promise(self, partial: Partial, length: int) -> None:
        loop = asyncio.get_running_loop()

        def make_room(count: int) -> bool:
            # In the transfer's thread. The loop may be on its way to its end, and then nobody answers.
            relieving = self._relieve(count)
            try:
                relief = asyncio.run_coroutine_threadsafe(relieving, loop)
            except RuntimeError:
                relieving.close()
                return False
            try:
                return relief.result(RELIEF_SECONDS)
            except TimeoutError:
                relief.cancel()
                return False

        self._promised[partial] = length
        partial.make_room = make_room

    # -- room ---------------------------------------------------------------------------------------------------------

    async def _reserve(self, partial: Partial, url: str, length: int | None) -> None:
        """Promise the whole of a partial, with room for what is not there yet. Raises OutOfSpace.

        None: as many bytes as come, as well as it goes.
        """
        there = partial.extents.total
        wanted = max(0, (length or 0) - there)
        self._promise(partial, there)
        # Told before it is looked: of two processes that do so at once, at least one sees the other.
        self._tell(partial, there + wanted)
        try:
            if (await self._space()).lacking(wanted):
                async with right_to_evict(self._store):
                    candidates, space = await self._look()
                    eviction = await chosen(candidates, space.lacking(wanted))
                    if eviction.lacking and length is not None:
                        # Before the next one looks: if two are in each other's way, one of them is served.
                        self.release(partial)
                        raise self._out_of_space(url, wanted, candidates, space, eviction)
                    await self._evict(eviction)
        except StoreError:
            self.release(partial)
            raise
        self._promise(partial, there + wanted)

    async def _relieve(self, count: int) -> bool:
        """Free at least `count` bytes of a full disk, or as many as can be; False if there are none."""
        try:
            async with self._turn, right_to_evict(self._store):
                candidates, space = await self._look()
                # A quota may be used up though the file system has space.
                eviction = await chosen(candidates, max(count, space.lacking(count)))
                return await self._evict(eviction) > 0
        except StoreError as error:
            log(events, WARNING, "janitor.failed", error=error)
            return False

    async def tidy(self) -> None:
        """Keep the limits, whoever broke them."""
        async with self._turn:
            self._store.forget_stale()
            async with right_to_evict(self._store):
                candidates, space = await self._look()
                eviction = await chosen(candidates, space.lacking())
                await self._evict(eviction)
        if eviction.lacking:
            log(events, WARNING, "janitor.over_limit", bytes=eviction.lacking, hint="all else is pinned or in use")

    async def _tidy_regularly(self) -> None:
        while True:
            # A commit of ours is in the books already; only where they say so is all counted again.
            is_told = self._attention.is_set()
            self._attention.clear()
            try:
                if not is_told or (await self._space()).lacking():
                    await self.tidy()
            except StoreError as error:
                log(events, WARNING, "janitor.failed", error=error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TIDY_SECONDS):
                    await self._attention.wait()

    async def _evict(self, eviction: Eviction) -> int:
        """Bytes that came free."""
        gone = await self._store.evict(eviction.going)
        for each in gone:
            log(events, INFO, "evicted", url=each.url, bytes=each.size)
        freed = total(gone)
        if self._surveyed:
            blobs = total(each for each in gone if not each.blob.startswith(PARTIAL))
            self._surveyed = self._surveyed[0] - blobs, self._surveyed[1]
        return freed

    async def _look(self) -> tuple[list[Candidate], Space]:
        """Everything there is. Damaged bodies go at once: we only look where space may be lacking."""
        survey = await self._store.survey()
        blobs = await asyncio.to_thread(
            lambda: total(each for each in survey.bodies if not each.blob.startswith(PARTIAL))
        )
        self._surveyed = blobs + survey.damaged, survey.committed
        space = await self._space()
        if survey.damaged and space.lacking():
            await self._store.clear_damaged()
            self._surveyed = blobs, survey.committed
            space = await self._space()
        return list(survey.bodies), space

    async def _space(self) -> Space:
        """How full it is, at most: what other processes removed since the last survey is in it."""
        if self._surveyed is None:
            await self._look()
        assert self._surveyed
        blobs = self._surveyed[0] + self._store.blobs.committed_bytes() - self._surveyed[1]
        own = dict(self._promised)
        growing, unwritten = await self._store.growing(partial.path for partial in own)
        growing += unwritten + sum(max(length, partial.extents.total) for partial, length in own.items())
        unwritten += sum(max(0, length - os.fstat(partial.fd).st_blocks * 512) for partial, length in own.items())
        size, free = disk(self._store.root)
        min_free = min(self.limits.min_free, size // SHARE)
        return Space(blobs + growing, self.limits.max_size, free - unwritten, min_free)

    def _out_of_space(
        self, url: str, wanted: int, candidates: list[Candidate], space: Space, eviction: Eviction
    ) -> OutOfSpace:
        kept = total(candidates) - total(eviction.going)
        if space.max_size and wanted > space.max_size:
            why = f"cache.max_size is {size_text(space.max_size)}: raise it to have it stored"
        elif space.max_size and space.stored + wanted - space.max_size > eviction.freed:
            why = (
                f"cache.max_size is {size_text(space.max_size)}, and {size_text(kept)} are pinned or in use. "
                f"{MAKE_ROOM}, or raise cache.max_size"
            )
        else:
            why = (
                f"the file system of {self._store.root} has {size_text(max(0, space.free))} left, of which "
                f"cache.min_free keeps {size_text(space.min_free)}. {MAKE_ROOM}, or remove other files there"
            )
        could = size_text(max(0, wanted - eviction.lacking))
        return OutOfSpace(f"no space for {url}: it needs {size_text(wanted)}, and only {could} can be made free; {why}")


async def chosen(candidates: list[Candidate], lacking: int) -> Eviction:
    """As the rule has it, off the loop: 100,000 candidates take 0.2 s."""
    return await asyncio.to_thread(choose, candidates, lacking) if lacking else Eviction((), 0)


@contextlib.asynccontextmanager
async def right_to_evict(store: Store) -> AsyncIterator[None]:
    """Held while evicting; without it after RIGHT_SECONDS, since a stopped process must not stop the others."""
    right = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RIGHT_SECONDS):
            while (right := store.lock("janitor")) is None:  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(LOOK_SECONDS)
    try:
        yield
    finally:
        if right is not None:
            os.close(right)


def disk(path: Path) -> tuple[int, int]:
    """Bytes of the file system, and those of them that are free for us."""
    stat = os.statvfs(path)
    return stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize


def size_text(count: int) -> str:
    """As configured: powers of 1000."""
    for unit, size in (("GB", 1000**3), ("MB", 1000**2), ("KB", 1000)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
