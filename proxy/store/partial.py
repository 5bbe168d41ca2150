"""A body that is still growing: one file, written at offsets, which everybody may read meanwhile.

Files in partial/, all named KEY.GENERATION:
.part    the bytes. Nothing is preallocated, and holes are never guessed from the file system
.json    the durable page: which response the bytes belong to, and which of them an fdatasync has covered. It holds
         after a power cut
.state   the live page: how many bytes are reserved, and which are written. It holds after the death of the process, as
         long as the machine lives
.sock    where the process that fills talks to those that read along (fill/sharing.py)
A .part without a .json is an orphan.
"""

import contextlib
import itertools
import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..errors import StoreError
from ..rules.entry import Head
from ..rules.extents import Extents
from .files import FULL, close_body, is_named, publish, store_error, sync_data

SUFFIXES = (".json", ".state", ".part")
"""In the order of removal: a .part alone is only an orphan, a .json alone is wrong."""
LIVE = struct.Struct("<II")
"""CRC-32 and length of the rest of a live page: a boot id of 36 bytes, and 64-bit numbers (how many bytes are reserved,
then start and end of each extent)."""
NO_BOOT = b" " * 36


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
    """An open .part. Whoever made or loaded it closes it. Several threads may `write` disjoint ranges."""

    def __init__(
        self, directory: Path, key: str, generation: str, *, extents: Extents | None = None, is_ours: bool = True
    ) -> None:
        """`is_ours`: we hold the lock of `key` and may write; otherwise we only read along. Raises StoreError."""
        self.key, self.generation, self.is_ours = key, generation, is_ours
        self.path = part_path(directory, key, generation)
        self.extents = extents if extents is not None else Extents()
        self._reserved = 0
        self._make_room: Callable[[int], bool] | None = None
        self.fd = self._state_fd = -1
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT if is_ours else os.O_RDONLY, 0o600)
            # A follower opens the live page too: the file may be gone before its last version is read.
            state = self.path.with_suffix(".state")
            self._state_fd = os.open(state, os.O_WRONLY | os.O_CREAT if is_ours else os.O_RDONLY, 0o600)
        except OSError as error:
            self.close()
            raise store_error(f"{self.path} cannot be created", error) from error

    def close(self) -> None:
        """Close the files. No thread may be writing: a number that is free again may become another file's."""
        for fd in (self.fd, self._state_fd):
            if fd >= 0:
                close_body(fd)
        self.fd = self._state_fd = -1

    def reserve(self, count: int, make_room: Callable[[int], bool] | None) -> None:
        """Announce that the body will take `count` bytes, in the live page; 0 takes that back.

        `make_room` is called by a write that finds the disk full. It frees that many bytes or returns False, and may
        block.
        """
        self._reserved, self._make_room = count, make_room
        self.tell(self.extents)

    def write(self, offset: int, data: memoryview) -> None:
        """Put all of `data` at `offset`. Raises OutOfSpace or StoreError. On a full disk it tries twice."""
        make_room = self._make_room
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
        if not self.is_there():
            raise StoreError(f"{self.path} was removed while it was being fetched")
        try:
            sync_data(self.fd)
            publish(self.path.with_suffix(".json"), msgspec.json.encode(record))
        except OSError as error:
            raise store_error(f"{self.path} cannot be saved", error) from error

    def tell(self, extents: Extents) -> None:
        """Write the live page in one small write: a reader sees the old page, the new one, or that it is torn.

        On a full disk the old page stays. What it does not mention is fetched again after a kill.
        """
        numbers = self._reserved, *itertools.chain(*extents)
        page = BOOT + struct.pack(f"<{len(numbers)}Q", *numbers)
        with contextlib.suppress(OSError):
            os.pwrite(self._state_fd, LIVE.pack(zlib.crc32(page), len(page)) + page, 0)

    def catch_up(self) -> bool:
        """Add what another process has written since; whether there was anything."""
        before = self.extents.total
        for start, end in live_page(self._state_fd)[1]:
            self.extents.add(start, end)
        return self.extents.total > before

    def is_there(self) -> bool:
        """Whether the open file still has its name. If not, another fill may have begun one in its place."""
        return is_named(self.path, self.fd)

    def unlink(self) -> None:
        """Remove the files. Readers that hold the descriptor read on."""
        if self.path.exists() and not self.is_there():
            return  # another fill's
        for suffix in SUFFIXES:
            self.path.with_suffix(suffix).unlink(missing_ok=True)


def part_path(directory: Path, key: str, generation: str) -> Path:
    return directory / f"{key}.{generation}.part"


def live_page(file: Path | int) -> tuple[int, list[tuple[int, int]]]:
    """How many bytes a live page says are reserved, and the extents that are written.

    (0, []) if the page is torn, or the machine has booted since.
    """
    try:
        data = file.read_bytes() if isinstance(file, Path) else os.pread(file, os.fstat(file).st_size, 0)
        checksum, length = LIVE.unpack_from(data)
    except (OSError, struct.error):
        return 0, []
    page = data[LIVE.size : LIVE.size + length]
    if len(page) != length or zlib.crc32(page) != checksum or not page.startswith(BOOT) or BOOT == NO_BOOT:
        return 0, []
    reserved, *numbers = struct.unpack(f"<{(length - len(BOOT)) // 8}Q", page[len(BOOT) :])
    return reserved, list(zip(numbers[::2], numbers[1::2], strict=True))


def _boot() -> bytes:
    """The id of this boot of the machine, 36 bytes; NO_BOOT where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()[:36].ljust(36)
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # macOS
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, capture_output=True, timeout=5, check=True).stdout.strip()[:36].ljust(36)
    return NO_BOOT


BOOT = _boot()
