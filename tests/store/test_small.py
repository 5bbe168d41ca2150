"""Small bodies, which are stored from memory, many at a time."""

import asyncio
import hashlib
import math
import os
import resource
import shutil
import sqlite3
from collections import Counter
from dataclasses import replace

import pytest

from proxy.errors import StoreError
from proxy.store.bodies import PREFIXES
from proxy.store.locks import RING
from proxy.store.sidecars import Sidecars
from proxy.store.small import GROUP_BYTES, GROUP_MAX, SHARE, Room, write_durably
from tests.harness import until
from tests.tracing import needs_strace, traced

from .test_store import content, entry_of, key, opened, put

__all__ = ["opened"]
COUNT = 40


def body(number):
    return b"body %d" % number


async def keep(store, numbers):
    await asyncio.gather(*(store.keep(entry_of(f"x{number}", body(number)), body(number)) for number in numbers))


def left(root):
    """Files that have not got their names."""
    return [*root.glob("partial/*"), *root.glob("blobs/*/.*")]


async def test_small_bodies_are_stored_like_others(opened, tmp_path):
    async with opened() as store:
        await keep(store, range(COUNT))
        assert [await content(store, f"x{number}") for number in range(COUNT)] == [*map(body, range(COUNT))]
        assert not left(store.root)
    async with opened() as store:
        assert [await content(store, f"x{number}") for number in range(COUNT)] == [*map(body, range(COUNT))]


async def test_a_small_body_takes_over_the_pin_and_the_place_of_the_one_before(opened):
    async with opened() as store:
        old = await put(store, "x", b"old")
        await store.pin(key("x"))
        assert (await store.keep(entry_of("x", b"new", "g2"), b"new")).pinned
        assert (await store.lookup(key("x"))).pinned
        assert await content(store, "x") == b"new"
        assert not store.blobs.path(old).exists()


async def test_sidecars_that_were_written_together_are_changed_and_go_one_by_one(opened):
    async with opened() as store:
        await keep(store, range(COUNT))
        paths = [store.blobs.sidecars.path(entry_of(f"x{number}", body(number))) for number in range(COUNT)]
        assert len({path.stat().st_ino for path in paths}) == math.ceil(COUNT / SHARE)
        await store.pin(key("x0"))
        await store.remove(key("x1"))
        await store.keep(entry_of("x2", body(2), "g2"), body(2))
        paths[3].write_bytes(paths[3].read_bytes())  # by whoever edits it: of all that share it
    async with opened() as store:
        found = [await store.lookup(key(f"x{number}")) for number in range(COUNT)]
        assert [each.pinned for each in found if each] == [True, *[False] * (COUNT - 2)]
        assert found[1] is None
        assert found[2].head.generation == "g2"
        paths[4].unlink()
        assert await content(store, "x5") == body(5)
        paths[6].write_bytes(b"\n".join(paths[7].read_bytes().splitlines()[:2]))
        assert await store.lookup(key("x15")) is None  # damaged
    assert not left(store.root)


async def test_urls_with_one_small_body_share_it(opened):
    async with opened() as store:
        await asyncio.gather(*(store.keep(entry_of(name, b"same"), b"same") for name in "abc"))
        assert len([path for path in store.root.glob("blobs/*/*") if path.suffix != ".json"]) == 1
        await store.remove(key("a"))
        assert await content(store, "b") == await content(store, "c") == b"same"


@pytest.mark.parametrize(("count", "size"), [(2 * GROUP_MAX, 1), (8, GROUP_BYTES // 4)], ids=["many", "big"])
async def test_who_brings_more_than_two_groups_waits(count, size):
    room = Room()
    for _ in range(count):
        await room.enter(size)
    others = [asyncio.create_task(room.enter(size)) for _ in range(3)]
    await asyncio.sleep(0)
    others[0].cancel()
    for gone in range(2):
        assert [other.done() and not other.cancelled() for other in others].count(True) == gone
        room.leave(size)
        await until(lambda at=gone: sum(other.done() and not other.cancelled() for other in others) == at + 1)


async def test_a_group_that_is_full_is_stored_with_the_others_behind_it(opened):
    async with opened() as store:
        count = 2 * GROUP_MAX + 1
        await keep(store, range(count))
        assert [await content(store, f"x{number}") for number in range(count)] == [*map(body, range(count))]
        assert not left(store.root)


async def test_what_another_process_sweeps_before_it_is_described_is_written_again(opened):
    async with opened() as store:
        blobs = {hashlib.sha256(body(number)).hexdigest() for number in range(COUNT)}
        with store.blobs.ground.exclusively():
            storing = asyncio.create_task(keep(store, range(COUNT)))
            await until(lambda: blobs <= {path.name for path in store.root.glob("blobs/*/*")})
            for prefix in PREFIXES:
                Sidecars(store.blobs.directory).sweep(prefix)
            assert not [*store.root.glob("blobs/*/*")]
        await storing
        assert [await content(store, f"x{number}") for number in range(COUNT)] == [*map(body, range(COUNT))]
        assert not left(store.root)


async def test_an_index_that_another_process_keeps_locked_undoes_all_of_a_group(opened, tmp_path):
    async with opened(busy_seconds=0.1) as store:
        database = sqlite3.connect(tmp_path / "cache" / "index" / "cache.db", isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="kept the index of"):
            await keep(store, range(3))
        database.close()
        assert not [*store.root.glob("blobs/*/*")]
        await keep(store, range(3))
        assert await content(store, "x2") == body(2)


async def test_what_no_file_can_be_made_of_is_the_outcome_of_its_group_too(opened):
    async with opened() as store:
        bad = replace(entry_of("x", b"x"), url="http://a/\udc80")
        outcomes = await asyncio.gather(store.keep(bad, b"x"), keep(store, range(3)), return_exceptions=True)
        assert [type(each) for each in outcomes] == [UnicodeEncodeError] * 2
        await keep(store, range(3))
        assert await content(store, "x2") == body(2)


async def test_of_a_group_that_fails_half_way_no_body_is_left(opened):
    async with opened() as store:
        sidecar = store.blobs.sidecars.path(entry_of("x0", body(0)))
        sidecar.mkdir(parents=True)
        with pytest.raises(StoreError):
            await keep(store, range(COUNT))
        sidecar.rmdir()
        assert [path.name for path in store.root.glob("blobs/*/*")] == [hashlib.sha256(body(0)).hexdigest()]


def test_a_file_that_takes_only_a_part_is_an_error(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_durably({str(tmp_path / "x"): bytes(1001)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_directories_that_somebody_removed_are_made_again(opened):
    async with opened() as store:
        await keep(store, range(2))
        shutil.rmtree(store.blobs.directory)
        await keep(store, range(2, 4))
        assert await content(store, "x3") == body(3)


@needs_strace
async def test_a_small_miss_costs_a_new_file_and_shares_its_directories_syncs(origin, proxy, tmp_path):
    for number in range(COUNT):
        origin.body(f"/{number}.json", body(number)).headers(cache_control="max-age=600")
    await proxy.get("/u/0.json")
    with traced(proxy.pid, "openat,fadvise64,fsync,fdatasync", tmp_path / "strace") as calls:
        await asyncio.gather(*(proxy.get(f"/u/{number}.json") for number in range(1, COUNT)))
        await proxy.wait_idle()
    count = Counter(call.name for call in calls)
    assert count["fdatasync"] <= 2 * COUNT
    assert count["fadvise64"] >= COUNT - 1  # on its way to the disk before the first of its group is synced
    created = [call.text for call in calls if "O_CREAT" in call.text]
    assert len(created) <= 1.5 * COUNT  # locks are links, and sidecars but for one of SHARE
    assert count["fsync"] <= 3 * COUNT
    assert not [text for text in created if "/partial/" in text]
    locks = {path.name for path in (proxy.cache_dir / "locks").iterdir()}
    assert {name for name in locks if not name.startswith(RING)} <= {"store", "janitor"}
    assert os.listdir(proxy.cache_dir / "partial") == []
