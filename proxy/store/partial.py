"""A body that is still growing: one file, written at offsets, read by everybody meanwhile.

Files in `partial/`, all named KEY.GENERATION:
.part    the bytes. Nothing is preallocated, and holes are never guessed from the file system
.json    the durable page: what they are bytes of, and which of them an fdatasync has covered. True after a power cut
.state   the live page: how many there will be, and which of them are written. True after the death of the process, as
         long as the machine lives
.sock    where the process that fills is heard of by those that read along (following.py)
A .part without a .json is an orphan.
"""

import contextlib
import errno
import itertools
import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..errors import OutOfSpace, StoreError
from ..rules.entry import Head
from ..rules.extents import Extents

SUFFIXES = (".json", ".state", ".part")  # in the order of removal: a .part alone is an orphan, a .json alone a lie
LIVE = struct.Struct("<II")
"""CRC-32 and length of what follows in a live page: 36 bytes of boot id, and the numbers: how many bytes are promised,
start and end of each extent."""
NO_BOOT = b" " * 36
FULL = (errno.ENOSPC, errno.EDQUOT)
MAKE_ROOM = "make room: fetchonce prune, fetchonce rm URL"
"""What to do, for people."""


class PartialRecord(msgspec.Struct, frozen=True):
    """The .json beside a .part."""

    key: str
    url: str
    mirror: str
    source: str
    """The mirror's URL that gave the head: only its validators can be compared."""
    head: Head
    extents: list[tuple[int, int]]


class Partial:
    """An open .part. `write` may be called from several threads for disjoint ranges."""

    def __init__(
        self, directory: Path, key: str, generation: str, *, extents: Extents | None = None, is_ours: bool = True
    ) -> None:
        """`is_ours`: with the right to fill; else only to read along. Raises StoreError."""
        self.key, self.generation, self.is_ours = key, generation, is_ours
        self.path = path_of(directory, key, generation)
        self.extents = extents if extents is not None else Extents()
        self.promised = 0
        """How many bytes others leave room for; told in the live page, and true as long as somebody may fill."""
        self.fd = self._state_fd = -1
        self.make_room: Callable[[int], bool] | None = None
        """Called by a write that found the disk full: frees that many bytes, or says False. May block."""
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT if is_ours else os.O_RDONLY, 0o600)
            # Who reads along holds the live page as it holds the bytes: it may be gone before its last word is read.
            state = self.path.with_suffix(".state")
            self._state_fd = os.open(state, os.O_WRONLY | os.O_CREAT if is_ours else os.O_RDONLY, 0o600)
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

    def save(self, record: PartialRecord) -> None:
        """Write the durable page: the bytes of `record.extents` survive a power cut. Blocks on the disk."""
        try:
            sync_data(self.fd)
            replace(self.path.with_suffix(".json"), msgspec.json.encode(record))
        except OSError as error:
            raise store_error(f"{self.path} cannot be saved", error) from error

    def tell(self, extents: Extents) -> None:
        """Write the live page. One small write, so that a reader sees the old or the new one, or that it is neither.

        On a full disk it stays as it is: what it does not tell of would be fetched again after a kill.
        """
        numbers = self.promised, *itertools.chain(*extents)
        page = BOOT + struct.pack(f"<{len(numbers)}Q", *numbers)
        with contextlib.suppress(OSError):
            os.pwrite(self._state_fd, LIVE.pack(zlib.crc32(page), len(page)) + page, 0)

    def catch_up(self) -> bool:
        """Take in what another process has written since; whether that is anything."""
        before = self.extents.total
        for start, end in live_page(self._state_fd)[1]:
            self.extents.add(start, end)
        return self.extents.total > before

    def __del__(self) -> None:
        # Whoever still reads holds this object; the last one closes the file.
        for fd in (self.fd, self._state_fd):
            if fd >= 0:
                os.close(fd)

    def unlink(self) -> None:
        """Remove the files; readers that hold the descriptor read on."""
        for suffix in SUFFIXES:
            self.path.with_suffix(suffix).unlink(missing_ok=True)


def path_of(directory: Path, key: str, generation: str) -> Path:
    return directory / f"{key}.{generation}.part"


def load(directory: Path, key: str) -> tuple[PartialRecord, Partial] | None:
    """The partial of `key` that can be gone on with, opened; files that fit nothing are removed.

    Call it with the right to fill `key` only: another process's running partial looks like an orphan.
    """
    for left in sorted((*directory.glob(f".{key}.*"), *directory.glob(f"{key}.*.sock"))):
        left.unlink(missing_ok=True)
    for page in sorted((*directory.glob(f"{key}.*.json"), *directory.glob(f"{key}.*.state"))):
        if not page.with_suffix(".part").exists():
            page.unlink(missing_ok=True)
    found: tuple[PartialRecord, Partial] | None = None
    for path in sorted(directory.glob(f"{key}.*.part")):
        generation = path.name.split(".")[1]
        extents = Extents()
        try:
            record = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=PartialRecord)
            extents = Extents.from_pairs([*record.extents, *live_page(path.with_suffix(".state"))[1]])
            usable = record.head.generation == generation and path.stat().st_size >= max(
                (end for _, end in extents), default=0
            )
        except (OSError, ValueError, msgspec.MsgspecError):
            usable = False
        if usable and found is None:
            found = record, Partial(directory, key, generation, extents=extents)
        else:
            for suffix in SUFFIXES:
                path.with_suffix(suffix).unlink(missing_ok=True)
    return found


def peek(directory: Path, key: str) -> tuple[PartialRecord, Partial] | None:
    """The partial of `key` that another process is filling, to read along; None if it has not told of it (yet)."""
    for path in directory.glob(f"{key}.*.json"):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=PartialRecord)
            found = Partial(directory, key, record.head.generation, is_ours=False)
        except (OSError, StoreError, ValueError, msgspec.MsgspecError):
            continue  # it is being committed or removed this moment
        found.catch_up()
        return record, found
    return None


def live_page(file: Path | int) -> tuple[int, list[tuple[int, int]]]:
    """What a live page says is promised and written; nothing if it is torn, or of another life of the machine."""
    try:
        data = file.read_bytes() if isinstance(file, Path) else os.pread(file, os.fstat(file).st_size, 0)
        checksum, length = LIVE.unpack_from(data)
    except (OSError, struct.error):
        return 0, []
    page = data[LIVE.size : LIVE.size + length]
    if len(page) != length or zlib.crc32(page) != checksum or not page.startswith(BOOT) or BOOT == NO_BOOT:
        return 0, []
    promised, *numbers = struct.unpack(f"<{(length - len(BOOT)) // 8}Q", page[len(BOOT) :])
    return promised, list(zip(numbers[::2], numbers[1::2], strict=True))


def _boot() -> bytes:
    """Which life of the machine this is, 36 bytes; NO_BOOT where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()[:36].ljust(36)
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # macOS
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, capture_output=True, timeout=5, check=True).stdout.strip()[:36].ljust(36)
    return NO_BOOT


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


BOOT = _boot()
