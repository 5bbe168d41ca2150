"""Several processes on one cache directory: one upstream request, all readers served at once, dead leaders replaced."""

import asyncio
import contextlib
import signal

import pytest

from proxy.rules.segments import TURN_BYTES
from tests.harness import Truncated, until
from tests.origin import Origin, Pattern, pattern_bytes, pattern_sha256

SIZE = 48 << 20
SEED = 9
HALF = SIZE // 2
NO_STORE = {"Cache-Control": "no-store"}


@pytest.fixture
def processes(proxy_factory, tmp_path):
    """Starts `count` processes on one cache directory."""
    return lambda count: [proxy_factory(cache_dir=tmp_path / "cache") for _ in range(count)]


@contextlib.asynccontextmanager
async def half_way(origin, leader):
    """The leader's stream of a body that is half there and that other processes can find. 1000 bytes of it are read."""
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF)
    async with await leader.stream("/u/x.img") as first:
        await first.read(1000)
        await leader.wait_begun()
        yield first


async def test_sixty_four_readers_in_four_processes_are_one_fetch(origin, processes):
    size, proxies = SIZE // 3, processes(4)
    origin.pattern("/x.img", size, SEED).throttle(16 << 20).headers(cache_control="max-age=600")

    async def read(proxy):
        return (await (await proxy.stream("/u/x.img")).sha256())[0]

    got = await asyncio.gather(*(read(proxies[number % 4]) for number in range(64)))
    assert set(got) == {pattern_sha256(size, SEED)}
    assert origin.count("/x.img") == 1
    assert origin.bytes_sent("/x.img") == size


async def test_a_follower_streams_what_the_leader_has(origin, processes):
    leader, follower = processes(2)
    async with half_way(origin, leader) as first, await follower.stream("/u/x.img") as second:
        assert second.headers["etag"] == first.headers["etag"]
        assert await second.read(HALF) == pattern_bytes(SIZE, SEED, 0, HALF)  # while the leader is half way
        origin.release()
        assert await second.rest() == pattern_bytes(SIZE, SEED, HALF)
    assert origin.count("/x.img") == 1


async def test_a_dead_leader_is_replaced_and_its_followers_notice_only_a_pause(origin, processes):
    leader, *followers = processes(4)
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF, times=1)
    async with await leader.stream("/u/x.img") as first:
        await first.read(HALF)
        await leader.wait_begun(HALF)
        streams = [await follower.stream("/u/x.img") for follower in followers]
        for stream in streams:
            assert await stream.read(HALF) == pattern_bytes(SIZE, SEED, 0, HALF)
        leader.kill()
        for rest in await asyncio.gather(*(stream.rest() for stream in streams)):
            assert rest == pattern_bytes(SIZE, SEED, HALF)
    assert [request.range for request in origin.log] == [None, f"bytes={HALF}-"]
    await until(lambda: any("fill.taken_over" in line for follower in followers for line in follower.log))
    assert sum("fill.taken_over" in line for follower in followers for line in follower.log) == 1
    await until(leader.entries)


async def test_a_follower_that_stops_leaves_the_leader_alone(origin, processes):
    leader, follower = processes(2)
    async with half_way(origin, leader) as first:
        async with await follower.stream("/u/x.img") as second:
            await second.read(1000)
        assert follower.terminate() == 0
        origin.release()
        assert await first.rest() == pattern_bytes(SIZE, SEED, 1000)
    assert origin.count("/x.img") == 1


async def test_a_small_object_is_fetched_once_too(origin, processes):
    origin.pattern("/x.json", 10_000, SEED).delay_headers_until_released().headers(cache_control="max-age=600")
    asked = [asyncio.create_task(proxy.get("/u/x.json")) for proxy in processes(4)]
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
            await leader.wait_begun(HALF)
            async with await follower.stream("/u/x.img") as second:
                assert await second.read(HALF) == pattern_bytes(SIZE, SEED, 0, HALF)
                first.generation(Pattern(SIZE, SEED + 1))
                leader.kill()
                with pytest.raises(Truncated) as broken:
                    await second.rest()
        assert broken.value.partial == b""


async def to_follow(leader, headers=None):
    """The leader's stream of an object that stalls half way; others can follow it."""
    stream = await leader.stream("/u/x.img", headers)
    await stream.read(HALF)
    await leader.wait_begun(HALF)
    await until(lambda: leader.files("partial/*.sock"))
    return stream


@pytest.mark.parametrize("name", ["cache", "/".join(["a long name for a directory of a cache"] * 8)])
async def test_a_reader_far_ahead_in_another_process_gets_its_bytes_first(origin, proxy_factory, tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)  # its configuration file is beside it
    leader, follower = (proxy_factory(cache_dir=tmp_path / name) for _ in range(2))
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF)
    async with await to_follow(leader):
        far = SIZE - 100_000
        answer = await follower.get("/u/x.img", {"Range": f"bytes={far}-"})  # while the front is stalled
        assert answer.body == pattern_bytes(SIZE, SEED, far)
        assert [request.range for request in origin.log] == [None, f"bytes={far}-"]
        origin.release()


async def test_where_many_readers_of_a_follower_wait_all_are_served(origin, processes):
    leader, follower = processes(2)
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF)
    async with await to_follow(leader):
        places = range(HALF + (5 << 20), SIZE, 1 << 19)  # more than one message tells; the front is not near
        answers = await asyncio.gather(
            *(follower.get("/u/x.img", {"Range": f"bytes={at}-{at + 999}"}) for at in places)
        )
        assert [answer.body for answer in answers] == [pattern_bytes(SIZE, SEED, at, at + 1000) for at in places]
        origin.release()


async def test_a_follower_that_finds_no_socket_looks_by_itself(origin, processes):
    leader, follower = processes(2)
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF, times=1)
    async with await to_follow(leader) as first:
        for path in leader.files("partial/*.sock"):
            path.unlink()
        async with await follower.stream("/u/x.img") as second:
            assert await second.read(HALF) == pattern_bytes(SIZE, SEED, 0, HALF)
            origin.release()
            assert await second.read(1 << 20) == pattern_bytes(SIZE, SEED, HALF, HALF + (1 << 20))
            leader.kill()
            assert await second.rest() == pattern_bytes(SIZE, SEED, HALF + (1 << 20))
        first.close()


async def test_of_three_processes_the_last_one_alive_goes_on(origin, processes):
    first, *others = processes(3)
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF, times=2)
    async with await to_follow(first):
        streams = {proxy: await proxy.stream("/u/x.img") for proxy in others}
        for stream in streams.values():
            await stream.read(HALF)
        first.kill()
        await origin.requested(2)
        await until(lambda: any("fill.resumed" in line for proxy in others for line in proxy.log))
        (second,) = (proxy for proxy in others if any("fill.resumed" in line for line in proxy.log))
        second.kill()
        streams.pop(second).close()
        (last,) = streams.values()
        assert await last.rest() == pattern_bytes(SIZE, SEED, HALF)
    assert [request.range for request in origin.log] == [None, f"bytes={HALF}-", f"bytes={HALF}-"]


async def test_a_follower_that_stands_still_holds_nobody_up(origin, processes):
    leader, follower = processes(2)
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF)
    async with await to_follow(leader) as first, await follower.stream("/u/x.img") as second:
        await second.read(HALF)
        follower.send_signal(signal.SIGSTOP)
        try:
            origin.release()
            assert await first.rest() == pattern_bytes(SIZE, SEED, HALF)
            await until(lambda: not leader.files("partial/*.sock"))
        finally:
            follower.send_signal(signal.SIGCONT)
        assert await second.rest() == pattern_bytes(SIZE, SEED, HALF)
    assert origin.count("/x.img") == 1


async def test_after_a_kill_the_socket_of_the_dead_is_removed(origin, processes):
    (leader,) = processes(1)
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF, times=1)
    async with await to_follow(leader):
        leader.kill()
    assert leader.files("partial/*.sock")
    leader.start()
    await until(lambda: not leader.files("partial/*.sock"))  # put in order behind the start
    assert leader.files("partial/*.json")  # and nothing else
    assert (await leader.get("/u/x.img")).body == pattern_bytes(SIZE, SEED)
    await until(leader.entries)
    await until(lambda: not list((leader.cache_dir / "partial").iterdir()))  # after the commit


async def test_a_follower_s_readers_get_all_of_a_body_that_is_not_stored(origin, processes):
    leader, follower = processes(2)
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF)
    async with await to_follow(leader, NO_STORE) as first, await follower.stream("/u/x.img") as second:
        await second.read(HALF)
        origin.release()
        assert await second.rest() == pattern_bytes(SIZE, SEED, HALF)
        assert await first.rest() == pattern_bytes(SIZE, SEED, HALF)
    assert origin.count("/x.img") == 1
    assert not leader.entries()


@pytest.mark.parametrize("published", ["right", "wrong"])
async def test_a_body_that_is_not_stored_is_verified_by_every_process(origin, proxy_factory, tmp_path, published):
    config = (
        f'shipped_mirrors = false\n[[mirror]]\nname = "m"\nupstreams = ["{origin.url()}"]\nchecksums = ["SHA256SUMS"]\n'
    )
    leader, follower = (proxy_factory(cache_dir=tmp_path / "cache", mirrors={}, config_text=config) for _ in range(2))
    digest = pattern_sha256(SIZE, SEED) if published == "right" else "0" * 64
    origin.body("/SHA256SUMS", f"{digest}  x.img\n".encode())
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF)
    async with await leader.stream("/m/x.img", NO_STORE) as first:
        await first.read(HALF)
        await leader.wait_begun(HALF)
        async with await follower.stream("/m/x.img") as second:
            await second.read(HALF)
            origin.release()
            if published == "right":
                for stream in (first, second):
                    assert await stream.rest() == pattern_bytes(SIZE, SEED, HALF)
            else:
                for stream in (first, second):
                    with pytest.raises(Truncated) as broken:
                        await stream.rest()
                    assert broken.value.partial == pattern_bytes(SIZE, SEED, HALF, SIZE - 1)
    assert origin.count("/x.img") == 1


async def test_readers_at_many_places_in_two_processes_do_not_cost_a_request_for_each_piece(origin, processes):
    size = 64 << 20
    origin.pattern("/big.img", size, SEED).throttle(16 << 20)

    async def read(proxy, start):
        part = {"Range": f"bytes={start}-{start + size // 8 - 1}"}
        got = await (await proxy.stream("/u/big.img", part)).rest()
        return got == pattern_bytes(size, SEED, start, start + size // 8)

    proxies = processes(3)
    async with await proxies[0].stream("/u/big.img"):
        places = range(0, size, size // 8)
        assert all(await asyncio.gather(*(read(proxy, start) for proxy in proxies for start in places)))
    assert origin.count("/big.img") <= 8 + size // TURN_BYTES
