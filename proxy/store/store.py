"""The cache directory for the loop: what is whole (blobs.py), what is growing (partial.py), and who may fill.

partial/   growing bodies
locks/     flock = a right; the kernel frees it when its process dies, so a file is never in the way

All file work is done in one thread, in order; hot entries are at hand without it. A reader keeps the descriptor it
opened: a blob that is replaced, removed or renamed meanwhile is read to its end.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar
from weakref import WeakSet

import msgspec

from ..errors import ConfigError, OutOfSpace, StoreError
from ..log import events, log
from ..rules.digests import Digest
from ..rules.entry import Entry
from ..rules.eviction import Candidate
from . import partial as partials
from .blobs import Blobs, Opened, OpenFile, Record
from .index import BUSY_SECONDS, INDEX_ERRORS, Busy, Usage
from .partial import Partial, PartialRecord, live_page, store_error

P = ParamSpec("P")
T = TypeVar("T")

HOT_ENTRIES = 256
"""Open blobs kept at hand; one descriptor each."""
FLUSH_SECONDS = 30.0
"""Uses are written in batches this far apart: a write for each hit would cost more than the hit."""
READ_BYTES = 1024**2
"""In memory at once where a stored body is hashed."""
LOOKS = 100
"""So often a right is tried at once while others look at it; one who was stopped in his look is as one who has it."""
PARTIAL = "partial:"


class StoredBody:
    """A body that is whole on disk: every byte is readable at once."""

    __slots__ = ("__weakref__", "_file", "entry", "head", "length")

    def __init__(self, entry: Entry, file: OpenFile) -> None:
        self.entry, self.head, self.length = entry, entry.head, entry.size
        self._file = file

    @property
    def fd(self) -> int:
        return self._file.fd

    async def wait_readable(self, offset: int) -> int:
        return self.length

    async def wait_length(self) -> int:
        return self.length

    def detour(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Survey:
    """What takes space, at one moment."""

    bodies: tuple[Candidate, ...]
    """Entries, and bodies that were begun (blob and key are `PARTIAL` and the cache key)."""
    damaged: int
    """Bytes in damaged/."""
    committed: int
    """Blobs.committed_bytes just before: what is stored meanwhile may count twice, but never not at all."""


class Store:
    """Make it, `await start()`, and `await close()` at the end."""

    def __init__(self, root: Path, busy_seconds: float = BUSY_SECONDS) -> None:
        self.root = root
        self.blobs = Blobs(root, self.is_held, busy_seconds)
        self.partial, self.locks = root / "partial", root / "locks"
        self._readers: WeakSet[StoredBody] = WeakSet()
        self._hot: OrderedDict[str, Opened] = OrderedDict()
        self._uses: dict[str, Usage] = {}
        self._thread = ThreadPoolExecutor(1, "store")
        self._flusher: asyncio.Task[None] | None = None
        self._hashing = asyncio.Lock()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the directories, open the index, put it right. Raises ConfigError where the directory is of no use."""
        await self._do(self._open)
        self._flusher = asyncio.create_task(self._flush_regularly())

    async def close(self) -> None:
        if self._flusher:
            self._flusher.cancel()
            await self._try_flush()  # a full disk must not keep us from ending
            await self._do(self.blobs.close)
        self._hot.clear()
        self._thread.shutdown()

    def _open(self) -> None:
        try:
            whole = self.blobs
            for directory in (self.root, whole.index_dir, whole.directory, whole.damaged, self.partial, self.locks):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.locks / f".probe.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"the cache directory {self.root} cannot be used: {error.strerror}: {error.filename}. "
                "name another with --cache-dir, or mend its permissions"
            ) from error
        self.blobs.open()
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a process that was killed left of its fills and nobody can go on with."""
        for key in sorted({path.name.lstrip(".").split(".")[0] for path in self.partial.iterdir()}):
            right = self.lock(key)
            if right is not None:
                partials.load(self.partial, key)
                os.close(right)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def lookup(self, key: str) -> Entry | None:
        """The entry of `key`, opened for reading; None if there is none, or its body is not what the entry says.

        A hot entry costs one stat of its sidecar; any other one index read.
        """
        hot = self._hot.get(key)
        if hot and hot.is_current():
            self._hot.move_to_end(key)
            return hot.entry
        hot = await self._do(self.blobs.find, key)
        if hot is None:
            self._hot.pop(key, None)
            return None
        self._hot[key] = hot
        while len(self._hot) > HOT_ENTRIES:
            self._hot.popitem(last=False)
        return hot.entry

    def body(self, entry: Entry) -> StoredBody:
        """The body of an entry that `lookup` or `commit` has just returned. Raises StoreError if it is gone."""
        hot = self._hot.get(entry.key)
        try:
            file = hot.file if hot and hot.entry is entry else OpenFile(self.blobs.path(entry))
        except OSError as error:
            raise store_error(f"the stored body of {entry.url} cannot be opened", error) from error
        body = StoredBody(entry, file)
        self._readers.add(body)
        return body

    def in_use(self) -> set[str]:
        """Digests of the bodies that are being read in this process."""
        return {body.entry.digest for body in self._readers}

    def forget_stale(self) -> None:
        """Let go of bodies that another process has removed: as long as they are open they take space."""
        for key in [key for key, hot in self._hot.items() if not hot.is_current()]:
            del self._hot[key]

    def read(self, entry: Entry) -> bytes:
        """The whole of a small body. Raises StoreError as `body` does."""
        body = self.body(entry)  # held: it closes its file when it goes
        try:
            return os.pread(body.fd, entry.size, 0)
        except OSError as error:
            raise store_error(f"the stored body of {entry.url} cannot be read", error) from error

    async def find(self, digest: Digest, key: str) -> Entry | None:
        """An entry whose body has `digest`, that of `key` before all others; None if no body is known to have it."""
        entry = await self.lookup(key)
        if entry and digest.algorithm == "sha512" and entry.sha512 is None:
            entry = await self._with_sha512(entry)
        if entry and entry.has(digest):
            return entry
        # Only a length is looked at, as everywhere: bodies were hashed when they came.
        for row in await self._do(self.blobs.having, digest):
            entry = await self.lookup(row.key)
            if entry and entry.digest == row.digest:
                return entry
        return None

    async def _with_sha512(self, entry: Entry) -> Entry:
        """The entry with its SHA-512, computed now and kept."""
        body = self.body(entry)

        def compute() -> str:
            state = hashlib.sha512()
            offset = 0
            while data := os.pread(body.fd, READ_BYTES, offset):
                state.update(data)
                offset += len(data)
            return state.hexdigest()

        async with self._hashing:  # one at a time: the next one who asks finds it done
            current = await self.lookup(entry.key)
            if current and current.digest == entry.digest and current.sha512:
                return current
            # Not in the store's own thread, where everybody would wait for it.
            digest = await asyncio.to_thread(compute)
            current = await self.lookup(entry.key)
            if current and current.digest == entry.digest:
                return await self.refresh(replace(current, sha512=digest))
            return replace(entry, sha512=digest)  # removed or replaced meanwhile: for this one answer

    def touch(self, key: str, now: float) -> None:
        """Count a use of the entry; written later."""
        use = self._uses.get(key, Usage())
        self._uses[key] = Usage(use.hits + 1, now)

    async def flush(self) -> None:
        uses, self._uses = self._uses, {}
        if uses:
            await self._do(self.blobs.count, uses)

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._try_flush()

    async def _try_flush(self) -> None:
        try:
            await self.flush()
        except StoreError as error:
            log(events, 30, "index.uses_lost", error=error)

    async def records(self) -> list[Record]:
        """All entries with their use, as the index has them; the uses of this process included."""
        await self.flush()
        return await self._do(self.blobs.records)

    # -- whole bodies -------------------------------------------------------------------------------------------------

    async def commit(self, partial: Partial, entry: Entry) -> Entry:
        """As Blobs.commit."""
        entry = await self._do(self.blobs.commit, partial, entry)
        self._hot.pop(entry.key, None)
        return entry

    async def refresh(self, entry: Entry) -> Entry:
        """As Blobs.refresh."""
        entry = await self._do(self.blobs.refresh, entry)
        self._hot.pop(entry.key, None)
        return entry

    async def pin(self, key: str, pinned: bool = True) -> Entry | None:
        """As Blobs.pin."""
        entry = await self._do(self.blobs.pin, key, pinned)
        self._hot.pop(key, None)
        return entry

    async def remove(self, key: str) -> Entry | None:
        """As Blobs.remove."""
        self._hot.pop(key, None)
        return await self._do(self.blobs.remove, key)

    async def set_aside(self, entry: Entry, why: str) -> None:
        """As Blobs.set_aside."""
        await self._do(self.blobs.set_aside, entry, why)
        self.forget_stale()

    # -- growing bodies -----------------------------------------------------------------------------------------------

    async def create(self, key: str, generation: str) -> Partial:
        return await self._do(Partial, self.partial, key, generation)

    async def resume(self, key: str) -> tuple[PartialRecord, Partial] | None:
        """The partial of `key` to go on with. Needs the lock of `key`."""
        return await self._do(partials.load, self.partial, key)

    async def peek(self, key: str) -> tuple[PartialRecord, Partial] | None:
        """The partial of `key` that another process is filling, to read along."""
        return await self._do(partials.peek, self.partial, key)

    async def save(self, partial: Partial, record: PartialRecord) -> None:
        await self._do(partial.save, record)

    async def discard(self, partial: Partial, *, at_once: bool = False) -> None:
        """Remove a partial; `at_once` its bytes too, though somebody may still have it open."""
        await self._do(partial.unlink)
        if at_once:
            await self._do(os.ftruncate, partial.fd, 0)

    async def forget_partial(self, key: str) -> bool:
        """Remove what was begun of `key`; False if there is nothing, or a process is filling it right now."""
        right = self.lock(key)
        if right is None:
            return False
        try:
            saved = await self.resume(key)
            if saved:
                await self.discard(saved[1])
            return saved is not None
        finally:
            os.close(right)

    async def partials(self) -> list[PartialRecord]:
        """Bodies that were begun, saved and not finished."""
        return await self._do(self._partials)

    def _partials(self) -> list[PartialRecord]:
        found = []
        for path in self.partial.glob("*.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                found.append(msgspec.json.decode(path.read_bytes(), type=PartialRecord))
        return found

    def lock(self, name: str) -> int | None:
        """The right `name` as an open descriptor, or None if another process has it. Close it to give it back."""
        try:
            fd = os.open(self.locks / name, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise store_error(f"{self.locks / name} cannot be opened", error) from error
        try:
            for _ in range(LOOKS):
                if _flocked(fd, fcntl.LOCK_EX):
                    return fd
                if not _flocked(fd, fcntl.LOCK_SH):
                    break
                # Nobody has it; somebody looks whether anybody has.
                fcntl.flock(fd, fcntl.LOCK_UN)
        except OSError as error:
            os.close(fd)
            raise store_error(f"{self.locks / name} cannot be locked", error) from error
        os.close(fd)
        return None

    def is_held(self, name: str) -> bool:
        """Whether any process has the right `name`, this one included."""
        try:
            with open(self.locks / name, "rb") as file:
                return not _flocked(file.fileno(), fcntl.LOCK_SH)
        except FileNotFoundError:
            return False

    # -- space --------------------------------------------------------------------------------------------------------

    async def survey(self) -> Survey:
        """What takes space, least known last: the uses of other processes may be half a minute old."""
        await self._try_flush()
        return await self._do(self._survey, self.in_use())

    def _survey(self, being_read: set[str]) -> Survey:
        committed = self.blobs.committed_bytes()
        bodies = self.blobs.candidates(being_read)
        for path in self.partial.glob("*.part"):
            key = path.name.split(".")[0]
            with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
                stat = path.stat()
                url = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=PartialRecord).url
                in_use = self.is_held(key)
                bodies.append(Candidate(key, url, PARTIAL + key, _on_disk(stat), stat.st_mtime, in_use=in_use))
        damaged = 0
        for path in self.blobs.damaged.iterdir():
            with contextlib.suppress(FileNotFoundError):
                damaged += _on_disk(path.stat())
        return Survey(tuple(bodies), damaged, committed)

    async def growing(self, own: Iterable[Path]) -> tuple[int, int]:
        """Of all partials but `own`: bytes on disk, and bytes that whoever fills them has promised to add."""
        return await self._do(self._growing, {path.name for path in own})

    def _growing(self, own: set[str]) -> tuple[int, int]:
        written = coming = 0
        for path in self.partial.glob("*.part"):
            if path.name not in own:
                with contextlib.suppress(FileNotFoundError):
                    size = _on_disk(path.stat())
                    written += size
                    promised, _ = live_page(path.with_suffix(".state"))
                    if promised > size and self.is_held(path.name.split(".")[0]):
                        coming += promised - size
        return written, coming

    async def evict(self, going: Iterable[Candidate]) -> list[Candidate]:
        """Remove those that are still what was surveyed, and return them. Readers read on."""
        going = list(going)
        for each in going:
            self._hot.pop(each.key, None)  # an open descriptor would keep the bytes
        gone = await self._do(self.blobs.evict, [each for each in going if not each.blob.startswith(PARTIAL)])
        for each in going:
            if each.blob.startswith(PARTIAL) and await self.forget_partial(each.key):
                gone.append(each)
        return gone

    async def clear_damaged(self) -> None:
        """As Blobs.clear_damaged."""
        await self._do(self.blobs.clear_damaged)

    # -- the thread ---------------------------------------------------------------------------------------------------

    async def _do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in the store's thread. Raises StoreError for whatever the disk or the index says."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))
        except OSError as error:
            raise store_error(f"the cache directory {self.root} failed", error) from error
        except Busy as error:
            raise StoreError(f"another process has kept the index of {self.root} locked. try again") from error
        except INDEX_ERRORS as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise OutOfSpace(
                    f"the index of {self.root} cannot grow: the disk is full. {partials.MAKE_ROOM}"
                ) from error
            raise StoreError(f"the index of {self.root} failed: {error}. restart to rebuild it") from error


def _flocked(fd: int, kind: int) -> bool:
    """Whether that could be had at once."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _on_disk(stat: os.stat_result) -> int:
    """Bytes of a file without its holes."""
    return min(stat.st_size, stat.st_blocks * 512)
