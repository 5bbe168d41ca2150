"""What is whole, on disk: bodies, the sidecars that say what they are, and the index that repeats the sidecars.

index/                      cache key -> entry (index.py); rebuilt from the sidecars whenever they disagree
blobs/ab/HEX                bodies by SHA-256, immutable
blobs/ab/HEX.KEY.json       sidecars, the truth: one for each URL whose body this is
damaged/                    what did not fit, moved out of the way for a person to look at

A commit writes the sidecar first, and a body is whole and synced before its sidecar is there. So a sidecar without its
blob, whose body still lies in partial/, is a commit that was killed: the next start ends it.

Everything here blocks, and is called in one thread (store.py). Between processes, what changes blobs and sidecars holds
locks/store; who only reads finds a blob as long as its sidecar is there, and reads an open one on when it is gone.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ..errors import StoreError
from ..log import events, log
from ..rules.digests import Digest
from ..rules.entry import Entry
from ..rules.eviction import Candidate
from . import partial as partials
from .index import INDEX_ERRORS, Busy, Index, Usage
from .partial import Partial


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


@dataclass(frozen=True, slots=True)
class Opened:
    """An entry and its open blob, true as long as its sidecar is the file it was read from."""

    entry: Entry
    file: OpenFile
    sidecar: str
    identity: tuple[int, int]

    def is_current(self) -> bool:
        try:
            stat = os.stat(self.sidecar)
        except OSError:
            return False
        return (stat.st_ino, stat.st_mtime_ns) == self.identity


@dataclass(frozen=True, slots=True)
class Record:
    """An entry with its use, for people."""

    entry: Entry
    usage: Usage


class Blobs:
    """Make it, `open()`, and `close()` at the end. Raises OSError and INDEX_ERRORS."""

    index: Index

    def __init__(self, root: Path, is_held: Callable[[str], bool], busy_seconds: float) -> None:
        """`is_held`: whether any process has the right to fill that key."""
        self.root, self._busy_seconds = root, busy_seconds
        self.index_dir, self.directory, self.damaged = root / "index", root / "blobs", root / "damaged"
        self._partial, self._right = root / "partial", root / "locks" / "store"
        self._is_held = is_held
        self.was_damaged: list[tuple[str, str]] = []
        """What was moved aside since the start (URL, or name of a file that does not say it), and why."""

    # -- the start ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the index and put it right. The directories are there, locks/ too."""
        with self._locked():  # of several who find it broken one rebuilds it
            try:
                self._open_index()
            except Busy:
                raise  # it is whole, and somebody is at it
            except (StoreError, *INDEX_ERRORS) as error:
                # Nothing in it is worth saving: the sidecars say it all. Who has it open sees the new one in its place.
                aside = self.root / f"index.broken.{int(time.time())}"
                log(events, 30, "index.rebuilt", reason=error, kept_as=aside)
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(self.index_dir, aside)
                self._open_index()

    def _open_index(self) -> None:
        self.index = Index(self.index_dir, self._busy_seconds)
        self._reconcile()

    def close(self) -> None:
        self.index.close()

    def _reconcile(self) -> None:
        """Make the index say what the sidecars say; a crash between the two leaves either behind. Needs the lock."""
        found = self._swept()
        rows = {entry.key: f"{entry.digest}.{entry.key}.json" for entry, _ in self.index.records()}
        for key in rows.keys() - found.keys():
            self.index.remove(key)
        for key, names in found.items():
            if names == [rows.get(key)]:
                continue
            entries = [entry for name in names if (entry := self._read_sidecar(self.directory / name[:2] / name))]
            if entries:
                newest = max(entries, key=lambda entry: entry.stored_at)
                self.index.set(newest)
                for entry in entries:
                    if entry.digest != newest.digest:
                        self._drop_files(entry)
            elif key in rows:
                self.index.remove(key)

    def _swept(self) -> dict[str, list[str]]:
        """Names of all sidecars by key. Removes what is half written, and bodies that no sidecar tells of."""
        found: dict[str, list[str]] = {}
        for directory in (path for path in self.directory.iterdir() if path.is_dir()):
            names = set(os.listdir(directory))
            sidecars = {name for name in names if name.endswith(".json") and not name.startswith(".")}
            for name in sidecars:
                found.setdefault(name.split(".")[1], []).append(name)
            for name in sorted(names - sidecars - {name.partition(".")[0] for name in sidecars}):
                if name.startswith(".") or "." not in name:
                    (directory / name).unlink(missing_ok=True)
        return found

    # -- reading ------------------------------------------------------------------------------------------------------

    def find(self, key: str) -> Opened | None:
        """The entry of `key`, opened; None if there is none, or its body is not what the entry says."""
        row = self._current_index().get(key)
        if row is None:
            return None
        try:
            return self._opened(row)
        except (FileNotFoundError, Damaged):
            pass
        # Look again where nobody can change it meanwhile.
        with self._exclusively():
            row = self.index.get(key)
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

    def having(self, digest: Digest) -> list[Entry]:
        """What the index says of URLs whose body is known to have `digest`: a hint, to be looked up."""
        name = digest.hex if digest.algorithm == "sha256" else self._current_index().blob_of(digest.hex)
        paths = sorted((self.directory / name[:2]).glob(f"{name}.*.json")) if name else ()
        rows = (self.index.get(path.name.split(".")[1]) for path in paths)
        return [row for row in rows if row and row.digest == name]

    def records(self) -> list[Record]:
        return [Record(entry, usage) for entry, usage in self._current_index().records()]

    def count(self, uses: Mapping[str, Usage]) -> None:
        """As Index.count."""
        self._current_index().count(uses)

    def candidates(self, in_use: set[str]) -> list[Candidate]:
        """What may be evicted; `in_use` are digests of bodies that are being read."""
        return [
            Candidate(
                brief.key, brief.url, brief.digest, brief.head.length, used_at, brief.pinned, brief.digest in in_use
            )
            for brief, used_at in self._current_index().briefs()
        ]

    def committed_bytes(self) -> int:
        """Bytes of new blobs, of all processes and times: what counts is how much it has grown."""
        try:
            return int(self._right.read_bytes() or b"0")
        except (OSError, ValueError):
            return 0

    def path(self, entry: Entry) -> Path:
        """Where the body of `entry` is. It may go at any time: who opens it has it."""
        return self._blob(entry.digest)

    def has(self, entry: Entry) -> bool:
        """Whether that very body is still the entry of its key."""
        return self._sidecar(entry).exists()

    def _opened(self, row: Entry) -> Opened:
        """The entry with its blob, as the sidecar has it. Raises Damaged; FileNotFoundError without a sidecar."""
        sidecar = self._sidecar(row)
        with open(sidecar, "rb") as file:
            stat, text = os.fstat(file.fileno()), file.read()
        entry = self._decoded(sidecar, text)
        try:
            body = OpenFile(self._blob(entry.digest))
        except FileNotFoundError:
            raise Damaged("its body is gone") from None
        if (size := os.fstat(body.fd).st_size) != entry.size:
            raise Damaged(f"its body has {size} bytes instead of {entry.size}")
        return Opened(entry, body, str(sidecar), (stat.st_ino, stat.st_mtime_ns))

    def _current(self, key: str) -> Entry | None:
        """The entry as its sidecar has it: after a crash the row may be of the generation before, with equal bytes."""
        row = self.index.get(key)
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

    def _read_sidecar(self, path: Path) -> Entry | None:
        """The sidecar's entry; None if it or its blob does not fit, and what does not is moved aside."""
        try:
            entry = self._decoded(path, path.read_bytes())
            blob, part = self._blob(entry.digest), partials.path_of(self._partial, entry.key, entry.head.generation)
            if size_of(blob) == entry.size:
                return entry
            if size_of(part) == entry.size:
                return self._end_commit(entry, part)
            size = blob.stat().st_size
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

    # -- writing ------------------------------------------------------------------------------------------------------

    def commit(self, partial: Partial, entry: Entry) -> Entry:
        """Make a whole body the entry of its key, and return it as it is stored: a pin is carried over.

        Order: bytes, sidecar, blob, index, each durable before the next; the old generation goes last. The blob first
        would be a body of which nobody knows whose it is. After an error the partial is what it was.
        """
        partials.sync_data(partial.fd)
        actual = os.fstat(partial.fd).st_size
        if actual != entry.size:
            raise StoreError(f"{partial.path} has {actual} bytes instead of {entry.size}. nothing was stored")
        blob = self._blob(entry.digest)
        with self._exclusively():
            old = self._current(entry.key)
            if old:
                entry = replace(entry, pinned=old.pinned)
            if not blob.parent.exists():
                blob.parent.mkdir(mode=0o700)
                partials.sync_directory(self.directory)
            is_new = size_of(blob) != entry.size  # else it came by another URL before
            is_moved = False
            try:
                self._write_sidecar(entry)
                if is_new:
                    os.rename(partial.path, blob)
                    is_moved = True
                    partials.sync_directory(blob.parent)
                self.index.set(entry)
            except (OSError, *INDEX_ERRORS):
                # No space for them: an entry that only half of us knows of is worse than none. Killed here, it is
                # ended after all: the sidecar goes when the body is back.
                if is_moved:
                    os.rename(blob, partial.path)
                if not (old and old.digest == entry.digest):
                    with contextlib.suppress(OSError):
                        self._sidecar(entry).unlink()
                raise
            if is_new:
                self._count(entry.size)
            if old and old.digest != entry.digest:
                self._drop_files(old)
        partial.unlink()
        return entry

    def _end_commit(self, entry: Entry, part: Path) -> Entry | None:
        """End a commit that was killed before its body was moved; None where that is not for us to do."""
        sidecar = self._sidecar(entry)
        if self._is_held(entry.key) or part.stat().st_mtime_ns > sidecar.stat().st_mtime_ns:
            # Another fill has taken the body up, and commits it anew.
            sidecar.unlink()
            return None
        os.rename(part, self._blob(entry.digest))
        partials.sync_directory(sidecar.parent)
        self._count(entry.size)
        log(events, 20, "store.commit_ended", url=entry.url, bytes=entry.size)
        return entry

    def _count(self, count: int) -> None:
        with contextlib.suppress(OSError), open(self._right, "r+b", buffering=0) as file:
            file.write(b"%020d" % (self.committed_bytes() + count))  # as wide each time: a reader sees all of it

    def refresh(self, entry: Entry) -> Entry:
        """Put new headers and times in place of the entry's; the body stays."""
        with self._exclusively():
            if self.has(entry):  # else it was removed meanwhile, and stays so
                now = self._current(entry.key)
                entry = replace(entry, pinned=now.pinned) if now else entry
                self._write(entry)
            return entry

    def pin(self, key: str, pinned: bool) -> Entry | None:
        """Keep the entry from eviction, or let it go again. Returns it as it is now; None if there is none."""
        with self._exclusively():
            entry = self._current(key)
            if entry and entry.pinned != pinned and self.has(entry):
                entry = replace(entry, pinned=pinned)
                self._write(entry)
            return entry

    def _write(self, entry: Entry) -> None:
        self._write_sidecar(entry)
        self.index.set(entry)

    def _write_sidecar(self, entry: Entry) -> None:
        partials.replace(self._sidecar(entry), msgspec.json.encode(entry))

    def remove(self, key: str) -> Entry | None:
        """Forget the entry; its body goes with the last URL that has it. Returns what was removed."""
        with self._exclusively():
            entry = self._current(key)
            if entry:
                # The row first: a body without a row is found again at the next start; a row without a body is a lie.
                self.index.remove(key)
                self._drop_files(entry)
            return entry

    def evict(self, going: Iterable[Candidate]) -> list[Candidate]:
        """Remove those that are still what was surveyed, and return them."""
        gone = []
        for each in going:
            with self._exclusively():
                entry = self.index.get(each.key)
                if entry is None or entry.digest != each.blob or entry.pinned:
                    continue
                try:
                    self.index.remove(each.key)
                    self._drop_files(entry)
                except INDEX_ERRORS:
                    # On a full disk no row can be removed either, until a body is gone.
                    self._drop_files(entry)
                    self._remove_row(each.key)
                gone.append(each)
        return gone

    def set_aside(self, entry: Entry, why: str) -> None:
        """Move a damaged body to damaged/, under all its URLs: the next request fetches it anew."""
        with self._exclusively():
            self._set_aside(entry, why)

    def clear_damaged(self) -> None:
        """Remove for good what was moved aside."""
        for path in self.damaged.iterdir():
            path.unlink(missing_ok=True)

    def _set_aside(self, entry: Entry, why: str) -> None:
        log(events, 30, "store.damaged", url=entry.url, reason=why, kept_in=self.damaged)
        self.was_damaged.append((entry.url, why))
        blob = self._blob(entry.digest)
        paths = [*blob.parent.glob(f"{entry.digest}.*.json"), blob]
        for path in paths:
            if path != blob:
                self.index.remove(path.name.split(".")[1])
            self._move_aside(path)
        self.index.remove(entry.key)

    def _move_aside(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, self.damaged / path.name)

    def _drop_files(self, entry: Entry) -> None:
        self._sidecar(entry).unlink(missing_ok=True)
        blob = self._blob(entry.digest)
        if not any(blob.parent.glob(f"{entry.digest}.*.json")):
            blob.unlink(missing_ok=True)
            if entry.sha512:
                self.index.forget_blob_of(entry.sha512)

    def _remove_row(self, key: str) -> None:
        """Remove a row without files; if there is no space even for that, the next look at it does."""
        try:
            self.index.remove(key)
        except INDEX_ERRORS as error:
            log(events, 30, "index.row_left", key=key[:12], error=error)

    # -- names --------------------------------------------------------------------------------------------------------

    def _blob(self, digest: str) -> Path:
        return self.directory / digest[:2] / digest

    def _sidecar(self, entry: Entry) -> Path:
        return self.directory / entry.digest[:2] / f"{entry.digest}.{entry.key}.json"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self._right, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        """With the lock, and the index that all others have."""
        with self._locked():
            if not self.index.is_current():
                log(events, 30, "index.reopened", reason="another process has put a new one in its place")
                self.index.close()
                self._open_index()
            yield

    def _current_index(self) -> Index:
        """The index to read in without the lock."""
        if not self.index.is_current():
            with self._exclusively():
                pass
        return self.index


def size_of(path: Path) -> int | None:
    """Bytes of the file; None if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
