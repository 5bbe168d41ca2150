"""A body that is still growing: one file, written at offsets, read by everybody meanwhile.

Files in `partial/`: KEY.GENERATION.part (bytes) and .json (what they are bytes of, and which of them are on disk). The
extents in the .json are written after an fdatasync of the bytes they speak of, so they are true after a power cut too;
a .part without one is an orphan. Nothing is preallocated and holes are never guessed from the file system.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from .errors import OutOfSpace, StoreError
from .rules.entry import Head
from .rules.extents import Extents

FULL = (errno.ENOSPC, errno.EDQUOT)
MAKE_ROOM = "make room: fetchonce prune, fetchonce rm URL"
"""What to do, for people."""


class PartialRecord(msgspec.Struct, frozen=True):
    """The .json beside a .part."""

    key: str
    url: str
    mirror: str
    head: Head
    extents: list[tuple[int, int]]


class Partial:
    """An open .part. `write` may be called from several threads for disjoint ranges."""

    def __init__(self, directory: Path, key: str, generation: str, *, extents: Extents | None = None) -> None:
        self.key, self.generation = key, generation
        self.path = directory / f"{key}.{generation}.part"
        self.extents = extents if extents is not None else Extents()
        self.make_room: Callable[[int], bool] | None = None
        """Called by a write that found the disk full: frees that many bytes, or says False. May block."""
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise store_error(f"{self.path} cannot be created", error) from error

    def write(self, offset: int, data: memoryview) -> None:
        """Put all of `data` at `offset`. Raises OutOfSpace or StoreError; a full disk is tried twice."""
        make_room = self.make_room
        while data:
            try:
                written = os.pwrite(self.fd, data, offset)
            except OSError as error:
                if make_room and error.errno in FULL and make_room(len(data)):
                    make_room = None
                    continue
                raise store_error(f"writing {self.path} failed", error) from error
            offset, data = offset + written, data[written:]

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self.fd, count, offset)

    def save(self, url: str, mirror: str, head: Head) -> None:
        """Make what is written so far survive a restart. Blocks on the disk."""
        pairs = list(self.extents)
        try:
            sync_data(self.fd)
            replace(
                self.path.with_suffix(".json"), msgspec.json.encode(PartialRecord(self.key, url, mirror, head, pairs))
            )
        except OSError as error:
            raise store_error(f"{self.path} cannot be saved", error) from error

    def __del__(self) -> None:
        # Whoever still reads holds this object; the last one closes the file.
        if (fd := getattr(self, "fd", -1)) >= 0:
            os.close(fd)

    def unlink(self) -> None:
        """Remove the files; readers that hold the descriptor read on."""
        for suffix in (".json", ".part"):
            self.path.with_suffix(suffix).unlink(missing_ok=True)


def load(directory: Path, key: str) -> tuple[PartialRecord, Partial] | None:
    """The partial of `key` that can be gone on with, opened; files that fit nothing are removed.

    Call it with the right to fill `key` only: another process's running partial looks like an orphan.
    """
    found: tuple[PartialRecord, Partial] | None = None
    for path in sorted(directory.glob(f"{key}.*.part")):
        generation = path.name.split(".")[1]
        try:
            record = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=PartialRecord)
            extents = Extents.from_pairs(record.extents)
            usable = record.head.generation == generation and path.stat().st_size >= max(
                (end for _, end in extents), default=0
            )
        except (OSError, ValueError, msgspec.MsgspecError):
            usable = False
        if usable and found is None:
            found = record, Partial(directory, key, generation, extents=extents)
        else:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    return found


def store_error(what: str, error: OSError) -> StoreError:
    """The house's error for the file system's."""
    text = f"{what}: {error.strerror or error}"
    if error.errno in FULL:
        return OutOfSpace(f"{text}. {MAKE_ROOM}")
    return StoreError(text)


def replace(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step that survives a power cut: write, sync, rename, sync the directory."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_data(fd: int) -> None:
    # macOS has no fdatasync; its fsync leaves the drive's own cache alone, which only a power cut could tell.
    getattr(os, "fdatasync", os.fsync)(fd)
