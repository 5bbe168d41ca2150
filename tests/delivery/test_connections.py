"""Bodies byte for byte, and several requests on one connection."""

import asyncio

import pytest

from tests.delivery.images import (
    BODY,
    MIB,
    READY,
    SEED,
    SIZE,
    SMALL,
    ask,
    assert_is_error,
    http_1_0,
    numbers,
    only,
    small,
)
from tests.harness import Truncated
from tests.origin import pattern_bytes


@pytest.mark.parametrize("stall", [0, 1])
async def test_head_and_bytes_come_as_soon_as_upstream_gives_them(origin, proxy, stall):
    resource = origin.body(f"/soon-{next(numbers)}.img", SMALL).stall_at(stall)
    async with await proxy.stream("/u" + resource.path) as answer:
        assert (answer.status, answer.headers["content-length"]) == (200, str(len(SMALL)))
        assert await answer.read(stall) == SMALL[:stall]
        resource.release()
        assert await answer.rest() == SMALL[stall:]


@pytest.mark.parametrize(
    ("name", "coding"), [("disk.raw.gz", None), ("disk.raw", "gzip"), ("list.json", "br"), ("disk.tar.xz", None)]
)
async def test_nothing_is_decoded_or_encoded(origin, proxy, name, coding):
    resource = origin.body(f"/{next(numbers)}/{name}", SMALL).headers(cache_control="max-age=600")
    resource.headers(content_encoding=coding)
    for _ in range(2):  # filling, and stored
        for accepted in ("gzip, br", "identity", "*;q=0"):
            answer = await proxy.get("/u" + resource.path, {"Accept-Encoding": accepted})
            assert answer.body == SMALL
            assert answer.headers.get("content-encoding") == coding
        part = await proxy.get("/u" + resource.path, {"Range": "bytes=100-199", "Accept-Encoding": "gzip"})
        assert (part.status, part.body, part.headers.get("content-encoding")) == (206, SMALL[100:200], coding)
        await proxy.wait_idle(resource.path)
    assert {request.headers["accept-encoding"] for request in origin.log if request.path == resource.path} == {
        "identity"
    }


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({}, id="200"),
        pytest.param({"Range": "bytes=10-"}, id="206"),
        pytest.param({"Range": f"bytes=0-9,{len(SMALL) - 10}-"}, id="multipart"),
    ],
)
async def test_what_cannot_be_completed_never_ends_clean(origin, proxy, asked, chunked):
    resource = origin.body(f"/broken-{next(numbers)}.img", SMALL).headers(etag=None, last_modified=None)
    resource.stall_at(10_000).close_at(10_000)
    if chunked:
        resource.chunked()
    asking = asyncio.create_task(proxy.get("/u" + resource.path, asked))
    await origin.stalled(resource.path)
    await proxy.wait_readers(1, resource.path)
    resource.release()
    if chunked and asked:
        assert_is_error(await asking, 502)  # no status was sent yet, so an error still can be
    else:
        with pytest.raises(Truncated):
            await asking
    await proxy.wait_idle(resource.path)


@pytest.mark.parametrize("state", ["filling", "stored"])
async def test_a_slow_reader_holds_nobody_up(origin, proxy, state):
    size = 24 * MIB  # more than the kernel buffers for a client that does not read
    resource = origin.pattern(f"/slow-{next(numbers)}.img", size, SEED).headers(cache_control="max-age=600")
    path, body = "/u" + resource.path, pattern_bytes(size, SEED)
    if state == "stored":
        assert (await proxy.get(path)).body == body
        await proxy.wait_idle(resource.path)
    async with await proxy.stream(path) as slow:  # it begins the fill, if there is one
        assert await slow.read(1) == body[:1]
        others = await asyncio.gather(*(proxy.get(path) for _ in range(3)))
        assert all(other.body == body for other in others)
        assert (await proxy.get(path, {"Range": "bytes=-1"})).body == body[-1:]
        await proxy.wait_idle(resource.path)
        assert await slow.rest() == body[1:]
    assert origin.count(resource.path) == 1


@only("filling")
async def test_a_dozen_pipelined_requests_are_answered_in_order(origin, proxy, place):
    growing, whole = await place(), await small(origin, proxy)
    ahead = READY + 100  # near, so it waits for the stalled transfer
    asked = [
        (ask(whole.path), 200, SMALL),
        (ask(whole.path, "Range: bytes=5-9\r\n"), 206, SMALL[5:10]),
        (ask("/u/none.img"), 404, None),
        (ask(whole.path, method="HEAD"), 200, b""),
        (ask(growing.path, "Range: bytes=0-99999\r\n"), 206, BODY[:100_000]),
        (ask(growing.path, f"Range: bytes={ahead}-{ahead + 9}\r\n"), 206, BODY[ahead : ahead + 10]),
        (ask(whole.path, "If-None-Match: *\r\n"), 304, b""),
        (ask(whole.path, "Range: bytes=99999-\r\n"), 416, None),
        (ask("/u/a/../b"), 400, None),
        (ask(whole.path, "If-Match: x\r\n"), 412, None),
        (ask(whole.path, method="POST"), 405, None),
        (ask(growing.path, "Range: bytes=-7\r\n"), 206, BODY[-7:]),
        (ask(growing.path), 200, BODY),
        (ask("/-/healthz"), 200, None),
    ]
    async with await proxy.connect() as connection:
        await connection.send(b"".join(request for request, _, _ in asked))
        for number, (request, status, body) in enumerate(asked):
            answer = await connection.answer(request.partition(b" ")[0].decode())
            assert (number, answer.status) == (number, status)
            if number == 5:
                assert connection.surplus() == b""  # no answer overtakes the one that waits
                growing.resource.release()
            got = await answer.rest()
            assert body is None or got == body
        assert connection.surplus() == b""


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "{}", "Range: bytes=0-9\r\n", 206),
        ("GET", "{}", "Range: bytes=0-9,20-29\r\n", 206),
        ("GET", "{}", "If-None-Match: *\r\n", 304),
        ("GET", "{}", "Range: bytes=99999999-\r\n", 416),
        ("GET", "{}", 'If-Match: "x"\r\n', 412),
        ("HEAD", "{}", "", 200),
        ("GET", "/u/a/%2e%2e/b", "", 400),
        ("GET", "/example.org/x", "", 403),
    ],
)
async def test_the_connection_lives_on(proxy, image, method, path, headers, status):
    async with await proxy.connect() as connection:
        for _ in range(3):
            await connection.send(ask(path.format(image.path), headers, method=method))
            answer = await connection.answer(method)
            assert answer.status == status
            assert "connection" not in answer.headers
            await answer.rest()
            assert connection.surplus() == b""
            await connection.send(ask(image.path, "Range: bytes=100-109\r\n"))
            assert await (await connection.answer()).rest() == BODY[100:110]


async def test_an_http_1_0_client_gets_lengths_and_the_end_of_the_connection(proxy, place):
    image = await place()
    async with await http_1_0(proxy, image.path, "Connection: keep-alive\r\n") as connection:
        answer = await connection.answer()
        assert (answer.status, answer.headers["content-length"]) == (200, str(SIZE))
        assert answer.headers["connection"] == "close"
        assert "transfer-encoding" not in answer.headers
        assert await answer.read(READY) == BODY[:READY]
    for headers, status, body in (
        ("Range: bytes=5-9\r\n", 206, BODY[5:10]),
        ("If-None-Match: *\r\n", 304, b""),
        ("Range: bytes=-9\r\n", 206, BODY[-9:]),
    ):
        async with await http_1_0(proxy, image.path, headers) as connection:
            head, _, received = (await connection.rest()).partition(b"\r\n\r\n")
            assert head.startswith(f"HTTP/1.1 {status} ".encode())
            assert received == body


@only("chunked")
async def test_an_http_1_0_client_gets_no_chunks(proxy, place):
    image = await place()
    async with await http_1_0(proxy, image.path) as connection:
        answer = await connection.answer()
        assert not {"transfer-encoding", "content-length"} & answer.headers.keys()
        assert await answer.read(READY) == BODY[:READY]
        image.resource.release()
        assert await answer.rest() == BODY[READY:]


async def test_an_http_1_0_client_sees_that_a_body_without_length_broke(origin, proxy):
    resource = origin.body(f"/broken-{next(numbers)}.img", SMALL).stall_at(10_000).chunked_truncated_at(10_000)
    async with await http_1_0(proxy, "/u" + resource.path) as connection:
        answer = await connection.answer()
        assert await answer.read(10_000) == SMALL[:10_000]
        resource.release()
        with pytest.raises(Truncated, match="broke"):
            await answer.rest()
