"""A stored body as a file of another tool's: sharing its bytes where the file system can, else a copy.

Order: reflink, hard link, copy. A hard link is the blob itself, with its permissions and times, so it is for tools that
replace their files and never write into them.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import sys
from pathlib import Path

from ..errors import StoreError
from ..rules.entry import Entry
from .files import store_error, sync_data
from .store import Store

FICLONE = 0x40049409  # linux/fs.h
AT_FDCWD = -2  # macOS, sys/fcntl.h
COPY_BYTES = 1024**2


def place(store: Store, entry: Entry, path: Path) -> str:
    """Make the new file `path` the body of an entry that `lookup` has just returned; says how: "reflink", "hard link"
    or "copy". Raises StoreError, EntryGone."""
    with store.open(entry) as body:
        try:
            if _reflink(body.fd, path):
                return "reflink"
            with contextlib.suppress(OSError):  # another file system, too many links, or a file of somebody else's
                os.link(store.blobs.path(entry), path)
                return "hard link"
            _copy(body.fd, path)
            return "copy"
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise StoreError(f"{path} appeared just now. try again") from error
            raise store_error(f"{path} cannot be written", error) from error


def _reflink(fd: int, path: Path) -> bool:
    """Whether the file system could do it; if not, there is no file."""
    if sys.platform == "darwin":
        return bool(ctypes.CDLL(None).fclonefileat(fd, AT_FDCWD, os.fsencode(path), 0) == 0)
    with open(path, "xb") as file:
        try:
            fcntl.ioctl(file.fileno(), FICLONE, fd)
        except OSError:
            path.unlink()
            return False
    return True


def _copy(fd: int, path: Path) -> None:
    with open(path, "xb") as file, open(os.dup(fd), "rb") as body:
        try:
            body.seek(0)  # the offset is shared with all dups of the descriptor, and nobody else uses it
            shutil.copyfileobj(body, file, COPY_BYTES)
            file.flush()
            sync_data(file.fileno())
        except BaseException:
            path.unlink()  # ours: "x" made it
            raise
