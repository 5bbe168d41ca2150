"""What a scripted origin serves: bodies, and the faults of each path."""

import email.utils
import functools
import hashlib
import random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import PurePosixPath
from typing import Self

PATTERN_BLOCK_BYTES = 1024**2

LAST_MODIFIED = 1_700_000_000  # Unix time; long ago, so that it counts as a strong validator (RFC 9110 §8.8.2.2)
GENERATION_SECONDS = 24 * 3600  # between one generation and the next

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".json": "application/json",
    ".yaml": "application/yaml",
    ".gz": "application/gzip",
    ".xz": "application/x-xz",
}


# Bodies ---------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _pattern_base(seed: int) -> bytes:
    return random.Random(seed).randbytes(PATTERN_BLOCK_BYTES)


@functools.lru_cache(maxsize=8)
def _pattern_block(seed: int, index: int) -> bytes:
    # One random block, with its byte values permuted differently for each index: a wrong offset shows at once, within
    # a block or by whole blocks. Fresh random bytes take five times as long.
    table = list(range(256))
    random.Random(seed << 32 | index).shuffle(table)
    return _pattern_base(seed).translate(bytes(table))


def _pattern_pieces(seed: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        index, skip = divmod(start, PATTERN_BLOCK_BYTES)
        piece = _pattern_block(seed, index)[skip : skip + end - start]
        start += len(piece)
        yield piece


def pattern_bytes(size: int, seed: int, start: int = 0, end: int | None = None) -> bytes:
    """Bytes [start, end) of the pattern body of `size` bytes; `end` beyond the body is the body's end."""
    return b"".join(_pattern_pieces(seed, start, size if end is None else min(end, size)))


@functools.lru_cache(maxsize=16)
def pattern_sha256(size: int, seed: int) -> str:
    """SHA-256 (hex) of the whole pattern body, in constant memory."""
    digest = hashlib.sha256()
    for piece in _pattern_pieces(seed, 0, size):
        digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Pattern:
    """A body that is generated while it is sent, so its size costs no memory."""

    size: int
    seed: int

    @property
    def etag(self) -> str:
        return f'"pattern-{self.seed}-{self.size}"'

    def read(self, start: int, end: int) -> bytes:
        return pattern_bytes(self.size, self.seed, start, end)


class Fixed:
    def __init__(self, body: bytes) -> None:
        self.size = len(body)
        self.etag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
        self._body = memoryview(body)

    def read(self, start: int, end: int) -> bytes:
        return bytes(self._body[start:end])


Content = Pattern | Fixed


# Script ---------------------------------------------------------------------------------------------------------------


class Fault(Enum):
    """What can go wrong; the comment says what `Scripted.value` means."""

    STALL = auto()  # (offset)
    CLOSE = auto()  # (offset)
    RESET = auto()  # (offset)
    CORRUPT = auto()  # (offset)
    SHORT = auto()  # (bytes)
    CHUNKED = auto()
    IGNORE_RANGES = auto()
    IGNORE_CONDITIONS = auto()
    REFUSE_HEAD = auto()  # (status)
    STATUS = auto()  # (status)
    RANGE_STATUS = auto()  # (status)
    THROTTLE = auto()  # (bytes per second)
    RANGE_OFF = auto()  # (bytes)
    HOLD_HEADERS = auto()


_TRIPS = (Fault.STALL, Fault.CLOSE, Fault.RESET)


@dataclass(slots=True)
class Scripted:
    fault: Fault
    value: int = 0
    left: int | None = None
    """How many more responses it applies to; None: all."""
    released: bool = False
    """Whether a stall was opened; it holds no response any more."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def is_live(self) -> bool:
        return self.left != 0 and not self.released


class Resource:
    """One path: its content and its script. The methods for tests return it; those for the server come last."""

    def __init__(self, path: str, content: Content, changed: threading.Condition) -> None:
        self.path = path
        self._content = content
        self._changed = changed
        self._generation = 0
        self._overrides: dict[str, str | None] = {}
        self._script: list[Scripted] = []

    def headers(self, fields: Mapping[str, str | None] | None = None, /, **more: str | None) -> Self:
        """Set a field of 200, 206 and 304 answers; None leaves it out: headers(etag=None, cache_control="...").
        It applies to later generations too. Without Content-Length the connection ends with the body."""
        with self._changed:
            for name, value in {**(fields or {}), **more}.items():
                self._overrides[name.lower().replace("_", "-")] = value
        return self

    def stall_at(self, offset: int, *, times: int | None = None) -> Self:
        """Send up to `offset`, then wait for release(), which opens it for all responses."""
        return self._add(Fault.STALL, offset, times)

    def close_at(self, offset: int, *, times: int | None = None) -> Self:
        """Send up to `offset`, then close the connection."""
        return self._add(Fault.CLOSE, offset, times)

    def reset_at(self, offset: int, *, times: int | None = None) -> Self:
        """Send up to `offset`, then break the connection with RST."""
        return self._add(Fault.RESET, offset, times)

    def short(self, by: int, *, times: int | None = None) -> Self:
        """Whole answers (200) promise `by` bytes more than there are, and close at the end of the body."""
        return self._add(Fault.SHORT, by, times)

    def chunked(self, *, times: int | None = None) -> Self:
        """Send 200 and 206 in chunks, without Content-Length."""
        return self._add(Fault.CHUNKED, 0, times)

    def chunked_truncated_at(self, offset: int, *, times: int | None = None) -> Self:
        """Send in chunks up to `offset`, then close without the last chunk."""
        return self.chunked(times=times).close_at(offset, times=times)

    def ignore_ranges(self, *, times: int | None = None) -> Self:
        """Answer a Range with 200 and the whole body. headers(accept_ranges=None) removes Accept-Ranges."""
        return self._add(Fault.IGNORE_RANGES, 0, times)

    def ignore_conditions(self, *, times: int | None = None) -> Self:
        """Answer with the whole body where 304 was due."""
        return self._add(Fault.IGNORE_CONDITIONS, 0, times)

    def refuse_head(self, status: int = 405, *, times: int | None = None) -> Self:
        """Answer HEAD with an error status."""
        return self._add(Fault.REFUSE_HEAD, status, times)

    def status(
        self,
        code: int,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        times: int | None = None,
        of_ranges: bool = False,
    ) -> Self:
        """Answer GET and HEAD with this status, fields and body. `of_ranges`: only requests with a Range."""
        return self._add(Fault.RANGE_STATUS if of_ranges else Fault.STATUS, code, times, headers or {}, body)

    def redirect(self, location: str, code: int = 302, *, times: int | None = None, of_ranges: bool = False) -> Self:
        """Answer GET and HEAD with a redirect."""
        return self.status(code, {"Location": location}, times=times, of_ranges=of_ranges)

    def throttle(self, bytes_per_second: int, *, times: int | None = None) -> Self:
        """Send each body at this rate."""
        return self._add(Fault.THROTTLE, bytes_per_second, times)

    def corrupt_at(self, offset: int, *, times: int | None = None) -> Self:
        """Send the byte at `offset` with all its bits flipped."""
        return self._add(Fault.CORRUPT, offset, times)

    def content_range_off_by(self, count: int, *, times: int | None = None) -> Self:
        """Move the range that a 206 names by `count` bytes; the body is the requested one."""
        return self._add(Fault.RANGE_OFF, count, times)

    def delay_headers_until_released(self, *, times: int | None = None) -> Self:
        """Send nothing of an answer to GET or HEAD before release()."""
        return self._add(Fault.HOLD_HEADERS, 0, times)

    def generation(self, body: bytes | Pattern) -> Self:
        """Replace the body, with a new ETag and Last-Modified; running responses go on with the old one."""
        with self._changed:
            self._content = body if isinstance(body, Pattern) else Fixed(body)
            self._generation += 1
        return self

    def release(self) -> Self:
        """Open every stall scripted so far, for waiting responses and for later ones."""
        with self._changed:
            for item in self._script:
                item.released = item.released or item.fault in (Fault.STALL, Fault.HOLD_HEADERS)
            self._changed.notify_all()
        return self

    def _add(
        self,
        fault: Fault,
        value: int,
        times: int | None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Self:
        with self._changed:
            self._script.append(Scripted(fault, value, times, headers=headers or {}, body=body))
        return self

    # For the server.

    def take(self, fault: Fault, *, start: int = 0, end: int | None = None, look: bool = False) -> Scripted | None:
        """The first fault of this kind with its value in [start, end); uses it up by one unless `look`."""
        with self._changed:
            for item in self._script:
                if item.fault is fault and item.is_live and (end is None or start <= item.value < end):
                    if item.left is not None and not look:
                        item.left -= 1
                    return item
        return None

    def next_trip(self, start: int, end: int) -> int:
        """The first offset in [start, end) where a response stalls or breaks, or `end`."""
        with self._changed:
            offsets = [item.value for item in self._script if item.fault in _TRIPS and item.is_live]
        return min((offset for offset in offsets if start <= offset < end), default=end)

    def trip(self, offset: int) -> Scripted | None:
        """What happens at `offset`, in the order of the script."""
        with self._changed:
            for item in self._script:
                if item.fault in _TRIPS and item.is_live and item.value == offset:
                    return self.take(item.fault, start=offset, end=offset + 1)
        return None

    def corrupted(self, start: int, data: bytes) -> bytes:
        """What is sent in place of `data`, the body's bytes from `start`."""
        with self._changed:
            for item in self._script:
                at = item.value - start
                if item.fault is Fault.CORRUPT and item.is_live and 0 <= at < len(data):
                    data = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
                    item.left = None if item.left is None else item.left - 1
        return data

    def is_overridden(self, name: str) -> bool:
        """Whether headers() has set or removed this field."""
        with self._changed:
            return name in self._overrides

    def shown(self) -> tuple[Content, dict[str, str]]:
        """The current content, and the fields that every answer with it has."""
        with self._changed:
            content, modified = self._content, LAST_MODIFIED + self._generation * GENERATION_SECONDS
            fields: dict[str, str | None] = {
                "date": email.utils.formatdate(usegmt=True),
                "content-type": CONTENT_TYPES.get(PurePosixPath(self.path).suffix, "application/octet-stream"),
                "content-length": str(content.size),
                "last-modified": email.utils.formatdate(modified, usegmt=True),
                "etag": content.etag,
                "accept-ranges": "bytes",
                **self._overrides,
            }
        return content, {name: value for name, value in fields.items() if value is not None}
