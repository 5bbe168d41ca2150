"""The cache directory: what is whole, what is growing, and who may fill.

index/                      cache key -> entry (index.py); rebuilt from the sidecars whenever they disagree
blobs/ab/HEX                bodies by SHA-256, immutable
blobs/ab/HEX.KEY.json       sidecars, the truth: one for each URL whose body this is
partial/                    growing bodies (partial.py)
damaged/                    what did not fit, moved out of the way for a person to look at
locks/                      flock = a right; the kernel frees it when its process dies, so a file is never in the way

All file work is done in one thread, in order. A reader keeps the descriptor it opened: a blob that is replaced, removed
or renamed meanwhile is read to its end. Between processes, what changes blobs and sidecars holds locks/store.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar
from weakref import WeakSet

import msgspec

from . import partial as partials
from .errors import ConfigError, OutOfSpace, StoreError
from .index import Index, Usage
from .log import events, log
from .partial import Partial, PartialRecord, store_error
from .rules.digests import Digest
from .rules.entry import Entry
from .rules.eviction import Candidate

P = ParamSpec("P")
T = TypeVar("T")

HOT_ENTRIES = 256
"""Open blobs kept at hand; one descriptor each."""
FLUSH_SECONDS = 30.0
"""Uses are written in batches this far apart: a write for each hit would cost more than the hit."""


READ_BYTES = 1024**2
"""In memory at once where a stored body is hashed."""


class Damaged(Exception):
    """What is on disk is not what it should be."""


class OpenFile:
    """A descriptor that closes when the last one who holds this object lets it go."""

    __slots__ = ("fd",)

    def __init__(self, path: Path) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class StoredBody:
    """A body that is whole on disk: every byte is readable at once."""

    __slots__ = ("__weakref__", "_file", "entry", "head", "length")

    def __init__(self, entry: Entry, file: OpenFile) -> None:
        self.entry, self.head, self.length = entry, entry.head, entry.size
        self._file = file

    @property
    def fd(self) -> int:
        return self._file.fd

    def again(self) -> "StoredBody":
        """The same body for one more reader; the descriptor is shared."""
        return StoredBody(self.entry, self._file)

    async def wait_readable(self, offset: int) -> int:
        return self.length

    async def wait_length(self) -> int:
        return self.length

    def detour(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Record:
    """An entry with its use, for people."""

    entry: Entry
    usage: Usage


@dataclass(frozen=True, slots=True)
class Survey:
    """What takes space, at one moment."""

    bodies: tuple[Candidate, ...]
    """Entries, and bodies that were begun (blob and key are `PARTIAL` and the cache key)."""
    damaged: int
    """Bytes in damaged/."""


PARTIAL = "partial:"


@dataclass(slots=True)
class Hot:
    """An entry at hand, true as long as its sidecar is the file it was read from."""

    body: StoredBody
    sidecar: str
    identity: tuple[int, int]

    def is_current(self) -> bool:
        try:
            stat = os.stat(self.sidecar)
        except OSError:
            return False
        return (stat.st_ino, stat.st_mtime_ns) == self.identity


class Store:
    """Make it, `await start()`, and `await close()` at the end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index_dir, self.blobs, self.partial, self.damaged, self.locks = (
            root / name for name in ("index", "blobs", "partial", "damaged", "locks")
        )
        self.committed_bytes = 0
        """Bytes of new blobs since the start."""
        self.was_damaged: list[tuple[str, str]] = []
        """What was moved aside since the start (URL, or name of a file that does not say it), and why."""
        self._readers: WeakSet[StoredBody] = WeakSet()
        self._hot: OrderedDict[str, Hot] = OrderedDict()
        self._uses: dict[str, Usage] = {}
        self._thread = ThreadPoolExecutor(1, "store")
        self._index: Index
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
            await self._do(self._index.close)
        self._hot.clear()
        self._thread.shutdown()

    def _open(self) -> None:
        try:
            for directory in (self.root, self.index_dir, self.blobs, self.partial, self.damaged, self.locks):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.locks / f".probe.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"the cache directory {self.root} cannot be used: {error.strerror}: {error.filename}. "
                "name another with --cache-dir, or mend its permissions"
            ) from error
        try:
            self._index = Index(self.index_dir)
            self._reconcile()
        except (StoreError, sqlite3.Error, msgspec.MsgspecError) as error:
            # Nothing in it is worth saving: the sidecars say it all.
            aside = self.root / f"index.broken.{int(time.time())}"
            log(events, 30, "index.rebuilt", reason=error, kept_as=aside)
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(self.index_dir, aside)
            self._index = Index(self.index_dir)
            self._reconcile()
        self._sweep()

    def _reconcile(self) -> None:
        """Make the index say what the sidecars say; a crash between the two leaves either one behind."""
        with self._exclusively():
            self._reconcile_now()

    def _reconcile_now(self) -> None:
        for half_written in self.blobs.glob("??/.*"):
            half_written.unlink(missing_ok=True)
        keys = set(self._index.keys())
        found: dict[str, list[Path]] = {}
        for path in self._sidecars():
            found.setdefault(path.name.split(".")[1], []).append(path)
        for key in keys - found.keys():
            self._index.remove(key)
        for key, paths in found.items():
            if key in keys and len(paths) == 1:
                entry = self._index.get(key)
                if entry and self._sidecar(entry) == paths[0]:
                    continue
            entries = [entry for path in paths if (entry := self._read_sidecar(path))]
            if entries:
                newest = max(entries, key=lambda entry: entry.stored_at)
                self._index.set(newest)
                for entry in entries:
                    if entry.digest != newest.digest:
                        self._drop_files(entry)
            elif key in keys:
                self._index.remove(key)

    def _sweep(self) -> None:
        """Remove what a process that was killed left of its fills and nobody can go on with."""
        for key in {path.name.lstrip(".").split(".")[0] for path in self.partial.iterdir()}:
            right = self.lock(key)
            if right is not None:
                partials.load(self.partial, key)
                os.close(right)
        with self._exclusively():
            for directory in (path for path in self.blobs.iterdir() if path.is_dir()):
                names = {path.name for path in directory.iterdir()}
                with_sidecar = {name.partition(".")[0] for name in names if name.endswith(".json")}
                for name in names - with_sidecar:
                    if name.startswith(".") or "." not in name:
                        (directory / name).unlink(missing_ok=True)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def lookup(self, key: str) -> Entry | None:
        """The entry of `key`, opened for reading; None if there is none, or its body is not what the entry says.

        A hot entry costs one stat of its sidecar; any other one index read.
        """
        hot = self._hot.get(key)
        if hot and hot.is_current():
            self._hot.move_to_end(key)
            return hot.body.entry
        hot = await self._do(self._find, key)
        if hot is None:
            self._hot.pop(key, None)
            return None
        self._hot[key] = hot
        while len(self._hot) > HOT_ENTRIES:
            self._hot.popitem(last=False)
        return hot.body.entry

    def body(self, entry: Entry) -> StoredBody:
        """The body of an entry that `lookup` or `commit` has just returned. Raises StoreError if it is gone."""
        hot = self._hot.get(entry.key)
        try:
            if hot and hot.body.entry is entry:
                body = hot.body.again()
            else:
                body = StoredBody(entry, OpenFile(self._blob(entry.digest)))
        except OSError as error:
            raise store_error(f"the stored body of {entry.url} cannot be opened", error) from error
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
        return await self._do(self._find_digest, digest)

    def _find_digest(self, digest: Digest) -> Entry | None:
        name = digest.hex if digest.algorithm == "sha256" else self._index.blob_of(digest.hex)
        if name is None:
            return None
        for path in sorted(self._blob(name).parent.glob(f"{name}.*.json")):
            entry = self._read_sidecar(path)
            # Only a length is looked at, as everywhere: bodies were hashed when they came.
            if entry and self._blob(name).stat().st_size == entry.size:
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

    def _find(self, key: str) -> Hot | None:
        row = self._index.get(key)
        if row is None:
            return None
        try:
            return self._opened(row)
        except (FileNotFoundError, Damaged):
            pass
        # Look again where nobody can change it meanwhile.
        with self._exclusively():
            row = self._index.get(key)
            if row is None:
                return None
            try:
                return self._opened(row)
            except Damaged as error:
                self._set_aside(row, str(error))
            except FileNotFoundError as error:
                log(events, 30, "store.lost", url=row.url, reason=error.strerror)
                self._remove_row(key)
            return None

    def _opened(self, row: Entry) -> Hot:
        """The entry with its blob, as the sidecar has it. Raises Damaged; FileNotFoundError without a sidecar."""
        sidecar = self._sidecar(row)
        with open(sidecar, "rb") as file:
            stat, text = os.fstat(file.fileno()), file.read()
        entry = self._decoded(sidecar, text)
        try:
            body = StoredBody(entry, OpenFile(self._blob(entry.digest)))
        except FileNotFoundError:
            raise Damaged("its body is gone") from None
        if (size := os.fstat(body.fd).st_size) != entry.size:
            raise Damaged(f"its body has {size} bytes instead of {entry.size}")
        return Hot(body, str(sidecar), (stat.st_ino, stat.st_mtime_ns))

    def _current(self, key: str) -> Entry | None:
        """The entry as its sidecar has it: after a crash the row may be of the generation before, with equal bytes."""
        row = self._index.get(key)
        if row is None:
            return None
        sidecar = self._sidecar(row)
        try:
            return self._decoded(sidecar, sidecar.read_bytes())
        except (FileNotFoundError, Damaged):
            return row

    def _decoded(self, path: Path, text: bytes) -> Entry:
        """A sidecar's entry. Raises Damaged if it is none, or another one's."""
        try:
            entry = msgspec.json.decode(text, type=Entry)
        except msgspec.MsgspecError as error:
            raise Damaged(f"its sidecar is damaged: {error}") from None
        if self._sidecar(entry) != path or entry.head.length is None:
            raise Damaged("its sidecar is another one's")
        return entry

    def _set_aside(self, entry: Entry, why: str) -> None:
        """Move a body that does not fit to damaged/, under all its URLs: the next request fetches it anew."""
        log(events, 30, "store.damaged", url=entry.url, reason=why, kept_in=self.damaged)
        self.was_damaged.append((entry.url, why))
        blob = self._blob(entry.digest)
        paths = [*blob.parent.glob(f"{entry.digest}.*.json"), blob]
        for path in paths:
            if path != blob:
                self._index.remove(path.name.split(".")[1])
            self._move_aside(path)
        self._index.remove(entry.key)

    def _move_aside(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, self.damaged / path.name)

    def touch(self, key: str, now: float) -> None:
        """Count a use of the entry; written later."""
        use = self._uses.get(key, Usage())
        self._uses[key] = Usage(use.hits + 1, now)

    async def flush(self) -> None:
        uses, self._uses = self._uses, {}
        if uses:
            await self._do(self._index.count, uses)

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
        return await self._do(self._records)

    def _records(self) -> list[Record]:
        entries = [entry for key in list(self._index.keys()) if (entry := self._index.get(key))]
        return [Record(entry, self._index.usage(entry.key)) for entry in entries]

    async def partials(self) -> list[PartialRecord]:
        """Bodies that were begun, saved and not finished."""
        return await self._do(self._partials)

    def _partials(self) -> list[PartialRecord]:
        found = []
        for path in self.partial.glob("*.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                found.append(msgspec.json.decode(path.read_bytes(), type=PartialRecord))
        return found

    # -- writing ------------------------------------------------------------------------------------------------------

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

    async def commit(self, partial: Partial, entry: Entry) -> Entry:
        """Make a whole body the entry of its key, and return it as it is stored: a pin is carried over.

        Order: bytes, blob, sidecar, index; the old generation goes last. After an error the partial is what it was.
        """
        entry = await self._do(self._commit, partial, entry)
        self._hot.pop(entry.key, None)
        return entry

    def _commit(self, partial: Partial, entry: Entry) -> Entry:
        partials.sync_data(partial.fd)
        actual = os.fstat(partial.fd).st_size
        if actual != entry.size:
            raise StoreError(f"{partial.path} has {actual} bytes instead of {entry.size}. nothing was stored")
        blob = self._blob(entry.digest)
        with self._exclusively():
            old = self._current(entry.key)
            if old:
                entry = replace(entry, pinned=old.pinned)
            blob.parent.mkdir(mode=0o700, exist_ok=True)
            is_new = not (blob.exists() and blob.stat().st_size == entry.size)  # else it came by another URL before
            if is_new:
                os.rename(partial.path, blob)
            try:
                if is_new:
                    partials.sync_directory(blob.parent)
                partials.replace(self._sidecar(entry), msgspec.json.encode(entry))
                self._index.set(entry)
            except (OSError, sqlite3.Error):
                # No space for them: an entry that only half of us knows of is worse than none.
                if is_new:
                    os.rename(blob, partial.path)
                if not (old and old.digest == entry.digest):
                    with contextlib.suppress(OSError):
                        self._sidecar(entry).unlink()
                raise
            self.committed_bytes += entry.size if is_new else 0
            if old and old.digest != entry.digest:
                self._drop_files(old)
        partial.unlink()
        return entry

    async def refresh(self, entry: Entry) -> Entry:
        """Put new headers and times in place of the entry's; the body stays."""
        entry = await self._do(self._refresh, entry)
        self._hot.pop(entry.key, None)
        return entry

    def _refresh(self, entry: Entry) -> Entry:
        with self._exclusively():
            if self._sidecar(entry).exists():  # else it was removed meanwhile, and stays so
                now = self._current(entry.key)
                entry = replace(entry, pinned=now.pinned) if now else entry
                partials.replace(self._sidecar(entry), msgspec.json.encode(entry))
                self._index.set(entry)
            return entry

    async def pin(self, key: str, pinned: bool = True) -> Entry | None:
        """Keep the entry from eviction, or let it go again. Returns it as it is now; None if there is none."""
        entry = await self._do(self._pin, key, pinned)
        self._hot.pop(key, None)
        return entry

    def _pin(self, key: str, pinned: bool) -> Entry | None:
        with self._exclusively():
            entry = self._current(key)
            if entry and entry.pinned != pinned and self._sidecar(entry).exists():
                entry = replace(entry, pinned=pinned)
                partials.replace(self._sidecar(entry), msgspec.json.encode(entry))
                self._index.set(entry)
            return entry

    async def remove(self, key: str) -> Entry | None:
        """Forget the entry; its body goes with the last URL that has it. Returns what was removed."""
        self._hot.pop(key, None)
        return await self._do(self._remove, key)

    def _remove(self, key: str) -> Entry | None:
        with self._exclusively():
            entry = self._current(key)
            if entry:
                # The row first: a body without a row is found again at the next start; a row without a body is a lie.
                self._index.remove(key)
                self._drop_files(entry)
            return entry

    def _drop_files(self, entry: Entry) -> None:
        self._sidecar(entry).unlink(missing_ok=True)
        blob = self._blob(entry.digest)
        if not any(blob.parent.glob(f"{entry.digest}.*.json")):
            blob.unlink(missing_ok=True)
            if entry.sha512:
                self._index.forget_blob_of(entry.sha512)

    # -- space --------------------------------------------------------------------------------------------------------

    async def survey(self) -> Survey:
        """What takes space, least known last: the uses of other processes may be half a minute old."""
        await self._try_flush()
        in_use = self.in_use()
        return await self._do(self._survey, in_use)

    def _survey(self, in_use: set[str]) -> Survey:
        bodies = [
            Candidate(
                brief.key, brief.url, brief.digest, brief.head.length, used_at, brief.pinned, brief.digest in in_use
            )
            for brief, used_at in self._index.briefs()
        ]
        for path in self.partial.glob("*.part"):
            key = path.name.split(".")[0]
            with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
                stat = path.stat()
                url = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=PartialRecord).url
                right = self.lock(key)
                if right is not None:
                    os.close(right)
                size = _on_disk(stat)
                bodies.append(Candidate(key, url, PARTIAL + key, size, stat.st_mtime, in_use=right is None))
        return Survey(tuple(bodies), _bytes_in(self.damaged, "*"))

    async def growing_bytes(self, own: Iterable[Path]) -> int:
        """Bytes on disk of all partials but `own`."""
        return await self._do(_bytes_in, self.partial, "*.part", {path.name for path in own})

    async def evict(self, going: Iterable[Candidate]) -> list[Candidate]:
        """Remove those that are still what was surveyed, and return them. Readers read on."""
        going = list(going)
        for each in going:
            self._hot.pop(each.key, None)  # an open descriptor would keep the bytes
        gone = await self._do(self._evict, [each for each in going if not each.blob.startswith(PARTIAL)])
        for each in going:
            if each.blob.startswith(PARTIAL) and await self.forget_partial(each.key):
                gone.append(each)
        return gone

    def _evict(self, going: list[Candidate]) -> list[Candidate]:
        gone = []
        for each in going:
            with self._exclusively():
                entry = self._index.get(each.key)
                if entry is None or entry.digest != each.blob or entry.pinned:
                    continue
                try:
                    self._index.remove(each.key)
                    self._drop_files(entry)
                except sqlite3.Error:
                    # On a full disk no row can be removed either, until a body is gone.
                    self._drop_files(entry)
                    self._remove_row(each.key)
                gone.append(each)
        return gone

    def _remove_row(self, key: str) -> None:
        """Remove a row without files; if there is no space even for that, the next look at it does."""
        try:
            self._index.remove(key)
        except sqlite3.Error as error:
            log(events, 30, "index.row_left", key=key[:12], error=error)

    async def clear_damaged(self) -> None:
        """Remove for good what was moved aside."""
        await self._do(self._clear_damaged)

    def _clear_damaged(self) -> None:
        for path in self.damaged.iterdir():
            path.unlink(missing_ok=True)

    async def set_aside(self, entry: Entry, why: str) -> None:
        """Move a damaged body out of the way, under all its URLs."""
        await self._do(self._set_aside_exclusively, entry, why)
        self.forget_stale()

    def _set_aside_exclusively(self, entry: Entry, why: str) -> None:
        with self._exclusively():
            self._set_aside(entry, why)

    # -- rights -------------------------------------------------------------------------------------------------------

    def lock(self, name: str) -> int | None:
        """The right `name` as an open descriptor, or None if another process has it. Close it to give it back."""
        try:
            fd = os.open(self.locks / name, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise store_error(f"{self.locks / name} cannot be opened", error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError as error:
            os.close(fd)
            raise store_error(f"{self.locks / name} cannot be locked", error) from error
        return fd

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        with open(self.locks / "store", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # -- names --------------------------------------------------------------------------------------------------------

    def path(self, entry: Entry) -> Path:
        """Where the body of `entry` is. It may go at any time: who opens it has it."""
        return self._blob(entry.digest)

    def has(self, entry: Entry) -> bool:
        """Whether that very body is still the entry of its key."""
        return self._sidecar(entry).exists()

    def _blob(self, digest: str) -> Path:
        return self.blobs / digest[:2] / digest

    def _sidecar(self, entry: Entry) -> Path:
        return self.blobs / entry.digest[:2] / f"{entry.digest}.{entry.key}.json"

    def _sidecars(self) -> Iterator[Path]:
        return self.blobs.glob("??/*.*.json")

    def _read_sidecar(self, path: Path) -> Entry | None:
        """The sidecar's entry; None if it or its blob does not fit, and what does not is moved aside."""
        try:
            entry = self._decoded(path, path.read_bytes())
            size = self._blob(entry.digest).stat().st_size
            if size == entry.size:
                return entry
            self._set_aside(entry, f"its body has {size} bytes instead of {entry.size}")
        except Damaged as error:
            log(events, 30, "store.damaged", path=path, reason=error, kept_in=self.damaged)
            self.was_damaged.append((path.name, str(error)))
            self._move_aside(path)
            blob = path.with_name(path.name.partition(".")[0])
            if not any(path.parent.glob(f"{blob.name}.*.json")):
                self._move_aside(blob)
        except FileNotFoundError:
            if path.exists():
                log(events, 30, "store.damaged", path=path, reason="its body is gone", kept_in=self.damaged)
                self.was_damaged.append((path.name, "its body is gone"))
                self._move_aside(path)
        return None

    async def _do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in the store's thread. Raises StoreError for whatever the disk or the index says."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))
        except OSError as error:
            raise store_error(f"the cache directory {self.root} failed", error) from error
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise OutOfSpace(
                    f"the index of {self.root} cannot grow: the disk is full. {partials.MAKE_ROOM}"
                ) from error
            raise StoreError(f"the index of {self.root} failed: {error}. restart to rebuild it") from error


def _bytes_in(directory: Path, pattern: str, but: Iterable[str] = ()) -> int:
    """Bytes that files of a directory take on disk."""
    count = 0
    for path in directory.glob(pattern):
        if path.name not in but:
            with contextlib.suppress(FileNotFoundError):
                count += _on_disk(path.stat())
    return count


def _on_disk(stat: os.stat_result) -> int:
    """Bytes of a file without its holes."""
    return min(stat.st_size, stat.st_blocks * 512)
