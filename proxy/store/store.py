"""The cache directory for the event loop: whole bodies (blobs.py), unfinished ones (partials.py), and locks between
processes (locks.py).

One thread (thread.py) does all file work, in order; only what small bodies write and sync before they are visible goes
on beside it (small.py). Hot entries are at hand without it (hot.py).
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from logging import WARNING
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from ..errors import ConfigError, EntryGone, StoreError
from ..log import events, log
from ..rules.digests import Digest
from ..rules.entry import Entry
from ..rules.eviction import Candidate
from .abroad import Abroad, close
from .blobs import Blobs, Record, Used
from .comparing import Comparing
from .files import disk, store_error
from .hot import HotTable, OpenEntry, StoredBody
from .index import BUSY_SECONDS, Usage
from .integrity import sha512_of
from .locks import Lock, Ring, is_locked
from .partial import Partial, PartialRecord
from .partials import Partials, is_unfinished
from .pseudonym import keep, pseudonym
from .servers import Announcement, ServerRecord
from .small import Small
from .thread import StoreThread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

FLUSH_SECONDS = 30.0
"""Time between two batches of uses: a write for each hit would cost more than the hit."""


class Store:
    """Make it, `await start()`, and `await close()` at the end. Its methods raise StoreError."""

    def __init__(self, root: Path, busy_seconds: float = BUSY_SECONDS) -> None:
        self.root, self.locks = root, root / "locks"
        self.blobs = Blobs(root, busy_seconds, self._mended)
        self.partials = Partials(root / "partial", self.locks)
        self._thread = StoreThread(self.blobs.ground)
        self._do_now = self._thread.do
        self._comparing = Comparing(self.blobs, self.partials, self._thread)
        self._do = self._comparing.do
        self._small, self.abroad = Small(self.blobs, self._thread), Abroad(self.blobs, self._comparing)
        self._ring = Ring(self.locks)
        self._hot = HotTable()
        self._reading: set[StoredBody] = set()
        self._uses: dict[str, Usage] = {}
        self._flusher: asyncio.Task[None] | None = None
        self._announcement: Announcement | None = None
        self._hashing = asyncio.Lock()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the directories, and open the index. Raises ConfigError if the directory cannot be used."""
        await self._do_now(self._open)
        self._thread.mends = True
        self._comparing.start()
        self._flusher = asyncio.create_task(self._flush_regularly())

    async def close(self) -> None:
        await self._comparing.close()
        await self._small.close()
        if self._flusher:
            self._flusher.cancel()
            await self._try_flush()  # a full disk must not keep us from ending
            await self._do(self.blobs.ground.close)
        self._hot.clear()
        self._ring.close()
        self._thread.shutdown()

    def _open(self) -> None:
        try:
            self.blobs.ground.make_directories()
            probe = self.locks / f".probe.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"the cache directory {self.root} cannot be used: {error.strerror}: {error.filename}. "
                "name another with --cache-dir, or mend its permissions"
            ) from error
        self.blobs.ground.open()
        self._ring.sweep()

    @contextlib.asynccontextmanager
    async def announced(self, record: ServerRecord) -> AsyncIterator[None]:
        """Announce that this process serves the directory, for as long as the block runs (servers.py)."""
        self._announcement = announcement = await self._do_now(Announcement, self.root, record)
        try:
            yield
        finally:
            self._announcement = None
            await self._do_now(announcement.close)

    async def announce_leaving(self, own: str) -> None:
        """Another process serves now; this one ends what it has begun, and answers at `own`."""
        if self._announcement:
            await self._do_now(self._announcement.leave, own)

    def _mended(self) -> None:
        """In the thread: what lies in the directory beside bodies is gone too."""
        if self._announcement:
            keep(self.root, pseudonym(self.root))
            self._announcement.renew()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def lookup(self, key: str) -> Entry | None:
        """The entry of `key`, at hand to be opened; None if there is none, or its body is not what the entry says."""
        hot = self._hot.get(key)
        if hot and hot.is_current():
            return hot.entry
        if self._misses(key):
            return None
        is_whole = self._comparing.is_over
        found = await self._do_now(self.blobs.find, key, unwanted=close)
        if found is None and not is_whole:
            found = await self._do(self.blobs.find, key, unwanted=close)
        if found:
            self._hot.put(found)
            return found.entry
        self._hot.forget(key)
        return None

    def _misses(self, key: str) -> bool:
        """Whether nothing is stored of `key`, where that can be told without waiting."""
        return self._comparing.is_over and not self._hot.get(key) and self.blobs.ground.index.misses(key)

    def open(self, entry: Entry) -> StoredBody:
        """The body of an entry that `lookup` or `commit` has just returned. Close it. Raises EntryGone if it is gone.

        An entry that is still hot can be opened even when its file has been removed.
        """
        hot = self._hot.get(entry.key)
        try:
            fd = os.dup(hot.fd) if hot and hot.entry is entry else os.open(self.blobs.path(entry), os.O_RDONLY)
        except FileNotFoundError as error:
            raise EntryGone(f"the stored body of {entry.url} was removed just now. ask again") from error
        except OSError as error:
            raise store_error(f"the stored body of {entry.url} cannot be opened", error) from error
        body = StoredBody(entry, fd, self._reading.discard)
        self._reading.add(body)
        return body

    def tag(self, key: str) -> OpenEntry | None:
        """The entry that `lookup` has found last; `is_current` says whether it would again. None: not at hand."""
        return self._hot.get(key)

    def in_use(self) -> set[str]:
        """Digests of the bodies that are being read in this process."""
        return {body.entry.sha256 for body in self._reading}

    def forget_stale(self) -> None:
        """Close hot bodies that another process has removed: as long as they are open they take space."""
        self._hot.forget_stale()

    def read(self, entry: Entry) -> bytes:
        """The whole of a small body."""
        with self.open(entry) as body:
            try:
                return os.pread(body.fd, entry.size, 0)
            except OSError as error:
                raise store_error(f"the stored body of {entry.url} cannot be read", error) from error

    async def find(self, digest: Digest, key: str) -> Entry | None:
        """An entry whose body has `digest`, preferably that of `key`; None if no body is known to have it."""
        entry = await self.lookup(key)
        if entry and digest.algorithm == "sha512" and entry.sha512 is None:
            entry = await self._with_sha512(entry)
        if entry and entry.has(digest):
            return entry
        # Only lengths are checked, as everywhere: bodies were hashed when they came.
        for row in await self._do(self.blobs.having, digest):
            entry = await self.lookup(row.key)
            if entry and entry.sha256 == row.sha256:
                return entry
        return None

    async def _with_sha512(self, entry: Entry) -> Entry:
        """The entry with its SHA-512, computed now and kept."""
        with self.open(entry) as body:
            async with self._hashing:  # one at a time: whoever waited here may find it done
                current = await self.lookup(entry.key)
                if current and current.sha256 == entry.sha256 and current.sha512:
                    return current
                # Not in the store's own thread, where everybody would wait for it. The thread has a descriptor of its
                # own, and closes it: a cancelled call leaves the thread running.
                digest = await asyncio.shield(asyncio.to_thread(sha512_of, os.dup(body.fd)))
                current = await self.lookup(entry.key)
                if current and current.sha256 == entry.sha256:
                    return await self.refresh(replace(current, sha512=digest))
                return replace(entry, sha512=digest)  # removed or replaced meanwhile: for this one answer

    def touch(self, key: str, now: float, hits: int = 1) -> None:
        """Count a use of the entry; written later. It was wanted, though perhaps not asked for (`hits` 0)."""
        use = self._uses.get(key, Usage())
        self._uses[key] = Usage(use.hits + hits, now)

    async def flush(self) -> None:
        uses, self._uses = self._uses, {}
        if uses:
            await self._do(self.blobs.count, uses)

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._try_flush()
            with contextlib.suppress(StoreError):  # a request will say it
                await self._do(self._look_around)

    async def _try_flush(self) -> None:
        try:
            await self.flush()
        except StoreError as error:
            log(events, WARNING, "index.uses_lost", error=error)

    def _look_around(self) -> None:
        """In the thread: notice what was removed of a directory that nobody uses just now."""
        self.blobs.ground.mend()
        self._mended()

    async def records(self, after: str = "", most: int = -1) -> list[Record]:
        """All entries, or up to `most` behind a key, by key; with their use, that in this process included."""
        await self.flush()
        return await self._do(self.blobs.records, after, most)

    async def records_of(self, keys: Iterable[str]) -> list[Record]:
        """Of these keys, if they are stored."""
        return await self._do(self.blobs.records_of, keys)

    # -- whole bodies: the methods that Blobs has under these names; what was open of the entry is closed -------------

    async def commit(self, partial: Partial, entry: Entry) -> Entry:
        return await self._change(entry.key, self.blobs.commit, partial, entry)

    async def keep(self, entry: Entry, body: bytes) -> Entry:
        """Make a small body in memory the entry of its key (small.py)."""
        try:
            return await self._small.keep(entry, body)
        finally:
            self._hot.forget(entry.key)

    async def share(self, entry: Entry) -> Entry | None:
        return await self._change(entry.key, self.blobs.share, entry)

    async def refresh(self, entry: Entry) -> Entry:
        return await self._change(entry.key, self.blobs.refresh, entry)

    async def pin(self, key: str, pinned: bool = True) -> Entry | None:
        return await self._change(key, self.blobs.pin, key, pinned)

    async def remove(self, key: str) -> Entry | None:
        return await self._change(key, self.blobs.remove, key)

    async def set_aside(self, entry: Entry, why: str) -> None:
        await self._change(entry.key, self.blobs.set_aside, entry, why)
        self.forget_stale()  # its other URLs

    async def clear_damaged(self) -> None:
        await self._do(self.blobs.clear_damaged)

    async def _change(self, key: str, work: Callable[[*Ts], T], *args: *Ts) -> T:
        try:
            return await self._do(work, *args)
        finally:
            self._hot.forget(key)

    # -- growing bodies: whoever gets a Partial closes it -------------------------------------------------------------

    async def create(self, key: str, generation: str) -> Partial:
        return await self._do(self.partials.create, key, generation, unwanted=Partial.close)

    async def look(self, key: str) -> tuple[Entry | None, tuple[PartialRecord, Partial] | None]:
        """What `lookup` and `resume` say. Needs the lock of `key`: another process may have stored it before."""
        if self._misses(key) and not self.partials.has(key):
            return None, None
        found, saved = await self._do(self._look, key, unwanted=_close_both)
        if found:
            self._hot.put(found)
        return found.entry if found else None, saved

    def _look(self, key: str) -> tuple[OpenEntry | None, tuple[PartialRecord, Partial] | None]:
        return self.blobs.find(key), self.partials.load(key)

    async def resume(self, key: str) -> tuple[PartialRecord, Partial] | None:
        """The unfinished body of `key`, to go on with. Needs the lock of `key`."""
        return await self._do(self.partials.load, key, unwanted=_close_found)

    async def peek(self, key: str) -> tuple[PartialRecord, Partial] | None:
        """The body of `key` that another process is filling, to read along."""
        return await self._do(self.partials.peek, key, unwanted=_close_found)

    async def save(self, partial: Partial, record: PartialRecord) -> None:
        await self._do(partial.save, record)

    async def discard(self, partial: Partial, *, at_once: bool = False) -> None:
        """Remove the files of a partial. `at_once`: its bytes too, though somebody may still have it open."""
        at_once = at_once and partial.is_there()  # else it may be a stored body's by now
        await self._do(partial.unlink)
        if at_once:
            await self._do(os.ftruncate, partial.fd, 0)

    async def forget_partial(self, key: str) -> bool:
        """Remove the unfinished body of `key`; False if there is none, or a process is filling it right now."""
        return await self._do(self.partials.forget, key)

    async def unfinished(self) -> list[PartialRecord]:
        """Every body that was begun and saved, and is not finished, with what has come of it by now."""
        return await self._do(self.partials.records)

    # -- locks --------------------------------------------------------------------------------------------------------

    def try_lock(self, name: str) -> Lock | None:
        """The lock `name`; None if anybody has it, in this process or another. Close it to release it.

        A key names the lock that a fill of the key holds.
        """
        try:
            try:
                return self._ring.try_lock(name)
            except FileNotFoundError:
                self.blobs.ground.make_directories()
                return self._ring.try_lock(name)
        except OSError as error:
            raise store_error(f"{self.locks / name} cannot be locked", error) from error

    def is_locked(self, name: str) -> bool:
        """Whether any process holds the lock `name`, this one included."""
        try:
            return is_locked(self.locks / name)
        except OSError as error:
            raise store_error(f"{self.locks / name} cannot be opened", error) from error

    # -- space --------------------------------------------------------------------------------------------------------

    async def used(self) -> Used:
        """What is taken, but by unfinished bodies."""
        return await self._do(self.blobs.used)

    async def survey(self) -> list[Candidate]:
        """Whole bodies under each of their URLs, and unfinished ones.

        The last uses of other processes may be FLUSH_SECONDS behind.
        """
        await self._try_flush()
        return await self._do(self._survey, self.in_use())

    def _survey(self, in_use: set[str]) -> list[Candidate]:
        return self.blobs.candidates(in_use) + self.partials.candidates()

    async def disk(self) -> tuple[int, int]:
        """Bytes of the file system, and those of them that are free for us."""
        return await self._do_now(disk, self.root)

    async def count(self) -> int:
        """How many URLs are stored whole."""
        return await self._do(self.blobs.count_entries)

    async def growing(self, own: Iterable[Path]) -> tuple[int, int]:
        """Of all partials but `own`: bytes on disk, and bytes that the processes filling them have reserved besides."""
        return await self._do(self.partials.growing, set(own))

    async def evict(self, victims: Iterable[Candidate]) -> list[Candidate]:
        """Remove those that are still what the survey saw, and return them. Readers read on."""
        victims = list(victims)
        for each in victims:
            self._hot.forget(each.key)  # before: an open descriptor would keep the bytes
        gone = await self._do(self.blobs.evict, [each for each in victims if not is_unfinished(each)])
        for each in victims:
            if is_unfinished(each) and await self.forget_partial(each.key):
                gone.append(each)
        return gone


def _close_found(found: tuple[PartialRecord, Partial] | None) -> None:
    if found:
        found[1].close()


def _close_both(looked: tuple[OpenEntry | None, tuple[PartialRecord, Partial] | None]) -> None:
    close(looked[0])
    _close_found(looked[1])
