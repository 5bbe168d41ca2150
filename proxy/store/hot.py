"""Open blobs: those kept at hand for the next hit, and those that are being read. Each object owns its descriptor.

A blob that is replaced or removed meanwhile is read to its end: an open descriptor outlives the file's name.
"""

import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Self

from ..rules.entry import Entry
from ..rules.pieces import Piece, Slice
from .files import close_body

HOT_ENTRIES = 256
"""Entries kept at hand; one descriptor each."""


@dataclass(frozen=True, slots=True)
class OpenEntry:
    """An entry and its open blob. True as long as the sidecar is the file it was read from."""

    entry: Entry
    fd: int
    sidecar: str
    identity: tuple[int, int]
    """Inode and mtime of the sidecar."""

    def is_current(self) -> bool:
        try:
            stat = os.stat(self.sidecar)
        except OSError:
            return False
        return (stat.st_ino, stat.st_mtime_ns) == self.identity

    def close(self) -> None:
        close_body(self.fd)


class HotTable:
    """The entries that were asked for last. It closes each one that leaves: an open blob takes space."""

    def __init__(self) -> None:
        self._rows: OrderedDict[str, OpenEntry] = OrderedDict()

    def get(self, key: str) -> OpenEntry | None:
        row = self._rows.get(key)
        if row:
            self._rows.move_to_end(key)
        return row

    def put(self, row: OpenEntry) -> None:
        self.forget(row.entry.key)
        self._rows[row.entry.key] = row
        if len(self._rows) > HOT_ENTRIES:
            self._rows.popitem(last=False)[1].close()

    def forget(self, key: str) -> None:
        if row := self._rows.pop(key, None):
            row.close()

    def forget_stale(self) -> None:
        """Forget what another process has removed or replaced."""
        for key in [key for key, row in self._rows.items() if not row.is_current()]:
            self.forget(key)

    def clear(self) -> None:
        while self._rows:
            self._rows.popitem()[1].close()


class StoredBody:
    """A body that is whole on disk, for one reader. `closed` is called once, when it is closed."""

    __slots__ = ("_closed", "entry", "fd", "head", "length")
    in_memory = None

    def __init__(self, entry: Entry, fd: int, closed: Callable[["StoredBody"], object]) -> None:
        """`fd` belongs to this object from now on."""
        self.entry, self.head, self.length = entry, entry.head, entry.size
        self.fd, self._closed = fd, closed

    async def pieces(self, start: int, end: int | None) -> AsyncGenerator[Piece]:
        stop = self.length if end is None else min(end, self.length)
        if start < stop:
            yield Slice(self.fd, start, stop)

    async def wait_length(self) -> int:
        return self.length

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close_body(fd)
            self._closed(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
