"""The end of a server: what is finished, what is cut, and when."""

import asyncio
import contextlib
import os
import signal
import socket

import pytest

from proxy.serving.request import Limits
from proxy.serving.server import Server
from proxy.serving.sockets import bind
from tests.harness import until
from tests.serving.site import (
    HUGE,
    STALLED,
    answers,
    body,
    no_connection_is_held,
    numbered,
    request,
    start,
    tracebacks,
    zerocopy,
)


@pytest.fixture(scope="module")
def anyio_backend(both_loops):
    return both_loops


async def test_a_running_answer_is_finished(serve, huge):
    site = await serve(answers(start(HUGE), zerocopy(huge, 0, HUGE)), stop_timeout=60)
    async with await site.client.connect() as idle, await site.client.stream("/") as stream:
        await site.waits_in("/", *STALLED)
        site.server.stop()
        assert site.server.stopping
        assert await idle.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await site.client.connect()
        assert (await stream.sha256())[1] == HUGE
        assert await stream.connection.rest() == b""
        await site.ended()


async def test_what_was_asked_before_the_stop_is_answered(serve):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await numbered(scope, receive, send)

    site = await serve(app)
    async with await site.client.connect() as connection:
        await connection.send(request("/1") + request("/2"))
        await site.waits_in("/1", "wait")
        site.server.stop()
        await until(lambda: site.socket.fileno() < 0)
        await connection.send(request("/3"))
        go.set()
        received = await connection.rest()
        assert received.count(b"HTTP/1.1 200") == 2
        assert received.endswith(b"connection: close\r\n\r\n/2")


@pytest.mark.parametrize("how", ["file", "body", "silent", "deaf"])
async def test_a_stalled_answer_is_cut_after_the_stop_timeout(serve, caplog, huge, how):
    async def app(scope, receive, send):
        match how:
            case "file":
                await answers(start(HUGE), zerocopy(huge, 0, HUGE))(scope, receive, send)
            case "body":
                await answers(start(), *[body(bytes(250_000), more=True)] * 1000)(scope, receive, send)
            case "silent":
                await asyncio.Event().wait()
            case "deaf":
                while True:
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.Event().wait()
                        return
                    break

    site = await serve(app, stop_timeout=0.3)
    async with await site.client.connect() as connection:
        await connection.send(request())
        await site.waits_in("/", *{"file": STALLED, "body": ("drain",)}.get(how, ("wait",)))
        loop = asyncio.get_running_loop()
        began = loop.time()
        site.server.stop()
        await site.ended()
        assert loop.time() - began >= 0.3
        # An abort ends what waits for the client; what waits for something else is cancelled a little later.
        assert site.tasks["/"].done()
        assert site.tasks["/"].cancelled() == (how == "silent")
        assert tracebacks(caplog) == []
    assert "server.stop_cut connections=1" in caplog.text
    if how in ("file", "body"):  # a cancelled task keeps its traceback
        await no_connection_is_held()


async def test_signals_stop_the_server(serve, huge):
    """SIGTERM waits for answers, a further SIGINT does not."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    site = await serve(answers(start(HUGE), zerocopy(huge, 0, HUGE)), stop_timeout=60)
    async with await site.client.stream("/"):
        await site.waits_in("/", *STALLED)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: site.server.stopping)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.shield(site.ended())
        os.kill(os.getpid(), signal.SIGINT)
        await site.ended()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_stop_before_run():
    server = Server(answers(start(0)), [bind("127.0.0.1:0")])
    server.stop()
    await server.run()


async def test_a_cancelled_server_ends_its_answers_and_its_app(serve, huge):
    site = await serve(answers(start(HUGE), zerocopy(huge, 0, HUGE)), stop_timeout=60)
    async with await site.client.stream("/"):
        await site.waits_in("/", *STALLED)
        site.run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await site.ended()
    site.run = asyncio.create_task(asyncio.sleep(0))


async def test_what_is_accepted_in_the_turn_in_which_it_leaves_is_answered(serve):
    site = await serve(numbered, limits=Limits(idle_timeout=1))
    assert (await site.client.get("/1")).status == 200
    with contextlib.ExitStack() as stack:
        beside = stack.enter_context(site.socket.dup())  # what is not accepted stays for the other process
        # Connected while the loop stands still: it will find them, and the end, in one turn.
        waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", site.port))) for _ in range(8)]
        for client in waiting:
            client.settimeout(10)
            client.sendall(request("/1"))
        site.server.leave(bind("127.0.0.1:0"), lambda: False)
        await site.ended()
        beside.setblocking(False)
        left = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                left.add(stack.enter_context(beside.accept()[0]).getpeername())
        accepted = [client for client in waiting if client.getsockname() not in left]
        heads = [await asyncio.to_thread(client.recv, 12) for client in accepted]
    assert heads == [b"HTTP/1.1 200"] * len(accepted)
