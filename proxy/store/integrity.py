"""Does a stored body still match its digest?"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from ..rules.entry import Entry

READ_BYTES = 4 * 1024**2


def find_damage(path: Path, entry: Entry, advance: Callable[[int], object]) -> str | None:
    """What is wrong with the body of `entry`, which is at `path`; None if nothing.

    It reads the whole body: call it in a thread. `advance` is told the bytes of each chunk.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            why = damage_of(file.fileno(), entry, lambda data: advance(len(data)))
            if hasattr(os, "posix_fadvise"):
                # We read it only once. The page cache belongs to what clients read.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return why
    except FileNotFoundError:
        return "its body is gone"
    except OSError as error:
        return f"its body cannot be read: {error.strerror}"


def damage_of(fd: int, entry: Entry, use: Callable[[bytes], object]) -> str | None:
    """What is wrong with the body `fd`; None if nothing. Each chunk is given to `use`, and never more than the size."""
    if (size := os.fstat(fd).st_size) != entry.size:
        return f"its body has {size} bytes instead of {entry.size}"
    digest = hashlib.sha256()
    for offset in range(0, size, READ_BYTES):
        length = min(READ_BYTES, size - offset)
        try:
            data = os.pread(fd, length, offset)
        except OSError as error:
            return f"its body cannot be read at byte {offset}: {error.strerror}"
        if len(data) < length:
            return f"its body has {offset + len(data)} bytes instead of {entry.size}"
        digest.update(data)
        use(data)
    if digest.hexdigest() != entry.sha256:
        return f"expected sha256:{entry.sha256}, got sha256:{digest.hexdigest()}"
    return None


def sha512_of(fd: int) -> str:
    """The digest (hex) of the whole file `fd`, which it closes. In a thread, as the rest."""
    with open(fd, "rb", buffering=0) as file:
        file.seek(0)  # the offset is shared with all dups of the descriptor, and nobody else uses it
        return hashlib.file_digest(file, "sha512").hexdigest()
