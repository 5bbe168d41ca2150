"""Framing: heads and bodies of answers, several requests on a connection, and answers that go wrong."""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import threading

import pytest
import trustme

from proxy.errors import ClientGone, FileEnded
from proxy.serving.connection import PIPELINED
from proxy.serving.request import Limits
from proxy.serving.sendfile import FIRST_BYTES, SMALL_BYTES, TURN_BYTES
from proxy.serving.server import Server
from proxy.serving.sockets import bind
from tests.harness import Truncated, until
from tests.serving.site import (
    BODY,
    HUGE,
    Receive,
    Scope,
    Send,
    answers,
    body,
    descriptors,
    echo,
    message_of,
    numbered,
    request,
    start,
    tracebacks,
    zerocopy,
)

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
        await until(lambda: (descriptors() - before).total() == 1)  # the client's own


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
