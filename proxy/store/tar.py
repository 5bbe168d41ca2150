"""A tar, written and read as a stream: for each member a header, its content, zeros up to the next 512 bytes.

POSIX pax (IEEE 1003.1), which every tar(1) lists and unpacks. The standard library makes and parses the single headers.
Its TarFile would do more than is good here: it takes extended headers into memory however large they say they are.
Everything here blocks.
"""

import io
import re
import tarfile
from dataclasses import dataclass
from typing import IO

BLOCK_BYTES, RECORD_BYTES = 512, 10240
SKIP_BYTES = 1024**2
PAX_BYTES = 64 * 1024
"""An extended header is no longer than this; ours have one number."""
MAX_SIZE = 10**18  # bytes of a member; a header can say more than the file system can seek
WITHOUT_CONTENT = frozenset(
    {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE}
)
_RECORD = re.compile(rb"(\d{1,8}) ([^=\n]+)=")
_MAGIC = {b"\x1f\x8b": "gzip -dc", b"\x28\xb5\x2f\xfd": "zstd -dc", b"\xfd7zXZ": "xz -dc", b"BZh": "bzip2 -dc"}


class BrokenTar(Exception):
    """Where and why a tar cannot be read on; for people, after its name."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    name: str
    size: int


class TarWriter:
    """Writes to a file, or a pipe. Raises what the file raises."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.can_rewind = file.seekable()
        self.offset = 0
        """Bytes written."""

    def begin(self, name: str, size: int, mtime: float) -> None:
        """A member; exactly `size` bytes are to be written next, and then `end` it."""
        info = tarfile.TarInfo(name)
        info.size, info.mtime = size, int(mtime)
        self.write(info.tobuf(tarfile.PAX_FORMAT))

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]  # a pipe takes what it has room for
        self.offset += len(data)

    def end(self) -> None:
        self.write(bytes(-self.offset % BLOCK_BYTES))

    def add(self, name: str, content: bytes, mtime: float) -> None:
        self.begin(name, len(content), mtime)
        self.write(content)
        self.end()

    def rewind(self, offset: int) -> None:
        """Take back what was written after `offset`."""
        self._file.seek(offset - self.offset, 1)
        self._file.truncate()
        self.offset = offset

    def close(self) -> None:
        """Write the end mark, and fill up the last record."""
        self.write(bytes(2 * BLOCK_BYTES))
        self.write(bytes(-self.offset % RECORD_BYTES))


class TarReader:
    """Reads a file, or a pipe. Raises BrokenTar, and OSError."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self._can_seek = file.seekable()
        self.offset = 0
        """Bytes read, or passed over."""
        self._next = 0
        """Where the next header begins."""
        self._left = 0
        """Bytes of the current member's content that were not read."""

    def next(self) -> Member | None:
        """The next regular file, wherever the content of the last one was left; None at the end."""
        extended: dict[str, str] = {}
        while True:
            self._skip(self._next - self.offset)
            info = self._header()
            if info is None:
                return None
            if info.type == tarfile.XHDTYPE:
                self._enter(info.size)
                extended = self._extended()
                continue
            self._enter(0 if info.type in WITHOUT_CONTENT else int(extended.get("size", info.size)))
            if info.isreg():
                return Member(extended.get("path", info.name), self._left)
            extended = {}

    def _enter(self, size: int) -> None:
        """The header was that of a member with `size` bytes of content."""
        if not 0 <= size < MAX_SIZE:
            raise BrokenTar(f"is damaged at byte {self._next}")
        self._left = size
        self._next = self.offset + size + -size % BLOCK_BYTES

    def content(self) -> bytes:
        """What is left of the current member."""
        data = bytearray(self._left)
        self.readinto(memoryview(data))
        return bytes(data)

    def readinto(self, buffer: memoryview) -> None:
        """Fill the buffer from the content of the current member, which has that much left."""
        filled = 0
        while filled < len(buffer):
            count = self._file.readinto(buffer[filled:])
            if not count:
                raise BrokenTar("ends too early")
            filled += count
            self.offset += count
        self._left -= filled

    def _header(self) -> tarfile.TarInfo | None:
        """The header at `_next`; None for the end mark."""
        block = bytearray(BLOCK_BYTES)
        self._left = BLOCK_BYTES
        self.readinto(memoryview(block))
        if not any(block):
            return None
        try:
            return tarfile.TarInfo.frombuf(bytes(block), "utf-8", "backslashreplace")
        except tarfile.HeaderError:
            if self._next == 0:
                for magic, command in _MAGIC.items():
                    if block.startswith(magic):
                        raise BrokenTar(f"is compressed: {command} FILE | fetchonce import -") from None
                raise BrokenTar("is no tar") from None
            raise BrokenTar(f"is damaged at byte {self._next}") from None

    def _extended(self) -> dict[str, str]:
        """The records of an extended header, which is the current member."""
        if self._left > PAX_BYTES:
            raise BrokenTar(f"has an extended header of {self._left} bytes at byte {self.offset}")
        data, found, position = self.content(), {}, 0
        while match := _RECORD.match(data, position):
            end = position + int(match[1])
            found[match[2].decode(errors="replace")] = data[match.end() : end - 1].decode(errors="replace")
            if end <= position:
                break
            position = end
        if not re.fullmatch(r"\d{1,18}", found.get("size", "0")):
            raise BrokenTar(f"is damaged at byte {self.offset}")
        return found

    def _skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        if self._can_seek:
            self._file.seek(count, 1)
            self.offset += count
            return
        while count:
            piece = len(self._file.read(min(count, SKIP_BYTES)) or b"")
            if not piece:
                raise BrokenTar("ends too early")
            count, self.offset = count - piece, self.offset + piece
