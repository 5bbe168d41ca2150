"""The server between real sockets and small ASGI apps: bytes, limits, broken connections, and its end."""

import asyncio
import contextlib
import errno
import gc
import inspect
import json
import logging
import os
import random
import signal
import socket
import ssl
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import fields
from pathlib import Path
from typing import Any

import httptools
import pytest
import trustme
import uvicorn
from starlette.requests import Request
from starlette.responses import StreamingResponse
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from proxy.errors import ClientGone, ConfigError, FileEnded
from proxy.serving.connection import PIPELINED, REFUSED, Limits, Protocol
from proxy.serving.sendfile import FIRST_BYTES, SMALL_BYTES, TURN_BYTES, KernelOutlet
from proxy.serving.server import GRACE_SECONDS, Server, bind
from tests.harness import Client, Truncated, until

BODY = random.Random(1).randbytes(2 * TURN_BYTES + FIRST_BYTES + 12_345)  # several calls of sendfile, and a rest
HUGE = 256 * 1024**2  # a hole; more than the kernel's buffers of one connection hold

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def start(length: int | None = None, status: int = 200, *fields: tuple[bytes, bytes]) -> dict[str, Any]:
    lines = [(b"content-length", b"%d" % length)] if length is not None else []
    return {"type": "http.response.start", "status": status, "headers": [*lines, *fields]}


def body(data: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def zerocopy(file: int, offset: int, count: int, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.zerocopysend", "file": file, "offset": offset, "count": count, "more_body": more}


def answers(*messages: dict[str, Any]) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """The request, as the app sees it, in JSON."""
    data, more = b"", True
    while more:
        message = await receive()
        data, more = data + message["body"], message["more_body"]
    seen = {name: scope[name] for name in ("method", "path", "http_version")}
    seen |= {name: scope[name].decode("latin-1") for name in ("raw_path", "query_string", "raw_target")}
    seen["fields"] = len(scope["headers"])
    text = json.dumps(seen | {"body": data.decode()}).encode()
    await send(start(len(text)))
    await send(body(text))


class Site:
    """A running server and what its apps left behind. `apps` by path; "*" for every other path."""

    def __init__(self, apps: dict[str, App], listener: socket.socket | None = None, **options: Any) -> None:
        self.apps = apps
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        """The last request's task by path."""
        self.socket = listener or bind("127.0.0.1:0")
        self.port = self.socket.getsockname()[1]
        plain, secure = ([], [self.socket]) if options.get("tls") else ([self.socket], [])
        self.server = Server(self, plain, tls_sockets=secure, **options)
        self.client = Client("127.0.0.1", self.port)
        self.run: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task
        self.tasks[scope["path"]] = task
        await (self.apps.get(scope["path"]) or self.apps["*"])(scope, receive, send)

    async def ended(self) -> None:
        assert self.run
        await self.run

    async def waits_in(self, path: str, function: str) -> None:
        """Wait until the app at `path` waits within a coroutine of that name."""

        def is_there() -> bool:
            step = self.tasks[path].get_coro() if path in self.tasks else None
            while step is not None:
                if getattr(step, "__name__", "") == function:
                    return True
                step = getattr(step, "cr_await", None)
            return False

        await until(is_there)


Serve = Callable[..., Awaitable[Site]]


@pytest.fixture
async def serve(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Serve]:
    """Starts servers; at the end stops them, and fails if one left a task, skipped its end or upset the loop."""
    sites: list[Site] = []
    strange: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: strange.append(context))
    caplog.set_level(logging.INFO)

    async def make(apps: dict[str, App] | App, **options: Any) -> Site:
        site = Site(apps if isinstance(apps, dict) else {"*": apps}, **options)
        sites.append(site)
        site.run = asyncio.create_task(site.server.run())
        return site

    yield make
    for site in sites:
        site.client.close()
        site.server.stop()
        await site.ended()
        assert all(task.done() for task in site.tasks.values())
    assert strange == []


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file with BODY."""
    path = tmp_path / "body"
    path.write_bytes(BODY)
    with open(path, "rb") as opened:
        yield opened.fileno()


@pytest.fixture
def huge(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file with HUGE zeros."""
    path = tmp_path / "huge"
    path.touch()
    os.truncate(path, HUGE)
    with open(path, "rb") as opened:
        yield opened.fileno()


def request(target: str = "/", *lines: str, method: str = "GET", version: str = "1.1", host: str = "Host: a") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", *([host] if host else []), *lines, "", ""]).encode()


def message_of(response: bytes) -> tuple[int, str]:
    """Status and message of a refusal, which is JSON, has a length, and says that the connection ends."""
    head, _, content = response.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    assert {line for line in lines if not line.startswith("date: ")} == {
        "content-type: application/json",
        f"content-length: {len(content)}",
        "cache-status: fetchonce; detail=refused",
        "connection: close",
    }
    return int(status.split(" ")[1]), json.loads(content)["message"]


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[BaseException]:
    """What was logged with a traceback; nothing else may have been said."""
    assert all(record.name == "proxy" for record in caplog.records), caplog.text
    return [record.exc_info[1] for record in caplog.records if record.exc_info and record.exc_info[1]]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def no_connection_is_held() -> None:
    """Neither by a timer nor by a thread. What is in a traceback counts too: check that there is none."""
    await until(lambda: gc.collect() >= 0 and not [each for each in gc.get_objects() if isinstance(each, Protocol)])


# -- file bytes --------------------------------------------------------------------------------------------------------


async def test_a_file_arrives_byte_for_byte(serve, file):
    site = await serve(answers(start(len(BODY)), zerocopy(file, 0, len(BODY))))
    response = await site.client.get("/")
    assert response.body == BODY
    assert response.headers == {"content-length": str(len(BODY))}  # no Date, no Server: they are the app's


async def test_the_scope_offers_zero_copy(serve):
    seen = []

    async def app(scope, receive, send):
        seen.append(scope)
        await answers(start(0), body())(scope, receive, send)

    site = await serve(app)
    await site.client.get("/")
    assert seen[0]["extensions"] == {"http.response.zerocopysend": {}}
    assert seen[0]["asgi"] == {"version": "3.0", "spec_version": "2.4"}


@pytest.mark.parametrize(
    ("offset", "count"),
    [
        (0, 1),
        (len(BODY) - 1, 1),
        (1, SMALL_BYTES),
        (1, SMALL_BYTES + 1),
        (4095, FIRST_BYTES),
        (7, FIRST_BYTES + 1),
        (12_345, FIRST_BYTES + TURN_BYTES),
        (len(BODY) - TURN_BYTES, TURN_BYTES),
    ],
)
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
async def test_a_slice_arrives(serve, file, offset, count, is_chunked):
    site = await serve(answers(start(None if is_chunked else count), zerocopy(file, offset, count)))
    response = await site.client.get("/")
    assert response.body == BODY[offset : offset + count]
    assert ("transfer-encoding" in response.headers) is is_chunked


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
async def test_body_and_file_may_be_mixed(serve, file, is_chunked):
    pieces = [
        (body(b"--a\r\n", more=True), b"--a\r\n"),
        (zerocopy(file, 100, 700_000, more=True), BODY[100:700_100]),
        (body(more=True), b""),
        (zerocopy(file, 5, 0, more=True), b""),
        (body(b"--b\r\n", more=True), b"--b\r\n"),
        (zerocopy(file, 5, 10, more=True), BODY[5:15]),
        (zerocopy(file, 0, len(BODY), more=True), BODY),
        (zerocopy(file, 0, 0), b""),
    ]
    expected = b"".join(data for _, data in pieces)
    site = await serve(answers(start(None if is_chunked else len(expected)), *(message for message, _ in pieces)))
    assert (await site.client.get("/")).body == expected


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="Linux")
@pytest.mark.parametrize("count", [FIRST_BYTES, len(BODY)])
async def test_a_file_that_is_not_in_memory_is_read_in_a_thread(serve, file, count):
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    with contextlib.suppress(BlockingIOError):  # far from the slice: asking starts the kernel's readahead
        assert os.preadv(file, [bytearray(1)], len(BODY) // 2, os.RWF_NOWAIT) == 0, "the file is still in memory"
    site = await serve(answers(start(count), zerocopy(file, 0, count)))
    before = set(threading.enumerate())
    assert (await site.client.get("/")).body == BODY[:count]
    assert [thread.name for thread in set(threading.enumerate()) - before] != []


async def test_a_small_slice_in_memory_takes_no_thread(serve, file):
    site = await serve(answers(start(FIRST_BYTES), zerocopy(file, 0, FIRST_BYTES)))
    before = set(threading.enumerate())
    assert (await site.client.get("/")).body == BODY[:FIRST_BYTES]
    assert set(threading.enumerate()) <= before


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="Linux")
async def test_a_file_that_sendfile_does_not_take_is_copied(serve):
    out, peer = socket.socketpair()
    with open("/proc/self/cmdline", "rb") as opened, out, peer:
        expected = opened.read()
        with pytest.raises(OSError, match="Invalid argument"):
            os.sendfile(out.fileno(), opened.fileno(), 0, 1)
        site = await serve(answers(start(len(expected)), zerocopy(opened.fileno(), 0, len(expected))))
        assert (await site.client.get("/")).body == expected


async def test_head_has_no_body(serve, file):
    site = await serve(answers(start(len(BODY)), zerocopy(file, 0, len(BODY))))
    async with await site.client.connect() as connection:
        for _ in range(2):
            await connection.send(request(method="HEAD"))
            stream = await connection.answer("HEAD")
            assert stream.headers == {"content-length": str(len(BODY))}
        assert connection.surplus() == b""


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_body_needs_none(serve, status):
    site = await serve(answers(start(1234 if status == 304 else None, status), body()))
    async with await site.client.connect() as connection:
        await connection.send(request() * 2)
        for _ in range(2):
            stream = await connection.answer()
            assert stream.status == status
            assert "transfer-encoding" not in stream.headers


async def test_head_and_small_body_are_one_packet(serve, file):
    site = await serve(answers(start(100), zerocopy(file, 0, 100)))
    async with await site.client.connect() as connection:
        await connection.send(request())
        received = await connection.receive()
        assert received.endswith(b"\r\n\r\n" + BODY[:100])


async def test_the_head_does_not_wait_for_the_body(serve):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await send(start(2))
        await go.wait()
        await send(body(b"ok"))

    site = await serve(app)
    async with await site.client.stream("/") as stream:
        go.set()
        assert await stream.rest() == b"ok"


async def test_an_answer_over_tls(serve, file):
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    site = await serve(answers(start(len(BODY)), zerocopy(file, 0, len(BODY))), tls=server_context)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=client_context)
    for _ in range(2):
        writer.write(request())
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(BODY)) == BODY
    writer.close()
    await writer.wait_closed()


async def test_unix_socket(serve, file, tmp_path):
    path = tmp_path / "s"
    site = await serve(answers(start(len(BODY)), zerocopy(file, 0, len(BODY))))
    server = Server(site, [bind(f"unix:{path}")])
    run = asyncio.create_task(server.run())
    reader, writer = await asyncio.open_unix_connection(path)
    for _ in range(2):
        writer.write(request())
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(BODY)) == BODY
    writer.close()
    await writer.wait_closed()
    server.stop()
    await run


# -- one connection, several requests ----------------------------------------------------------------------------------


async def test_a_connection_is_used_again_after_a_file(serve, file):
    site = await serve({"/file": answers(start(len(BODY)), zerocopy(file, 0, len(BODY))), "*": echo})
    async with await site.client.connect() as connection:
        for number in range(3):
            await connection.send(request("/file"))
            assert await (await connection.answer()).rest() == BODY
            await connection.send(request(f"/{number}"))
            assert json.loads(await (await connection.answer()).rest())["path"] == f"/{number}"


async def numbered(scope: Scope, receive: Receive, send: Send) -> None:
    """Names the path; the later in the pipeline, the sooner it would be ready."""
    for _ in range(30 - min(30, int(scope["path"][1:]))):
        await asyncio.sleep(0)
    await send(start(len(scope["raw_path"])))
    await send(body(scope["raw_path"]))


async def test_pipelined_answers_keep_their_order(serve, file):
    async def app(scope, receive, send):
        number = int(scope["path"][1:])
        if number % 2:
            await numbered(scope, receive, send)
        else:
            await answers(start(500_000), zerocopy(file, number, 500_000))(scope, receive, send)

    site = await serve(app)
    async with await site.client.connect() as connection:
        await connection.send(b"".join(request(f"/{number}") for number in range(12)))
        for number in range(12):
            expected = b"/%d" % number if number % 2 else BODY[number : number + 500_000]
            assert await (await connection.answer()).rest() == expected
        assert connection.surplus() == b""


async def test_too_many_pipelined_requests_end_with_a_close(serve):
    site = await serve(numbered)
    async with await site.client.connect() as connection:
        await connection.send(b"".join(request(f"/{number}") for number in range(20 * PIPELINED)))
        for number in range(20 * PIPELINED):
            stream = await connection.answer()
            assert await stream.rest() == b"/%d" % number
            if stream.headers.get("connection") == "close":
                break
        assert PIPELINED < number <= 2 * PIPELINED
        assert await connection.rest() == b""


async def test_a_malformed_request_is_refused_in_its_turn(serve, file):
    site = await serve(answers(start(len(BODY)), zerocopy(file, 0, len(BODY))))
    async with await site.client.connect() as connection:
        await connection.send(request() + request() + b"nonsense\r\n\r\n" + request())
        for _ in range(2):
            assert await (await connection.answer()).rest() == BODY
        status, message = message_of(await connection.rest())
        assert (status, message) == (400, "malformed request: Invalid method encountered")


async def test_nothing_is_answered_after_connection_close(serve):
    site = await serve(numbered)
    received = await site.client.raw(request("/1", "Connection: close") + request("/2"))
    assert received.endswith(b"connection: close\r\n\r\n/1")


async def test_http10_ends_with_its_answer(serve):
    site = await serve(
        {"/length": answers(start(2), body(b"ok")), "*": answers(start(), body(b"o", more=True), body(b"k"))}
    )
    for path in ("/length", "/none"):
        received = await site.client.raw(request(path, "Connection: keep-alive", version="1.0", host=""))
        head, _, content = received.partition(b"\r\n\r\n")
        assert content == b"ok"
        assert b"connection: close" in head
        assert b"transfer-encoding" not in head


# -- broken off --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("how", ["returns", "raises", "cancelled"])
async def test_an_answer_broken_off_is_seen_as_such(serve, caplog, file, is_chunked, how):
    async def app(scope, receive, send):
        await send(start(None if is_chunked else len(BODY)))
        await send(zerocopy(file, 0, 1_000_000, more=True))
        await send(body(b"x", more=True))
        match how:
            case "raises":
                raise ValueError("a defect")
            case "cancelled":
                raise asyncio.CancelledError

    site = await serve(app)
    with pytest.raises(Truncated) as caught:
        await site.client.get("/")
    assert caught.value.partial == BODY[:1_000_000] + b"x"
    assert [str(error) for error in tracebacks(caplog)] == (["a defect"] if how == "raises" else [])


async def test_an_answer_broken_off_and_never_read_is_dropped(serve):
    """Its rest waits for the client, who need not come back; the connection does not wait for ever."""
    site = await serve(answers(start(), body(bytes(20_000_000), more=True)), limits=Limits(idle_timeout=0.2))
    before = descriptors()
    async with await site.client.stream("/"):
        await until(lambda: descriptors() == before + 1)  # the client's own


async def test_an_answer_to_http10_broken_off_is_reset(serve):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await send(start())
        await send(body(b"some", more=True))
        await go.wait()

    site = await serve(app)
    async with await site.client.connect() as connection:
        await connection.send(request(version="1.0"))
        assert await (await connection.answer()).read(4) == b"some"
        go.set()
        with pytest.raises(ConnectionResetError):
            await connection.receive()


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
async def test_a_file_shorter_than_promised_breaks_the_answer(serve, caplog, file, is_chunked):
    size = len(BODY) + 1
    site = await serve(answers(start(None if is_chunked else size), zerocopy(file, 0, size)))
    with pytest.raises(Truncated) as caught:
        await site.client.get("/")
    assert caught.value.partial == BODY
    assert [type(error) for error in tracebacks(caplog)] == [FileEnded]


@pytest.mark.parametrize(
    "messages",
    [
        [start(5), body(b"123456")],
        [start(5), body(b"1234")],
        [start(5), body(b"1234", more=True), start(5)],
        [start(5), {"type": "http.response.pathsend", "path": "/"}],
    ],
    ids=["longer", "shorter", "twice", "unknown"],
)
async def test_a_wrong_answer_is_broken_off(serve, caplog, messages):
    site = await serve(answers(*messages))
    with pytest.raises(Truncated):
        await site.client.get("/")
    assert [type(error) for error in tracebacks(caplog)] == [RuntimeError]


async def returns_at_once(scope: Scope, receive: Receive, send: Send) -> None: ...


async def fails_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("a defect")


@pytest.mark.parametrize(
    "app",
    [returns_at_once, fails_at_once, answers(start(2, 200, (b"x", b"a\r\nb"))), answers(body(b"before the start"))],
    ids=["returns", "fails", "header-injection", "no-start"],
)
async def test_an_app_that_fails_before_it_answers_gets_500(serve, caplog, app):
    site = await serve(app)
    assert message_of(await site.client.raw(request())) == (500, "internal error; the log says more")
    assert len(tracebacks(caplog)) == 1
    head = await site.client.raw(request(method="HEAD"))
    assert head.startswith(b"HTTP/1.1 500 ")
    assert head.endswith(b"connection: close\r\n\r\n")


async def test_a_send_after_the_end_is_an_error(serve, caplog):
    site = await serve(answers(start(2), body(b"ok"), body(b"more")))
    async with await site.client.connect() as connection:
        for _ in range(2):
            await connection.send(request())
            assert await (await connection.answer()).rest() == b"ok"
    assert [type(error) for error in tracebacks(caplog)] == [RuntimeError] * 2


async def test_nothing_follows_a_send_cut_short(serve, huge):
    """Nobody knows how much of it went."""
    outcome = []

    async def app(scope, receive, send):
        await send(start(HUGE + 1))
        sending = asyncio.ensure_future(send(zerocopy(huge, 0, HUGE, more=True)))
        await asyncio.wait({sending}, timeout=0.05)
        sending.cancel()
        await asyncio.wait({sending})
        try:
            await send(body(b"x"))
        except ClientGone as error:
            outcome.append(error)

    site = await serve(app)
    async with await site.client.stream("/") as stream:
        await until(lambda: outcome)
        with pytest.raises(Truncated) as caught:
            await stream.rest()
        assert not any(caught.value.partial)


# -- clients that leave ------------------------------------------------------------------------------------------------


async def test_a_departure_leaves_nothing(serve, caplog, huge):
    site = await serve(answers(start(HUGE), zerocopy(huge, 0, HUGE)))
    before, tasks = descriptors(), asyncio.all_tasks()
    streams = [await site.client.stream(f"/{number}") for number in range(10)]
    for stream in streams:
        assert await stream.read(1_000_000) == bytes(1_000_000)
    assert descriptors() > before
    for stream in streams:
        stream.close()
    await until(lambda: asyncio.all_tasks() == tasks and descriptors() == before)
    assert tracebacks(caplog) == []
    await no_connection_is_held()


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="Linux")
async def test_a_departure_is_noticed_after_a_thread_found_the_socket_full(file):
    """The connection is lost while the thread waits: what it then reports must not be waited on."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(65536))

        class Threads(Executor):
            def submit(self, job, /):
                outlet.close()
                done = Future()
                done.set_result(job())
                return done

        outlet = KernelOutlet(asyncio.get_running_loop(), Threads(), ours)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)  # what is not in memory goes to a thread
        with pytest.raises(ClientGone):
            await outlet.send(file, 0, FIRST_BYTES)


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
        await site.waits_in("/", "_writable")
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
    await site.waits_in("/stalled", "_writable")
    assert (await site.client.get("/")).body == BODY
    for stream in stalled:
        stream.close()


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "path", "raw_path", "query"),
    [
        ("GET", "/", "/", "/", ""),
        ("GET", "/a%20b//../c%2f?x=%20&y", "/a b//../c/", "/a%20b//../c%2f", "x=%20&y"),
        ("GET", "/%ff%zz", "/\ufffd%zz", "/%ff%zz", ""),
        ("GET", "/%C3%A9", "/é", "/%C3%A9", ""),
        ("GET", "/https://host/path", "/https://host/path", "/https://host/path", ""),
        ("GET", "/?u=http://host/", "/", "/", "u=http://host/"),
        ("GET", "http://host", "/", "/", ""),
        ("GET", "http://host?q", "/", "/", "q"),
        ("GET", "http://host:80/", "/", "/", ""),
        ("HEAD", "http://host/a/b?q=/", "/a/b", "/a/b", "q=/"),
        ("GET", "https://user@host//a", "//a", "//a", ""),
        ("OPTIONS", "*", "*", "*", ""),
        ("CONNECT", "host.example:443", "host.example:443", "host.example:443", ""),
    ],
)
async def test_every_form_of_target_reaches_the_app(serve, method, target, path, raw_path, query):
    seen = []

    async def app(scope, receive, send):
        seen.append(scope)
        await answers(start(0, 405), body())(scope, receive, send)

    site = await serve(app)
    received = await site.client.raw(request(target, "Connection: close", method=method))
    assert received.startswith(b"HTTP/1.1 405 ")
    expected = {
        "path": path,
        "raw_path": raw_path.encode(),
        "query_string": query.encode(),
        "raw_target": target.encode(),
    }
    assert {name: seen[0][name] for name in expected} == expected
    assert seen[0]["method"] == method


@pytest.mark.parametrize(
    "head",
    [
        request("h:443", method="CONNECT"),
        request("/", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
        request("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"),
    ],
    ids=["connect", "websocket", "h2c"],
)
async def test_after_connect_or_upgrade_the_connection_ends(serve, head):
    site = await serve(answers(start(0, 405), body()))
    received = await site.client.raw(head + request("/second"))
    assert received == b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    assert "/second" not in site.tasks


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 400, "this port speaks plain http"),
        (b"XYZ / HTTP/1.1\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400, "malformed"),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, "malformed"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400, "malformed"),
        (b"GET nonsense HTTP/1.1\r\nHost: a\r\n\r\n", 400, "malformed"),
        (request(host=""), 400, "Host"),
        (request("/", "Host: b"), 400, "Host"),
        (request(host="Host: a, b") + b"\0", 200, ""),
        (request("h:443", method="CONNECT", host=""), 400, "Host"),
        (request("/", "Host: b", version="1.0"), 400, "Host"),
        (request("/", "Content-Length: 3", "Transfer-Encoding: chunked", method="POST"), 400, "Content-Length"),
        (request("/", "Transfer-Encoding: chunked", "Content-Length: 3", method="POST"), 400, "Content-Length"),
        (request("/", "Content-Length: 3", "Content-Length: 4", method="POST"), 400, "Content-Length"),
        (request("/", "Content-Length: -3", method="POST"), 400, "malformed"),
        (request("/", "Transfer-Encoding: gzip, chunked", method="POST"), 501, "chunked"),
        (request("/", "Transfer-Encoding: gzip", method="POST"), 501, "chunked"),
        (request("/", "Transfer-Encoding: chunked", method="POST", version="1.0") + b"0\r\n\r\n", 400, "HTTP/1.0"),
        (request("/", "Transfer-Encoding: chunked", method="POST") + b"nonsense\r\n", 400, "malformed"),
        (request(version="2.0"), 505, "HTTP/1.1"),
        (request(version="3.7"), 400, "malformed"),
        (b"GET /\r\n\r\n", 505, "HTTP/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed"),
    ],
)
async def test_what_is_not_http_is_refused(serve, data, status, words):
    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await answers(start(0, 200, (b"connection", b"close")), body())(scope, receive, send)

    site = await serve(app)
    received = await site.client.raw(data)
    if status == 200:
        assert received.startswith(b"HTTP/1.1 200 ")
        return
    said, message = message_of(received)
    assert (said, words in message) == (status, True), message


async def test_a_refusal_of_head_has_no_body(serve):
    site = await serve(echo)
    received = await site.client.raw(request(method="HEAD", host=""))
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.endswith(b"connection: close\r\n\r\n")


FIELD = "X: " + "x" * 40
HEAD_SIZE = len(request("/", *[FIELD] * 100))


@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize("step", [100_000, HEAD_SIZE, 1000], ids=["at-once", "two", "pieces"])
async def test_head_size(serve, excess, step):
    """Request line and fields together, to the byte, however they come and whatever they follow."""
    came = 0

    async def app(scope, receive, send):
        nonlocal came
        came += 1
        await echo(scope, receive, send)

    site = await serve(app, limits=Limits(header_bytes=HEAD_SIZE - excess))
    data = request("/", "Content-Length: 60", method="POST") + b"b" * 60 + request("/", *[FIELD] * 100)
    async with await site.client.connect() as connection:
        for offset in range(0, len(data), step):
            await connection.send(data[offset : offset + step])
            if offset == 0:
                await until(lambda: came)  # this piece has been read
        await (await connection.answer()).rest()
        assert (await connection.answer()).status == (431 if excess else 200)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"x" * 100_000,
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"A:b\r\n" * 20_000,
    ],
    ids=["target", "field", "fields"],
)
async def test_a_head_without_end_is_refused(serve, data):
    site = await serve(echo)
    status, message = message_of(await site.client.raw(data))
    assert (status, message) == (431, "request line and headers are larger than 65536 bytes")


async def test_a_head_without_end_is_refused_behind_another_request(serve):
    site = await serve(echo, limits=Limits(header_bytes=2000))
    received = await site.client.raw(request("/1") + b"GET /" + b"x" * 40_000)
    first, _, second = received.partition(b"}HTTP/1.1 ")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert second.startswith(b"431 ")


async def test_a_head_is_not_charged_for_what_comes_before_it(serve):
    site = await serve(echo, limits=Limits(header_bytes=2000))
    head = request("/2", "X: " + "x" * 1800)
    async with await site.client.connect() as connection:
        await connection.send(request("/1", "Content-Length: 9000", method="POST") + b"x" * 9000 + head[:1000])
        await (await connection.answer()).rest()
        await connection.send(head[1000:])
        assert json.loads(await (await connection.answer()).rest())["path"] == "/2"


async def test_a_slow_head_is_refused(serve):
    site = await serve(echo, limits=Limits(header_timeout=0.2))
    async with await site.client.connect() as connection:
        await connection.send(b"GET / HTTP/1.1\r\nHo")
        assert message_of(await connection.rest()) == (408, "the request's headers did not arrive within 0.2 s")
    async with await site.client.connect() as connection:  # the second request of a connection
        await connection.send(request() + b"\r\nG")
        await (await connection.answer()).rest()
        assert message_of(await connection.rest())[0] == 408


async def test_a_slow_head_waits_for_the_answer_before_it(serve):
    is_time = asyncio.Event()

    async def app(scope, receive, send):
        await send(start(4))
        await is_time.wait()
        await send(body(b"slow"))

    site = await serve(app, limits=Limits(header_timeout=0.1))
    async with await site.client.connect() as connection:
        await connection.send(request() + b"G")
        stream = await connection.answer()
        assert message_of(await site.client.raw(b"G", close=False))[0] == 408  # whose head began after that one
        is_time.set()
        assert await stream.rest() == b"slow"
        assert message_of(await connection.rest())[0] == 408


async def test_a_silent_connection_is_closed(serve):
    site = await serve(echo, limits=Limits(header_timeout=0.1))
    assert await site.client.raw(b"") == b""


async def test_an_idle_connection_is_closed(serve):
    site = await serve(echo, limits=Limits(idle_timeout=0.2, header_timeout=30))
    async with await site.client.connect() as connection:
        for _ in range(2):
            await connection.send(request())
            stream = await connection.answer()
            assert "connection" not in stream.headers
            await stream.rest()
        assert await connection.rest() == b""


async def test_a_slow_answer_is_not_idle(serve):
    is_time = asyncio.Event()

    async def app(scope, receive, send):
        await send(start(2))
        if scope["path"] == "/slow":
            await is_time.wait()
        await send(body(b"ok"))

    site = await serve(app, limits=Limits(idle_timeout=0.1, header_timeout=0.1))
    async with await site.client.stream("/slow") as slow, await site.client.connect() as idle:
        await idle.send(request())
        await (await idle.answer()).rest()
        assert await idle.rest() == b""  # idle for longer than allowed, and that began later
        is_time.set()
        assert await slow.rest() == b"ok"


async def test_a_body_reaches_the_app(serve):
    site = await serve(echo, limits=Limits(body_bytes=100_000))
    chunked = request("/", "Transfer-Encoding: chunked", method="POST")
    async with await site.client.connect() as connection:
        for head, data in [
            (request("/", "Content-Length: 100000", method="POST"), b"x" * 100_000),
            (chunked, b"2\r\nxx\r\n1;extension\r\nx\r\n0\r\nTrailer: dropped\r\n\r\n"),
            (chunked, b"1\r\nx\r\n" * 90_000 + b"0\r\n\r\n"),
        ]:
            await connection.send(head + data)
            seen = json.loads(await (await connection.answer()).rest())
            assert len(seen["body"]) in (100_000, 3, 90_000)
            assert seen["fields"] == 2  # trailer fields are not among them


@pytest.mark.parametrize(
    "data",
    [
        request("/", "Content-Length: 100001", method="POST"),
        request("/", "Content-Length: 10000000", method="POST") + b"x" * 10_000_000,
        request("/", "Transfer-Encoding: chunked", method="POST") + (b"186A0\r\n" + b"x" * 100_000 + b"\r\n") * 50,
        request("/", "Transfer-Encoding: chunked", method="POST") + b"0\r\nTrailer: " + b"x" * 2_000_000,
        request("/", "Transfer-Encoding: chunked", method="POST") + b"1;" + b"x" * 2_000_000,
    ],
    ids=["declared", "sent", "chunks", "trailer", "extension"],
)
async def test_a_body_too_large_is_refused(serve, data):
    """And the answer arrives, although the client goes on sending."""
    site = await serve(echo, limits=Limits(body_bytes=100_000))
    assert message_of(await site.client.raw(data))[0] == 413


CHUNKED = request("/post", "Transfer-Encoding: chunked", method="POST")


async def test_a_body_that_turns_bad_behind_another_request_is_refused_in_its_turn(serve):
    go = asyncio.Event()

    async def slow(scope, receive, send):
        await go.wait()
        await answers(start(4), body(b"slow"))(scope, receive, send)

    site = await serve({"/": slow, "*": echo})
    async with await site.client.connect() as connection:
        await connection.send(request() + CHUNKED + b"nonsense\r\n")
        await site.waits_in("/", "wait")
        go.set()
        assert await (await connection.answer()).rest() == b"slow"
        assert message_of(await connection.rest())[0] == 400
    assert "/post" not in site.tasks


async def test_a_body_that_turns_bad_after_its_answer_ends_the_connection(serve):
    site = await serve(answers(start(2), body(b"no")))
    async with await site.client.connect() as connection:
        await connection.send(CHUNKED)
        assert await (await connection.answer()).rest() == b"no"
        await connection.send(b"nonsense\r\n")
        assert await connection.rest() == b""


async def test_a_body_that_turns_bad_during_its_answer_breaks_it(serve, caplog):
    async def app(scope, receive, send):
        await send(start(4))
        await send(body(b"so", more=True))
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(ClientGone):
            await send(body(b"me"))

    site = await serve(app)
    async with await site.client.connect() as connection:
        await connection.send(CHUNKED + b"1\r\nx\r\n")
        stream = await connection.answer()
        assert await stream.read(2) == b"so"
        await connection.send(b"nonsense\r\n")
        with pytest.raises(Truncated):
            await stream.rest()
    assert tracebacks(caplog) == []


async def test_a_body_that_nobody_read_does_not_block_the_connection(serve):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await answers(start(2), body(b"no"))(scope, receive, send)

    site = await serve({"/post": app, "*": echo})
    async with await site.client.connect() as connection:
        sending = asyncio.create_task(connection.send(CHUNKED + b"7A120\r\n" + b"x" * 500_000 + b"\r\n0\r\n\r\n"))
        await site.waits_in("/post", "wait")
        await until(lambda: sending.done())
        go.set()
        assert await (await connection.answer()).rest() == b"no"
        await connection.send(request("/2"))
        assert json.loads(await (await connection.answer()).rest())["path"] == "/2"


async def test_a_body_that_does_not_come_is_refused(serve):
    heard = []

    async def app(scope, receive, send):
        while (message := await receive())["type"] != "http.disconnect":
            pass
        heard.append(message)
        with pytest.raises(ClientGone):
            await send(start(0))

    site = await serve(app, limits=Limits(idle_timeout=0.2))
    received = await site.client.raw(request("/", "Content-Length: 5", method="POST") + b"x")
    assert message_of(received) == (408, "nothing of the request's body arrived for 0.2 s")
    await until(lambda: heard)


async def test_an_answer_before_the_body_arrives(serve):
    """The rest of the body is read, so that the connection can go on, or is told to be unwanted."""
    site = await serve({"/echo": echo, "*": answers(start(2), body(b"no"))})
    async with await site.client.connect() as connection:
        await connection.send(request("/", "Content-Length: 500000", method="POST"))
        assert await (await connection.answer()).rest() == b"no"
        await connection.send(b"x" * 500_000 + request("/echo"))
        assert json.loads(await (await connection.answer()).rest())["method"] == "GET"
    async with await site.client.connect() as connection:
        await connection.send(request("/", "Content-Length: 1000000", "Connection: close", method="POST"))
        assert await (await connection.answer()).rest() == b"no"
        await connection.send(b"x" * 1_000_000)
        assert await connection.rest() == b""


async def test_a_body_is_invited_only_if_it_is_wanted(serve):
    site = await serve({"/echo": echo, "*": answers(start(2), body(b"no"))})
    async with await site.client.connect() as connection:
        await connection.send(request("/echo", "Content-Length: 2", "Expect: 100-continue", method="POST"))
        assert await connection.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await connection.send(b"ok")
        assert json.loads(await (await connection.answer()).rest())["body"] == "ok"
        await connection.send(request("/", "Content-Length: 2", "Expect: 100-continue", method="POST"))
        stream = await connection.answer()
        assert stream.headers["connection"] == "close"  # whether the body comes is anybody's guess
        assert await stream.rest() == b"no"


async def test_one_connection_too_many(serve, caplog):
    site = await serve(echo, limits=Limits(connections=2))
    async with await site.client.connect() as first, await site.client.connect() as second:
        for connection in (first, second):
            await connection.send(request())
            await (await connection.answer()).rest()
        status, message = message_of(await site.client.raw(request()))
        assert (status, message) == (503, "all 2 connections are taken; try again later")
        assert "server.full connections=2" in caplog.text
        second.close()
        await until(lambda: answered(site))


async def answered(site: Site) -> bool:
    return (await site.client.get("/")).status == 200


async def test_connections_far_above_the_limit_are_dropped(serve):
    site = await serve(echo, limits=Limits(connections=1))
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(await site.client.connect()) for _ in range(1 + REFUSED + 1)]
        assert await connections[-1].rest() == b""
        assert message_of(await connections[-2].rest())[0] == 503
        await connections[0].send(request())
        assert (await connections[0].answer()).status == 200


async def test_options_of_an_accepted_socket(serve, monkeypatch):
    accepted = []
    original = HttpToolsProtocol.connection_made

    def connection_made(self, transport):
        original(self, transport)
        accepted.append(transport)

    monkeypatch.setattr(HttpToolsProtocol, "connection_made", connection_made)
    # One that was not made by bind(): asyncio sets no option on what it accepts.
    site = await serve(echo, listener=socket.create_server(("127.0.0.1", 0)))
    async with await site.client.connect() as connection:
        await connection.send(request())
        await connection.answer()
        assert accepted[0].get_write_buffer_limits() == (0, 0)  # else sendfile would overtake what is in it
        sock = accepted[0].get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


# -- start and stop ----------------------------------------------------------------------------------------------------


async def test_a_running_answer_is_finished(serve, huge):
    site = await serve(answers(start(HUGE), zerocopy(huge, 0, HUGE)))
    async with await site.client.connect() as idle, await site.client.stream("/") as stream:
        await site.waits_in("/", "_writable")
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
        await site.waits_in("/", {"file": "_writable", "body": "drain"}.get(how, "wait"))
        loop = asyncio.get_running_loop()
        began = loop.time()
        site.server.stop()
        await site.ended()
        # An abort ends what waits for the client; what waits for something else is cancelled a little later.
        assert 0.3 <= loop.time() - began < (0.3 + GRACE_SECONDS if how in ("file", "body") else 1.5)
        assert tracebacks(caplog) == []
    assert "server.stop_cut connections=1" in caplog.text
    if how in ("file", "body"):  # a cancelled task keeps its traceback
        await no_connection_is_held()


async def test_signals_stop_the_server(serve, huge):
    """SIGTERM waits for answers, a further SIGINT does not."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    site = await serve(answers(start(HUGE), zerocopy(huge, 0, HUGE)), stop_timeout=60)
    async with await site.client.stream("/"):
        await site.waits_in("/", "_writable")
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: site.server.stopping)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.shield(site.ended())
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(2):
            await site.ended()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_stop_before_run():
    server = Server(answers(start(0)), [bind("127.0.0.1:0")])
    server.stop()
    async with asyncio.timeout(2):
        await server.run()


async def test_a_cancelled_server_ends_its_answers_and_its_app(serve, huge):
    site = await serve(answers(start(HUGE), zerocopy(huge, 0, HUGE)), stop_timeout=60)
    async with await site.client.stream("/"):
        await site.waits_in("/", "_writable")
        site.run.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(3):
                await site.ended()
    site.run = asyncio.create_task(asyncio.sleep(0))


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
async def test_bind(listen):
    try:
        listener = bind(listen)
    except ConfigError as error:
        if "[::1]" in listen and getattr(error.__cause__, "errno", 0) in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            pytest.skip("no IPv6 here")
        raise
    with listener, socket.create_connection(listener.getsockname()[:2]):  # it listens already
        assert listener.getsockname()[1] > 0


async def test_a_port_in_use():
    with bind("127.0.0.1:0") as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            bind(f"127.0.0.1:{port}")
        with socket.create_connection(("127.0.0.1", port)) as client:
            listener.accept()[0].close()  # first, so that the port is in TIME_WAIT for a while
            assert client.recv(1) == b""
    assert f"127.0.0.1:{port}" in caught.value.message
    assert f"port {port} is in use; another fetchonce? try --listen 127.0.0.1:0" in caught.value.message
    bind(f"127.0.0.1:{port}").close()  # free again at once


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("8642", "expected HOST:PORT"),
        (":8642", "expected HOST:PORT"),
        ("127.0.0.1:http", "expected HOST:PORT"),
        ("127.0.0.1:65536", "expected HOST:PORT"),
        ("127.0.0.1:-1", "expected HOST:PORT"),
        ("::1:8642", "in brackets"),
        ("no.such.host.invalid:8642", "not known"),
        ("192.0.2.1:8642", "does not have that address"),
        ("unix:/no/such/directory/s", "make its directory"),
        ("unix:/tmp/" + "x" * 200, "too long"),
        ("unix:", "cannot listen on unix:"),
    ],
)
def test_an_address_that_cannot_be_had(listen, words):
    with pytest.raises(ConfigError) as caught:
        bind(listen)
    assert words in caught.value.message
    assert listen in caught.value.message


def test_a_unix_socket_is_for_its_owner(tmp_path):
    path = tmp_path / "s"
    with bind(f"unix:{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(ConfigError, match="in use"):
            bind(f"unix:{path}")
    with bind(f"unix:{path}"), socket.socket(socket.AF_UNIX) as client:  # the file of the dead one was replaced
        client.connect(str(path))


def test_a_unix_path_that_is_something_else_is_kept(tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError, match="not a socket"):
        bind(f"unix:{path}")
    assert path.read_text() == "data"


# -- what we stand on --------------------------------------------------------------------------------------------------


def test_uvicorn_has_the_shape_we_rely_on():
    """server.py overrides these and reads those: if this fails, read uvicorn's changes before anything else."""
    assert list(inspect.signature(RequestResponseCycle.__init__).parameters)[1:] == [
        "scope",
        "transport",
        "flow",
        "logger",
        "access_logger",
        "access_log",
        "default_headers",
        "message_event",
        "expect_100_continue",
        "keep_alive",
        "on_response",
    ]
    assert list(inspect.signature(HttpToolsProtocol.__init__).parameters)[1:] == [
        "config",
        "server_state",
        "app_state",
        "_loop",
    ]
    for name in [
        *("connection_made", "connection_lost", "eof_received", "data_received", "pause_writing", "resume_writing"),
        *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
        *("on_response_complete", "_start_asgi_task", "shutdown"),
    ]:
        assert inspect.isfunction(vars(HttpToolsProtocol)[name]), name
    assert inspect.iscoroutinefunction(RequestResponseCycle.run_asgi)
    source = inspect.getsource(RequestResponseCycle)
    for name in ("disconnected", "response_started", "response_complete", "waiting_for_100_continue", "more_body"):
        assert f"self.{name} = " in source, name
    assert "cycle.run_asgi(app)" in inspect.getsource(HttpToolsProtocol._start_asgi_task)
    assert set(vars(ServerState())) >= {"connections", "tasks", "total_requests", "default_headers"}
    assert {"drain", "pause_reading", "resume_reading", "pause_writing", "resume_writing"} <= set(vars(FlowControl))
    assert uvicorn.__version__.startswith("0.54.")


def test_httptools_says_what_we_rely_on():
    calls = []

    class Calls:
        def on_message_begin(self):
            calls.append("begin")

        def on_headers_complete(self):
            calls.append("headers")

        def on_message_complete(self):
            calls.append("complete")
            raise ValueError("ours")

    parser = httptools.HttpRequestParser(Calls())
    parser.feed_data(b"\r\n\r\n")  # empty lines before a request begin nothing (RFC 9112 §2.2)
    with pytest.raises(httptools.HttpParserCallbackError) as caught:
        parser.feed_data(memoryview(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n"))
    assert isinstance(caught.value.__context__, ValueError)
    assert calls == ["begin", "headers", "complete"]


def test_limits_are_those_of_the_manual():
    assert {field.name: field.default for field in fields(Limits)} == {
        "header_bytes": 65536,
        "header_timeout": 10.0,
        "idle_timeout": 75.0,
        "body_bytes": 1 << 20,
        "connections": 4096,
    }
