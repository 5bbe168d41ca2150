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

    __slots__ = ("_fd", "_path", "_ring")

    def __init__(self, fd: int, path: str | Path | None = None, ring: "Ring | None" = None) -> None:
        """`fd` is locked, and so is its name `path`, which goes with the lock. The descriptor is `ring`'s, or ours."""
        self._fd, self._path, self._ring = fd, path, ring

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
                os.unlink(self._path)
        except OSError:
            pass  # its file stays, and is nobody's
        finally:
            if self._ring and self._path:
                self._ring.released(self._path)
            else:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Ring:
    """The locks of one process, as names of one file that it keeps locked: a link takes a lock, an unlink releases it.

    No lock costs a descriptor, or an inode: making and removing one for each was a fourth of the time of a small miss.
    For one thread; `close()` it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: tuple[int, str] | None = None
        """Descriptor and name of the file."""
        self._former: list[int] = []
        """Files whose names somebody has removed, while locks were held by them."""
        self._held: set[str] = set()
        self._can_link = True

    def try_lock(self, name: str) -> Lock | None:
        """The lock `name` of the directory, as the function."""
        path = f"{self._directory}/{name}"
        if path in self._held:
            return None
        if self._can_link:
            fd, own = self._file = self._file or self._made()
            try:
                os.link(own, path)
                self._held.add(path)
                return Lock(fd, path, self)
            except FileExistsError:  # somebody holds it, or was killed holding it
                pass
            except OSError as error:
                self._can_link = error.errno not in NO_LINKS
                self._retire()  # its name was removed
        return try_lock(path)

    def _made(self) -> tuple[int, str]:
        path = f"{self._directory}/{RING}{secrets.token_hex(8)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd, path

    def released(self, path: str | Path) -> None:
        self._held.discard(str(path))

    def _retire(self) -> None:
        if self._file:
            fd, path = self._file
            self._file = None
            with contextlib.suppress(OSError):  # somebody has removed it, or the directory
                os.unlink(path)
            self._former.append(fd)

    def sweep(self) -> None:
        """Remove what killed processes left."""
        for path in self._directory.glob(f"{RING}*"):
            if lock := try_lock(path):
                lock.close()

    def close(self) -> None:
        """No lock of it is held any more."""
        self._retire()
        while self._former:
            os.close(self._former.pop())


RING = ".ring."
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What a file system says that knows no links."""


def wait_lock(path: Path) -> Lock:
    """The lock `path`, once nobody else holds it. Its file stays: others wait at it. Not for names of `try_lock`."""
    for _ in range(LOOKS):
        with open(path, "ab") as file:
            lock = Lock.of_file(file.fileno())
            if is_named(path, file.fileno()):
                return lock
            lock.close()
    raise OSError(errno.ESTALE, "the file of a lock is another one each time", str(path))


def try_lock(path: str | Path) -> Lock | None:
    """The lock `path`, or None if anybody holds it. Does not wait. Its file goes with it.

    The names of a Ring whose process was killed are those of one file: whoever locks it by one of them takes that name
    away, and locks a file of its own.

    `is_locked` holds a shared lock for a moment, which makes an exclusive one fail although nobody holds it. A shared
    lock tells the two apart: it is granted beside another shared one, and refused beside a holder's. Then we try again.
    A process that was stopped inside `is_locked` keeps its shared lock, and so counts as a holder after LOOKS tries.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for _ in range(LOOKS):
            if _flock(fd, fcntl.LOCK_EX):
                if is_named(path, fd):
                    if os.fstat(fd).st_nlink == 1:
                        lock, fd = Lock(fd, path), -1
                        return lock
                    os.unlink(path)
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
