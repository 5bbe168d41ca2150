"""Whole bodies on disk: blobs, the sidecars that describe them, and the index that repeats the sidecars.

index/                      cache key -> entry (index.py); rebuilt from the sidecars whenever the two disagree
blobs/ab/HEX                bodies by SHA-256, immutable
blobs/ab/HEX.KEY.json       sidecars (sidecars.py): one for each URL that has this body
damaged/                    what was found wrong, moved aside for a person to look at
committed                   how many bytes of new blobs there have been, in all processes

A commit writes the sidecar before it moves the blob, and the body is whole and synced before that. So a sidecar whose
body still lies in partial/ is a commit that was killed: the next start completes it.

Everything here blocks, and is called in one thread (store.py). A process holds locks/store while it changes blobs and
sidecars. A reader holds nothing: it finds a blob as long as its sidecar is there, and a blob that is open stays
readable after its removal.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from logging import WARNING

from ..errors import StoreError
from ..log import events, log
from ..rules.digests import Digest
from ..rules.entry import Entry
from ..rules.eviction import Candidate
from .bodies import Bodies
from .files import allocated, size_of, sync_data, sync_directory
from .hot import OpenEntry
from .index import INDEX_ERRORS, Usage
from .partial import Partial
from .sidecars import Damaged


@dataclass(frozen=True, slots=True)
class Record:
    """An entry with its use, for people."""

    entry: Entry
    usage: Usage


@dataclass(frozen=True, slots=True)
class Used:
    """Bytes that are taken, at one moment."""

    stored: int
    """By whole bodies."""
    damaged: int
    """In damaged/."""
    committed: int
    """`committed_bytes` just before: what is stored meanwhile may count twice, but never not at all."""


class Blobs(Bodies):
    """`ground.open()` it, and `ground.close()` it at the end. Raises OSError and INDEX_ERRORS."""

    # -- reading ------------------------------------------------------------------------------------------------------

    def find(self, key: str) -> OpenEntry | None:
        """The entry of `key`, opened; None if there is none, or its body is not what the entry says. Close it."""
        row = self.ground.current_index().get(key)
        if row is None:
            return None
        try:
            return self._opened(row)
        except (FileNotFoundError, Damaged):
            pass
        # Look again while nobody can change it.
        with self.ground.exclusively():
            row = self.ground.index.get(key)
            if row is None:
                return None
            try:
                return self._opened(row)
            except Damaged as error:
                self._set_aside(row, str(error))
            except FileNotFoundError as error:
                log(events, WARNING, "store.lost", url=row.url, reason=error.strerror)
                self._remove_row(key)
            return None

    def _opened(self, row: Entry) -> OpenEntry:
        """The entry as its sidecar has it, with its blob. Raises Damaged; FileNotFoundError without a sidecar."""
        sidecar = self.sidecars.path(row)
        entry, identity = self.sidecars.read(sidecar)
        try:
            fd = os.open(self.path(entry), os.O_RDONLY)
        except FileNotFoundError:
            raise Damaged("its body is gone") from None
        if (size := os.fstat(fd).st_size) != entry.size:
            os.close(fd)
            raise Damaged(f"its body has {size} bytes instead of {entry.size}")
        return OpenEntry(entry, fd, str(sidecar), identity)

    def having(self, digest: Digest) -> list[Entry]:
        """What the index says of URLs whose body is known to have `digest`: a hint, look each of them up."""
        name = digest.hex if digest.algorithm == "sha256" else self.ground.current_index().blob_of(digest.hex)
        rows = (self.ground.index.get(self.sidecars.key(path)) for path in self.sidecars.of(name)) if name else ()
        return [row for row in rows if row and row.sha256 == name]

    def records(self, after: str = "", most: int = -1) -> list[Record]:
        """Up to `most` behind the key `after`, by key; -1: all."""
        return [Record(entry, usage) for entry, usage in self.ground.current_index().records(after, most)]

    def records_of(self, keys: Iterable[str]) -> list[Record]:
        index = self.ground.current_index()
        return [Record(entry, index.usage(key)) for key in keys if (entry := index.get(key))]

    def count_entries(self) -> int:
        return self.ground.current_index().count_entries()

    def count(self, uses: Mapping[str, Usage]) -> None:
        self.ground.current_index().count(uses)

    def candidates(self, in_use: set[str]) -> list[Candidate]:
        """What may be evicted; `in_use` are digests of bodies that are being read."""
        return [
            Candidate(
                brief.key, brief.url, brief.sha256, brief.head.length, used_at, brief.pinned, brief.sha256 in in_use
            )
            for brief, used_at in self.ground.current_index().briefs()
        ]

    def used(self) -> Used:
        committed, damaged = self.committed_bytes(), 0
        for path in self.damaged.iterdir():
            with contextlib.suppress(FileNotFoundError):
                damaged += allocated(path.stat())
        return Used(self.ground.current_index().total_bytes(), damaged, committed)

    def has(self, entry: Entry) -> bool:
        """Whether that very body is still the entry of its key."""
        return self.sidecars.path(entry).exists()

    def current(self, key: str) -> Entry | None:
        """The entry as its sidecar has it: after a crash the row may describe the generation before, of equal bytes."""
        row = self.ground.index.get(key)
        if row is None:
            return None
        try:
            return self.sidecars.read(self.sidecars.path(row))[0]
        except (FileNotFoundError, Damaged):
            return row

    # -- writing ------------------------------------------------------------------------------------------------------

    def commit(self, partial: Partial, entry: Entry) -> Entry:
        """Make a whole body the entry of its key. Returns it as it is stored: a pin is carried over.

        Order: bytes, sidecar, blob, index, each durable before the next; the old generation goes last. A blob that came
        before its sidecar would be a body without an owner. After an error the partial is what it was before.
        """
        sync_data(partial.fd)
        actual = os.fstat(partial.fd).st_size
        if actual != entry.size:
            raise StoreError(f"{partial.path} has {actual} bytes instead of {entry.size}. nothing was stored")
        blob = self.path(entry)
        with self.ground.exclusively():
            old = self.current(entry.key)
            if old:
                entry = replace(entry, pinned=old.pinned)
            if not blob.parent.exists():
                blob.parent.mkdir(mode=0o700)
                sync_directory(self.directory)
            is_new = size_of(blob) != entry.size  # else another URL brought it before
            if is_new and not partial.is_there():
                raise StoreError(f"{partial.path} was removed while {entry.url} was fetched. nothing was stored")
            is_moved = False
            try:
                self.sidecars.write(entry)
                if is_new:
                    os.rename(partial.path, blob)
                    is_moved = True
                    sync_directory(blob.parent)
                self.ground.index.set(entry)
            except (OSError, *INDEX_ERRORS):
                # No space for the records: half an entry is worse than none. The body goes back before the sidecar is
                # removed, so that a kill between the two leaves a commit that the next start completes.
                if is_moved:
                    os.rename(blob, partial.path)
                if not (old and old.sha256 == entry.sha256):
                    with contextlib.suppress(OSError):
                        self.sidecars.path(entry).unlink()
                raise
            if is_new:
                self.count_committed(entry.size)
            if old and old.sha256 != entry.sha256:
                self.drop_files(old)
        partial.unlink()
        return entry

    def share(self, entry: Entry) -> Entry | None:
        """Make a body that is stored already the entry of one more key. Returns it as it is stored; None without one.

        As in `commit`, the pin is carried over, and the old generation goes last.
        """
        with self.ground.exclusively():
            if size_of(self.path(entry)) != entry.size:
                return None
            old = self.current(entry.key)
            if old:
                entry = replace(entry, pinned=old.pinned)
            try:
                self._write(entry)
            except (OSError, *INDEX_ERRORS):
                if not (old and old.sha256 == entry.sha256):
                    with contextlib.suppress(OSError):
                        self.sidecars.path(entry).unlink()
                raise
            if old and old.sha256 != entry.sha256:
                self.drop_files(old)
            return entry

    def refresh(self, entry: Entry) -> Entry:
        """Replace the headers and times of the entry; the body stays. Returns it as it is stored."""
        with self.ground.exclusively():
            if self.has(entry):  # an entry that was removed meanwhile stays removed
                now = self.current(entry.key)
                entry = replace(entry, pinned=now.pinned) if now else entry
                self._write(entry)
            return entry

    def pin(self, key: str, pinned: bool) -> Entry | None:
        """Protect the entry from eviction, or stop protecting it. Returns it as it is now; None if there is none."""
        with self.ground.exclusively():
            entry = self.current(key)
            if entry and entry.pinned != pinned and self.has(entry):
                entry = replace(entry, pinned=pinned)
                self._write(entry)
            return entry

    def _write(self, entry: Entry) -> None:
        self.sidecars.write(entry)
        self.ground.index.set(entry)

    def remove(self, key: str) -> Entry | None:
        """Remove the entry, and its body if no other URL has it. Returns what was removed."""
        with self.ground.exclusively():
            entry = self.current(key)
            if entry:
                # The row first: the next start finds a body without a row; a row without a body misleads a request.
                self.ground.index.remove(key)
                self.count_committed(-self.drop_files(entry))
            return entry

    def evict(self, victims: Iterable[Candidate]) -> list[Candidate]:
        """Remove those that are still what the survey saw, and return them."""
        gone = []
        for each in victims:
            with self.ground.exclusively():
                entry = self.ground.index.get(each.key)
                if entry is None or entry.sha256 != each.blob or entry.pinned:
                    continue
                try:
                    self.ground.index.remove(each.key)
                    freed = self.drop_files(entry)
                except INDEX_ERRORS:
                    # On a full disk no row can be removed either, until a body is gone.
                    freed = self.drop_files(entry)
                    self._remove_row(each.key)
                self.count_committed(-freed)
                gone.append(each)
        return gone

    def set_aside(self, entry: Entry, why: str) -> None:
        """Move a damaged body to damaged/, under all its URLs: the next request fetches it again."""
        with self.ground.exclusively():
            self._set_aside(entry, why)

    def clear_damaged(self) -> None:
        """Remove for good what was moved aside."""
        for path in self.damaged.iterdir():
            path.unlink(missing_ok=True)

    def _remove_row(self, key: str) -> None:
        """Remove a row that has no files. If there is no space even for that, the next `find` of it does."""
        try:
            self.ground.index.remove(key)
        except INDEX_ERRORS as error:
            log(events, WARNING, "index.row_left", key=key[:12], error=error)
