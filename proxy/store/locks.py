"""Locks between processes: flock on a file.

The kernel releases a lock when its process ends, however it ends. A lock on a file that nobody else can find is none:
whoever gets one looks whether the file still has its name, and else begins anew with the file that has it now. So a
cleaner of caches may remove lock files, and the holder of a `try_lock` does: else there would be one for each URL that
was ever asked for. Taking the name away is what releases the lock, and the holder's last act: from then on the next
one locks a file of its own. Everything here raises OSError.
"""

import contextlib
import errno
import fcntl
import os
import secrets
from pathlib import Path
from typing import Self

from .files import is_named

LOOKS = 100
"""How often we try again because somebody was just checking the lock, or removed its file."""


class Lock:
    """A lock that is held until `close()`."""

    __slots__ = ("_fd", "_path", "_spare", "_spares")

    def __init__(
        self, fd: int, path: Path | None = None, spares: "Spares | None" = None, spare: Path | None = None
    ) -> None:
        """`fd` is locked, and belongs to this object from now on; so does its name `path`. `spare` is another name.

        When it is released the file goes back to `spares`.
        """
        self._fd, self._path, self._spares, self._spare = fd, path, spares, spare

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
        if fd < 0:
            return
        try:
            # Somebody else may have removed it, and then the name is another holder's by now.
            if self._path and is_named(self._path, fd):
                if self._spares and self._spares.take_back(fd, self._path, self._spare):
                    fd = -1
                else:
                    self._path.unlink()
        except OSError:
            pass  # its file stays, and is nobody's
        finally:
            if fd >= 0:
                os.close(fd)

    def belong(self, spares: "Spares") -> None:
        """Let the file go to `spares` once the lock is released."""
        self._spares = spares

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Spares:
    """Lock files of released locks, kept locked and used again: a link gives one its name, an unlink takes it.

    ext4 looks at every inode that was removed in the last minutes when it makes a file: making and removing one for
    each lock took a fifth of the time of a small miss. For one thread; `close()` it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._free: list[tuple[int, Path]] = []

    def try_lock(self, path: Path) -> Lock | None:
        """As the function."""
        if self._free:
            fd, spare = self._free.pop()
            try:
                os.link(spare, path)
                return Lock(fd, path, self, spare)
            except FileExistsError:  # somebody holds it, or was killed holding it
                self._free.append((fd, spare))
            except OSError:  # its name was removed, or the file system knows no links
                _discard(fd, spare)
        lock = try_lock(path)
        if lock:
            lock.belong(self)
        return lock

    def take_back(self, fd: int, path: Path, spare: Path | None) -> bool:
        """Release the lock `path`, and keep its file; False if there are enough."""
        if len(self._free) >= SPARES_MAX:
            if spare:
                spare.unlink(missing_ok=True)
            return False
        if spare:
            path.unlink()
        else:
            spare = self._directory / f"{SPARE}{secrets.token_hex(8)}"
            path.rename(spare)
        self._free.append((fd, spare))
        return True

    def sweep(self) -> None:
        """Remove what killed processes left."""
        for path in self._directory.glob(f"{SPARE}*"):
            if lock := try_lock(path):
                lock.close()

    def close(self) -> None:
        while self._free:
            _discard(*self._free.pop())


def _discard(fd: int, spare: Path) -> None:
    with contextlib.suppress(OSError):  # somebody has removed the directory
        spare.unlink()
    os.close(fd)


SPARE = ".spare."
SPARES_MAX = 64
"""Each costs a descriptor."""


def wait_lock(path: Path) -> Lock:
    """The lock `path`, once nobody else holds it. Its file stays: others wait at it. Not for names of `try_lock`."""
    for _ in range(LOOKS):
        with open(path, "ab") as file:
            lock = Lock.of_file(file.fileno())
            if is_named(path, file.fileno()):
                return lock
            lock.close()
    raise OSError(errno.ESTALE, "the file of a lock is another one each time", str(path))


def try_lock(path: Path) -> Lock | None:
    """The lock `path`, or None if anybody holds it. Does not wait. Its file goes with it.

    `is_locked` holds a shared lock for a moment, which makes an exclusive one fail although nobody holds it. A shared
    lock tells the two apart: it is granted beside another shared one, and refused beside a holder's. Then we try again.
    A process that was stopped inside `is_locked` keeps its shared lock, and so counts as a holder after LOOKS tries.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for _ in range(LOOKS):
            if _flock(fd, fcntl.LOCK_EX):
                if is_named(path, fd):
                    lock, fd = Lock(fd, path), -1
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
