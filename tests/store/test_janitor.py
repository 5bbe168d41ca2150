"""The limits of the cache: what is evicted, when, and what always stays."""

import asyncio
import contextlib
import hashlib
import os

import pytest

from proxy.config import CacheSection, Size
from proxy.errors import OutOfSpace
from proxy.rules.entry import Head
from proxy.store.files import disk
from proxy.store.janitor import Janitor, eviction_lock, size_text
from proxy.store.partial import Partial
from proxy.store.store import Store
from tests.harness import until
from tests.store.test_store import content, entry_of, key, put, record

SIZE = 100_000
FRESH = "max-age=600"


def body(name):
    return name.encode() * (SIZE // len(name))


@pytest.fixture
def opened(tmp_path):
    @contextlib.asynccontextmanager
    async def opened(max_size=0, min_free=0):
        store = Store(tmp_path / "cache")
        await store.start()
        await store.count()  # once what a kill has left is in order
        janitor = Janitor(store, CacheSection(max_size=Size(max_size), min_free=Size(min_free)))
        try:
            yield store, janitor
        finally:
            await janitor.close()
            await store.close()

    return opened


BEGUN = []


@pytest.fixture(autouse=True)
def closed():
    """Close what a test began."""
    yield
    while BEGUN:
        BEGUN.pop().close()


async def begin(janitor, name, length=SIZE, generation="g1"):
    BEGUN.append(await janitor.create(key(name), f"http://a/{name}", Head((("etag", '"x"'),), length, generation)))
    return BEGUN[-1]


async def fill(janitor, name):
    partial = await begin(janitor, name)
    with contextlib.closing(partial):
        partial.write(0, memoryview(body(name)))
        partial.extents.add(0, SIZE)
        return await janitor.commit(partial, entry_of(name, body(name)))


async def stored(store):
    return "".join(sorted(record.entry.url[-1] for record in await store.records()))


async def test_the_least_recently_used_goes_before_the_next_one_comes(opened):
    async with opened(3 * SIZE) as (store, janitor):
        for name in "abc":
            await fill(janitor, name)
        store.touch(key("a"), 100.0)
        partial = await begin(janitor, "d")
        assert await stored(store) == "ac"  # there is room before the first byte
        janitor.release(partial)


async def test_pinned_and_read_bodies_stay(opened):
    async with opened(3 * SIZE) as (store, janitor):
        for name in "abc":
            await fill(janitor, name)
        await store.pin(key("a"))
        reader = store.open(await store.lookup(key("b")))
        growing = await begin(janitor, "d")
        assert await stored(store) == "ab"
        with pytest.raises(OutOfSpace) as caught:
            await begin(janitor, "e")
        assert "it needs 100.0 KB, and only 0 bytes can be made free" in caught.value.message
        assert "fetchonce prune" in caught.value.message
        assert "cache.max_size" in caught.value.message
        assert await stored(store) == "ab"
        reader.close()
        await begin(janitor, "e")
        assert await stored(store) == "a"
        janitor.release(growing)


async def test_a_hot_body_that_nobody_reads_may_go_and_its_descriptor_with_it(opened, tmp_path):
    async with opened(SIZE) as (store, janitor):
        await fill(janitor, "a")
        assert await content(store, "a") == body("a")
        await begin(janitor, "b")
        assert await content(store, "a") is None
        assert not deleted_blobs(tmp_path)


async def test_what_does_not_fit_in_evicts_nothing(opened):
    async with opened(2 * SIZE) as (store, janitor):
        await fill(janitor, "a")
        await store.pin(key("a"))
        with pytest.raises(OutOfSpace, match=r"needs 200\.0 KB.*max_size is 200\.0 KB") as caught:
            await begin(janitor, "b", 2 * SIZE)
        assert caught.value.status == 507
        with pytest.raises(OutOfSpace, match="raise it"):
            await begin(janitor, "b", 2 * SIZE + 1)
        assert await stored(store) == "a"
        assert not list(store.partials.directory.iterdir())


async def test_what_running_fills_will_write_counts(opened):
    async with opened(2 * SIZE) as (_, janitor):
        first, second = await begin(janitor, "a"), await begin(janitor, "b")
        with pytest.raises(OutOfSpace):
            await begin(janitor, "c", 1)
        janitor.release(first)  # it wrote nothing
        with pytest.raises(OutOfSpace):
            await begin(janitor, "c", SIZE + 1)
        await begin(janitor, "c")
        janitor.release(second)


async def test_what_other_processes_will_write_counts(opened):
    async with opened(2 * SIZE) as (one, leader), opened(2 * SIZE) as (other, janitor):
        lock = one.try_lock(key("a"))
        first = await begin(leader, "a", 2 * SIZE)  # it has no durable page, for want of a validator
        first.write(0, memoryview(body("a")))
        first.extents.add(0, SIZE)
        first.tell(first.extents)
        with pytest.raises(OutOfSpace):
            await begin(janitor, "b", 1)
        assert await other.survey() == []
        lock.close()  # as if its process had died: it will write no more
        second = await begin(janitor, "b")
        with pytest.raises(OutOfSpace):
            await begin(janitor, "c", 1)
        janitor.release(second)


async def test_what_other_processes_will_write_counts_on_the_file_system_too(opened):
    async with opened() as (one, leader), opened(min_free=1) as (_, janitor):
        _, free = disk(one.root)
        lock = one.try_lock(key("a"))
        first = await begin(leader, "a", free // 2)
        with pytest.raises(OutOfSpace, match="min_free"):
            await begin(janitor, "b", free // 4 * 3)
        leader.release(first)  # the fill is over, and the lock is still held
        await begin(janitor, "b", free // 4 * 3)
        lock.close()


async def test_a_fill_may_end_while_others_are_looked_at_and_still_counts(opened):
    async with opened(SIZE) as (store, janitor):
        first = await begin(janitor, "a", SIZE // 2)
        page = store.partials.directory / f"{key('b')}.g1.state"
        page.with_suffix(".part").touch()
        os.mkfifo(page)  # whoever reads it waits for us
        second = asyncio.create_task(begin(janitor, "c", SIZE // 2))
        with await asyncio.to_thread(open, page, "wb"):
            janitor.release(first)
            first.close()
        assert (await second).path.exists()
        page.unlink()


async def test_of_two_processes_that_want_the_last_room_at_once_one_gets_it(opened):
    async with opened(SIZE) as (one, first), opened(SIZE) as (other, second):
        for number in range(20):
            locks = [one.try_lock(key(f"a{number}")), other.try_lock(key(f"b{number}"))]
            both = await asyncio.gather(begin(first, f"a{number}"), begin(second, f"b{number}"), return_exceptions=True)
            assert {type(each) for each in both} == {OutOfSpace, Partial}
            assert len(list(one.partials.directory.glob("*.part"))) == 1
            for janitor, partial in zip((first, second), both, strict=True):
                if isinstance(partial, Partial):
                    janitor.release(partial)
                    partial.unlink()
            for lock in locks:
                lock.close()


async def test_the_rest_of_a_body_that_was_begun_needs_only_the_rest(opened):
    async with opened(2 * SIZE) as (store, janitor):
        partial = await store.create(key("a"), "g1")
        partial.write(0, memoryview(body("a"))[: SIZE // 2])
        partial.extents.add(0, SIZE // 2)
        await fill(janitor, "b")
        await janitor.take_up(partial, "http://a/a", SIZE)
        assert await stored(store) == "b"
        await store.pin(key("b"))
        with pytest.raises(OutOfSpace):
            await begin(janitor, "c", 1)


async def test_an_unfinished_body_that_nobody_goes_on_with_goes_too(opened):
    async with opened(2 * SIZE) as (store, janitor):
        partial = await store.create(key("a"), "g1")
        partial.write(0, memoryview(body("a")))
        partial.extents.add(0, SIZE)
        await store.save(partial, record("a", partial, Head((), 2 * SIZE, "g1")))
        os.utime(partial.path, (0, 0))
        await fill(janitor, "b")
        lock = store.try_lock(key("a"))  # somebody goes on with it
        await store.pin(key("b"))
        with pytest.raises(OutOfSpace):
            await begin(janitor, "c")
        lock.close()
        await begin(janitor, "c")
        assert await store.unfinished() == []


async def test_equal_bodies_count_once_and_go_with_their_last_url(opened):
    async with opened(2 * SIZE) as (store, janitor):
        await put(store, "a", body("x"))
        await put(store, "b", body("x"))
        growing = await begin(janitor, "c")
        assert await stored(store) == "ab"
        await begin(janitor, "d")
        janitor.release(growing)
        assert await stored(store) == ""
        assert not [path for path in store.blobs.directory.rglob("*") if path.is_file()]


async def test_min_free_is_kept_but_never_more_than_a_tenth(opened):
    async with opened(min_free=2**62) as (store, janitor):
        size = os.statvfs(store.root).f_frsize * os.statvfs(store.root).f_blocks
        with pytest.raises(OutOfSpace, match="cache.min_free keeps"):
            await begin(janitor, "a", size)
        await put(store, "b", body("b"))
        await begin(janitor, "c", None)  # the length is unknown
    assert janitor.limits.min_free == 2**62


async def test_without_limits_nothing_goes(opened):
    async with opened() as (store, janitor):
        for name in "abcdef":
            await fill(janitor, name)
        await janitor.tidy()
        assert await stored(store) == "abcdef"


async def test_a_commit_of_unknown_length_and_of_another_process_is_noticed(opened, caplog):
    caplog.set_level("INFO", "proxy")
    async with opened(2 * SIZE) as (store, janitor), opened() as (other, _):
        await janitor.start()
        await fill(janitor, "a")
        await put(other, "b", body("b"), stored_at=2.0)
        await put(other, "c", body("c"), stored_at=3.0)
        await janitor.tidy()
        assert await stored(store) == "bc"
        partial = await begin(janitor, "d", None)
        partial.write(0, memoryview(body("d")))
        partial.extents.add(0, SIZE)
        await janitor.commit(partial, entry_of("d", body("d"), stored_at=4.0))
        assert await until(lambda: is_stored(store, "cd"))
    assert "evicted url=http://a/a bytes=100000" in caplog.text


async def is_stored(store, names):
    return await stored(store) == names


async def test_what_another_process_has_stored_since_counts_at_once(opened):
    async with opened(3 * SIZE) as (store, janitor), opened(3 * SIZE) as (_, other):
        await fill(janitor, "a")
        await fill(other, "b")
        await fill(other, "c")
        await fill(janitor, "d")
        assert len(await stored(store)) == 3


async def test_what_another_process_removes_while_all_is_counted_is_not_taken_off_twice(opened, tmp_path):
    async with opened() as (store, janitor), opened() as (other, _):
        for number in range(1000):  # so that a count takes longer than a removal
            (tmp_path / "cache" / "damaged" / str(number)).touch()
        for number in range(5):
            await put(other, f"{number} stays", os.urandom(2 * SIZE))
            await put(other, f"{number} goes", os.urandom(SIZE))
            await asyncio.gather(janitor.check_room("", 0, ()), other.remove(key(f"{number} goes")))
            assert (await janitor.space()).stored == (await store.used()).stored


async def test_what_another_process_removed_is_closed(opened, tmp_path):
    async with opened() as (one, janitor), opened() as (other, _):
        await put(one, "a", body("a"))
        await one.lookup(key("a"))
        await other.remove(key("a"))
        assert deleted_blobs(tmp_path)
        await janitor.tidy()
        assert not deleted_blobs(tmp_path)


async def test_damaged_bodies_go_before_any_whole_one(opened):
    async with opened(2 * SIZE) as (store, janitor):
        await fill(janitor, "a")
        entry = await fill(janitor, "b")
        await store.set_aside(entry, "for a test")
        assert len(list(store.blobs.damaged.iterdir())) == 2
        await begin(janitor, "c")
        assert await stored(store) == "a"
        assert not list(store.blobs.damaged.iterdir())


async def test_one_process_evicts_at_a_time(opened):
    async with opened(SIZE) as (store, janitor), opened() as (other, _):
        await fill(janitor, "a")
        async with eviction_lock(other):
            making_room = asyncio.create_task(begin(janitor, "b"))
            await asyncio.wait([making_room], timeout=0.2)
            assert not making_room.done()
            assert await stored(store) == "a"
        await making_room
        assert await stored(store) == ""


async def test_what_was_pinned_or_replaced_since_it_was_looked_at_stays(opened):
    async with opened() as (store, _):
        for name in "abc":
            await put(store, name, body(name))
        survey = await store.survey()
        await store.pin(key("a"))
        await put(store, "b", b"new", "g2", 2.0)
        assert [each.url for each in await store.evict(survey)] == ["http://a/c"]
        assert await stored(store) == "ab"


async def test_a_pin_outlives_refresh_and_new_generation_and_is_undone(opened):
    async with opened() as (store, _), opened() as (other, _):
        entry = await put(store, "a", body("a"))
        assert (await other.pin(key("a"))).pinned
        assert (await store.lookup(key("a"))).pinned
        assert (await store.refresh(entry)).pinned  # whose entry has no pin
        assert (await put(store, "a", b"new", "g2", 2.0)).pinned
        assert not (await store.pin(key("a"), False)).pinned
        assert not (await other.lookup(key("a"))).pinned
        assert await store.pin(key("nothing")) is None


async def test_the_server_keeps_max_size_and_says_what_went(origin, proxy_factory):
    proxy = proxy_factory("--max-size", "250KB")
    for name in "abc":
        origin.body(f"/{name}", body(name)).headers(cache_control=FRESH)
        assert (await proxy.get(f"/u/{name}")).body == body(name)
        await proxy.wait_log(f"sha256={hashlib.sha256(body(name)).hexdigest()}")  # stored
    await proxy.wait_log(f"evicted url={origin.url('/a')} bytes=100000")
    assert (await proxy.get("/u/b", {"Cache-Control": "only-if-cached"})).status == 200
    assert (await proxy.get("/u/a", {"Cache-Control": "only-if-cached"})).status == 504


async def test_a_body_larger_than_the_cache_is_passed_on_and_the_log_says_what_to_do(origin, proxy_factory):
    proxy = proxy_factory("--max-size", "250KB")
    origin.body("/small", body("a")).headers(cache_control=FRESH)
    origin.body("/large", b"x" * 300_000).headers(cache_control=FRESH)
    assert (await proxy.get("/u/small")).status == 200
    passed = await proxy.get("/u/large")
    assert passed.body == b"x" * 300_000
    assert passed.headers["cache-status"] == "fetchonce; fwd=uri-miss; stored=?0; detail=no-space"
    message = await proxy.wait_log("fill.not_kept")
    (shown,) = {each["message"] for each in (await proxy.status())["failures"]}
    assert shown.startswith(f"passed on without being stored: no space for {origin.url('/')}")
    assert origin.url("/large") in message
    assert "it needs 300.0 KB" in message
    assert "cache.max_size is 250.0 KB" in message
    assert (await proxy.get("/u/small")).headers["cache-status"] == "fetchonce; hit"
    await until(lambda: not list((proxy.cache_dir / "partial").iterdir()))  # the small one is a hit before it is stored


async def test_two_servers_on_one_directory_do_not_reserve_the_same_room(origin, proxy_factory, tmp_path):
    one, other = (proxy_factory("--max-size", "250KB", cache_dir=tmp_path / "cache") for _ in range(2))
    origin.body("/a", b"a" * 200_000).stall_at(10_000)
    origin.body("/b", b"b" * 200_000).headers(cache_control=FRESH)
    async with await one.stream("/u/a") as growing:
        await growing.read(10_000)
        assert "stored=?0" in (await other.get("/u/b")).headers["cache-status"]
        assert "are pinned or in use" in await other.wait_log("fill.not_kept")
        origin.release()
        assert await growing.rest() == b"a" * 190_000
    await one.wait_log("fill.complete")
    assert (await other.get("/u/b")).body == b"b" * 200_000
    assert (await one.get("/u/a", {"Cache-Control": "only-if-cached"})).status == 504  # stored, and evicted for b


async def test_a_reload_changes_the_limit(origin, proxy_factory):
    proxy = proxy_factory(config_text='[cache]\nmax_size = "100KB"\n')
    origin.body("/large", b"x" * 300_000)
    assert "stored=?0" in (await proxy.get("/u/large")).headers["cache-status"]
    proxy.config.write_text('[cache]\nmax_size = "0"\n')
    proxy.send_signal(1)
    await proxy.wait_log("config.reloaded")
    assert (await proxy.get("/u/large")).headers["cache-status"] == "fetchonce; fwd=uri-miss; stored"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 KB"), (2_500_000, "2.5 MB"), (50 * 10**9, "50.0 GB")],
)
def test_sizes_for_people(count, text):
    assert size_text(count) == text


def deleted_blobs(tmp_path):
    """Bodies under tmp_path that are removed and still open in this process."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            name = os.readlink(f"/proc/self/fd/{fd}")
            if name.endswith("(deleted)") and name.startswith(f"{tmp_path}/") and "blobs" in name:
                found.append(name)
    return found
