"""The index: cache key -> Entry, and how often it was used. It repeats the sidecars: losing it loses only the counts.

A diskcache.Cache that does nothing by itself: no eviction, no statistics, no files beside the database, and a Disk that
knows only JSON (diskcache's pickle is CVE-2025-69872: whoever can write the directory could run code). The row of an
entry has its sidecar's name as its tag, and the size of the body. One narrow SQLite index holds both, in the order of
the directories: a start compares and counts by it, and reads no row.
Not thread-safe but for `misses`: SQLite connections are per thread, and the store's one thread owns this one.
"""

import contextlib
import math
import os
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diskcache
import msgspec
from msgspec.structs import replace

from ..errors import OutOfSpace, StoreError
from ..rules.entry import Entry
from .files import FULL, MAKE_ROOM


class IndexDisk(diskcache.Disk):  # type: ignore[misc]
    """Keys are text and values bytes, both inside the database. Anything else is refused in both directions."""

    def put(self, key: Any) -> tuple[str, bool]:
        if not isinstance(key, str):
            raise TypeError(f"an index key is text, not {type(key).__name__}")
        return key, True

    def get(self, key: Any, raw: bool) -> str:
        if not raw or not isinstance(key, str):
            raise sqlite3.DatabaseError("the index holds a key that is no text")
        return key

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, None, sqlite3.Binary]:
        if not isinstance(value, bytes) or read:
            raise TypeError(f"an index value is bytes, not {type(value).__name__}")
        return 0, diskcache.core.MODE_RAW, None, sqlite3.Binary(value)

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> bytes:
        if mode != diskcache.core.MODE_RAW or filename is not None:
            raise sqlite3.DatabaseError("the index holds a value that is no JSON")
        return bytes(value)


Busy: type[Exception] = diskcache.Timeout
"""Another process has kept the database locked for too long."""
INDEX_ERRORS = (sqlite3.Error, msgspec.MsgspecError, Busy)
"""What an Index raises: trouble with the database, a damaged row, Busy."""

BUSY_SECONDS = 10.0
"""How long a write waits for another process that keeps the index; then it raises Busy."""

GLANCE_SECONDS = 0.005
"""How long `misses` does not look whether somebody has removed the database: at worst something is fetched anew."""

CACHE_PAGES = 256
"""Of 4 KB, which SQLite keeps in memory; the kernel has the rest. diskcache's default is 32 MB."""

BY_TAG = "CREATE INDEX IF NOT EXISTS Cache_tag_size ON Cache (tag, size) WHERE tag IS NOT NULL"
"""Not diskcache's own index of tags, which lacks the size: a count would read the whole of each row."""

SET = f"""INSERT INTO Cache (key, raw, store_time, access_time, access_count, tag, size, mode, value)
    VALUES (?, 1, ?, ?, 0, ?, ?, {diskcache.core.MODE_RAW}, ?)
    ON CONFLICT (key, raw) DO UPDATE SET (store_time, access_time, tag, size, mode, value) =
    (excluded.store_time, excluded.access_time, excluded.tag, excluded.size, excluded.mode, excluded.value)"""

USED = """SELECT entry.value, use.value FROM Cache AS entry
    LEFT JOIN Cache AS use ON use.key = 'use:' || substr(entry.key, 7) AND use.raw = 1
    WHERE entry.key > 'entry:' || ? AND entry.key < 'entry;' ORDER BY entry.key LIMIT ?"""


def is_full(error: Exception) -> bool:
    """Whether there was no space for the database: it is none the worse for that."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) in FULL


class Usage(msgspec.Struct, frozen=True):
    hits: int = 0
    used_at: float = 0.0
    """Unix time of the last request answered from the entry."""
    shared: str = ""
    """Which bucket is known to have which generation of it (abroad.py)."""
    shared_at: float = 0.0
    """Unix time since which that is known."""


class Length(msgspec.Struct, frozen=True):
    length: int


class Brief(msgspec.Struct, frozen=True):
    """The part of an entry that eviction needs. Decoding whole rows takes five times as long."""

    key: str
    url: str
    sha256: str
    stored_at: float
    head: Length
    pinned: bool


class OfHead(msgspec.Struct, frozen=True):
    generation: str


class Generation(msgspec.Struct, frozen=True):
    head: OfHead


class Named(msgspec.Struct, frozen=True):
    url: str


def stored_urls(root: Path, prefix: str) -> list[str]:
    """The URLs in the index of the cache directory `root` that begin with `prefix`, sorted; none if it cannot be read.

    It only reads, as the index is: it takes no lock and mends nothing, so that it takes no time.
    """
    file = urllib.parse.quote(f"{root}/index/{diskcache.core.DBNAME}")
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=0.5)) as database:
            rows = database.execute("SELECT value FROM Cache WHERE key > 'entry:' AND key < 'entry;'")
            urls = (msgspec.json.decode(row, type=Named).url for (row,) in rows)
            return sorted(url for url in urls if url.startswith(prefix))
    except INDEX_ERRORS:
        return []


class Index:
    """Raises StoreError where the database cannot be opened, OutOfSpace for want of room, and INDEX_ERRORS later."""

    def __init__(self, directory: Path, busy_seconds: float = BUSY_SECONDS) -> None:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # diskcache would let everybody look into it
            self._rows = diskcache.Cache(
                str(directory),
                disk=IndexDisk,
                eviction_policy="none",
                cull_limit=0,
                size_limit=2**62,
                statistics=0,
                sqlite_cache_size=CACHE_PAGES,
                # mmap makes SQLite's WAL-reset corruption (fixed in 3.51.3) worse.
                sqlite_mmap_size=0,
                timeout=busy_seconds,
            )
            self._rows._sql_retry(BY_TAG)
        except (sqlite3.Error, OSError) as error:
            if is_full(error):
                raise OutOfSpace(f"the index {directory} cannot be opened: {error}. {MAKE_ROOM}") from error
            raise StoreError(f"the index {directory} cannot be opened: {error}") from error
        self._files = [f"{directory}/{diskcache.core.DBNAME}{suffix}" for suffix in ("", "-wal", "-shm")]
        # It is opened and closed with the other one: connections of a process share what SQLite has open of a database,
        # and with one of them open a new one would go on in files that were removed.
        self._glances: sqlite3.Connection | None = self._open_glances()
        self._glancing = threading.Lock()
        self._glanced_at = -math.inf
        """time.monotonic(), when the database was seen to be current."""
        self._inodes = self._current_inodes()

    def is_current(self) -> bool:
        """Whether the open database is still the one in the directory.

        Another process may have rebuilt it, or somebody removed one of its files. SQLite would not notice: it goes on
        in files without a name, which nobody else sees.
        """
        return self._current_inodes() == self._inodes

    def _current_inodes(self) -> list[int]:
        """Of the files that SQLite keeps open as long as the database is open; none if one of them is missing."""
        try:
            return [os.stat(file).st_ino for file in self._files]
        except FileNotFoundError:
            return []

    def _open_glances(self) -> sqlite3.Connection | None:
        try:
            return sqlite3.connect(self._files[0], timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error:
            return None

    def misses(self, key: str) -> bool:
        """Whether there is surely no entry of `key`. In any thread: it waits for nobody; False where it cannot tell.

        That is what a miss wants to know, twice. A hop to the store's thread and back cost it 80 µs, and this 10.
        """
        if not self._glancing.acquire(blocking=False):
            return False
        try:
            if self._glances is None or not self._was_current():
                return False
            sql = "SELECT 1 FROM Cache WHERE key = ? AND raw = 1"
            return self._glances.execute(sql, (f"entry:{key}",)).fetchone() is None
        except sqlite3.Error:
            return False
        finally:
            self._glancing.release()

    def _was_current(self) -> bool:
        """Whether the database is current, or was so a moment ago."""
        now = time.monotonic()
        if now - self._glanced_at >= GLANCE_SECONDS:
            if not self.is_current():
                return False
            self._glanced_at = now
        return True

    def get(self, key: str) -> Entry | None:
        row = self._rows.get(f"entry:{key}")
        return None if row is None else msgspec.json.decode(row, type=Entry)

    def set(self, entry: Entry) -> None:
        self.set_all([entry])

    def set_all(self, entries: Sequence[Entry]) -> None:
        """In one transaction: all of them, or none.

        Not by diskcache, which asks first whether there is a row: each statement hands the interpreter to and fro.
        """
        now = time.time()
        rows = [
            (f"entry:{each.key}", now, now, f"{each.sha256}.{each.key}", each.size, msgspec.json.encode(each))
            for each in entries
        ]
        with self.at_once():
            self._rows._con.executemany(SET, rows)
            for entry in entries:
                if entry.sha512:
                    self._rows.set(f"sha512:{entry.sha512}", entry.sha256.encode())

    def having(self, keys: Sequence[str]) -> frozenset[str]:
        """Those of the keys, a few hundred at most, that have an entry."""
        sql = f"SELECT key FROM Cache WHERE raw = 1 AND key IN ({', '.join('?' * len(keys))})"
        rows = self._rows._sql(sql, [f"entry:{key}" for key in keys])
        return frozenset(key.removeprefix("entry:") for (key,) in rows)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """What the block changes is changed in one transaction."""
        with self._rows.transact():
            yield

    def named(self, prefix: str) -> frozenset[str]:
        """The names of all sidecars that begin with `prefix`, without their suffix, as the rows have them."""
        rows = self._rows._sql("SELECT tag FROM Cache WHERE tag >= ? AND tag < ?", (prefix, f"{prefix}~"))
        return frozenset(tag for (tag,) in rows)

    def unnamed(self) -> list[str]:
        """The keys of rows that do not name their sidecar; an earlier program has written them."""
        ((tags,),) = self._rows._sql("SELECT COUNT(*) FROM Cache WHERE tag IS NOT NULL")
        if tags == self.count_entries():
            return []
        rows = self._rows._sql("SELECT key FROM Cache WHERE key > 'entry:' AND key < 'entry;' AND tag IS NULL")
        return [key.removeprefix("entry:") for (key,) in rows]

    def total_bytes(self) -> int:
        """Of all bodies, each counted once."""
        sql = "SELECT MAX(size) AS size FROM Cache WHERE tag IS NOT NULL GROUP BY substr(tag, 1, 64)"
        return int(self._rows._sql(f"SELECT TOTAL(size) FROM ({sql})").fetchone()[0])

    def blob_of(self, sha512: str) -> str | None:
        """SHA-256 (hex) of the body with that SHA-512; the body may be gone."""
        row = self._rows.get(f"sha512:{sha512}")
        return None if row is None else bytes(row).decode()

    def forget_blob_of(self, sha512: str) -> None:
        self._rows.delete(f"sha512:{sha512}")

    def remove(self, key: str) -> None:
        self._rows.delete(f"entry:{key}")
        self._rows.delete(f"use:{key}")

    def records(self, after: str = "", most: int = -1) -> Iterator[tuple[Entry, Usage]]:
        """Up to `most` behind the key `after`, by key; -1: all."""
        for row, use in self._used(after, most):
            yield msgspec.json.decode(row, type=Entry), use

    def briefs(self) -> Iterator[tuple[Brief, float]]:
        """Every entry in brief, with the time of its last use."""
        decode = msgspec.json.Decoder(Brief).decode
        for row, use in self._used():
            brief = decode(row)
            yield brief, max(use.used_at, brief.stored_at)

    def _used(self, after: str = "", most: int = -1) -> Iterator[tuple[bytes, Usage]]:
        """Every entry as JSON, with its use, in one statement and never all in memory: there may be very many."""
        decode, never = msgspec.json.Decoder(Usage).decode, Usage()
        for row, use in self._rows._sql(USED, (after, most)):
            yield row, decode(use) if use else never

    def count_entries(self) -> int:
        sql = "SELECT COUNT(*) FROM Cache WHERE key > 'entry:' AND key < 'entry;'"
        return int(self._rows._sql(sql).fetchone()[0])

    def usage(self, key: str) -> Usage:
        row = self._rows.get(f"use:{key}")
        return Usage() if row is None else msgspec.json.decode(row, type=Usage)

    def count(self, uses: Mapping[str, Usage]) -> None:
        """Add `uses`, by key, to those on record, in one transaction: other processes count in the same rows."""
        with self._rows.transact():
            for key, use in uses.items():
                before = self.usage(key)
                after = replace(before, hits=before.hits + use.hits, used_at=max(before.used_at, use.used_at))
                self._rows.set(f"use:{key}", msgspec.json.encode(after))

    def shared(self, after: str, count: int) -> list[tuple[str, str, Usage]]:
        """Key, generation and use of the next `count` entries behind the key `after`, in the order of their keys."""
        sql = (
            "SELECT e.key, e.value, u.value FROM Cache e LEFT JOIN Cache u "
            "ON u.key = 'use:' || substr(e.key, 7) AND u.raw = e.raw "
            "WHERE e.key > ? AND e.key < 'entry;' ORDER BY e.key LIMIT ?"
        )
        return [
            (
                key.removeprefix("entry:"),
                msgspec.json.decode(entry, type=Generation).head.generation,
                Usage() if use is None else msgspec.json.decode(use, type=Usage),
            )
            for key, entry, use in self._rows._sql(sql, (f"entry:{after}", count))
        ]

    def set_shared(self, key: str, shared: str, now: float) -> None:
        """Note beside the use of an entry that there is, who has it (Usage.shared)."""
        with self._rows.transact():
            if f"entry:{key}" in self._rows:
                use = replace(self.usage(key), shared=shared, shared_at=now)
                self._rows.set(f"use:{key}", msgspec.json.encode(use))

    def close(self) -> None:
        with self._glancing:
            glances, self._glances = self._glances, None
            if glances:
                glances.close()
        self._rows.close()
