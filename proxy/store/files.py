"""Small files that are written whole, and what the file system's errors are called here."""

import contextlib
import errno
import os
import resource
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import OutOfSpace, StoreError

FULL = (errno.ENOSPC, errno.EDQUOT)
MANY = 1 << 20
BIG_BYTES = 16 * 1024**2
"""The kernel frees so much in 5 ms."""
MAKE_ROOM = "make room: fetchonce prune, fetchonce rm URL"
"""What to do, for people."""


@contextlib.contextmanager
def publishing(
    path: Path, mode: int = 0o600, *, is_durable: bool = True, keep_first: bool = False
) -> Iterator[BinaryIO]:
    """A file to write. It gets its name when the block ends, and is whole then: no reader ever sees a part of it.

    An error leaves the old file, and no other trace. `is_durable`: a power cut leaves the old file or the new one.
    `keep_first`: if `path` is there already, it stays as it is.
    """
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with open(fd, "wb") as file:
            yield file
            file.flush()
            if mode != 0o600:
                os.fchmod(fd, mode)
            if is_durable:
                os.fsync(fd)
        if keep_first:
            with contextlib.suppress(FileExistsError):
                os.link(name, path)
            os.unlink(name)
        else:
            os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    if is_durable:
        sync_directory(path.parent)


def publish(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write `content` to `path` in one durable step."""
    with publishing(path, mode) as file:
        file.write(content)


def close_body(fd: int) -> None:
    """Close a body that may have been removed meanwhile: its last descriptor frees it, which takes 0.3 s for 1 GiB.

    For that neither the loop nor a lookup is to wait.
    """
    with contextlib.suppress(OSError, RuntimeError):  # a network's file system that has lost it; no thread to be had
        stat = os.fstat(fd)
        if not stat.st_nlink and stat.st_size >= BIG_BYTES:
            threading.Thread(target=os.close, args=(fd,), name="close", daemon=True).start()
            return
    os.close(fd)


def sync_directory(path: str | Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_data(fd: int) -> None:
    # macOS has no fdatasync. Its fsync does not flush the drive's own cache, which matters only in a power cut.
    getattr(os, "fdatasync", os.fsync)(fd)


def begin_writing(fd: int) -> None:
    """Let the kernel begin to write the file to the disk, where it can be told to. Waits for nothing.

    On ext4 each fdatasync of a file whose blocks are not allocated yet ends a journal transaction of its own: 1,000 new
    files took 190 ms, and 77 with this.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # a file system may not know it
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def descriptors() -> int:
    """How many this process may have."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit if 0 <= limit < MANY else MANY


def size_of(path: str | Path) -> int | None:
    """Bytes of the file; None if there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def is_named(path: str | Path, fd: int) -> bool:
    """Whether `path` is the open file `fd`: somebody may have removed it, or put another in its place."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def disk(path: Path) -> tuple[int, int]:
    """Bytes of the file system, and those of them that are free for us."""
    stat = os.statvfs(path)
    return stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize


def allocated(stat: os.stat_result) -> int:
    """Bytes of a file without its holes."""
    return min(stat.st_size, stat.st_blocks * 512)


def store_error(what: str, error: OSError) -> StoreError:
    """The file system's error as one of ours."""
    text = f"{what}: {error.strerror or error}"
    if error.errno in FULL:
        return OutOfSpace(f"{text}. {MAKE_ROOM}")
    return StoreError(text)
