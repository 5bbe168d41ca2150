"""Movers: many clients in one thread, and nothing is left behind. A mover that waits for one of them hangs the test."""

import asyncio
import collections
import contextlib
import errno
import os
import socket
import sys
import threading

import pytest

from proxy.errors import FileEnded
from proxy.rules.pieces import Slice
from proxy.serving.movers import STEP_BYTES, Movers
from proxy.serving.sendfile import is_near
from tests.harness import until
from tests.origin import pattern_sha256
from tests.serving.site import BODY, HUGE, Growth, answers, body, descriptors, start, zerocopy
from tests.tracing import needs_strace, traced

MB = 1024**2


@pytest.fixture
async def movers():
    before = descriptors()
    movers = Movers(asyncio.get_running_loop(), 1, patience=60.0)
    yield movers
    movers.close()
    await until(lambda: not descriptors() - before and not any(each.name == "mover" for each in threading.enumerate()))


@pytest.fixture
def pairs():
    """Ends of connections: ours, and the client's."""
    with contextlib.ExitStack() as stack:

        def make():
            ours, theirs = (stack.enter_context(each) for each in socket.socketpair())
            ours.setblocking(False)
            theirs.setblocking(False)
            return ours, theirs

        yield make


async def read(sock, count):
    data = bytearray()
    while len(data) < count:
        data += await asyncio.get_running_loop().sock_recv(sock, count - len(data))
    return bytes(data)


def put(movers, sock, file, offset, count, growth=None):
    return movers.put(os.dup(sock.fileno()), Slice(os.dup(file), offset, offset + count, growth))


async def test_clients_that_do_not_read_hold_up_nobody_and_take_no_thread(movers, pairs, file):
    stalled = [pairs() for _ in range(20)]
    jobs = [put(movers, ours, file, 0, len(BODY)) for ours, _ in stalled]
    ours, theirs = pairs()
    job = put(movers, ours, file, 7, len(BODY) - 7)
    assert await read(theirs, len(BODY) - 7) == BODY[7:]
    assert await job.done == len(BODY) - 7
    assert [each.name for each in threading.enumerate()].count("mover") == 1
    assert not any(each.done.done() for each in jobs)
    assert await read(stalled[0][1], len(BODY)) == BODY  # one that reads on gets the rest
    assert await jobs[0].done == len(BODY)


async def test_a_dropped_job_ends_and_closes_its_descriptors(movers, pairs, file):
    ours, theirs = pairs()
    before = descriptors()
    job = put(movers, ours, file, 0, len(BODY))
    first = await read(theirs, 1000)
    job.drop()
    job.drop()
    sent = await job.done
    await until(lambda: not descriptors() - before)
    assert 0 < sent < len(BODY)
    assert first + await read(theirs, sent - 1000) == BODY[:sent]
    job.drop()  # when it has ended, too


async def test_a_job_ends_where_the_file_does(movers, pairs, file):
    ours, theirs = pairs()
    job = put(movers, ours, file, len(BODY) - 1000, STEP_BYTES)
    assert await read(theirs, 1000) == BODY[-1000:]
    assert await job.done == 1000


async def test_jobs_follow_a_file_that_grows_and_one_wake_is_for_all(movers, pairs, file):
    clients, growth = [pairs() for _ in range(8)], Growth(0)
    jobs = [put(movers, ours, file, 0, len(BODY), growth) for ours, _ in clients]
    at = 0
    for end in (1, 1000, 1_000_000, len(BODY) - 1, len(BODY)):
        assert len(set(growth.watchers)) == 1
        growth.grow(end)
        for _, theirs in clients:
            assert await read(theirs, end - at) == BODY[at:end]
        at = end
    assert [await job.done for job in jobs] == [len(BODY)] * 8
    assert not growth.watchers


class Asked(Growth):
    """It notes who asks."""

    def __init__(self) -> None:
        super().__init__(0)
        self.asked: list[int] = []

    def readable(self, offset: int) -> int:
        end = super().readable(offset)
        self.asked.append(offset)  # not before: who sees it here may let the file grow
        return end


async def test_the_hindmost_is_served_first(movers, pairs, file):
    clients, growth = {offset: pairs() for offset in (2000, 1000)}, Asked()
    jobs = [put(movers, ours, file, offset, 500, growth) for offset, (ours, _) in clients.items()]
    await until(lambda: set(growth.asked) == set(clients))
    growth.grow(len(BODY))
    for offset, (_, theirs) in clients.items():
        assert await read(theirs, 500) == BODY[offset : offset + 500]
    assert [await job.done for job in jobs] == [500, 500]
    assert growth.asked[-2:] == [1000, 2000]


async def test_a_job_whose_file_does_not_grow_goes_back(pairs, file):
    (ours, theirs), growth = pairs(), Growth(1000)
    movers = Movers(asyncio.get_running_loop(), 1, patience=0.01)
    job = put(movers, ours, file, 0, len(BODY), growth)
    assert await job.done == 1000
    assert await read(theirs, 1000) == BODY[:1000]
    assert not growth.watchers
    movers.close()


async def test_a_job_that_waits_for_its_file_can_be_dropped(movers, pairs, file):
    (ours, theirs), growth, before = pairs(), Growth(1000), descriptors()
    job = put(movers, ours, file, 0, len(BODY), growth)
    assert await read(theirs, 1000) == BODY[:1000]
    job.drop()
    assert await job.done == 1000
    await until(lambda: not descriptors() - before)
    put(movers, ours, file, 0, len(BODY), growth)
    assert await read(theirs, 1000) == BODY[:1000]  # the server stops now, and it ends too


async def test_an_app_is_asked_for_what_its_file_has_not_yet(serve, file):
    growth, ends, sent, growing = Growth(0), [1000, 1_000_000, len(BODY) - 1, len(BODY)], [], []

    async def app(scope, receive, send):
        await send(start(len(BODY)))
        at = 0
        while at < len(BODY):
            growth.grow(ends.pop(0))
            try:
                await send(zerocopy(file, at, len(BODY) - at, more=True) | {"growth": growth})
                count = len(BODY) - at
            except FileEnded as error:
                count = error.sent
                growing.append(error.is_growing)
            at += count
            sent.append(count)
        await send(body())

    site = await serve(app)
    assert (await site.client.get("/")).body == BODY
    assert sent == [1000, 999_000, len(BODY) - 1_000_001, 1]
    assert growing == [True] * 3


async def test_what_cannot_be_waited_for_ends_its_job_alone(movers, pairs, file, tmp_path):
    with open(tmp_path / "out", "wb") as out:  # epoll refuses a file
        job = put(movers, out, file, len(BODY) - 1000, STEP_BYTES)
        assert await job.done == 1000
    ours, theirs = pairs()
    job = put(movers, ours, file, 0, 1000)
    assert await read(theirs, 1000) == BODY[:1000]
    assert await job.done == 1000


async def test_a_client_that_has_left_is_an_error_only_where_nothing_was_sent(movers, pairs, file):
    (gone, left), (ours, theirs) = pairs(), pairs()
    left.close()
    with pytest.raises(BrokenPipeError):
        await put(movers, gone, file, 0, 1000).done
    job = put(movers, ours, file, 0, len(BODY))
    await read(theirs, 1000)
    theirs.close()
    assert 1000 <= await job.done < len(BODY)


async def test_the_end_drops_all_jobs(pairs, file):
    clients = [pairs() for _ in range(4)]
    before = descriptors()
    movers = Movers(asyncio.get_running_loop(), 2)
    jobs = [put(movers, ours, file, 0, len(BODY)) for ours, _ in clients]
    for _, theirs in clients:
        await read(theirs, 1)
    movers.close()
    for job in jobs:
        assert 0 < await job.done < len(BODY)
    late = put(movers, clients[0][0], file, 0, 1)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        await late.done
    assert caught.value.errno == errno.ESHUTDOWN
    await until(lambda: not descriptors() - before)


async def test_a_big_answer_takes_a_mover_and_a_server_that_stops_drops_it(serve, huge):
    site = await serve(answers(start(HUGE), zerocopy(huge, 0, HUGE)), stop_timeout=0.1)
    with open(huge, "rb", closefd=False) as opened:  # a hole is not in memory until it was read
        while opened.read(STEP_BYTES):
            pass
    async with await site.client.stream("/") as stream:
        await stream.read(1_000_000)
        await until(lambda: any(each.name == "mover" for each in threading.enumerate()))
        site.server.stop()
        await site.ended()
        await until(lambda: not any(each.name == "mover" for each in threading.enumerate()))


@pytest.mark.skipif(sys.platform != "linux", reason="asked on Linux only")
def test_a_client_on_this_machine_is_near(pairs):
    assert all(is_near(end) for end in pairs())
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        with accepted:
            assert is_near(accepted)
        assert not is_near(server)


@needs_strace
async def test_what_a_socket_takes_costs_little_but_the_sendfile(origin, proxy, tmp_path):
    size = 64 * MB
    origin.pattern("/big.img", size, 1).headers(cache_control="max-age=600")
    await proxy.fetch("/u/big.img")
    calls = "epoll_ctl,fstat,newfstatat,preadv2,sendfile"
    with traced(proxy.pid, calls, tmp_path / "strace") as made:
        stream = await proxy.stream("/u/big.img")
        assert (await stream.sha256())[0] == pattern_sha256(size, 1)
    found = collections.Counter(call.name for call in made)
    assert found.pop("sendfile") > 40
    # For each step whether it is in memory; and what the answer itself takes.
    assert found.total() < size // STEP_BYTES + 30, found
