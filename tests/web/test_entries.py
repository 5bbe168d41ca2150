"""Lists of what is stored: what a list of everything would give, without having everything in memory."""

import contextlib
import itertools
import tracemalloc
from dataclasses import replace

import msgspec

from proxy.store.sidecars import Sidecars
from proxy.store.store import Store
from proxy.web.entries import AT_ONCE, SORTS, Wanted, find, find_one, list_objects, matches
from tests.store.test_store import entry_of, key, record

MANY, FEW = 5 * AT_ONCE, 10
BYTES_EACH = 100
"""Far less than an entry takes."""


@contextlib.asynccontextmanager
async def stocked(root, count):
    """A store of small bodies, of which several have one size, one URL or one time, some were used, and of one there
    is an unfinished one too."""
    sidecars = Sidecars(root / "blobs")
    for number in range(count):
        body = b"%d" % number
        entry = replace(entry_of(f"x{number}", body, stored_at=float(number % 7)), url=f"http://a/x{number // 2}")
        sidecars.path(entry).parent.mkdir(parents=True, exist_ok=True)
        sidecars.path(entry).write_bytes(msgspec.json.encode(entry))
        sidecars.blob(entry.sha256).write_bytes(body)
    store = Store(root)
    await store.start()
    for number in range(0, count, 3):
        store.touch(key(f"x{number}"), float(number % 4), hits=number % 2)
    await store.count()
    try:
        yield store
    finally:
        await store.close()


def everything(objects, wanted):
    """What is wanted of a list of everything."""
    found = [each for each in objects if matches(each["url"], wanted.search)]
    if wanted.sort != "url":
        found.sort(key=lambda each: each[wanted.sort] or 0, reverse=wanted.is_descending)
    elif wanted.is_descending:
        found.sort(key=lambda each: each["url"], reverse=True)
    page = found[wanted.start : wanted.start + wanted.length]
    return {"total": len(found), "bytes": sum(each["size"] for each in found), "entries": page}


async def test_a_page_is_one_of_the_list_of_everything(tmp_path):
    async with stocked(tmp_path / "cache", MANY) as store:
        for name in ("x1", "z"):
            with contextlib.closing(await store.create(key(name), "g2")) as partial:
                partial.write(0, memoryview(b"half"))
                partial.extents.add(0, 4)
                await store.save(partial, record(name, partial, entry_of(name, b"half a body").head))
        objects = await list_objects(store)
        assert len(objects) == MANY + 2
        orders = itertools.product(("", "*9"), SORTS, (False, True), ((0, 10), (1500, 1000)))
        for search, sort, is_descending, (start, length) in orders:
            wanted = Wanted(search, sort, is_descending, start, length)
            assert await find(store, wanted) == everything(objects, wanted), wanted
        nothing = everything(objects, Wanted("x", "url", False, 0, 0))
        assert await find(store, Wanted("x", "url", False, 2**53, 1)) == nothing
        for name in ("x1", "x2", "z"):
            assert await find_one(store, key(name)) == next(each for each in objects if each["key"] == key(name))
        assert await find_one(store, "0" * 64) is None


async def test_what_comes_is_left_out(tmp_path):
    async with stocked(tmp_path / "cache", FEW) as store:
        with store.try_lock(key("z")), contextlib.closing(await store.create(key("z"), "g")) as partial:
            await store.save(partial, record("z", partial, entry_of("z", b"all").head))
            assert (await find(store, Wanted("", "url", False, 0, 100)))["total"] == FEW
        assert (await find(store, Wanted("", "url", False, 0, 100)))["total"] == FEW + 1


async def peak(root, count):
    """The most bytes that Python holds for a page, beside what it held before."""
    async with stocked(root, count) as store:
        tracemalloc.start()
        try:
            await find(store, Wanted("", "size", True, 0, 10))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


async def test_no_more_is_in_memory_with_many_entries_than_with_two_batches(tmp_path):
    with_many, with_two = [await peak(tmp_path / str(count), count) for count in (MANY, 2 * AT_ONCE)]
    assert with_many - with_two < BYTES_EACH * (MANY - 2 * AT_ONCE)
