"""The client of the harness, judged by the origin."""

import asyncio
import random
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.harness import Client, Proxy, Truncated, until
from tests.origin import LAST_MODIFIED, Origin, pattern_sha256

BODY = random.Random(1).randbytes(1_000_000)
OTHER = random.Random(2).randbytes(700_000)
SIZE = len(BODY)
WHOLE = f"bytes 0-{SIZE - 1}/{SIZE}"
DATE = formatdate(LAST_MODIFIED, usegmt=True)
EARLIER = formatdate(LAST_MODIFIED - 1, usegmt=True)
LATER = formatdate(LAST_MODIFIED + 1, usegmt=True)
CLIENT_SECONDS = 30


@pytest.fixture
def client(origin: Origin) -> Iterator[Client]:
    client = Client("127.0.0.1", origin.port, timeout=CLIENT_SECONDS)
    yield client
    client.close()


async def test_client_gets_the_bytes_as_they_are(origin: Origin, client: Client) -> None:
    origin.body("/a", BODY).headers(content_encoding="gzip", x_one="1")
    response = await client.get("/a", {"Range": "bytes=0-999"})
    assert (response.status, response.body) == (206, BODY[:1000])
    assert (response.headers["content-encoding"], response.headers["x-one"]) == ("gzip", "1")
    assert b"HTTP/1.1 206 Partial Content\r\n" in response.head
    assert origin.log[0].headers == {"host": f"127.0.0.1:{origin.port}", "range": "bytes=0-999"}


async def test_client_sends_target_and_host_unchanged(origin: Origin, client: Client) -> None:
    await client.get("/a/../%2e%2E//b?x=%zz", {"Host": "elsewhere"})
    await client.get("/", {"host": "nowhere"})
    assert origin.log[0].path == "/a/../%2e%2E//b?x=%zz"
    assert [request.headers["host"] for request in origin.log] == ["elsewhere", "nowhere"]


async def test_client_head_has_no_body(origin: Origin, client: Client) -> None:
    origin.body("/a", BODY)
    response = await client.get("/a", method="HEAD")
    assert (response.headers["content-length"], response.body) == (str(SIZE), b"")


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_client_reads_every_framing(origin: Origin, client: Client, framing: str) -> None:
    resource = origin.body("/a", BODY)
    if framing == "chunked":
        resource.chunked()
    elif framing == "close":
        resource.headers(content_length=None)
    assert (await client.get("/a")).body == BODY
    async with await client.stream("/a") as stream:
        assert await stream.read(10) == BODY[:10]
        assert await stream.read(700_000) == BODY[10:700_010]
        assert await stream.rest() == BODY[700_010:]
        assert stream.received == SIZE


async def test_client_streams_follow_a_stalled_body(origin: Origin, client: Client) -> None:
    origin.body("/a", BODY).stall_at(400_000)
    async with await client.stream("/a") as first, await client.stream("/a") as second:
        assert await first.read(400_000) == await second.read(400_000) == BODY[:400_000]
        rest = asyncio.create_task(first.rest())
        await origin.stalled("/a", n=2)
        assert not rest.done()
        origin.release()
        assert await rest == await second.rest() == BODY[400_000:]


@pytest.mark.parametrize("fault", ["close_at", "reset_at", "chunked_truncated_at"])
async def test_client_says_truncated(origin: Origin, client: Client, fault: str) -> None:
    getattr(origin.body("/a", BODY), fault)(400_000)
    with pytest.raises(Truncated, match="after 400000 of") as caught:
        await client.get("/a")
    assert caught.value.partial == BODY[:400_000]
    async with await client.stream("/a") as stream:
        await stream.read(100_000)
        with pytest.raises(Truncated) as caught:
            await stream.rest()
        assert caught.value.partial == BODY[100_000:400_000]
    async with await client.stream("/a") as stream:
        with pytest.raises(Truncated) as caught:
            await stream.read(400_001)
        assert caught.value.partial == BODY[:400_000]
    with pytest.raises(Truncated):
        await (await client.stream("/a")).sha256()


async def test_client_says_truncated_when_a_body_is_short(origin: Origin, client: Client) -> None:
    origin.body("/a", BODY).short(1)
    with pytest.raises(Truncated) as caught:
        await client.get("/a")
    assert caught.value.partial == BODY


async def test_client_says_truncated_when_a_body_without_length_breaks(origin: Origin, client: Client) -> None:
    origin.body("/a", BODY).headers(content_length=None).reset_at(400_000)
    with pytest.raises(Truncated, match="broke") as caught:
        await client.get("/a")
    assert caught.value.partial == BODY[:400_000]


async def test_client_says_truncated_when_there_is_no_head(origin: Origin, client: Client) -> None:
    origin.body("/a", BODY).delay_headers_until_released()
    response = asyncio.create_task(client.get("/a"))
    await origin.stalled("/a")
    origin.stop()
    with pytest.raises(Truncated, match="within the head"):
        await response


async def test_client_refuses_to_read_beyond_the_body(origin: Origin, client: Client) -> None:
    origin.body("/a", b"0123456789")
    async with await client.stream("/a") as stream:
        with pytest.raises(AssertionError, match="1 bytes before the 11"):
            await stream.read(11)


async def test_client_finds_bytes_after_the_end(origin: Origin, client: Client) -> None:
    origin.body("/a", b"0123456789").headers(content_length="4")
    with pytest.raises(AssertionError, match="after the end of the body: b'456789'"):
        await client.get("/a")


async def test_client_digests_a_big_body(origin: Origin, client: Client) -> None:
    size = 40 * 1024**2 + 3
    origin.pattern("/big.img", size, 9)
    async with await client.stream("/big.img") as stream:
        assert await stream.sha256() == (pattern_sha256(size, 9), size)


async def test_client_drops_a_body_and_counts_it(origin: Origin, client: Client) -> None:
    origin.body("/a", BODY)
    async with await client.stream("/a") as stream:
        await stream.read(1000)
        assert await stream.drain() == SIZE - 1000


async def test_client_wants_a_body_to_break(origin: Origin, client: Client) -> None:
    origin.body("/a", BODY).close_at(400_000, times=1)
    assert await (await client.stream("/a")).broken() == BODY[:400_000]
    with pytest.raises(AssertionError, match="came whole"):
        await (await client.stream("/a")).broken()


async def test_client_reads_no_further_than_asked(origin: Origin, client: Client) -> None:
    size = 256 * 1024**2
    origin.pattern("/big.img", size)
    async with await client.stream("/big.img") as stream:
        await stream.read(1000)
        await origin.happens(lambda: origin.bytes_sent("/big.img") > 0)
    await origin.happens(lambda: origin.log[0].ended)
    assert origin.bytes_sent("/big.img") < size / 4  # no more than the kernel's buffers hold


async def test_client_waits_with_an_end(origin: Origin) -> None:
    origin.body("/a", BODY).stall_at(10)
    client = Client("127.0.0.1", origin.port, timeout=0.1)
    with pytest.raises(AssertionError, match=r"waited 0\.1 s for receiving"):
        await client.get("/a")


async def test_client_close_ends_what_a_test_left_open(origin: Origin, client: Client) -> None:
    origin.body("/a", BODY).stall_at(10)
    await client.stream("/a")
    await origin.stalled("/a")
    client.close()
    await origin.happens(lambda: origin.log[0].ended)


async def test_raw_returns_everything_until_the_end(origin: Origin, client: Client) -> None:
    origin.body("/a", b"one")
    answer = await client.raw(
        b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"\r\n\r\noneHTTP/1.1 404 " in answer
    one = await client.raw(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", close=False)
    assert one.endswith(b"\r\n\r\none")
    assert await client.raw(b"nonsense\r\n\r\n") == b""


async def test_connection_takes_requests_in_pieces_and_in_turn(origin: Origin, client: Client) -> None:
    origin.body("/a", BODY)
    async with await client.connect() as connection:
        await connection.send(b"GET /a HT")
        await connection.send(b"TP/1.1\r\nHost: x\r\n\r\nHEAD /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
        assert await (await connection.answer()).rest() == BODY
        head = await connection.answer("HEAD")
        assert (head.status, await head.rest()) == (200, b"")
        assert (await connection.answer()).status == 404
    assert {request.connection for request in origin.log} == {1}


async def test_until_returns_what_came_true_and_says_what_did_not() -> None:
    values = iter([0, 0, 7])
    assert await until(lambda: next(values)) == 7

    async def never() -> str:
        return ""

    with pytest.raises(AssertionError, match="stayed ''"):
        await until(never, timeout=0.05)


def test_process_that_does_not_start_says_why(tmp_path: Path) -> None:
    proxy = Proxy(tmp_path / "cache", "--no-such-option", mirrors={})
    with pytest.raises(AssertionError, match=r"did not start \(exit code 2\); it said:\n(.|\n)*No such option"):
        proxy.start()
