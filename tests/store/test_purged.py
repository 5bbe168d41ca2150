"""Somebody empties the cache directory under the running server: a person, a cleaner of caches, macOS."""

import asyncio
import os
import shutil
import stat

import pytest

from proxy.store.locks import Lock
from proxy.store.servers import ServerRecord, running
from proxy.store.store import Store
from tests.harness import until
from tests.origin import pattern_bytes, pattern_sha256

SIZE = 16 << 20
HALF = SIZE // 2
SEED = 3
FRESH = "max-age=600"
DIRECTORIES = ("blobs", "damaged", "index", "locks", "partial", "servers")
FILES = ("index/cache.db", "index/cache.db-wal", "index/cache.db-shm", "committed", "id")


def remove(path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # the server may be writing there
    else:
        path.unlink(missing_ok=True)


def empty(directory):
    for path in directory.iterdir():
        remove(path)


LOSSES = [
    pytest.param(empty, id="everything"),
    pytest.param(remove, id="the directory"),
    *(pytest.param(lambda root, name=name: remove(root / name), id=name) for name in (*DIRECTORIES, *FILES)),
]


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


async def is_hit(proxy, path):
    return "hit" in (await proxy.get(path)).headers["cache-status"]


@pytest.mark.parametrize("lose", LOSSES)
async def test_what_is_removed_is_made_again(origin, proxy, lose):
    for name in ("old", "new", "last"):
        origin.pattern(f"/{name}.img", 3_000_000, SEED).headers(cache_control=FRESH)
    await proxy.get("/u/old.img")
    await until(lambda: is_hit(proxy, "/u/old.img"))
    await proxy.wait_idle()  # what is being stored is a hit already
    lose(proxy.cache_dir)
    for name in ("new", "old", "last"):
        answer = await proxy.get(f"/u/{name}.img")
        assert (answer.status, answer.body) == (200, pattern_bytes(3_000_000, SEED))
    for name in ("new", "old", "last"):
        await until(lambda name=name: is_hit(proxy, f"/u/{name}.img"))
    assert origin.count("/new.img") == origin.count("/last.img") == 1
    for name in ("", "blobs", "damaged", "index", "locks", "partial"):
        assert mode(proxy.cache_dir / name) == 0o700
    assert sum("store.mended" in line for line in proxy.log) <= 1
    assert not any("ERROR" in line or "failed" in line for line in proxy.log)


@pytest.mark.parametrize("lose", LOSSES)
async def test_every_process_on_the_directory_goes_on(origin, proxy_factory, tmp_path, lose):
    processes = [proxy_factory(cache_dir=tmp_path / "cache") for _ in range(3)]
    origin.pattern("/old.img", 100_000, SEED).headers(cache_control=FRESH)
    for proxy in processes:
        await proxy.get("/u/old.img")
    lose(tmp_path / "cache")
    for number in range(6):
        origin.pattern(f"/{number}.img", 100_000, SEED + number).headers(cache_control=FRESH)
        answers = await asyncio.gather(*(proxy.get(f"/u/{number}.img") for proxy in processes))
        assert {answer.body for answer in answers} == {pattern_bytes(100_000, SEED + number)}
        assert origin.count(f"/{number}.img") == 1
    for proxy in processes:
        assert (await proxy.get("/u/old.img")).body == pattern_bytes(100_000, SEED)
        assert await is_hit(proxy, "/u/old.img")
    assert origin.count("/old.img") <= 2


@pytest.mark.parametrize("lose", LOSSES)
async def test_readers_of_a_body_that_comes_get_all_of_it(origin, proxy_factory, tmp_path, lose):
    leader, follower = (proxy_factory(cache_dir=tmp_path / "cache") for _ in range(2))
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF, times=1).headers(cache_control=FRESH)
    async with await leader.stream("/u/x.img") as first:
        await first.read(1000)
        await until(lambda: list((tmp_path / "cache" / "partial").glob("*.json")))
        async with await follower.stream("/u/x.img") as second:
            await second.read(1000)
            lose(tmp_path / "cache")
            async with await leader.stream("/u/x.img") as third:
                origin.release()
                assert await first.rest() == await second.rest() == pattern_bytes(SIZE, SEED, 1000)
                assert (await third.sha256())[0] == pattern_sha256(SIZE, SEED)
    assert origin.count("/x.img") == 1
    assert (await (await leader.stream("/u/x.img")).sha256())[0] == pattern_sha256(SIZE, SEED)
    await until(lambda: is_hit(leader, "/u/x.img"))
    await until(lambda: is_hit(follower, "/u/x.img"))


async def test_another_fill_in_the_place_of_a_removed_one_is_left_alone(origin, proxy_factory, tmp_path):
    one, other = (proxy_factory(cache_dir=tmp_path / "cache") for _ in range(2))
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF, times=2).headers(cache_control=FRESH)
    async with await one.stream("/u/x.img") as first:
        await first.read(HALF)
        empty(tmp_path / "cache")
        async with await other.stream("/u/x.img") as second:
            await second.read(HALF)
            origin.release()
            assert await first.rest() == await second.rest() == pattern_bytes(SIZE, SEED, HALF)
    await until(lambda: is_hit(one, "/u/x.img"))
    assert (await other.get("/u/x.img")).body == pattern_bytes(SIZE, SEED)


async def test_what_goes_while_upstream_confirms_it_is_fetched_again(origin, proxy):
    origin.pattern("/x.img", 100_000, SEED).headers(cache_control="max-age=0, must-revalidate")
    await proxy.get("/u/x.img")
    await until(lambda: list(proxy.cache_dir.glob("blobs/*/*.json")) and not list(proxy.cache_dir.glob("partial/*")))
    origin.pattern("/x.img", 100_000, SEED).headers(cache_control=FRESH).delay_headers_until_released()
    asked = asyncio.create_task(proxy.get("/u/x.img"))
    await origin.requested(2)
    empty(proxy.cache_dir)
    origin.release()
    answer = await asked
    assert (answer.status, answer.body) == (200, pattern_bytes(100_000, SEED))


async def test_workers_are_found_again(origin, proxy_factory, tmp_path):
    proxy = proxy_factory("--workers", "2", cache_dir=tmp_path / "cache")
    origin.pattern("/x.img", 100_000, SEED).headers(cache_control=FRESH)
    await proxy.get("/u/x.img")
    await until(lambda: is_hit(proxy, "/u/x.img"))
    remove(proxy.cache_dir)

    async def all_are_back():
        await asyncio.gather(*(proxy.get(f"/u/x.img?{number}") for number in range(8)))
        return len(list((proxy.cache_dir / "servers").glob("[0-9]*"))) == 2

    async def are_found():
        return len((await proxy.status())["workers"]) == 2

    await until(all_are_back)
    await until(are_found)


async def test_a_directory_that_cannot_be_written_is_passed_by(origin, proxy):
    origin.pattern("/x.img", 100_000, SEED)
    partial = proxy.cache_dir / "partial"
    await proxy.get("/u/none")  # what goes on behind a start is over then, and nobody makes the directory again
    remove(partial)
    partial.touch()  # root may write into any directory, but into no file as if it were one
    answer = await proxy.get("/u/x.img")
    assert answer.body == pattern_bytes(100_000, SEED)
    assert "stored=?0" in answer.headers["cache-status"]
    partial.unlink()
    assert "stored=?0" not in (await proxy.get("/u/x.img")).headers["cache-status"]


async def test_the_limit_holds_when_the_count_is_gone(origin, proxy_factory):
    proxy = proxy_factory(config_text='[cache]\nmax_size = "250KB"\n')
    for name in ("a", "b", "c"):
        origin.body(f"/{name}", os.urandom(100_000)).headers(cache_control=FRESH)
        if name == "c":
            remove(proxy.cache_dir / "committed")
        await proxy.get(f"/u/{name}")
        await until(lambda name=name: is_hit(proxy, f"/u/{name}"))
        await proxy.wait_idle()
    blobs = [path for path in proxy.cache_dir.glob("blobs/*/*") if "." not in path.name]
    assert len(blobs) <= 2  # what is stored during a count may count twice


async def test_a_server_is_announced_again(tmp_path):
    store = Store(tmp_path / "cache")
    await store.start()
    async with store.announced(ServerRecord(os.getpid(), ("127.0.0.1:1",), "127.0.0.1:2")):
        (found,) = running(store.root)
        empty(store.root)
        assert not running(store.root)
        assert await store.lookup("0" * 64) is None
        assert running(store.root) == [found]
    assert not running(store.root)
    await store.close()


async def test_what_is_not_understood_of_a_server_is_passed_over(tmp_path):
    store = Store(tmp_path / "cache")
    await store.start()
    async with store.announced(ServerRecord(os.getpid(), ("127.0.0.1:1",), "127.0.0.1:2")):
        (found,) = running(store.root)
        for name, said in (("1", b'{"pid": 1}'), ("2", b"[]"), ("3", b"{")):
            with (store.root / "servers" / name).open("w+b") as file, Lock.of_file(file.fileno()):
                file.write(said)
                file.flush()
                assert running(store.root) == [found]
        with (store.root / "servers" / "4").open("w+b") as file, Lock.of_file(file.fileno()):
            file.write(b'{"pid": 4, "listen": ["127.0.0.1:4"], "own": "127.0.0.1:4", "what is yet to come": 1}')
            file.flush()
            assert {each.pid for each in running(store.root)} == {4, found.pid}
    await store.close()
