"""Clients that leave: what waits for them ends, and nothing is left behind."""

import asyncio
import contextlib
import os
import socket
import struct
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse

from proxy.errors import ClientGone
from proxy.serving.movers import Movers
from proxy.serving.request import Limits
from proxy.serving.sendfile import FIRST_BYTES, CopySender, KernelSender, Threads
from proxy.serving.sockets import bind
from tests.harness import until
from tests.serving.site import (
    BODY,
    HUGE,
    STALLED,
    answers,
    body,
    descriptors,
    no_connection_is_held,
    request,
    start,
    tracebacks,
    zerocopy,
)


@pytest.fixture(scope="module")
def anyio_backend(both_loops):
    return both_loops


async def test_a_departure_leaves_nothing(serve, caplog, huge):
    site = await serve(answers(start(HUGE), zerocopy(huge, 0, HUGE)))
    before, tasks = descriptors(), asyncio.all_tasks()
    streams = [await site.client.stream(f"/{number}") for number in range(10)]
    for stream in streams:
        assert await stream.read(1_000_000) == bytes(1_000_000)
    assert descriptors() - before
    for stream in streams:
        stream.close()
    await until(lambda: asyncio.all_tasks() == tasks and not descriptors() - before)
    assert tracebacks(caplog) == []
    await no_connection_is_held()


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="Linux")
async def test_a_departure_is_noticed_after_a_thread_found_the_socket_full(file):
    """The connection is lost while the thread waits: what it then reports must not be waited on."""
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.ExitStack() as stack:
        ours.setblocking(False)

        class Disk(Executor):
            def submit(self, job, /):
                sender.close()
                done = Future()
                done.set_result(job())
                return done

        loop = asyncio.get_running_loop()
        movers = Movers(loop)
        stack.callback(movers.close)
        sender = KernelSender(loop, Threads(Disk(), movers), ours)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(65536))
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)  # what is not in memory goes to a thread
        with pytest.raises(ClientGone):
            await sender.send(file, 0, FIRST_BYTES)


@pytest.mark.parametrize("length", [len(BODY), len(BODY) + 1], ids=["all", "not all"])
async def test_a_client_that_has_all_may_leave_before_the_app_has_said_that_it_is_all(serve, file, caplog, length):
    ends = []

    async def app(scope, receive, send):
        await send(start(length))
        await send(zerocopy(file, 0, len(BODY), more=True))
        while (await receive())["type"] != "http.disconnect":
            pass
        try:
            await send(body())
            ends.append("complete")
            await send(body())
        except ClientGone:
            ends.append("gone")

    site = await serve(app)
    stream = await site.client.stream("/")
    assert await stream.read(len(BODY)) == BODY
    stream.close()
    await until(lambda: ends[-1:] == ["gone"])
    assert ends == (["complete", "gone"] if length == len(BODY) else ["gone"])
    assert tracebacks(caplog) == []
    await no_connection_is_held()


async def test_a_departure_wakes_a_send_that_waits_for_the_socket(serve, caplog, huge):
    caught = []

    async def app(scope, receive, send):
        try:
            await send(start(HUGE + 1))
            await send(zerocopy(huge, 0, HUGE, more=True))
        except OSError as error:
            caught.append(error)
            for message in (body(b"x"), zerocopy(huge, 0, 1), start(1)):
                with pytest.raises(ClientGone):
                    await send(message)
            while (await receive())["type"] != "http.disconnect":
                pass
            raise

    site = await serve(app)
    async with await site.client.stream("/"):
        await site.waits_in("/", *STALLED)
    await until(lambda: site.tasks["/"].done())
    assert [type(error) for error in caught] == [ClientGone]
    assert tracebacks(caplog) == []


async def test_a_departure_wakes_a_send_that_waits_for_its_buffer(serve, caplog):
    async def app(scope, receive, send):
        await send(start())
        while True:
            await send(body(bytes(250_000), more=True))

    site = await serve(app)
    async with await site.client.stream("/"):
        await site.waits_in("/", "drain")
    await until(lambda: site.tasks["/"].done())
    assert tracebacks(caplog) == []


async def test_a_client_that_closes_its_sending_side_is_gone(serve, caplog):
    """Even while it leaves its answer unread: otherwise it would be held until the connection breaks."""

    async def app(scope, receive, send):
        await send(start())
        while True:
            await send(body(bytes(250_000), more=True))

    site = await serve(app)
    with socket.create_connection(("127.0.0.1", site.port)) as client:
        client.sendall(request())
        await site.waits_in("/", "drain")
        client.shutdown(socket.SHUT_WR)
        await until(lambda: site.tasks["/"].done())
    assert tracebacks(caplog) == []


async def test_an_app_may_notice_a_departure_before_it_is_told(serve, caplog):
    """The transport is closed in one turn of the loop, and disconnect() called in the next."""

    async def app(scope, receive, send):
        send.__self__.transport.abort()
        with contextlib.suppress(ClientGone):
            await send(start())

    site = await serve(app)
    async with await site.client.connect() as connection:
        await connection.send(request())
        assert await connection.rest() == b""
    await until(lambda: site.tasks["/"].done())
    assert tracebacks(caplog) == []


async def test_a_client_that_is_gone_before_it_is_accepted_asks_nothing(serve):
    """Its socket has no peer any more, as a unix socket has none, whose clients may ask everything."""
    listener = bind("127.0.0.1:0")
    with socket.create_connection(listener.getsockname()) as client:
        client.sendall(request("/gone"))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    site = await serve(answers(start(0), body()), listener=listener)
    await site.client.get("/")  # comes behind it
    assert list(site.tasks) == ["/"]
    await until(lambda: site.server.connections == 0)


async def test_a_client_that_is_gone_before_it_is_refused(serve):
    """What is written to it breaks the connection, before our side of it is closed."""
    listener = bind("127.0.0.1:0")
    socket.create_connection(listener.getsockname()).close()
    site = await serve(answers(), listener=listener, limits=Limits(connections=0))
    assert (await site.client.raw(b"")).startswith(b"HTTP/1.1 503 ")  # comes behind it
    await until(lambda: site.server.connections == 0)


async def test_a_client_that_leaves_while_a_piece_is_copied_for_it(serve, file):
    loop, caught = asyncio.get_running_loop(), []

    async def app(scope, receive, send):
        transport, threads = send.__self__.transport, Threads(ThreadPoolExecutor(1, "send"), Movers(loop, 0))
        loop.call_soon(transport.abort)
        try:
            await CopySender(loop, threads, transport).send(file, 0, 1000)
        except ClientGone as error:
            caught.append(error)

    site = await serve(app)
    async with await site.client.connect() as connection:
        await connection.send(request())
        assert await connection.rest() == b""
    await until(lambda: site.tasks["/"].done())
    assert len(caught) == 1


async def test_every_request_of_a_pipeline_learns_of_a_departure(serve):
    heard = []

    async def app(scope, receive, send):
        assert (await receive())["type"] == "http.request"
        heard.append((await receive())["type"])
        with pytest.raises(ClientGone):
            await send(start(0))

    site = await serve(app)
    async with await site.client.connect() as connection:
        await connection.send(request() * 3)
        await site.waits_in("/", "receive")
    await until(lambda: heard)
    assert heard == ["http.disconnect"]


async def test_a_framework_may_say_departure_in_its_own_words(serve, caplog, huge):
    async def streams(scope, receive, send):
        async def forever():
            while True:
                yield bytes(250_000)

        await StreamingResponse(forever())(scope, receive, send)

    async def reads(scope, receive, send):
        await Request(scope, receive).body()

    async def groups(scope, receive, send):
        async with asyncio.TaskGroup() as group:
            group.create_task(answers(start(HUGE), zerocopy(huge, 0, HUGE))(scope, receive, send))

    site = await serve({"/streams": streams, "/reads": reads, "/groups": groups})
    async with (
        await site.client.stream("/streams"),
        await site.client.stream("/groups"),
        await site.client.connect() as third,
    ):
        await third.send(request("/reads", "Content-Length: 2", method="POST"))
        await until(lambda: "/reads" in site.tasks)
    await until(lambda: all(task.done() for task in site.tasks.values()))
    assert tracebacks(caplog) == []


async def test_a_stalled_client_holds_nobody_up(serve, file, huge):
    site = await serve(
        {
            "/stalled": answers(start(HUGE), zerocopy(huge, 0, HUGE)),
            "*": answers(start(len(BODY)), zerocopy(file, 0, len(BODY))),
        }
    )
    stalled = [await site.client.stream("/stalled") for _ in range(40)]  # more than there are threads
    await site.waits_in("/stalled", *STALLED)
    assert (await site.client.get("/")).body == BODY
    for stream in stalled:
        stream.close()
