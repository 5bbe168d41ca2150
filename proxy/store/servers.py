"""Which servers run on a cache directory, and how to reach each.

A server announces itself by a locked file in servers/; a file that is not locked is a dead server's. Where several
servers share one address, each also listens on a loopback address of its own: a client of the shared one cannot choose
which of them answers.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .files import publishing
from .locks import Lock, is_locked


@dataclass(frozen=True, slots=True)
class ServerRecord:
    pid: int
    listen: tuple[str, ...]
    """HOST:PORT or unix:PATH, for everybody."""
    own: str
    """An address in the same form, at which only this server answers."""


@contextlib.contextmanager
def announced(cache_dir: Path, listen: Sequence[str], own: str) -> Iterator[None]:
    """Announce that this process serves `cache_dir`, for as long as the block runs."""
    path = cache_dir / "servers" / str(os.getpid())
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with publishing(path, is_durable=False) as file:
            # Locked before it has its name: a file that is not locked yet would be taken for a dead server's.
            stack.enter_context(Lock.of_file(file.fileno()))
            file.write(json.dumps(asdict(ServerRecord(os.getpid(), tuple(listen), own))).encode())
        stack.callback(path.unlink, missing_ok=True)
        yield


def running(cache_dir: Path) -> list[ServerRecord]:
    """The servers that run on `cache_dir`. Removes the files of dead ones."""
    found = []
    for path in sorted((cache_dir / "servers").glob("[0-9]*")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            if is_locked(path):
                record = json.loads(path.read_bytes())
                found.append(ServerRecord(record["pid"], tuple(record["listen"]), record["own"]))
            else:
                path.unlink(missing_ok=True)
    return found
