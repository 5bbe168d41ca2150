"""What is stored, as values that JSON can hold: for the page, the API and the commands."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..store.blobs import Record
from ..store.partial import PartialRecord
from ..store.store import Store

SORTS = ("url", "size", "hits", "stored_at", "used_at")
AT_ONCE = 500
"""Entries in memory at a time; between two batches others get their turn in the store's thread.

Of 100,000 a page of 100 takes 2 MB and 1.8 s of processor time, the last 35 MB; a list of all took 290 MB and 2.6 s.
"""


async def list_objects(store: Store) -> list[dict[str, Any]]:
    """Everything stored, bodies that are not whole included, by URL."""
    records, unfinished = await store.records(), await store.unfinished()

    def listed() -> list[dict[str, Any]]:
        objects = [*map(_from_entry, records), *map(_from_partial, unfinished)]
        return sorted(objects, key=lambda each: each["url"])

    return await asyncio.to_thread(listed)  # 100,000 take a second


def matches(url: str, pattern: str) -> bool:
    """Whether `pattern` is a part of the URL, or a glob over the whole of it."""
    return fnmatchcase(url, pattern) if "*" in pattern or "?" in pattern else pattern in url


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of all whose URLs match `search`: up to `length` from `start` on, in the order of `sort` (one of SORTS)."""

    search: str
    sort: str
    is_descending: bool
    start: int
    length: int


async def find(store: Store, wanted: Wanted) -> dict[str, Any]:
    """What is wanted, and what matches in all. However much is stored, little of it is in memory at any time."""
    unfinished = await store.unfinished()
    coming = {each.key for each in unfinished if store.is_locked(each.key)}  # shown as fills, with what has come
    selection, after = _Selection(wanted, coming), ""
    while records := await store.records(after, AT_ONCE):
        await asyncio.to_thread(selection.add, map(_from_entry, records))
        after = records[-1].entry.key
    await asyncio.to_thread(selection.add, map(_from_partial, unfinished))
    ranks = selection.page()
    whole = {
        record.entry.key: _from_entry(record)
        for record in await store.records_of([rank.key for rank in ranks if rank.is_whole])
    }
    partial = {each.key: _from_partial(each) for each in unfinished}
    found = [(whole if rank.is_whole else partial).get(rank.key) for rank in ranks]
    return {"total": selection.total, "bytes": selection.bytes, "entries": [each for each in found if each]}


async def find_one(store: Store, key: str) -> dict[str, Any] | None:
    for record in await store.records_of([key]):
        return _from_entry(record)
    return next((_from_partial(each) for each in await store.unfinished() if each.key == key), None)


@dataclass(frozen=True, slots=True)
class _Rank:
    """What an object needs to have its place among the others."""

    value: Any
    url: str
    key: str
    is_whole: bool


class _Selection:
    """The first of those that were added, in the order that is wanted."""

    def __init__(self, wanted: Wanted, left_out: set[str]) -> None:
        self.total = self.bytes = 0
        self._wanted, self._left_out = wanted, left_out
        self._ranks: list[_Rank] = []

    def add(self, objects: Iterable[dict[str, Any]]) -> None:
        for each in objects:
            if each["key"] not in self._left_out and matches(each["url"], self._wanted.search):
                self.total += 1
                self.bytes += each["size"]
                value = each[self._wanted.sort] or 0
                self._ranks.append(_Rank(value, each["url"], each["key"], each["state"] == "complete"))
        # Twice as many are sorted as are kept, so that each is sorted few times, however many are kept.
        if len(self._ranks) > 2 * (self._wanted.start + self._wanted.length):
            self._sort()

    def _sort(self) -> None:
        self._ranks.sort(key=lambda rank: rank.url)
        self._ranks.sort(key=lambda rank: rank.value, reverse=self._wanted.is_descending)
        del self._ranks[self._wanted.start + self._wanted.length :]

    def page(self) -> list[_Rank]:
        self._sort()
        return self._ranks[self._wanted.start :]


def _from_entry(record: Record) -> dict[str, Any]:
    entry = record.entry
    return {
        "url": entry.url,
        "mirror": entry.mirror,
        "size": entry.size,
        "digest": f"sha256:{entry.sha256}",
        "verified": entry.verified,
        "state": "complete",
        "hits": record.usage.hits,
        "pinned": entry.pinned,
        "stored_at": entry.stored_at,
        "used_at": record.usage.used_at or None,
        "key": entry.key,
        "validated_at": entry.validated_at,
        "headers": entry.head.headers,
    }


def _from_partial(record: PartialRecord) -> dict[str, Any]:
    return {
        "url": record.url,
        "mirror": record.mirror,
        "size": sum(end - start for start, end in record.extents),
        "digest": None,
        "verified": None,
        "state": "partial",
        "hits": 0,
        "pinned": False,
        "stored_at": None,
        "used_at": None,
        "key": record.key,
        "length": record.head.length,
        "headers": record.head.headers,
    }
