"""A start with many entries: it serves at once, puts things in order behind that, and holds none of them in memory."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import sqlite3
import tracemalloc

import msgspec
import pytest

from proxy.config import CacheSection, Size
from proxy.store.bodies import COMPARED_AT_ONCE
from proxy.store.index import Index
from proxy.store.janitor import Janitor
from proxy.store.sidecars import Sidecars
from proxy.store.store import Store

from .test_store import BODY, content, entry_of, key, put

MANY = 4 * COMPARED_AT_ONCE
FEW = 100
BYTES_EACH = 100
"""Far less than a key, a digest and a URL take."""


def stock(root, count):
    """A cache with `count` small bodies, x0 and so on, and no index yet."""
    sidecars = Sidecars(root / "blobs")
    for number in range(count):
        entry = entry_of(f"x{number}", body := b"%d" % number)
        sidecars.path(entry).parent.mkdir(parents=True, exist_ok=True)
        sidecars.path(entry).write_bytes(msgspec.json.encode(entry))
        sidecars.blob(entry.sha256).write_bytes(body)
    return root


@pytest.fixture(scope="module")
def stocked(tmp_path_factory):
    return stock(tmp_path_factory.mktemp("stocked") / "cache", MANY)


def copied(stocked, tmp_path):
    """The same without an index. The files are never written to, but replaced."""
    return shutil.copytree(stocked, tmp_path / "cache", copy_function=os.link, ignore=shutil.ignore_patterns("index"))


@contextlib.asynccontextmanager
async def started(root):
    store = Store(root)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def peak(root):
    """The most bytes that Python held from the start until everything was in order and counted."""
    tracemalloc.start()
    try:
        async with started(root) as store:
            janitor = Janitor(store, CacheSection(max_size=Size(10**9), min_free=Size(0)))
            await janitor.tidy()
            assert (await janitor.space()).stored > 0
            return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def test_no_more_is_in_memory_with_many_entries_than_with_few(stocked, tmp_path):
    few = stock(tmp_path / "few", FEW)
    for root, count in (stocked, MANY), (few, FEW):
        async with started(root) as store:
            assert await store.count() == count
    # The least of three: pathlib interns names, and now and then Python makes its table of those anew (1 MB).
    with_many, with_few = [min([await peak(root) for _ in range(3)]) for root in (stocked, few)]
    assert with_many - with_few < BYTES_EACH * (MANY - FEW)


async def test_a_hit_does_not_wait_for_the_order_and_a_miss_does(stocked, tmp_path):
    root = copied(stocked, tmp_path)
    index = Index(root / "index")
    index.set(entry_of("x1", b"1"))
    index.close()
    async with started(root) as store:
        assert await content(store, "x1") == b"1"
        assert not store._comparing.is_over
        assert await content(store, "x2") == b"2"  # the index did not have it
        assert store._comparing.is_over
        assert await store.count() == MANY


async def test_what_needs_everything_waits(stocked, tmp_path):
    root = copied(stocked, tmp_path)
    async with started(root) as store:
        pinned, records, used = await asyncio.gather(store.pin(key("x7")), store.records(), store.used())
    assert pinned.pinned
    assert len(records) == MANY
    assert used.stored == sum(len(b"%d" % number) for number in range(MANY))


async def test_a_store_that_ends_in_the_middle_puts_the_rest_in_order_the_next_time(stocked, tmp_path):
    root = copied(stocked, tmp_path)
    async with started(root) as store:
        await store.disk()
        assert not store._comparing.is_over
    async with started(root) as store:
        assert await store.count() == MANY


async def test_rows_of_an_earlier_program_are_kept_where_they_are_right(tmp_path):
    async with started(tmp_path) as store:
        for name in "xyz":
            await put(store, name, BODY if name != "z" else b"z")
        store.touch(key("x"), 5.0)
    database = sqlite3.connect(tmp_path / "index" / "cache.db")
    with database:
        database.execute("UPDATE Cache SET tag = NULL, size = 0")
    database.close()
    gone = hashlib.sha256(b"z").hexdigest()
    for path in (tmp_path / "blobs").glob(f"*/{gone}*"):
        path.unlink()
    async with started(tmp_path) as store:
        assert {each.entry.key: each.usage.hits for each in await store.records()} == {key("x"): 1, key("y"): 0}
        assert (await store.used()).stored == len(BODY)  # of two URLs
