"""Movers: many clients in one thread, and nothing is left behind. A mover that waits for one of them hangs the test."""

import asyncio
import contextlib
import errno
import os
import socket
import threading

import pytest

from proxy.serving.movers import STEP_BYTES, Movers
from tests.harness import until
from tests.serving.site import BODY, HUGE, answers, descriptors, start, zerocopy


@pytest.fixture
async def movers():
    before = descriptors()
    movers = Movers(asyncio.get_running_loop(), 1)
    yield movers
    movers.close()
    await until(lambda: descriptors() == before and not any(each.name == "mover" for each in threading.enumerate()))


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


def put(movers, sock, file, offset, count):
    return movers.put(os.dup(sock.fileno()), os.dup(file), offset, count)


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
    assert descriptors() == before
    assert 0 < sent < len(BODY)
    assert first + await read(theirs, sent - 1000) == BODY[:sent]
    job.drop()  # when it has ended, too


async def test_a_job_ends_where_the_file_does(movers, pairs, file):
    ours, theirs = pairs()
    job = put(movers, ours, file, len(BODY) - 1000, STEP_BYTES)
    assert await read(theirs, 1000) == BODY[-1000:]
    assert await job.done == 1000


async def test_what_cannot_be_waited_for_ends_its_job_alone(movers, pairs, file, tmp_path):
    with open(tmp_path / "out", "wb") as out:  # epoll refuses a file
        job = movers.put(os.dup(out.fileno()), os.dup(file), len(BODY) - 1000, STEP_BYTES)
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
    before = descriptors()
    movers = Movers(asyncio.get_running_loop(), 2)
    clients = [pairs() for _ in range(4)]
    with_pairs = descriptors()
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
    await until(lambda: descriptors() == before + 8 < with_pairs)


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
