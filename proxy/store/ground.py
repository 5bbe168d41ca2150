"""What the store stands on: its directories, the lock of the whole, and the index. All is made again when it is gone.

Everything here blocks, and is called in the store's one thread. Raises OSError and INDEX_ERRORS.
"""

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from logging import WARNING
from pathlib import Path

import msgspec

from ..errors import OutOfSpace, StoreError
from ..log import events, log
from .files import disk, size_of
from .index import INDEX_ERRORS, Busy, Index, is_full
from .locks import wait_lock

SPARE_BYTES = 512 * 1024
"""Kept for a disk that others fill to the last byte: what is stored must still be seen, and removed.

To open the index and remove a row takes 100 KB, and SQLite gives them back only after some MB.
"""


class Ground:
    """`open()` it, and `close()` it at the end."""

    index: Index

    def __init__(
        self,
        root: Path,
        others: Sequence[Path],
        reconcile: Callable[[Index], None],
        mended: Callable[[], None],
        busy_seconds: float,
    ) -> None:
        """`others`: directories beside ours. `reconcile` makes an index agree with what is stored.

        `mended` is called after something was lost, and has been put right.
        """
        self.root, self.directory, self._locks = root, root / "index", root / "locks"
        self._directories = (root, self.directory, self._locks, *others)
        self._reconcile, self._mended, self._busy_seconds = reconcile, mended, busy_seconds

    def make_directories(self) -> list[str]:
        """The names of those that were missing. In any thread."""
        missing = [path for path in self._directories if not path.is_dir()]
        for path in missing:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return [path.name for path in missing]

    def open(self) -> None:
        """Open the index, as it is. The directories exist."""
        with wait_lock(self._locks / "store"):  # several processes may find it broken; one rebuilds it
            try:
                self.index = self._index()
            except OutOfSpace:
                raise  # it is whole
            except StoreError as error:
                self._renew(error)

    def _index(self) -> Index:
        """The index, opened; on a full disk in the room that was kept for that. Needs the lock."""
        spare = self.directory / "spare"
        try:
            index = Index(self.directory, self._busy_seconds)
        except StoreError as error:
            if not isinstance(error, OutOfSpace) and disk(self.root)[1] >= SPARE_BYTES:
                raise
            spare.unlink(missing_ok=True)
            return Index(self.directory, self._busy_seconds)
        try:
            if size_of(spare) != SPARE_BYTES and disk(self.root)[1] >= 2 * SPARE_BYTES:
                spare.write_bytes(os.urandom(SPARE_BYTES))  # zeros take no room on a file system that compresses
        except OSError:
            spare.unlink(missing_ok=True)
        return index

    def _open_or_rebuild(self) -> None:
        """Open the index and put it right."""
        try:
            self._open_index()
        except (Busy, OutOfSpace):
            raise  # it is whole; another process is writing, or there is no room to
        except (StoreError, *INDEX_ERRORS) as error:
            if is_full(error):
                raise
            self._rebuild(error)

    def _rebuild(self, error: Exception) -> None:
        """Make a new index of all that is stored. Needs the lock."""
        self._renew(error)
        self._reconcile(self.index)

    def _renew(self, error: Exception) -> None:
        """Make a new index: nothing in the old one is worth saving, the sidecars hold it all. Needs the lock.

        A process that has the old one open notices the new one by its inode.
        """
        aside = self.root / f"index.broken.{int(time.time())}"
        log(events, WARNING, "index.rebuilt", reason=error, kept_as=aside)
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(self.directory, aside)
        self.make_directories()
        self.index = Index(self.directory, self._busy_seconds)

    def _open_index(self) -> None:
        self.index = self._index()
        try:
            self._reconcile(self.index)
        except BaseException:
            self.index.close()
            raise

    def close(self) -> None:
        self.index.close()

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Hold the lock, have all directories, and the index that all other processes have."""
        missing = self.make_directories()
        with wait_lock(self._locks / "store"):
            if missing or not self.index.is_current():
                # A cleaner of caches, or a person; or another process has put a new index in its place.
                lost = ",".join(missing or ["index"])
                log(events, WARNING, "store.mended", directory=self.root, lost=lost, hint="somebody removed it")
                self.index.close()
                self._open_or_rebuild()
                self._mended()
            yield

    def mend(self, error: Exception | None = None) -> bool:
        """Put right what somebody has removed, and a broken index; False if there is nothing of the kind."""
        is_whole = all(path.is_dir() for path in self._directories) and self.index.is_current()
        is_broken = isinstance(error, (sqlite3.DatabaseError, msgspec.MsgspecError))
        if is_whole and (not is_broken or isinstance(error, sqlite3.OperationalError)):
            return False
        with self.exclusively():
            if is_whole:
                assert error
                self.index.close()
                self._rebuild(error)
        return True

    def current_index(self) -> Index:
        """The index, to read in without the lock."""
        if not self.index.is_current():
            with self.exclusively():
                pass
        return self.index
