"""Files mapped into memory, for sending them to clients on this machine.

On the loopback device sendfile is dear: each page of 4 KB is a piece of its own, for us and for the client. A write
from mapped memory copies, and goes out in pieces of 32 KB. Eight readers of a cached 1 GiB took 1.96 s instead of 2.21
(medians of four), and 0.85 CPU seconds of their own instead of 1.05. On a network sendfile copies nothing, and is
better. So it is here too where the page cache holds large folios (seen with ext4 and Linux 6.18); nobody asks that yet.

Only the kernel reads what is mapped. Where it cannot, because the file was cut or the disk fails, write(2) returns an
error; a program that reads there itself is killed (SIGBUS).
"""

import contextlib
import errno
import mmap
import os
import threading
import time
from dataclasses import dataclass
from typing import Self

WINDOW_BYTES = 8 * 1024**2
KEPT = 5
"""Clients that began together are in these: eight of a 1 GiB file had each of its 128 windows mapped one to four times
with six kept, and five to forty times with four."""
UNUSED_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class OpenFile:
    fd: int
    inode: tuple[int, int]
    """Its device, and its number there."""

    @classmethod
    def of(cls, fd: int) -> Self:
        stat = os.fstat(fd)
        return cls(fd, (stat.st_dev, stat.st_ino))


@dataclass(slots=True, eq=False)
class Window:
    memory: mmap.mmap
    length: int
    used_at: float = 0.0
    """On the monotonic clock, in seconds."""
    users: int = 0
    """Threads that write from it now."""
    is_kept: bool = True
    """False: whoever writes from it last unmaps it."""

    def close_unused(self) -> None:
        """Unmap it, if it is not kept any more and nobody writes from it."""
        if not (self.is_kept or self.users):
            self.memory.close()


class Windows:
    """What is mapped now. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[tuple[int, int], int], Window] = {}
        """By inode and number in the file; the last one used is the last."""
        self._jobs = 0
        """That have begun and not ended."""

    @property
    def are_mapped(self) -> bool:
        return bool(self._kept)

    def begin(self) -> None:
        """Somebody will write, until end() is called."""
        with self._lock:
            self._jobs += 1

    def end(self) -> None:
        with self._lock:
            self._jobs -= 1
            self._forget_unused(UNUSED_SECONDS if self._jobs else 0.0)

    def have(self, file: OpenFile, offset: int, count: int) -> bool:
        """Whether these bytes are mapped, and so were in memory a short while ago."""
        number, start = divmod(offset, WINDOW_BYTES)
        window = self._kept.get((file.inode, number))
        return window is not None and window.length >= start + count

    def write(self, out: int, file: OpenFile, offset: int, count: int) -> int:
        """Write `count` bytes of the file to a socket, all of one window; returns how many the socket took.

        Raises OSError as write(2) and mmap(2) do: EFAULT if the file cannot be read, or ends before.
        """
        number, start = divmod(offset, WINDOW_BYTES)
        end = start + count
        with self._lock:
            window = self._window(file, number, end)
            window.users += 1
        try:
            with memoryview(window.memory) as memory, memory[start:end] as piece:
                return os.write(out, piece)
        finally:
            with self._lock:
                window.users -= 1
                window.close_unused()

    def _window(self, file: OpenFile, number: int, end: int) -> Window:
        """The window of that number, mapped at least to `end`."""
        key = file.inode, number
        window = self._kept.pop(key, None)
        if window and window.length < end:  # the file has grown
            _let_go(window)
            window = None
        window = window or _map(file.fd, number, end)
        window.used_at = time.monotonic()
        self._kept[key] = window
        if len(self._kept) > KEPT:
            self._forget_first()
        return window

    def forget_unused(self) -> None:
        """Let go of what nobody has used lately: a removed file takes room on the disk as long as it is mapped."""
        with self._lock:
            self._forget_unused(UNUSED_SECONDS)

    def _forget_unused(self, seconds: float) -> None:
        before = time.monotonic() - seconds
        while self._kept and next(iter(self._kept.values())).used_at <= before:
            self._forget_first()

    def _forget_first(self) -> None:
        _let_go(self._kept.pop(next(iter(self._kept))))


def _map(file: int, number: int, end: int) -> Window:
    start = number * WINDOW_BYTES
    length = min(os.fstat(file).st_size - start, WINDOW_BYTES)
    if length >= end:
        with contextlib.suppress(ValueError):  # it has been cut just now
            return Window(mmap.mmap(file, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=start), length)
    raise OSError(errno.EFAULT, "the file ends before")


def _let_go(window: Window) -> None:
    window.is_kept = False
    window.close_unused()
