"""Locks between processes: flock on a file.

The kernel releases a lock when its process ends, however it ends. We never remove a lock file. Others may (a cleaner of
caches), and a lock on a file that nobody else can find is none: whoever gets one looks whether the file still has its
name. Everything here raises OSError.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import Self

from .files import is_named

LOOKS = 100
"""How often we try again because somebody was just checking the lock, or removed its file."""


class Lock:
    """A lock that is held until `close()`."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        """`fd` is locked, and belongs to this object from now on."""
        self._fd = fd

    @classmethod
    def of_file(cls, fd: int) -> Self:
        """Lock the open file `fd`, and wait for that. The lock keeps the file open when the caller closes it."""
        own = os.dup(fd)
        try:
            fcntl.flock(own, fcntl.LOCK_EX)
        except BaseException:
            os.close(own)
            raise
        return cls(own)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def wait_lock(path: Path) -> Lock:
    """The lock `path`, once nobody else holds it."""
    for _ in range(LOOKS):
        with open(path, "ab") as file:
            lock = Lock.of_file(file.fileno())
            if is_named(path, file.fileno()):
                return lock
            lock.close()
    raise OSError(errno.ESTALE, "the file of a lock is another one each time", str(path))


def try_lock(path: Path) -> Lock | None:
    """The lock `path`, or None if anybody holds it. Does not wait.

    `is_locked` holds a shared lock for a moment, which makes an exclusive one fail although nobody holds it. A shared
    lock tells the two apart: it is granted beside another shared one, and refused beside a holder's. Then we try again.
    A process that was stopped inside `is_locked` keeps its shared lock, and so counts as a holder after LOOKS tries.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for _ in range(LOOKS):
            if _flock(fd, fcntl.LOCK_EX):
                if is_named(path, fd):
                    lock, fd = Lock(fd), -1
                    return lock
                os.close(fd)
                fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                continue
            if not _flock(fd, fcntl.LOCK_SH):
                break
            fcntl.flock(fd, fcntl.LOCK_UN)
        return None
    finally:
        if fd >= 0:
            os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether any process holds the lock `path`, this one included."""
    try:
        with open(path, "rb") as file:
            return not _flock(file.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _flock(fd: int, kind: int) -> bool:
    """Take the lock if that needs no waiting; whether it did."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
