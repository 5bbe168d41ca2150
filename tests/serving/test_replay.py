"""Answers that are repeated without the app: only to the same bytes, with the same bytes, and while they are true."""

import asyncio
import collections
import os
import resource
import socket
import ssl
import time

import pytest
import trustme

from proxy.rules import ranges
from proxy.rules.pieces import Slice
from proxy.rules.repeat import Repeat
from proxy.serving.connection import Reading
from proxy.serving.replay import CROWD, HEAD_BYTES, KEPT, LENGTH_MAX, QUESTION_BYTES, Replays
from proxy.serving.request import Limits
from proxy.serving.server import Server
from proxy.serving.sockets import bind
from tests.harness import Connection, until
from tests.serving.site import BODY, body, descriptors, request, start, zerocopy

pytestmark = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="elsewhere small bodies go the long way")

SIZE = len(BODY)
HUNDRED = 100_000
LONG = 3600.0


@pytest.fixture(scope="module")
def anyio_backend(both_loops):
    return both_loops


class Shop:
    """An app that lets its answers be repeated: the first `size` bytes of BODY, ranges of them, and 304."""

    def __init__(self, file, size=SIZE, *, seconds=LONG, fields=()):
        self.file, self.size, self.seconds, self.fields = file, size, seconds, fields
        self.asked = self.looks = 0
        self.told = []
        self.is_current = True
        self.since = self.fd = None

    async def __call__(self, scope, receive, send):
        self.asked += 1
        lines = {name.lower(): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        chosen = None
        if scope["method"] == "GET" and (asked := ", ".join(v.decode() for n, v in scope["headers"] if n == b"range")):
            chosen = ranges.select(asked, self.size)
        now = time.time()
        since = now if self.since is None else self.since
        file = Slice(self.file, 0, self.size)
        repeat = Repeat(since, now + self.seconds, self.look, file, self.hear)
        first, end, status, fields = 0, self.size, 200, [(b"age", b"7"), *self.fields]
        if lines.get(b"if-none-match") == '"x"':
            status, end = 304, 0
        elif chosen == ():
            status, end, repeat = 416, 0, None
        elif chosen and len(chosen) == 1:
            status, first, end = 206, chosen[0].start, chosen[0].end
            fields.append((b"content-range", b"bytes %d-%d/%d" % (first, end - 1, self.size)))
        elif chosen:
            status, end, repeat = 200, 0, None
        length = None if status == 304 else end - first
        await send(start(length, status, *fields) | ({"repeat": repeat} if repeat else {}))
        if scope["method"] == "HEAD" or not end - first:
            await send(body())
        else:
            await send(zerocopy(self.fd or self.file, first, end - first))

    def look(self):
        self.looks += 1
        return self.is_current

    def hear(self, repetitions):
        self.told += collections.Counter(repetitions).elements()


async def ask(connection, question, method="GET"):
    """Status, fields and body of the answer."""
    await connection.send(question)
    answer = await connection.answer(method)
    return answer.status, answer.headers, await answer.rest()


@pytest.fixture
def shop(file):
    return Shop(file)


def narrow():
    """A listening socket: what it accepts takes little before its client reads."""
    listener = bind("127.0.0.1:0")
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return listener


async def reluctant(site):
    """A connection that has room for little."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", site.port))
    site.client._open.add(sock)
    return Connection(site.client, sock)


def ranged(numbers, *lines):
    return request("/", "X: ange: bytes=1-2", f"Range: bytes={numbers}", *lines)  # X is no Range


@pytest.mark.parametrize("size", [0, 1000, HUNDRED, LENGTH_MAX])
async def test_the_same_question_is_answered_without_the_app(serve, file, size):
    site = await serve(shop := Shop(file, size))
    client = await site.client.connect()
    first = await ask(client, request())
    assert (first[0], first[2]) == (200, BODY[:size])
    for _ in range(3):
        assert await ask(client, request()) == first
    assert await ask(await site.client.connect(), request()) == first  # on another connection too
    assert shop.asked == 1
    await until(lambda: len(shop.told) == 4)
    assert [(sent, is_aborted) for _, sent, _, is_aborted in shop.told] == 4 * [(size, False)]


async def test_what_is_large_is_asked_for_again(serve, file):
    site = await serve(shop := Shop(file, LENGTH_MAX + 1))
    client = await site.client.connect()
    for _ in range(2):
        assert (await ask(client, request()))[2] == BODY[: LENGTH_MAX + 1]
    for numbers in ("0-", f"0-{LENGTH_MAX}"):
        assert (await ask(client, ranged(numbers)))[2] == BODY[: LENGTH_MAX + 1]
    assert shop.asked == 4


async def test_any_range_of_the_body_is_given_for_any_other(serve, shop):
    site = await serve(shop)
    client = await site.client.connect()
    assert (await ask(client, ranged("0-0")))[0] == 206
    for numbers, first, end in [
        ("5-99", 5, 100),
        ("0000100-000199", 100, 200),
        (f"{SIZE - 10}-", SIZE - 10, SIZE),
        (f"{SIZE - 10}-{SIZE + 99}", SIZE - 10, SIZE),
        (f"1-{LENGTH_MAX}", 1, LENGTH_MAX + 1),
        (f"{SIZE - 1}-{'9' * 18}", SIZE - 1, SIZE),
    ]:
        status, fields, data = await ask(client, ranged(numbers))
        assert (status, data) == (206, BODY[first:end])
        assert fields == {
            "content-length": str(end - first),
            "age": "7",
            "content-range": f"bytes {first}-{end - 1}/{SIZE}",
        }
    assert shop.asked == 1
    await until(lambda: len(shop.told) == 6)
    assert [sent for _, sent, _, _ in shop.told] == [95, 100, 10, 10, LENGTH_MAX, 1]


@pytest.mark.parametrize("lines", [('If-None-Match: "x"',), ("Accept: 50%d, %s",)])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_304_and_head_have_no_body_to_be_repeated(serve, file, method, lines):
    site = await serve(shop := Shop(file, HUNDRED))
    client = await site.client.connect()
    question = request("/", *lines, method=method)
    first = await ask(client, question, method=method)
    assert first[0] == (304 if "None" in lines[0] else 200)
    assert await ask(client, question, method=method) == first
    assert shop.asked == 1
    await until(lambda: shop.told)
    assert shop.told[0][1] == (HUNDRED if method == "GET" and first[0] == 200 else 0)


async def test_a_percent_sign_is_a_percent_sign(serve, file):
    fields = ((b"x-first", b"100%d%%s %d-%d"), (b"x-range", b"bytes 1-2/3"))
    site = await serve(shop := Shop(file, fields=fields))
    client = await site.client.connect()
    for numbers, sent in ("0-9", 10), ("7-9", 3):
        status, found, data = await ask(client, ranged(numbers))
        assert (status, len(data), found["x-first"]) == (206, sent, "100%d%%s %d-%d")
    assert shop.asked == 1


async def test_what_is_no_longer_true_is_asked_for_again(serve, file):
    site = await serve(shop := Shop(file, 1000))
    client = await site.client.connect()
    late = time.time() + LONG
    for seconds, since, is_current in ((0, None, True), (-1, None, True), (2 * LONG, late, True), (LONG, None, False)):
        shop.seconds, shop.since, shop.is_current, shop.asked = seconds, since, is_current, 0
        for _ in range(2):
            assert (await ask(client, request()))[2] == BODY[:1000]
        assert shop.asked == 2, (seconds, since, is_current)
    shop.since, shop.is_current, shop.asked = None, True, 0
    await ask(client, request("/now"))
    shop.is_current = False
    await ask(client, request("/now"))
    assert shop.asked == 2
    assert shop.told == []


async def test_those_who_ask_at_once_cost_one_look_and_none_is_late(serve, shop):
    site = await serve(shop)
    clients = [await site.client.connect() for _ in range(40)]

    async def all_at_once():
        return {(await answer)[0] for answer in [asyncio.create_task(ask(each, ranged("0-9"))) for each in clients]}

    await ask(clients[0], ranged("0-9"))
    for _ in range(2):  # to see that they come at once
        assert await all_at_once() == {206}
    shop.looks, shop.asked = 0, 0
    for _ in range(10):
        assert await all_at_once() == {206}
    assert (shop.looks < 100, shop.asked) == (True, 0)
    shop.is_current = False
    assert await all_at_once() == {206}
    assert shop.asked == len(clients)


@pytest.mark.parametrize(("connections", "looks"), [(CROWD, 2), (CROWD + 1, 4)])
async def test_in_a_crowd_each_costs_a_look(shop, connections, looks):
    replays = Replays(asyncio.get_running_loop(), range(connections))
    repeat = Repeat(0.0, time.time() + LONG, shop.look, Slice(shop.file, 0, SIZE), shop.hear)
    replays.keep((), request(), b"head", repeat, None)
    for _ in range(2):  # turns
        for _ in range(2):
            assert replays.find((), request())
        await asyncio.sleep(0)
    assert shop.looks == looks
    replays.close()


TWO = request("/", "Range: bytes=%b-%b", "Range: 3-3")
LONG_WAY = {
    "http/1.0": request("/", "Range: bytes=0-9", version="1.0", host="Connection: keep-alive"),
    "close": ranged("0-9", "Connection: close"),
    "upgrade": ranged("0-9", "Connection: upgrade", "Upgrade: websocket"),
    "expect": ranged("0-9", "Expect: 100-continue"),
    "body": ranged("0-9", "Content-Length: 5") + b"hello",
    "range-lines": request("/", "Range: bytes=0-9", "Range: bytes=5-9"),
    "range-of-two-lines": request("/", "Range: bytes=0-9", "Range: 5-9"),
    "ranges": ranged("0-9,20-29"),
    "suffix": ranged("-10"),
    "malformed": ranged("9-0"),
    "no-number": ranged("a-9"),
    "nothing": ranged("-"),
    "beyond-the-end": ranged(f"{SIZE}-{SIZE}"),
    "nineteen-digits": ranged(f"0-{'9' * 19}"),
    "twenty-digits": ranged(f"{'0' * 18}10-12"),
    "spaced": request("/", "Range:  bytes=0-9"),
    "spaced-behind": request("/", "Range: bytes=0-9 "),
    "unit": request("/", "Range: Bytes=0-9"),
    "upper-case": request("/", "RANGE: bytes=0-9"),
    "head": request("/", "Range: bytes=0-9", method="HEAD"),
    "range-and-etag": request("/", "Range: bytes=0-9", 'If-None-Match: "x"'),
    "in-the-body": request("/", "Content-Length: 21", "Range:  bytes=0-9") + b"\r\nRange: bytes=5-6\r\n\r",
    "long-question": ranged("0-9", f"Y: {'y' * QUESTION_BYTES}"),
}


@pytest.mark.parametrize("question", [pytest.param(data, id=name) for name, data in LONG_WAY.items()])
async def test_another_question_goes_the_long_way(serve, shop, question):
    site = await serve(shop)
    method = question.split(b" ")[0].decode()
    answers = []
    for _ in range(3):
        connection = await site.client.connect()
        await connection.send(question)
        answer = await connection.answer(method)
        answers.append((answer.status, answer.headers, len(await answer.rest()) if answer.status != 101 else 0))
        connection.close()
    assert answers[0] == answers[1] == answers[2]
    assert shop.asked == 3
    assert shop.told == []


@pytest.mark.parametrize(
    ("kept", "asked"),
    [
        pytest.param(TWO % (b"%d" % SIZE, b"%d" % SIZE), TWO % (b"0", b"1"), id="one-of-two-fits"),
        pytest.param(ranged("0-9"), ranged(f"{SIZE}-"), id="416"),
        pytest.param(ranged("0-9"), ranged("5-4"), id="backwards"),
        pytest.param(ranged("0-9"), ranged("0-9").replace(b"Range", b"range"), id="case"),
        pytest.param(ranged("0-9"), request("/", "X-Range: bytes=0-9"), id="x-range"),
        pytest.param(ranged("0-9"), request("/", "Orange: bytes=0-9"), id="orange"),
        pytest.param(ranged("0-9"), ranged("0-9", 'If-Range: "y"'), id="if-range"),
        pytest.param(ranged("0-9"), ranged("0-9", "Cache-Control: no-cache"), id="no-cache"),
        pytest.param(ranged("0-9"), ranged("0-9", "Authorization: Basic eDp5"), id="login"),
        pytest.param(ranged("0-9"), request("/", "Range: bytes=0-9", host="Host: b"), id="host"),
        pytest.param(ranged("0-9"), request("/2", "Range: bytes=0-9"), id="path"),
        pytest.param(ranged("0-9"), request("/"), id="whole"),
        pytest.param(request("/"), request("/", method="HEAD"), id="head"),
        pytest.param(request("/"), b"\r\n" + request("/"), id="empty-line"),
        pytest.param(request("/"), request("/", "Content-Length: 1") + b"x", id="body"),
    ],
)
async def test_and_so_does_what_differs_from_it(serve, file, kept, asked):
    site = await serve(shop := Shop(file, HUNDRED if b"Range" not in kept else SIZE))
    client = await site.client.connect()
    await ask(client, kept)
    await ask(client, asked, method=asked.split(b" ")[0].strip().decode())
    assert shop.asked == 2


async def test_a_question_in_pieces_or_with_another_goes_the_long_way(serve, file):
    site = await serve(shop := Shop(file, 1000))
    client = await site.client.connect()
    await ask(client, request())
    await client.send(request()[:-7])
    await until(lambda: all(each._reading is Reading.HEAD for each in site.server._state.connections))
    await ask(client, request()[-7:])
    assert shop.asked == 2
    await client.send(2 * request())
    for _ in range(2):
        assert await (await client.answer()).rest() == BODY[:1000]
    assert shop.asked == 4
    await ask(client, request())
    assert shop.asked == 4


@pytest.mark.parametrize("length", [HEAD_BYTES - 200, HEAD_BYTES])
async def test_a_long_head_is_not_kept(serve, file, length):
    site = await serve(shop := Shop(file, 1000, fields=((b"x", b"x" * length),)))
    client = await site.client.connect()
    for _ in range(2):
        await ask(client, request())
    assert shop.asked == (1 if length < HEAD_BYTES else 2)


async def test_other_clients_have_other_answers(serve, shop):
    site = await serve(shop)
    for host in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.bind((host, 0))
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", site.port))
            await loop.sock_sendall(sock, ranged("0-9"))
            assert (await loop.sock_recv(sock, 9999)).startswith(b"HTTP/1.1 206 ")
    assert shop.asked == 2


async def test_descriptors_are_bounded_and_given_back(serve, shop):
    site = await serve(shop)
    client = await site.client.connect()
    await ask(client, ranged(f"{SIZE}-"))
    before = descriptors()
    for number in range(KEPT + 50):
        await ask(client, request(f"/{number}", "Range: bytes=0-9"))
    assert (descriptors() - before).total() <= KEPT
    await ask(client, request(f"/{KEPT + 49}", "Range: bytes=0-9"))
    await ask(client, request("/0", "Range: bytes=0-9"))
    assert shop.asked == KEPT + 52  # the oldest has made room
    assert (descriptors() - before).total() > KEPT // 2
    shop.is_current = False
    await until(lambda: (descriptors() - before).total() <= 1)  # of the connection's sender


async def test_without_descriptors_answers_are_whole(serve, shop):
    site = await serve(shop, listener=narrow())
    client, slow = await site.client.connect(), await reluctant(site)
    await ask(client, ranged("0-9"))
    await until(lambda: site.server.connections == 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(shop.file)
    os.close(free)  # the lowest that is free
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        for _ in range(2):
            assert (await ask(client, ranged("0-9", "X: x")))[2] == BODY[:10]
        assert shop.asked == 3
        await slow.send(ranged("0-199999"))
        await until(lambda: shop.told)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await (await slow.answer()).rest() == BODY[:200_000]
    assert [told[1] for told in shop.told] == [200_000]


async def test_a_client_that_stops_reading_gets_all_of_it_later(serve, shop):
    """What the socket does not take leaves from a descriptor of its own."""
    site = await serve(shop, listener=narrow())
    client, slow = await site.client.connect(), await reluctant(site)
    await ask(client, ranged("0-0"))
    before = descriptors()
    await slow.send(ranged("0-199999"))
    await until(lambda: any(each.running for each in site.server._state.connections))
    assert descriptors() - before
    for start_at in (300_000, 500_000):
        numbers = ranged(f"{start_at}-{start_at + 199_999}")
        assert (await ask(client, numbers))[2] == BODY[start_at : start_at + 200_000]
    assert len(shop.told) <= 2
    shop.is_current = False  # the answer is forgotten, not its rest
    await ask(client, ranged("0-0"))
    await slow.send(ranged("7-9"))  # pipelined behind it
    assert await (await slow.answer()).rest() == BODY[:200_000]
    assert await (await slow.answer()).rest() == BODY[7:10]
    await until(lambda: len(shop.told) == 3)
    assert sorted(told[1] for told in shop.told) == [200_000] * 3
    assert shop.asked == 3
    shop.is_current = True
    assert await ask(slow, ranged("1-2")) == await ask(client, ranged("1-2"))
    assert shop.asked == 3


async def test_a_client_that_leaves_in_the_middle_is_told_of(serve, shop):
    site = await serve(shop, listener=narrow())
    slow = await reluctant(site)
    await ask(slow, ranged("0-0"))
    await slow.send(ranged("0-199999"))
    await until(lambda: any(each.running for each in site.server._state.connections))
    slow.close()
    await until(lambda: shop.told)
    ((_, sent, _, is_aborted),) = shop.told
    assert (is_aborted, sent < 200_000) == (True, True)


async def test_a_small_answer_waits_for_a_client_that_does_not_read(serve, file):
    site = await serve(shop := Shop(file, 10_000), listener=narrow())
    slow = await reluctant(site)
    first = await ask(slow, request())
    sent = await filled(site, slow, lambda: len(shop.told))
    assert shop.asked == 1
    await slow.send(request())  # the app is asked, and waits
    await until(lambda: shop.asked == 2)
    for _ in range(sent + 1):
        answer = await slow.answer()
        assert (answer.status, answer.headers, await answer.rest()) == first


async def filled(site, slow, answered):
    """Ask on until the connection has no more room, and return how often; `answered` counts."""
    (connection,) = site.server._state.connections
    sent, before = 0, answered()
    while not connection.flow.write_paused:
        await slow.send(request())
        sent += 1
        await until(lambda count=before + sent: answered() == count and connection.running is None)
    return sent


async def test_an_answer_that_waited_for_its_client_is_true_no_longer_for_that(serve, file):
    site = await serve(shop := Shop(file, 10_000), listener=narrow())
    slow = await reluctant(site)
    await ask(slow, request("/last"))
    shop.seconds = 0
    sent = await filled(site, slow, lambda: shop.asked)
    asked, shop.seconds = shop.asked, 0.2
    await slow.send(request("/last"))
    await until(lambda: shop.asked == asked + 1)
    moment = time.time() + shop.seconds
    await until(lambda: time.time() > moment)
    for _ in range(sent + 1):
        assert await (await slow.answer()).rest() == BODY[:10_000]
    await ask(await site.client.connect(), request("/last"))
    assert shop.asked == asked + 2


@pytest.mark.parametrize("how", ["stop", "leave", "cancel"])
async def test_the_app_is_told_of_every_repetition_before_the_end(serve, shop, how):
    site = await serve(shop, listener=narrow(), stop_timeout=0.1)
    client, slow = await site.client.connect(), await reluctant(site)
    await ask(client, ranged("0-0"))
    await slow.send(ranged("0-199999"))
    await until(lambda: any(each.running for each in site.server._state.connections))
    for _ in range(10):
        await ask(client, ranged("0-9"))
    match how:
        case "stop":
            site.server.stop()
        case "leave":
            site.server.leave(bind("127.0.0.1:0"), lambda: False)
            assert await (await slow.answer()).rest() == BODY[:200_000]
            assert (await ask(client, ranged("0-9")))[1]["connection"] == "close"  # and the last answer says so
            slow.close()  # else the server waits for what it may ask next
        case "cancel":
            assert site.run
            site.run.cancel()
    await asyncio.wait([site.run])
    *whole, slowest = sorted(shop.told, key=lambda told: told[1] != 10)
    assert [told[1:] for told in whole] == 10 * [(10, 0.0, False)]
    assert how != "leave" or not slowest[3]  # at a stop the kernel may have taken all of it
    if how == "cancel":
        site.run = asyncio.create_task(asyncio.sleep(0))


async def test_a_head_behind_a_repeated_answer_has_its_own_time(serve, file):
    site = await serve(Shop(file, 1000), limits=Limits(header_timeout=0.5, idle_timeout=3600))
    assert await ask(await site.client.connect(), request())
    client = await site.client.connect()
    await ask(client, request())
    await client.send(b"GET / HT")
    assert (await client.answer()).status == 408


@pytest.mark.parametrize("kind", ["tls", "unix"])
async def test_over_tls_and_a_unix_socket(serve, file, tmp_path, kind):
    shop = Shop(file)
    if kind == "tls":
        authority = trustme.CA()
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority.issue_cert("127.0.0.1").configure_cert(server)
        authority.configure_trust(client)
        site = await serve(shop, tls=server)
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=client)
    else:
        site = await serve(shop)
        other = Server(site, [bind(f"unix:{tmp_path}/s")])
        run = asyncio.create_task(other.run())
        reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/s")
    for start_at, end in (0, 1), (5, 10), (1000, 1000 + LENGTH_MAX), (2, 200_000):
        writer.write(ranged(f"{start_at}-{end - 1}"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-range: bytes %d-%d/" % (start_at, end - 1) in head
        assert await reader.readexactly(end - start_at) == BODY[start_at:end]
    assert shop.asked == 1
    writer.close()
    await writer.wait_closed()
    if kind == "unix":
        other.stop()
        await run
