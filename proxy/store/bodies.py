"""The files of whole bodies, and how they and the index are made to agree.

At each start, directory by directory: what has to be in memory is one directory's names. A commit writes the sidecar
before it moves the blob; so a sidecar whose body still lies in partial/ is a commit that was killed, and is completed.

Everything here blocks, and is called in the store's thread.
"""

import contextlib
import os
from collections.abc import Callable
from logging import INFO, WARNING
from pathlib import Path

from ..log import events, log
from ..rules.entry import Entry
from .files import size_of, sync_directory
from .ground import Ground
from .index import Index
from .locks import is_locked
from .partial import part_path
from .sidecars import Damaged, Sidecars

PREFIXES = [f"{number:02x}" for number in range(256)]
"""The names of the directories in blobs/."""
COMPARED_AT_ONCE = 500
"""Entries, while lookups wait: 2 ms, and 50 ms where the index has to be made anew."""


class Bodies:
    """Raises OSError and INDEX_ERRORS."""

    def __init__(self, root: Path, busy_seconds: float, mended: Callable[[], None]) -> None:
        """`mended` is called after the directory had lost something, and has been put right."""
        self.directory, self.damaged = root / "blobs", root / "damaged"
        self.sidecars = Sidecars(self.directory)
        self._partial, self._locks, self._committed = root / "partial", root / "locks", root / "committed"
        others = (self.directory, self.damaged, self._partial)
        self.ground = Ground(root, others, self._compare_all, mended, busy_seconds)
        """The index is in it."""
        self.was_damaged: list[tuple[str, str]] = []
        """What was moved aside since the start (its URL, or else the name of the file), and why."""

    def compare(self, start: int) -> int | None:
        """Make the index agree with the directories from number `start` on: a crash may come between the two.

        Not with all at once, so that others get their turn. Returns the number from which to go on; None: it agrees.
        """
        with self.ground.exclusively():
            looked_at = 0
            while looked_at < COMPARED_AT_ONCE and start < len(PREFIXES):
                looked_at += self._compare(self.ground.index, PREFIXES[start])
                start += 1
            if start < len(PREFIXES):
                return start
            self._forget_unnamed(self.ground.index)
            return None

    def _compare_all(self, index: Index) -> None:
        """Needs the lock."""
        for prefix in PREFIXES:
            self._compare(index, prefix)
        self._forget_unnamed(index)

    def _compare(self, index: Index, prefix: str) -> int:
        """Make the index agree with one directory. Returns how many sidecars and rows that took. Needs the lock."""
        found, rows = self.sidecars.sweep(prefix), index.named(prefix)
        if found != rows:
            with index.at_once():
                for name in sorted(rows - found):
                    index.remove(name.partition(".")[2])  # another generation of it, if there is one, comes again
                for name in sorted(found - rows):
                    self._take_in(index, self.sidecars.named(name))
        return len(found | rows)

    def _take_in(self, index: Index, path: Path) -> None:
        """Let a sidecar without a row have one, unless a newer generation has it."""
        if not (entry := self._checked(path)):
            return
        row = index.get(entry.key)
        other = self._checked(self.sidecars.path(row)) if row and row.sha256 != entry.sha256 else None
        if other and other.stored_at >= entry.stored_at:
            self.drop_files(entry)
            return
        index.set(entry)
        if other:
            self.drop_files(other)

    def _forget_unnamed(self, index: Index) -> None:
        """Those that have a sidecar have been named after it."""
        for key in index.unnamed():
            index.remove(key)

    def _checked(self, path: Path) -> Entry | None:
        """The entry of a sidecar. If the sidecar or its blob is wrong it is moved aside, and the answer is None."""
        try:
            entry, _ = self.sidecars.read(path)
            blob, part = self.path(entry), part_path(self._partial, entry.key, entry.head.generation)
            if size_of(blob) == entry.size:
                return entry
            if size_of(part) == entry.size:
                return self._end_commit(entry, part)
            size = blob.stat().st_size
            self._set_aside(entry, f"its body has {size} bytes instead of {entry.size}")
        except Damaged as error:
            self._report_damage(path, str(error))
            blob = path.with_name(path.name.partition(".")[0])
            if not self.sidecars.of(blob.name):
                self._move_aside(blob)
        except FileNotFoundError:
            if path.exists():
                self._report_damage(path, "its body is gone")
        return None

    def _report_damage(self, path: Path, why: str) -> None:
        log(events, WARNING, "store.damaged", path=path, reason=why, kept_in=self.damaged)
        self.was_damaged.append((path.name, why))
        self._move_aside(path)

    def _end_commit(self, entry: Entry, part: Path) -> Entry | None:
        """Complete a commit that was killed before it moved its body; None if another fill is to do that."""
        sidecar = self.sidecars.path(entry)
        if is_locked(self._locks / entry.key) or part.stat().st_mtime_ns > sidecar.stat().st_mtime_ns:
            # Another fill goes on with the body, and will commit it again.
            sidecar.unlink()
            return None
        os.rename(part, self.path(entry))
        sync_directory(sidecar.parent)
        self.count_committed(entry.size)
        log(events, INFO, "store.commit_ended", url=entry.url, bytes=entry.size)
        return entry

    # -- what Blobs needs too ------------------------------------------------------------------------------------------

    def path(self, entry: Entry) -> Path:
        """Where the body of `entry` is. It may be removed at any time; once open it stays readable."""
        return self.sidecars.blob(entry.sha256)

    def committed_bytes(self) -> int:
        """Bytes of all new blobs so far, less those removed or evicted, in all processes; only its changes count."""
        try:
            return int(self._committed.read_bytes() or b"0")
        except (OSError, ValueError):
            return 0

    def count_committed(self, size: int) -> None:
        """Needs the lock."""
        count = self.committed_bytes() + size
        with contextlib.suppress(OSError):
            fd = os.open(self._committed, os.O_WRONLY | os.O_CREAT, 0o600)
            with open(fd, "wb", buffering=0) as file:
                file.write(b"%020d" % count)  # always the same width: a reader never sees a part of the number

    def drop_files(self, entry: Entry) -> int:
        """Remove the sidecar, and the blob if it is the last one's. Returns the bytes of that."""
        freed = 0
        self.sidecars.path(entry).unlink(missing_ok=True)
        if not self.sidecars.of(entry.sha256):
            with contextlib.suppress(FileNotFoundError):
                self.path(entry).unlink()
                freed = entry.size
            if entry.sha512:
                self.ground.index.forget_blob_of(entry.sha512)
        return freed

    def _set_aside(self, entry: Entry, why: str) -> None:
        log(events, WARNING, "store.damaged", url=entry.url, reason=why, kept_in=self.damaged)
        self.was_damaged.append((entry.url, why))
        for path in self.sidecars.of(entry.sha256):
            self.ground.index.remove(self.sidecars.key(path))
            self._move_aside(path)
        self._move_aside(self.path(entry))
        self.ground.index.remove(entry.key)

    def _move_aside(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, self.damaged / path.name)
