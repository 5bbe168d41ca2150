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
    state = hashlib.sha256()
    count = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while data := file.read(READ_BYTES):
                state.update(data)
                count += len(data)
                advance(len(data))
            if hasattr(os, "posix_fadvise"):
                # We read it only once. The page cache belongs to what clients read.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except FileNotFoundError:
        return "its body is gone"
    except OSError as error:
        return f"its body cannot be read at byte {count}: {error.strerror}"
    if count != entry.size:
        return f"its body has {count} bytes instead of {entry.size}"
    if state.hexdigest() != entry.sha256:
        return f"expected sha256:{entry.sha256}, got sha256:{state.hexdigest()}"
    return None
