"""The directory partial/: the bodies that are still growing, in this process and in others, and those left unfinished.

Everything here blocks, and is called in one thread (store.py). Raises OSError and StoreError.
"""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ..errors import StoreError
from ..rules.eviction import Candidate
from ..rules.extents import Extents
from .files import allocated
from .locks import is_locked, try_lock
from .partial import SUFFIXES, Partial, PartialRecord, live_page, part_path

BLOB = "partial:"
"""Before the key: the name of an unfinished body among those of blobs."""


def is_unfinished(candidate: Candidate) -> bool:
    return candidate.blob.startswith(BLOB)


class Partials:
    def __init__(self, directory: Path, locks: Path) -> None:
        self.directory, self._locks = directory, locks

    def sweep(self) -> None:
        """Remove what killed processes left and nobody can go on with."""
        for key in sorted({path.name.lstrip(".").split(".")[0] for path in self.directory.iterdir()}):
            if lock := try_lock(self._locks / key):
                with lock:
                    if found := self.load(key):
                        found[1].close()

    def create(self, key: str, generation: str) -> Partial:
        return Partial(self.directory, key, generation)

    def has(self, key: str) -> bool:
        """Whether there is any file of `key`; True where nobody can say."""
        try:
            return any(key in name for name in os.listdir(self.directory))
        except OSError:
            return True

    def load(self, key: str) -> tuple[PartialRecord, Partial] | None:
        """The partial of `key` that a fill can go on with, opened. Removes files that belong to nothing.

        Needs the lock of `key`: another process's running partial looks like an orphan.
        """
        if not self.has(key):
            return None
        for left in sorted((*self.directory.glob(f".{key}.*"), *self.directory.glob(f"{key}.*.sock"))):
            left.unlink(missing_ok=True)
        for page in sorted((*self.directory.glob(f"{key}.*.json"), *self.directory.glob(f"{key}.*.state"))):
            if not page.with_suffix(".part").exists():
                page.unlink(missing_ok=True)
        usable: tuple[PartialRecord, Extents] | None = None
        for path in sorted(self.directory.glob(f"{key}.*.part")):
            read = _read(path)
            if read and not usable:
                usable = read
            else:
                for suffix in SUFFIXES:
                    path.with_suffix(suffix).unlink(missing_ok=True)
        if usable is None:
            return None
        record, extents = usable
        return record, Partial(self.directory, key, record.head.generation, extents=extents)

    def peek(self, key: str) -> tuple[PartialRecord, Partial] | None:
        """The partial of `key` that another process is filling, to read along; None if it has not saved any (yet)."""
        for path in self.directory.glob(f"{key}.*.json"):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=PartialRecord)
                found = Partial(self.directory, key, record.head.generation, is_ours=False)
            except (OSError, StoreError, ValueError, msgspec.MsgspecError):
                continue  # it is being committed or removed right now
            found.catch_up()
            return record, found
        return None

    def forget(self, key: str) -> bool:
        """Remove the unfinished body of `key`; False if there is none, or a process is filling it right now."""
        lock = try_lock(self._locks / key)
        if lock is None:
            return False
        with lock:
            found = self.load(key)
            if found is None:
                return False
            with contextlib.closing(found[1]) as partial:
                partial.unlink()
            return True

    def records(self) -> list[PartialRecord]:
        """Every body that was begun and saved, and is not finished, with what has come of it by now."""
        found = []
        for path in self.directory.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
                record = msgspec.json.decode(path.read_bytes(), type=PartialRecord)
                extents = Extents.from_pairs([*record.extents, *live_page(path.with_suffix(".state"))[1]])
                found.append(replace(record, extents=list(extents)))
        return found

    def candidates(self) -> list[Candidate]:
        """What may be evicted: a body that nobody fills is not in use."""
        found = []
        for path in self.directory.glob("*.part"):
            key = path.name.split(".")[0]
            with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
                stat = path.stat()
                url = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=PartialRecord).url
                in_use = is_locked(self._locks / key)
                found.append(Candidate(key, url, BLOB + key, allocated(stat), stat.st_mtime, in_use=in_use))
        return found

    def growing(self, own: Collection[Path]) -> tuple[int, int]:
        """Of all partials but `own`: bytes on disk, and bytes that the processes filling them have reserved besides."""
        written = coming = 0
        for path in self.directory.glob("*.part"):
            if path not in own:
                with contextlib.suppress(FileNotFoundError):
                    size = allocated(path.stat())
                    written += size
                    reserved, _ = live_page(path.with_suffix(".state"))
                    if reserved > size and is_locked(self._locks / path.name.split(".")[0]):
                        coming += reserved - size
        return written, coming


def _read(path: Path) -> tuple[PartialRecord, Extents] | None:
    """What the pages of a .part say, both together; None if they do not fit it."""
    try:
        record = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=PartialRecord)
        extents = Extents.from_pairs([*record.extents, *live_page(path.with_suffix(".state"))[1]])
        size = path.stat().st_size
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    fits = path == part_path(path.parent, record.key, record.head.generation)
    return (record, extents) if fits and size >= max((end for _, end in extents), default=0) else None
