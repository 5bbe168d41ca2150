"""Which servers run on a cache directory, and how to reach each.

A server announces itself by a locked file that is void with its process. Where several share one address, each
has one of its own besides, on loopback: who asks a shared one cannot choose who answers.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Presence:
    pid: int
    listen: tuple[str, ...]
    """HOST:PORT or unix:PATH, for everybody."""
    own: str
    """The same form; nobody else answers there."""


@contextlib.contextmanager
def announced(cache_dir: Path, listen: Sequence[str], own: str) -> Iterator[None]:
    """Tell the others that this process serves `cache_dir`."""
    directory = cache_dir / "servers"
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / str(os.getpid())
    unseen = path.with_name(f".{path.name}")
    with open(unseen, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump(asdict(Presence(os.getpid(), tuple(listen), own)), file)
        file.flush()
        # Named only now: a file that is not locked yet would be taken for a dead server's, and removed.
        unseen.rename(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def running(cache_dir: Path) -> list[Presence]:
    """The servers that live on `cache_dir`; the files of dead ones are removed."""
    found = []
    for path in sorted((cache_dir / "servers").glob("[0-9]*")):
        with contextlib.suppress(OSError, ValueError, TypeError), open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                told = json.load(file)
                found.append(Presence(told["pid"], tuple(told["listen"]), told["own"]))
            else:
                path.unlink(missing_ok=True)
    return found
