"""Small bodies, stored from memory: many at a time, with few syncs and few files, and no partial.

While one group is stored the next one gathers. The order is bytes, blob, sidecar, each durable before the next; then
the index, which repeats the sidecars. A kill leaves blobs without a sidecar, which the next start removes.
(`Blobs.commit` writes the sidecar first, so that the next start saves a big body.) Clients have been answered already:
what was not stored is fetched anew. A new file is what costs most, so up to SHARE sidecars are names of one.

Syncs run beside the store's thread and without its lock, so that lookups need not wait for the disk. Without the lock
another process may sweep what is not yet described by a sidecar: whatever is missing under the lock is written again.
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from ..rules.entry import Entry
from .blobs import Blobs
from .files import begin_writing, descriptors, publish, size_of, store_error, sync_data, sync_directory
from .thread import StoreThread

T = TypeVar("T")

GROUP_MAX = max(1, min(256, descriptors() // 8))
"""Bodies in one group: lookups wait while its files are renamed. The files of all are open at once."""
SHARE = 16
"""Sidecars in one file: 12 KB of a disk, which stay until the last of them goes; each for itself takes 4."""
GROUP_BYTES = 4 * 1024**2
"""A group of so many bytes gathers no longer."""
GATHER_SECONDS = 0.01
"""How long the first group gathers: nobody waits for it, and one alone costs six syncs."""
GATHER_MAX = 0.32
"""Each further one gathers twice as long as the one before, to this: directories and rows are then synced for many."""


@dataclass(frozen=True, slots=True)
class Waiting:
    entry: Entry
    body: bytes
    stored: asyncio.Future[Entry]


@dataclass(frozen=True, slots=True)
class Item:
    """A body and its files. They are text: pathlib took a third of the time of the whole group."""

    entry: Entry
    body: bytes
    blob: str
    sidecar: str
    new_blob: str
    """Where the blob is until it gets its name."""
    new_sidecar: str
    """A file with the sidecars of several."""


class Room:
    """For two groups: one is stored, and one gathers. Who brings more waits, and so does its client.

    It belongs to the event loop.
    """

    def __init__(self) -> None:
        self._count = self._bytes = 0
        self._has_changed = asyncio.Event()

    async def enter(self, size: int) -> None:
        """Wait until a body of that size may wait to be stored; `leave` then."""
        while self._count >= 2 * GROUP_MAX or self._bytes >= 2 * GROUP_BYTES:
            self._has_changed.clear()
            await self._has_changed.wait()
        self._count += 1
        self._bytes += size

    def leave(self, size: int) -> None:
        self._count -= 1
        self._bytes -= size
        self._has_changed.set()


class Small:
    """`keep` belongs to the event loop; the methods that block say where."""

    def __init__(self, blobs: Blobs, thread: StoreThread) -> None:
        self._blobs, self._thread = blobs, thread
        self._waiting: list[Waiting] = []
        self._bytes = 0
        """In bodies that wait."""
        self._storing: asyncio.Task[None] | None = None
        self._is_due = asyncio.Event()
        """What waits is to gather no longer."""
        self._is_closing = False
        self._suffix = f".{secrets.token_hex(4)}"
        """Of files that have not got their names: ours alone."""

    async def keep(self, entry: Entry, body: bytes) -> Entry:
        """Make a body the entry of its key. Returns it as it is stored: a pin is carried over. Raises StoreError."""
        each = Waiting(entry, body, asyncio.get_running_loop().create_future())
        self._waiting.append(each)
        self._bytes += len(body)
        self._look()
        if self._storing is None:
            self._storing = asyncio.create_task(self._store_all(), name="small bodies")
        return await each.stored

    async def close(self) -> None:
        """Let what waits be stored. Nothing more comes."""
        self._is_closing = True
        self._look()
        if self._storing:
            await asyncio.wait([self._storing])

    def _look(self) -> None:
        """Notice when a group is due."""
        if self._is_closing or len(self._waiting) >= GROUP_MAX or self._bytes >= GROUP_BYTES:
            self._is_due.set()

    async def _store_all(self) -> None:
        """Store what waits, group by group, until nothing does."""
        seconds = GATHER_SECONDS
        try:
            while self._waiting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._is_due.wait()
                group, self._waiting = self._waiting[:GROUP_MAX], self._waiting[GROUP_MAX:]
                self._bytes -= sum(len(each.body) for each in group)
                self._is_due.clear()
                self._look()
                await self._store_group(group)
                seconds = min(2 * seconds, GATHER_MAX)
        finally:
            self._storing = None

    async def _store_group(self, group: list[Waiting]) -> None:
        """Give each of the group its outcome. An error is that of all: nothing of the group is stored then."""
        firsts = [group[at - at % SHARE].entry for at in range(len(group))]
        items = [self._item(each, first) for each, first in zip(group, firsts, strict=True)]
        try:
            await self._beside(self._prepare, items)
            entries = await self._thread.do(self._name, items)
            await self._beside(sync_directories, [item.blob for item in items])
        except Exception as error:  # a bug too: no fill may be left waiting
            for each in group:
                if not each.stored.done():  # its fill may have been cancelled
                    each.stored.set_exception(error)
        else:
            for each, entry in zip(group, entries, strict=True):
                if not each.stored.done():
                    each.stored.set_result(entry)

    def _item(self, each: Waiting, first: Entry) -> Item:
        """`first`: of those that share a file with it."""
        entry, root = each.entry, self._blobs.directory
        directory = f"{root}/{entry.sha256[:2]}"
        blob, sidecar = f"{directory}/{entry.sha256}", f"{directory}/{entry.sha256}.{entry.key}.json"
        new_sidecar = f"{root}/{first.sha256[:2]}/.{first.key}.json{self._suffix}"
        return Item(entry, each.body, blob, sidecar, f"{directory}/.{entry.sha256}{self._suffix}", new_sidecar)

    async def _beside(self, work: Callable[[T], None], about: T) -> None:
        """Run `work` in a thread; in the store's, which makes directories again, if one is gone."""
        try:
            await asyncio.to_thread(work, about)
        except FileNotFoundError:
            await self._thread.do(work, about)
        except OSError as error:
            raise store_error(f"the cache directory {self._blobs.ground.root} failed", error) from error

    def _prepare(self, items: list[Item]) -> None:
        """Beside: let the blobs have their names, and the sidecars be ready to get theirs."""
        # Else another URL has brought it.
        blobs = {item.new_blob: item for item in items if size_of(item.blob) != len(item.body)}
        sidecars: dict[str, bytes] = {}
        for item in items:
            sidecars[item.new_sidecar] = sidecars.get(item.new_sidecar, b"") + msgspec.json.encode(item.entry) + b"\n"
        made = {path for path in {os.path.dirname(item.blob) for item in items} if not os.path.exists(path)}
        for directory in made:
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
        if made:
            sync_directory(self._blobs.directory)
        try:
            write_durably({**{path: item.body for path, item in blobs.items()}, **sidecars})
            for path, item in blobs.items():
                with contextlib.suppress(FileNotFoundError):  # a start has swept it away: `_name` will write it
                    os.rename(path, item.blob)
        except BaseException:
            remove((*blobs, *sidecars))
            raise
        sync_directories(item.blob for item in blobs.values())

    def _name(self, items: list[Item]) -> list[Entry]:
        """In the store's thread: let the sidecars have their names, and the index its rows."""
        blobs, entries, replaced, named = self._blobs, [], [], []
        with blobs.ground.exclusively():
            try:
                known = blobs.ground.index.having([item.entry.key for item in items])
                for item in items:
                    entry = item.entry
                    if size_of(item.blob) != len(item.body):
                        publish(Path(item.blob), item.body)
                    old = blobs.current(entry.key) if entry.key in known else None
                    if old and old.sha256 != entry.sha256:
                        replaced.append(old)
                    if not old or old.sha256 != entry.sha256:
                        named.append(entry)
                    if old and old.pinned:
                        entry = replace(entry, pinned=True)
                        blobs.sidecars.write(entry)
                    elif not linked(item.new_sidecar, item.sidecar):
                        blobs.sidecars.write(entry)
                    entries.append(entry)
                blobs.ground.index.set_all(entries)
            except BaseException:
                remove(blobs.sidecars.path(entry) for entry in named)
                remove(item.blob for item in items if not blobs.sidecars.of(item.entry.sha256))
                raise
            finally:
                remove({item.new_sidecar for item in items})
            # Too much where another URL brought a body before; the janitor counts anew before it evicts.
            blobs.count_committed(sum(len(item.body) for item in items))
            for old in replaced:
                blobs.drop_files(old)
        return entries


def write_durably(files: Mapping[str, bytes]) -> None:
    """New files. All are on their way to the disk before the first sync, which brings most of the others along."""
    fds: list[int] = []
    try:
        for path, content in files.items():
            fds.append(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
            view = memoryview(content)
            while view:  # a write may take a part, where the disk is nearly full
                view = view[os.write(fds[-1], view) :]
        for fd in fds:
            begin_writing(fd)
        for fd in fds:
            sync_data(fd)
    finally:
        for fd in fds:
            os.close(fd)


def linked(old: str, new: str) -> bool:
    """Let the file `old` be `new` too, whatever that was; False where it is gone, or the file system knows no links."""
    try:
        try:
            os.link(old, new)
        except FileExistsError:
            os.link(old, f"{old}.new")
            try:
                os.rename(f"{old}.new", new)
            finally:
                remove([f"{old}.new"])  # rename leaves it where `new` was that file already
    except OSError:
        return False
    return True


def remove(paths: Iterable[str | Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)


def sync_directories(paths: Iterable[str]) -> None:
    """Those of the files `paths`."""
    for directory in {os.path.dirname(path) for path in paths}:
        sync_directory(directory)
