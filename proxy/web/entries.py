"""What is stored, as values that JSON can hold: for the page, the API and the commands."""

import asyncio
from fnmatch import fnmatchcase
from typing import Any

from ..store.blobs import Record
from ..store.partial import PartialRecord
from ..store.store import Store

SORTS = ("url", "size", "hits", "stored_at", "used_at")


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


def page(objects: list[dict[str, Any]], sort: str, *, descending: bool, start: int, length: int) -> dict[str, Any]:
    """Up to `length` objects from `start` on, in the order of `sort` (one of SORTS), and what there is in all."""
    ordered = sorted(objects, key=lambda each: (each[sort] or 0) if sort != "url" else each[sort], reverse=descending)
    return {
        "total": len(objects),
        "bytes": sum(each["size"] for each in objects),
        "entries": ordered[start : start + length],
    }


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
