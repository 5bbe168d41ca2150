"""Space: what is evicted so that the next body fits, before its first byte arrives.

Two limits hold: `max_size` for everything in the cache directory, and `min_free` for its file system. What a running
fill has reserved counts as written; the fills of other processes announce theirs in live pages. Room is made before
the first byte, after a commit, when a write finds the disk full, and regularly, since other processes write too.
rules/eviction.py decides which bodies go.

One process evicts at a time (the lock "janitor"). It need not know the readers in other processes: an open descriptor
reads on after its file is gone.

Locks are taken in this order: the lock of the key that is filled, the janitor's turn (asyncio), "janitor", the locks of
the victims' keys (tried, never waited for), "store", SQLite's own.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from logging import INFO, WARNING
from typing import Any

from ..config import CacheSection
from ..errors import OutOfSpace, StoreError
from ..log import events, log
from ..rules.entry import Entry, Head
from ..rules.eviction import Eviction, Space, choose, total
from .files import MAKE_ROOM
from .locks import Lock
from .partial import Partial
from .small import Room
from .store import Store

TIDY_SECONDS = 60.0
"""Between two looks at what other processes wrote, and what else took the file system's space."""
LOCK_SECONDS = 10.0
"""How long we wait for another process that evicts; then we evict beside it, and both only free more than needed."""
LOOK_SECONDS = 0.02
"""How often the lock is tried meanwhile."""
RELIEF_SECONDS = 30.0
"""How long a write waits for room."""
ALLOWANCE_BYTES = 4 * 1024**2
"""Small bodies that are stored by one look at the disk, which costs as much as storing one."""
ALLOWANCE_SHARE = 100
"""... and at most this part of max_size."""
ALLOWED_SECONDS = 1.0
"""... within this time: others write too."""
RECORD_BYTES = 8192
"""What the files of a small body take beside its bytes, about."""
SHARE = 10
"""min_free is at most this part of the file system: on a small volume the default would leave no room at all."""


class Reservation:
    """Room for one running fill of this process, and its way to more room on a full disk."""

    def __init__(self, partial: Partial, relieve: Callable[[int], Coroutine[Any, Any, bool]]) -> None:
        self._partial, self._relieve = partial, relieve
        self._loop = asyncio.get_running_loop()
        self.path = partial.path
        self._length = partial.extents.total
        """What came already, until more is granted."""

    def announce(self, length: int) -> None:
        """Let other processes leave room for `length` bytes."""
        self._partial.reserve(length, self._make_room)

    def grant(self, length: int) -> None:
        """There is room for `length` bytes."""
        self._length = length

    def cancel(self) -> None:
        """The fill writes no more."""
        self._partial.reserve(0, None)

    @property
    def total(self) -> int:
        """Bytes of the body at its end, as far as we know."""
        return max(self._length, self._partial.extents.total)

    @property
    def unwritten(self) -> int:
        """Bytes that the disk does not hold yet."""
        return max(0, self._length - os.fstat(self._partial.fd).st_blocks * 512)

    def _make_room(self, count: int) -> bool:
        """In a transfer's thread. The loop may be ending, and then nobody answers."""
        relieving = self._relieve(count)
        try:
            relief = asyncio.run_coroutine_threadsafe(relieving, self._loop)
        except RuntimeError:
            relieving.close()
            return False
        try:
            return relief.result(RELIEF_SECONDS)
        except TimeoutError:
            relief.cancel()
            return False


class Janitor:
    """Make it, `await start()` once the store has started, and `await close()` before the store closes."""

    def __init__(self, store: Store, limits: CacheSection, on_evicted: Callable[[int], None] = lambda _: None) -> None:
        """`on_evicted` is told the bytes of each body that was evicted."""
        self.limits = limits
        self._on_evicted = on_evicted
        self._store = store
        self._reservations: dict[Partial, Reservation] = {}
        """Of this process's running fills."""
        self._turn = asyncio.Lock()
        self._attention = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._counted: tuple[int, int] | None = None
        """Bytes of all blobs and in damaged/ at the last count, and what had been committed by then."""
        self._committed = 0
        """Bytes committed, as seen last."""
        self._small = 0
        """Bytes that small bodies will take which wait to be stored, or to be let in for that."""
        self._room = Room()
        self._allowance, self._allowed_until = 0, 0.0
        """Bytes for which there was room at the last look, and until when (loop time) that look counts."""

    async def start(self) -> None:
        self._task = asyncio.create_task(self._tidy_regularly(), name="janitor")

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # -- for fills: each calls `release` before it closes its partial -------------------------------------------------

    async def create(self, key: str, url: str, head: Head) -> Partial:
        """A new partial with room for all of it; evicts for that. Raises OutOfSpace, with nothing evicted."""
        async with self._turn:
            partial = await self._store.create(key, head.generation)
            try:
                await self._reserve(partial, url, head.length)
            except BaseException:
                try:
                    await self._store.discard(partial)
                finally:
                    partial.close()
                raise
            return partial

    async def admit(self, size: int) -> bool:
        """Room for a small body that needs no partial; `dismiss` it once it is stored. False: ask `create` for it.

        One look at the disk is good for many of them.
        """
        count = size + RECORD_BYTES
        if not self._is_allowed(count):
            async with self._turn:
                if not self._is_allowed(count):  # else somebody has just looked
                    await self._allow()
        if not self._is_allowed(count):
            return False
        self._allowance -= count
        self._small += count
        try:
            await self._room.enter(size)
        except BaseException:
            self._small -= count
            raise
        return True

    def _is_allowed(self, count: int) -> bool:
        return count <= self._allowance and asyncio.get_running_loop().time() < self._allowed_until

    async def _allow(self) -> None:
        """Look for room for the next small bodies; evict for it."""
        limit = self.limits.max_size
        wanted = min(ALLOWANCE_BYTES, limit // ALLOWANCE_SHARE) if limit else ALLOWANCE_BYTES
        self._allowance = 0
        if (await self.space()).shortfall(wanted):
            async with eviction_lock(self._store):
                _, eviction = await self._choose((await self._count()).shortfall(wanted))
                if eviction.shortfall:
                    return
                await self._evict(eviction)
        self._allowance, self._allowed_until = wanted, asyncio.get_running_loop().time() + ALLOWED_SECONDS

    def dismiss(self, size: int) -> None:
        """A small body of that size waits no more."""
        self._small -= size + RECORD_BYTES
        self._room.leave(size)

    async def keep(self, entry: Entry, body: bytes) -> Entry:
        """Store a small body that was admitted. As `commit`, it evicts where the disk is full all the same."""
        try:
            return await self._store.keep(entry, body)
        except OutOfSpace:
            if not await self._relieve(len(body) + RECORD_BYTES):
                raise
            return await self._store.keep(entry, body)

    async def take_up(self, partial: Partial, url: str, length: int) -> None:
        """Room for the rest of a partial that was begun earlier. Raises OutOfSpace."""
        async with self._turn:
            await self._reserve(partial, url, length)

    async def commit(self, partial: Partial, entry: Entry) -> Entry:
        """Store the body and release its room. If the disk has no space for the records, evict and try again."""
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
        if reservation := self._reservations.pop(partial, None):
            reservation.cancel()

    async def check_room(self, what: str, wanted: int, keep: Collection[str]) -> None:
        """Raise OutOfSpace if `wanted` bytes cannot be made free while the blobs `keep` stay. Evicts nothing."""
        async with self._turn:
            space = await self._count()
            kept, eviction = await self._choose(space.shortfall(wanted), keep)
            if eviction.shortfall:
                raise self._out_of_space(what, wanted, kept, space, eviction)

    # -- room ---------------------------------------------------------------------------------------------------------

    async def _reserve(self, partial: Partial, url: str, length: int | None) -> None:
        """Reserve the whole of a partial, and make room for what is not there yet. Raises OutOfSpace.

        None: nobody knows how many bytes will come; each write makes room if it must.
        """
        reservation = self._reservations[partial] = Reservation(partial, self._relieve)
        there = partial.extents.total
        wanted = max(0, (length or 0) - there)
        # Announced before we look: of two processes that do this at once, at least one sees the other.
        reservation.announce(there + wanted)
        try:
            if (await self.space()).shortfall(wanted):
                async with eviction_lock(self._store):
                    space = await self._count()
                    kept, eviction = await self._choose(space.shortfall(wanted))
                    if eviction.shortfall and length is not None:
                        # Before the next process looks: if two are in each other's way, one of them is served.
                        self.release(partial)
                        raise self._out_of_space(url, wanted, kept, space, eviction)
                    await self._evict(eviction)
        except BaseException:
            self.release(partial)
            raise
        reservation.grant(there + wanted)

    async def _relieve(self, count: int) -> bool:
        """Free at least `count` bytes of a full disk, or as many as possible; False if there are none."""
        try:
            async with self._turn, eviction_lock(self._store):
                space = await self._count()
                # A quota may be used up though the file system has space.
                _, eviction = await self._choose(max(count, space.shortfall(count)))
                return await self._evict(eviction) > 0
        except StoreError as error:
            log(events, WARNING, "janitor.failed", error=error)
            return False

    async def tidy(self) -> None:
        """Restore the limits, whoever exceeded them."""
        async with self._turn:
            self._store.forget_stale()
            async with eviction_lock(self._store):
                _, eviction = await self._choose((await self._count()).shortfall())
                await self._evict(eviction)
        if eviction.shortfall:
            log(events, WARNING, "janitor.over_limit", bytes=eviction.shortfall, hint="all else is pinned or in use")

    async def _tidy_regularly(self) -> None:
        while True:
            # After a commit of our own the last count is still good: count everything again only if it says too much.
            is_own = self._attention.is_set()
            self._attention.clear()
            try:
                if not is_own or (await self.space()).shortfall():
                    await self.tidy()
            except StoreError as error:
                log(events, WARNING, "janitor.failed", error=error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TIDY_SECONDS):
                    await self._attention.wait()

    async def _evict(self, eviction: Eviction) -> int:
        """Bytes that came free."""
        gone = await self._store.evict(eviction.victims)
        for each in gone:
            log(events, INFO, "evicted", url=each.url, bytes=each.size)
            self._on_evicted(each.size)
        self._committed = self._store.blobs.committed_bytes()  # lower, which is no reason to count everything again
        return total(gone)

    async def _choose(self, wanted: int, keep: Collection[str] = ()) -> tuple[int, Eviction]:
        """What is to be evicted for `wanted` bytes, while the blobs `keep` stay; and the bytes that stay with them."""
        if not wanted:
            return 0, Eviction((), 0)
        candidates = await self._store.survey()

        def chosen() -> tuple[int, Eviction]:  # off the loop: 100,000 candidates take 0.2 s
            eviction = choose((each for each in candidates if each.blob not in keep), wanted)
            return total(candidates) - eviction.freed, eviction

        return await asyncio.to_thread(chosen)

    async def _count(self) -> Space:
        """Count everything again. If space is short, damaged bodies are removed first."""
        used = await self._store.used()
        self._counted = used.stored + used.damaged, used.committed
        self._committed = used.committed  # what was removed while we counted is seen, and counted anew
        space = await self.space()
        if used.damaged and space.shortfall():
            await self._store.clear_damaged()
            self._counted = used.stored, used.committed
            space = await self.space()
        return space

    async def space(self) -> Space:
        """How full it is, at most: what a new generation has replaced since the last count still counts."""
        committed, before = self._store.blobs.committed_bytes(), self._committed
        self._committed = committed
        if self._counted is None or committed < before:  # others have removed bodies, or the count, which begins anew
            await self._count()
        assert self._counted
        blobs = self._counted[0] + self._store.blobs.committed_bytes() - self._counted[1]
        # Our own fills first, at once: one that ends while we look at the others closes its file, and still counts.
        own = list(self._reservations.values())
        total_own, unwritten_own = sum(each.total for each in own), sum(each.unwritten for each in own)
        written, unwritten = await self._store.growing(each.path for each in own)
        stored = blobs + written + total_own - unwritten_own
        reserved = unwritten + unwritten_own + self._small
        size, free = await self._store.disk()
        min_free = min(self.limits.min_free, size // SHARE)
        return Space(stored, reserved, self.limits.max_size, free - reserved, min_free)

    def _out_of_space(self, url: str, wanted: int, kept: int, space: Space, eviction: Eviction) -> OutOfSpace:
        """`kept`: bytes that may not go."""
        if space.max_size and wanted > space.max_size:
            why = f"cache.max_size is {size_text(space.max_size)}: raise it to have it stored"
        elif space.max_size and space.stored + space.reserved + wanted - space.max_size > eviction.freed:
            why = (
                f"cache.max_size is {size_text(space.max_size)}, and {size_text(kept)} are pinned or in use. "
                f"{MAKE_ROOM}, or raise cache.max_size"
            )
        else:
            why = (
                f"the file system of {self._store.root} has {size_text(max(0, space.free))} left, of which "
                f"cache.min_free keeps {size_text(space.min_free)}. {MAKE_ROOM}, or remove other files there"
            )
        could = size_text(max(0, wanted - eviction.shortfall))
        return OutOfSpace(f"no space for {url}: it needs {size_text(wanted)}, and only {could} can be made free; {why}")


@contextlib.asynccontextmanager
async def eviction_lock(store: Store) -> AsyncIterator[None]:
    """Hold the lock "janitor". After LOCK_SECONDS go on without it: a stopped process must not stop the others."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOCK_SECONDS):
                stack.enter_context(await _wait_lock(store))
        yield


async def _wait_lock(store: Store) -> Lock:
    while not (lock := store.try_lock("janitor")):  # noqa: ASYNC110 - the kernel tells nobody
        await asyncio.sleep(LOOK_SECONDS)
    return lock


def size_text(count: int) -> str:
    """As in the configuration: powers of 1000."""
    for unit, size in (("GB", 1000**3), ("MB", 1000**2), ("KB", 1000)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
