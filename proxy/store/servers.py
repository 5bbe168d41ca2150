"""Which servers run on a cache directory, and how to reach each.

A server announces itself by a locked file in servers/; a file that is not locked is a dead server's. Where several
servers share one address, each also listens on a loopback address of its own: a client of the shared one cannot choose
which of them answers.
"""

import contextlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .files import publishing
from .locks import Lock, is_locked


@dataclass(frozen=True, slots=True)
class ServerRecord:
    pid: int
    listen: tuple[str, ...]
    """HOST:PORT or unix:PATH, for everybody. Empty: another server has taken over, and this one ends its answers."""
    own: str
    """An address in the same form, at which only this server answers."""
    config: str = ""
    """The file it reads. Empty: it was no file, or one of an earlier version does not say."""
    added: dict[str, Any] = field(default_factory=dict)
    """The hosts and mirrors that its command line adds to that, in the shape of the file."""


class Announcement:
    """That this process serves `cache_dir`, until `close()`."""

    def __init__(self, cache_dir: Path, record: ServerRecord) -> None:
        self._path = cache_dir / "servers" / str(record.pid)
        self._record = record
        self._lock: Lock | None = None
        self.renew()

    def renew(self) -> None:
        """Announce it, unless that stands already."""
        if not self._lock or not self._path.exists():
            self._publish()

    def leave(self, own: str) -> None:
        """Announce that clients are another server's now, and that this one still answers at `own`."""
        self._record = replace(self._record, listen=(), own=own)
        self._publish()

    def _publish(self) -> None:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        with publishing(self._path, is_durable=False) as file:
            # Locked before it has its name: a file that is not locked yet would be taken for a dead server's.
            lock = Lock.of_file(file.fileno())
            file.write(json.dumps(asdict(self._record)).encode())
        if self._lock:
            self._lock.close()
        self._lock = lock

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        if self._lock:
            self._lock.close()


def running(cache_dir: Path) -> list[ServerRecord]:
    """The servers that run on `cache_dir`, those that leave it last. Removes the files of dead ones."""
    found = []
    for path in sorted((cache_dir / "servers").glob("[0-9]*")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            if is_locked(path):
                record = json.loads(path.read_bytes())
                known = {each.name: record[each.name] for each in fields(ServerRecord) if each.name in record}
                found.append(ServerRecord(**{**known, "listen": tuple(record["listen"])}))
            else:
                path.unlink(missing_ok=True)
    return sorted(found, key=lambda server: not server.listen)
