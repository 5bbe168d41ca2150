"""Leases: of several machines one asks upstream for an object, and the others read along with it."""

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import sys

import pytest

from tests.fleet.conftest import FRESH
from tests.fleet.s3 import PATIENT
from tests.forks import FETCHONCE
from tests.harness import free_port, until
from tests.origin import pattern_sha256

# A server whose clock is so many seconds wrong.
WITH_CLOCK = """
import runpy, sys, time
right, wrong = time.time, float(sys.argv.pop(1))
time.time = lambda: right() + wrong
runpy.run_module("proxy", run_name="__main__", alter_sys=True)
"""
SMALL = os.urandom(2_000)
SIZE = 24_000_000
HALF = SIZE // 2
LOGIN = {"Authorization": "Basic YWxpY2U6eA=="}


async def digest(stream):
    return (await stream.sha256())[0]


async def begun(servers, each, first=1024**2):
    """Clients of all servers, each with so many bytes."""
    streams = [await server.stream("/u/x.img") for server in servers for _ in range(each)]
    hashes = [hashlib.sha256(await stream.read(first)) for stream in streams]

    async def rest(stream, hashed):
        while piece := await stream._some(256 * 1024, b""):
            hashed.update(piece)
        assert stream.received == SIZE
        return hashed.hexdigest()

    return [asyncio.create_task(rest(*pair)) for pair in zip(streams, hashes, strict=True)]


async def whole(tasks):
    digests = await asyncio.wait_for(asyncio.gather(*tasks), 60)
    assert set(digests) == {pattern_sha256(SIZE, 0)}


@pytest.fixture
def image(origin):
    return origin.pattern("/x.img", SIZE).headers(cache_control=FRESH)


@pytest.mark.parametrize("redis", ["redis", "valkey"], indirect=True)
async def test_of_three_servers_one_asks_upstream_and_all_stream(origin, image, leasing, redis):
    servers = leasing(3)
    image.stall_at(HALF)
    tasks = await begun(servers, 8, HALF - 1024**2)  # what upstream has given all have
    image.release()
    await whole(tasks)
    assert origin.count("/x.img") == 1
    assert origin.bytes_sent("/x.img") == SIZE
    for server in servers:
        await server.wait_stored()
    await until(lambda: redis("KEYS", "*:lease") == "*0")


async def test_many_small_objects_at_once_are_asked_for_once(origin, leasing):
    servers = leasing(3)
    names = [f"/{number}.img" for number in range(20)]
    for name in names:
        origin.body(name, SMALL).headers(cache_control=FRESH)
    answers = await asyncio.gather(*(each.get(f"/u{name}") for name in names for each in servers))
    assert {answer.body for answer in answers} == {SMALL}
    assert {name: origin.count(name) for name in names} == dict.fromkeys(names, 1)


async def test_a_fill_asks_redis_once_and_a_hit_never(origin, leasing, redis):
    (server,) = leasing(1)

    def asked():
        found = re.search(r"cmdstat_eval:calls=(\d+)", redis("INFO", "commandstats"))
        return int(found[1]) if found else 0

    origin.body("/x.img", SMALL).headers(cache_control=FRESH)
    await server.fetch("/u/x.img")
    await until(lambda: asked() == 2)  # the second one, behind the answer, gives it back
    assert (await server.get("/u/x.img")).headers["cache-status"] == "fetchonce; hit"
    assert asked() == 2


async def test_who_comes_a_moment_later_gets_it_from_who_has_it(origin, image, leasing, redis):
    first, second = leasing(2)
    await first.fetch("/u/x.img")
    await until(lambda: redis("KEYS", "*:lease") == "*0")
    async with await second.stream("/u/x.img") as stream:
        assert await digest(stream) == pattern_sha256(SIZE, 0)
    assert origin.count("/x.img") == 1


@pytest.mark.parametrize("redis", ["redis", "valkey"], indirect=True)
@pytest.mark.parametrize("at", [2 * 1024**2, HALF], ids=["soon", "in the middle"])
async def test_the_holder_is_killed(origin, image, leasing, at):
    """Its followers go on at the gap: one of them asks upstream, and the others read along with that one."""
    holder, *others = leasing(4)
    image.stall_at(at)
    lost = await holder.stream("/u/x.img")
    await lost.read(1024**2)
    tasks = await begun(others, 2)
    holder.kill()
    image.release()
    await whole(tasks)
    await until(lambda: sum("lease.taken_over" in line for server in others for line in server.log) == 1)
    assert origin.count("/x.img") == 2
    assert origin.bytes_sent("/x.img") <= SIZE + at + 6_000_000  # what was on its way to the holder


async def test_the_holder_is_paused_before_upstream_has_answered(origin, leasing, server, redis):
    """Of those that wait for it one takes its place, and the others wait for that one."""
    holder, *others = [server(own=f"127.0.0.1:{free_port()}", config=redis.config(), timeout="6s") for _ in range(4)]
    origin.body("/x.img", SMALL).delay_headers_until_released(times=1)
    lost = asyncio.create_task(holder.get("/u/x.img"))
    await origin.requested(1)
    holder.send_signal(signal.SIGSTOP)
    try:
        answers = await asyncio.gather(*(each.get("/u/x.img") for each in others for _ in range(2)))
    finally:
        holder.send_signal(signal.SIGCONT)
        origin.release()
    assert {answer.body for answer in (*answers, await lost)} == {SMALL}
    assert sum("lease.taken_over" in line for each in others for line in each.log) == 1
    assert origin.count("/x.img") == 2


async def test_the_holder_is_paused_in_the_middle(origin, image, server, redis):
    holder, *others = [server(own=f"127.0.0.1:{free_port()}", config=redis.config(), timeout="4s") for _ in range(3)]
    image.stall_at(HALF, times=1)
    lost = await holder.stream("/u/x.img")
    await lost.read(1024**2)
    tasks = await begun(others, 2)
    holder.send_signal(signal.SIGSTOP)
    try:
        await whole(tasks)
    finally:
        holder.send_signal(signal.SIGCONT)
        origin.release()
    assert sum("lease.taken_over" in line for each in others for line in each.log) == 1
    assert origin.count("/x.img") == 2


async def test_the_holder_is_stopped(origin, image, leasing):
    holder, *others = leasing(3)
    image.stall_at(HALF)
    lost = await holder.stream("/u/x.img")
    await lost.read(1024**2)
    tasks = await begun(others, 2)
    lost.close()  # or it would be waited for as well
    ending = asyncio.create_task(asyncio.to_thread(holder.terminate))
    image.release()
    await whole(tasks)
    await ending
    assert origin.count("/x.img") <= 2


async def test_a_holder_that_comes_back_takes_its_own_lease(origin, image, leasing, redis):
    (holder,) = leasing(1)
    image.stall_at(HALF)
    stream = await holder.stream("/u/x.img")
    await stream.read(HALF)
    await holder.wait_begun(HALF)
    holder.kill()
    image.release()
    assert redis("KEYS", "*:lease") == "*1"
    holder.start()
    async with await holder.stream("/u/x.img") as stream:
        assert await digest(stream) == pattern_sha256(SIZE, 0)
    assert not any("peer" in line for line in holder.log)
    await until(lambda: redis("KEYS", "*:lease") == "*0")


@pytest.mark.parametrize("trouble", ["killed", "paused", "restarted"])
async def test_redis_fails_in_the_middle(origin, image, leasing, redis, trouble):
    servers = leasing(3, "3s" if trouble == "paused" else PATIENT)
    image.stall_at(HALF)
    tasks = await begun(servers, 2)
    match trouble:
        case "killed":
            redis.kill()
        case "paused":
            redis.send_signal(signal.SIGSTOP)
        case "restarted":
            redis.kill()
            redis.start()
    image.release()
    await whole(tasks)
    assert origin.count("/x.img") == 1
    # And what begins now gets what it wants, from upstream.
    origin.body("/y.img", SMALL)
    for path, status in (("/u/y.img", 200), ("/u/none.img", 404)):
        answers = await asyncio.gather(*(server.get(path) for server in servers))
        assert {answer.status for answer in answers} == {status}
    if trouble == "restarted":
        assert not any("lease.none" in line for server in servers for line in server.log)
    else:
        assert origin.count("/y.img") == 3
        for server in servers:
            await server.wait_log("lease.none")
            assert sum("lease.none" in line for line in server.log) == 1


async def test_without_redis_from_the_start_each_asks_for_itself(origin, server, redis):
    redis.kill()
    servers = [server(own=f"127.0.0.1:{free_port()}", config=redis.config()) for _ in range(2)]
    origin.body("/x.img", SMALL)
    for each in servers:
        assert (await each.get("/u/x.img")).body == SMALL
    assert origin.requests == 2


async def fetched_beside(origin, server, talk, more=""):
    """A server that has given an object with `talk` as its Redis, and has ended; `more` is said of that Redis."""
    origin.body("/x.img", SMALL)
    async with await asyncio.start_server(talk, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        lease = f'[lease]\nredis = "redis://127.0.0.1:{port}/0"\n{more}'
        proxy = server(own=f"127.0.0.1:{free_port()}", config=lease)
        assert (await proxy.get("/u/x.img")).body == SMALL
        proxy.terminate()
    return proxy


@pytest.mark.parametrize("answer", [b":1\r\n", b":x\r\n", b"+x\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_what_is_no_redis_holds_nobody_up(origin, server, answer):
    async def talk(reader, writer):
        with contextlib.closing(writer), contextlib.suppress(OSError):
            while await reader.read(65536):
                writer.write(answer)

    await fetched_beside(origin, server, talk)


async def test_a_redis_that_says_the_same_whatever_it_is_told_holds_nobody_up(origin, server):
    gone = f"http://127.0.0.1:{free_port()}"

    async def talk(reader, writer):
        with contextlib.closing(writer), contextlib.suppress(OSError):
            while data := await reader.read(65536):
                commands = re.findall(rb"^\*\d+\r\n\$\d+\r\n(\w+)", data, re.MULTILINE)
                for command in commands:
                    writer.write(b"+x %s\r\n" % gone.encode() if command == b"EVAL" else b"+OK\r\n")

    proxy = await fetched_beside(origin, server, talk, f'timeout = "{PATIENT}"\n')
    assert any("peer.down" in line for line in proxy.log)


def lease_of(origin, path):
    return f"fetchonce:{{{hashlib.sha256(f'/http/127.0.0.1:{origin.port}{path}'.encode()).hexdigest()}}}:lease"


async def test_the_leases_of_a_server_that_is_gone_are_all_taken_over(origin, leasing, redis):
    """Also while it is left alone, and so not asked: else each of the others would ask upstream."""
    (server,) = leasing(1)
    gone = f"http://127.0.0.1:{free_port()}"
    for number, path in enumerate(("/x.img", "/y.img"), 1):
        origin.body(path, SMALL)
        redis("SET", lease_of(origin, path), f'"owner {gone}"')
        assert (await server.get(f"/u{path}")).body == SMALL
        await until(lambda: sum("lease.taken_over" in line for line in server.log) == number)  # noqa: B023
    assert sum("peer.down" in line for line in server.log) == 1


async def test_a_holder_that_gives_a_wrong_body_is_passed_over_then(origin, other, leasing, redis):
    (server,) = leasing(1)
    origin.body("/x.img", SMALL)
    path = f"/sha256:{hashlib.sha256(SMALL).hexdigest()}"
    wrong = other.body(f"{path}/http/127.0.0.1:{origin.port}/x.img", SMALL[::-1])
    wrong.headers({"cache-status": "fetchonce; hit"})
    redis("SET", lease_of(origin, "/x.img"), f'"owner {other.url().rstrip("/")}"')
    async with await server.stream(f"{path}/u/x.img") as stream:
        await stream.broken()
    await server.wait_idle()
    assert (await server.get(f"{path}/u/x.img")).body == SMALL
    assert [other.requests, origin.requests] == [1, 1]


async def test_a_lease_at_whose_address_something_else_listens_is_taken_over_at_once(origin, other, leasing, redis):
    servers = leasing(3)
    origin.body("/x.img", SMALL)
    redis("SET", lease_of(origin, "/x.img"), f'"owner {other.url().rstrip("/")}"')
    answers = await asyncio.gather(*(each.get("/u/x.img") for each in servers))
    assert {answer.body for answer in answers} == {SMALL}
    assert origin.requests == 1


async def test_a_lease_of_somebody_unknown_holds_nobody_up(origin, leasing, redis):
    (server,) = leasing(1)
    origin.body("/x.img", SMALL).headers(cache_control="no-cache")
    await server.fetch("/u/x.img")
    key = lease_of(origin, "/x.img")
    for base in (f"http://127.0.0.1:{free_port()}", origin.url("").rstrip("/"), "nonsense", "http://[", "\\x00\\xff"):
        redis("SET", key, f'"owner {base}"')
        assert (await server.get("/u/x.img")).body == SMALL
        await server.wait_idle()
        redis("DEL", key)


@pytest.mark.parametrize("hours", [1, -1])
async def test_clocks_that_are_an_hour_apart(origin, image, server, redis, hours):
    """Redis counts the lease's time, and the age of an answer is told in seconds."""
    ahead, other = (server(own=f"127.0.0.1:{free_port()}", config=redis.config(), start=False) for _ in range(2))
    ahead._command[: len(FETCHONCE)] = [sys.executable, "-c", WITH_CLOCK, str(hours * 3600)]
    servers = [each.start() for each in (ahead, other)]
    image.stall_at(HALF)
    for _ in range(2):
        tasks = await begun(servers, 2)
        image.release()
        await whole(tasks)
        for each in servers:
            await each.wait_idle()
        servers.reverse()
    assert origin.bytes_sent("/x.img") == SIZE
    ages = [int((await each.get("/u/x.img")).headers["age"]) for each in servers]
    # By RFC 9111 section 4.2.3 a clock that is ahead makes an answer older, for whoever gets it from there too.
    assert {age < 60 for age in ages} == {hours < 0}
    hours_said = [(await each.wait_log("server.started"))[11:13] for each in servers]
    assert hours_said[0] != hours_said[1]


async def test_parents_come_after_the_holder_and_no_circle_holds_up_anybody(origin, image, leasing, server, redis):
    """Each is a parent of the others, too."""
    own = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    servers = [server(*(f"http://{each}" for each in own), own=each, config=redis.config()) for each in own]
    image.stall_at(HALF)
    tasks = await begun(servers, 3)
    image.release()
    await whole(tasks)
    assert origin.count("/x.img") == 1
    for each in servers:
        assert not any("peer.down" in line for line in each.log)


async def test_what_a_login_opens_has_no_lease(origin, leasing, redis):
    first, second = leasing(2)
    origin.body("/x.img", SMALL).stall_at(1_000)
    streams = [await each.stream("/u/x.img", LOGIN) for each in (first, second)]
    assert redis("KEYS", "*") == "*0"
    origin.release()
    for stream in streams:
        assert await stream.rest() == SMALL
    assert origin.requests == 2


async def test_what_is_private_is_asked_for_by_each(origin, leasing):
    servers = leasing(2)
    origin.body("/x.img", SMALL).headers(cache_control="private")
    answers = await asyncio.gather(*(each.get("/u/x.img") for each in servers for _ in range(2)))
    assert {answer.body for answer in answers} == {SMALL}
    assert [each.entries() for each in servers] == [[], []]


async def test_a_404_is_asked_for_once(origin, leasing):
    servers = leasing(3)
    origin.body("/none.img", b"").status(404).delay_headers_until_released()
    asking = [asyncio.create_task(each.get("/u/none.img")) for each in servers]

    async def are_waiting():
        fills = [fill for each in servers for fill in await each.fills()]
        return sum(fill["readers"] for fill in fills) == 5  # two ask the third

    await until(are_waiting)
    origin.release()
    assert {answer.status for answer in await asyncio.gather(*asking)} == {404}
    assert origin.requests == 1


async def test_a_reload_leaves_the_lease_as_it_is(leasing):
    (server,) = leasing(1)
    server.config.write_text("")
    server.send_signal(signal.SIGHUP)
    assert "lease" in await server.wait_log("config.needs_restart")
    assert (await server.status())["lease"] == "answers"
