"""Several processes on one cache directory: one upstream request, everybody served at once, a dead leader replaced."""

import asyncio
import contextlib

import pytest

from tests.harness import Truncated, until
from tests.origin import Origin, Pattern, pattern_bytes, pattern_sha256

SIZE = 48 << 20
SEED = 9
HALF = SIZE // 2


@pytest.fixture
def processes(proxy_factory, tmp_path):
    return [proxy_factory(cache_dir=tmp_path / "cache") for _ in range(4)]


async def told(proxy):
    return list((proxy.cache_dir / "partial").glob("*.json"))


async def stored(proxy):
    return list((proxy.cache_dir / "blobs").glob("*/*.json"))


@contextlib.asynccontextmanager
async def half_way(origin, leader):
    """The leader's stream of a body that has come half way, and of which other processes can know; it has read 1000."""
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF)
    async with await leader.stream("/u/x.img") as first:
        await first.read(1000)
        await until(lambda: told(leader))
        yield first


async def test_sixty_four_readers_in_four_processes_are_one_fetch(origin, processes):
    origin.pattern("/x.img", SIZE, SEED).throttle(64 << 20).headers(cache_control="max-age=600")

    async def read(proxy):
        return (await (await proxy.stream("/u/x.img")).sha256())[0]

    got = await asyncio.gather(*(read(processes[number % 4]) for number in range(64)))
    assert set(got) == {pattern_sha256(SIZE, SEED)}
    assert origin.count("/x.img") == 1
    assert origin.bytes_sent("/x.img") == SIZE


async def test_a_follower_streams_what_the_leader_has(origin, processes):
    leader, follower = processes[:2]
    async with half_way(origin, leader) as first, await follower.stream("/u/x.img") as second:
        assert second.headers["etag"] == first.headers["etag"]
        assert await second.read(HALF) == pattern_bytes(SIZE, SEED, 0, HALF)  # while the leader is half way
        origin.release()
        assert await second.rest() == pattern_bytes(SIZE, SEED, HALF)
    assert origin.count("/x.img") == 1


async def test_a_dead_leader_is_replaced_and_its_followers_notice_only_a_pause(origin, processes):
    leader, *followers = processes
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF, times=1)
    async with await leader.stream("/u/x.img") as first:
        await first.read(HALF)
        await until(lambda: told(leader))
        streams = [await follower.stream("/u/x.img") for follower in followers]
        for stream in streams:
            assert await stream.read(HALF) == pattern_bytes(SIZE, SEED, 0, HALF)
        leader.kill()
        for rest in await asyncio.gather(*(stream.rest() for stream in streams)):
            assert rest == pattern_bytes(SIZE, SEED, HALF)
    assert [request.range for request in origin.log] == [None, f"bytes={HALF}-"]
    assert sum("fill.taken_over" in line for follower in followers for line in follower.log) == 1
    await until(lambda: stored(leader))


async def test_a_follower_that_stops_leaves_the_leader_alone(origin, processes):
    leader, follower = processes[:2]
    async with half_way(origin, leader) as first:
        async with await follower.stream("/u/x.img") as second:
            await second.read(1000)
        assert follower.terminate() == 0
        origin.release()
        assert await first.rest() == pattern_bytes(SIZE, SEED, 1000)
    assert origin.count("/x.img") == 1


async def test_a_small_object_is_fetched_once_too(origin, processes):
    origin.pattern("/x.json", 10_000, SEED).delay_headers_until_released().headers(cache_control="max-age=600")
    asked = [asyncio.create_task(proxy.get("/u/x.json")) for proxy in processes]
    await origin.requested(1)
    origin.release()
    assert {answer.body for answer in await asyncio.gather(*asked)} == {pattern_bytes(10_000, SEED)}
    assert origin.count("/x.json") == 1


async def test_a_body_that_changed_meanwhile_is_not_mixed_into_a_dead_leader_s(origin, proxy_factory, tmp_path):
    with Origin() as other:
        mirrors = {"u": f"{origin.url()},{other.url()}"}
        leader, follower = (proxy_factory(cache_dir=tmp_path / "cache", mirrors=mirrors) for _ in range(2))
        first = origin.pattern("/x.img", SIZE, SEED).stall_at(HALF, times=1)
        other.pattern("/x.img", SIZE, SEED + 1)
        async with await leader.stream("/u/x.img") as stream:
            await stream.read(HALF)
            await until(lambda: told(leader))
            async with await follower.stream("/u/x.img") as second:
                assert await second.read(HALF) == pattern_bytes(SIZE, SEED, 0, HALF)
                first.generation(Pattern(SIZE, SEED + 1))
                leader.kill()
                with pytest.raises(Truncated) as broken:
                    await second.rest()
        assert broken.value.partial == b""
