"""Limits: sizes, times and numbers, and what is no HTTP."""

import asyncio
import contextlib
import json
import socket

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.config import load
from proxy.errors import ClientGone
from proxy.serving.connection import REFUSED
from proxy.serving.request import Limits
from tests.harness import REPOSITORY, Truncated, until
from tests.serving.site import (
    Site,
    answers,
    body,
    echo,
    message_of,
    request,
    start,
    tracebacks,
)


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
    site = await serve(echo, limits=Limits(header_timeout=0.5))
    async with await site.client.connect() as connection:
        await connection.send(b"GET / HTTP/1.1\r\nHo")
        assert message_of(await connection.rest()) == (408, "the request's headers did not arrive within 0.5 s")
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

    site = await serve(app, limits=Limits(header_timeout=0.5))
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
    site = await serve(echo, limits=Limits(idle_timeout=0.5, header_timeout=30))
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

    site = await serve(app, limits=Limits(idle_timeout=0.3, header_timeout=0.3))
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


def test_limits_are_those_of_the_manual():
    """config/fetchonce.toml names every key with its default."""
    said = load(str(REPOSITORY / "config" / "fetchonce.toml")).file.server
    ours = Limits()
    assert (ours.header_bytes, ours.header_timeout) == (said.header_size, said.header_timeout)
    assert (ours.idle_timeout, ours.connections) == (said.idle_timeout, said.connections)
