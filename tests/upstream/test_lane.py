"""Small exchanges over open connections on the event loop: they bring what they bring in a thread, and ask once."""

import asyncio
from dataclasses import replace

import pytest

from proxy.errors import UpstreamError, UpstreamTimeout
from proxy.upstream.client import Started
from proxy.upstream.exchange import Ready
from proxy.upstream.lane import SMALL_BYTES, Lane
from proxy.upstream.location import node
from tests.harness import until
from tests.tracing import needs_strace, traced
from tests.upstream.test_connections import CHUNKED, CONFIRMED, IF_CHANGED, MISSING, MOVED, NEXT, SMALL, WHOLE, tls
from tests.upstream.wire import answer, wire

__all__ = ["tls"]
BIG = bytes(SMALL_BYTES + 1)
PLAIN = {
    "a small body": (WHOLE, "GET", ()),
    "an empty one": (answer("Content-Length: 0"), "GET", ()),
    "the largest": (answer(f"Content-Length: {SMALL_BYTES}", body=BIG[1:]), "GET", ()),
    "304": (CONFIRMED, "GET", IF_CHANGED),
    "404": (MISSING, "GET", ()),
    "no content": (answer(status="204 No Content"), "GET", ()),
    "HEAD": (answer("Content-Length: 99999999"), "HEAD", ()),
    "blanks around values": (answer("Content-Length:  4 \t", "ETag:x ", "X-Empty:", body=b"next"), "GET", ()),
    "no reason": (answer("Content-Length: 4", body=b"next", status="200"), "GET", ()),
    "bytes above ASCII": (answer("Content-Length: 4", "X: \xe4\xff", body=b"next"), "GET", ()),
    "keep-alive": (answer("Content-Length: 4", "Connection: Keep-Alive", body=b"next"), "GET", ()),
}
NOT_PLAIN = {
    "chunks": (CHUNKED, "GET", ()),
    "one byte too many": (answer(f"Content-Length: {len(BIG)}", body=BIG), "GET", ()),
    "a body to the end of the connection": (answer(body=SMALL), "GET", ()),
    "the last one of its connection": (answer("Content-Length: 4", "Connection: close", body=b"next"), "GET", ()),
    "HTTP/1.0": (NEXT.replace(b"1.1", b"1.0", 1), "GET", ()),
    "a blank before a colon": (answer("Content-Length : 4", body=b"next"), "GET", ()),
    "a folded line": (answer("Content-Length: 4", "X: a", "  b", body=b"next"), "GET", ()),
    "a length twice": (answer("Content-Length: 4", "Content-Length: 4", body=b"next"), "GET", ()),
    "a head before the head": (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + NEXT, "GET", ()),
    "more than it says": (NEXT + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", "GET", ()),
    "a HEAD with a body": (NEXT, "HEAD", ()),
    "half a body": (answer("Content-Length: 3000", body=SMALL[:1000]), "GET", ()),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", "GET", ()),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "GET", ()),
}


@pytest.fixture
def with_lane(make_upstream):
    """Makes an Upstream with a lane."""

    def make(*bases, **sections):
        return make_upstream(*bases, lane=Lane(), **sections)

    return make


def all_of(exchange):
    """What an exchange says and brings, or the words of its trouble."""
    body, buffer = b"", memoryview(bytearray(1000))
    with exchange:
        try:
            while exchange.has_body and (count := exchange.read_into(buffer)):
                body += buffer[:count]
        except UpstreamError as error:
            body += error.message.encode()
    fields = tuple(line for line in exchange.headers if line[0] != "content-length")
    return exchange.status, exchange.length, exchange.has_body, exchange.url, exchange.node, fields, body


def opened(upstream, url, method, headers, started=None):
    try:
        return all_of(upstream.resume(started) if started else upstream.open(url, method=method, headers=headers))
    except UpstreamError as error:
        return type(error), error.message


async def first_and_second(upstream, server, method, headers):
    """Have a connection open, and ask for what comes over it next: how far the lane went, and all that came."""
    await asyncio.to_thread(opened, upstream, server.url("/first"), "GET", ())
    found = await upstream.begin(server.url("/x"), method=method, headers=headers)
    match found:
        case Ready():
            return found, all_of(found)
        case Started():
            return found, await asyncio.to_thread(opened, upstream, server.url("/x"), method, headers, found)
    return found, None


@pytest.mark.parametrize("piece", [1 << 20, 700])
@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(("sent", "method", "headers"), (PLAIN | NOT_PLAIN).values(), ids=PLAIN | NOT_PLAIN)
async def test_what_comes_is_what_comes_in_a_thread(
    make_upstream, with_lane, tls, sent, method, headers, is_tls, piece
):
    context, over_tls = tls
    server_tls, settings = (context, over_tls) if is_tls else (None, {"proxy": ""})
    is_plain = (sent, method, headers) in PLAIN.values()
    answers = [WHOLE, sent, *([b""] if is_plain else [])]  # a server that closes at once lets nobody use it again
    with wire(answers, answers, tls=server_tls, piece=piece) as server:
        plain = make_upstream(server.url(), upstream=settings)
        await asyncio.to_thread(opened, plain, server.url("/first"), "GET", ())
        expected = await asyncio.to_thread(opened, plain, server.url("/x"), method, headers)
        found, got = await first_and_second(with_lane(server.url(), upstream=settings), server, method, headers)
        assert got == expected
        assert isinstance(found, Ready if is_plain else Started)
        assert [number for number, _ in server.requests] == [0, 0, 1, 1]
        assert server.requests[1][1] == server.requests[3][1]


EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


@pytest.mark.parametrize("sent", [NEXT + EVIL, CHUNKED + EVIL, CONFIRMED + EVIL], ids=["length", "chunks", "304"])
@pytest.mark.parametrize("is_first", [True, False], ids=["opened for it", "used before"])
async def test_where_more_came_than_was_asked_for_the_connection_ends(with_lane, sent, is_first):
    with wire([*([] if is_first else [WHOLE]), sent, EVIL], [NEXT]) as server:
        upstream = with_lane(server.url())
        for path in ["/x"] if is_first else ["/first", "/x"]:
            started = await upstream.begin(server.url(path))
            await asyncio.to_thread(opened, upstream, server.url(path), "GET", IF_CHANGED, started)
        assert await upstream.begin(server.url("/y")) is None
        assert (await asyncio.to_thread(opened, upstream, server.url("/y"), "GET", ()))[-1] == b"next"
        assert server.requests[-1][0] == 1


async def test_connections_that_nobody_wants_any_more_are_closed(origin, make_upstream):
    origin.body("/first", SMALL)
    lane = Lane(idle_seconds=0.3)
    upstream = make_upstream(lane=lane)
    assert await upstream.begin(origin.url("/first")) is None
    await asyncio.to_thread(opened, upstream, origin.url("/first"), "GET", ())
    ((_, stream),) = lane._idle[node(origin.url())]
    await until(lambda: stream.get_extra_info("socket").fileno() < 0)
    assert await upstream.begin(origin.url("/first")) is None


async def test_redirects_are_followed_in_a_thread(with_lane):
    with wire([WHOLE, MOVED, NEXT, b""]) as server:
        found, got = await first_and_second(with_lane(server.url()), server, "GET", ())
        assert isinstance(found, Started)
        assert (got[3], got[-1]) == (server.url("/x"), b"next")
        assert [line.split()[1] for _, line in server.requests] == ["/first", "/x", "/there"]
        assert {number for number, _ in server.requests} == {0}


async def test_where_upstream_has_closed_the_connection_nothing_was_asked(with_lane):
    with wire([WHOLE, b""], [NEXT]) as server:
        upstream = with_lane(server.url())
        found, _ = await first_and_second(upstream, server, "GET", ())
        assert found is None
        assert (await asyncio.to_thread(opened, upstream, server.url("/x"), "GET", ()))[-1] == b"next"
        assert [number for number, _ in server.requests] == [0, 0, 1]


async def test_who_gives_up_ends_the_connection(origin, with_lane):
    origin.body("/first", SMALL)
    origin.body("/x", SMALL).delay_headers_until_released()
    upstream = with_lane()
    await asyncio.to_thread(opened, upstream, origin.url("/first"), "GET", ())
    asking = asyncio.create_task(upstream.begin(origin.url("/x")))
    await until(lambda: origin.count("/x") == 1)
    asking.cancel()
    assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], asyncio.CancelledError)
    origin.release()
    assert await upstream.begin(origin.url("/first")) is None


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"], ids=["nothing", "half a head"])
async def test_what_was_waited_for_on_the_loop_counts_in_the_thread(with_lane, sent):
    with wire([WHOLE, sent, b""]) as server:
        upstream = with_lane(server.url(), fill={"read_timeout": "1h"})
        await asyncio.to_thread(opened, upstream, server.url("/first"), "GET", ())
        started = await upstream.begin(server.url("/x"))
        began = replace(started.begun, heard_at=started.begun.heard_at - 3600)
        async with asyncio.timeout(20):
            kind, said = await asyncio.to_thread(opened, upstream, "", "GET", (), replace(started, begun=began))
        assert (kind, "did not answer in time" in said) == (UpstreamTimeout, True)


async def test_the_loop_waits_no_longer_than_upstream_may_be_silent(origin, make_upstream):
    origin.body("/first", SMALL)
    origin.body("/x", SMALL).delay_headers_until_released()
    ended = []

    async def ask(seconds):
        lane = Lane()
        await asyncio.to_thread(opened, make_upstream(lane=lane), origin.url("/first"), "GET", ())
        upstream = make_upstream(lane=lane, fill={"read_timeout": seconds})  # to which the first answer may be too slow
        asking.release()
        await both.wait()
        started = await upstream.begin(origin.url("/x"))
        ended.append(seconds)
        started.close()

    asking, both = asyncio.Semaphore(0), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for seconds in ("1h", "100ms"):
            group.create_task(ask(seconds))
        for _ in range(2):
            await asking.acquire()
        both.set()  # both wait from the same turn of the loop on
    assert ended == ["100ms", "1h"]


async def test_what_must_not_stand_in_a_request_is_not_asked(origin, with_lane):
    origin.body("/first", SMALL)
    upstream = with_lane()
    await asyncio.to_thread(opened, upstream, origin.url("/first"), "GET", ())
    for url, headers in (("/x", (("a", "b\r\nc: d"),)), ("/x", (("a b", "c"),)), ("/x", (("a", "\u20ac"),))):
        assert await upstream.begin(origin.url(url), headers=headers) is None
    assert await upstream.begin("http://[/") is None
    assert isinstance(await upstream.begin(origin.url("/first")), Ready)
    assert [request.path for request in origin.log] == ["/first"] * 2


async def test_settings_that_are_replaced_keep_no_connection(origin, with_lane):
    origin.body("/first", SMALL)
    upstream = with_lane()
    for _ in range(2):
        assert await upstream.begin(origin.url("/first")) is None
        await asyncio.to_thread(opened, upstream, origin.url("/first"), "GET", ())
        upstream.leave()
    assert len({request.connection for request in origin.log}) == 2


@needs_strace
async def test_a_small_miss_over_an_open_connection_is_the_event_loop_s_alone(origin, proxy, tmp_path):
    for number in range(20):
        origin.body(f"/{number}.json", b"body %d" % number).headers(cache_control="max-age=600")
    await proxy.get("/u/0.json")
    await proxy.wait_idle()
    with traced(proxy.pid, "connect,recvfrom,sendto", tmp_path / "strace") as calls:
        for number in range(1, 20):
            assert (await proxy.get(f"/u/{number}.json")).body == b"body %d" % number
    asked = [call.thread for call in calls if call.name == "sendto" and '"GET /' in call.text]
    assert asked == [proxy.pid] * 19
    assert not [call for call in calls if call.name == "connect"]
    assert len({request.connection for request in origin.log}) == 1
