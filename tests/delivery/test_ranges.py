"""Ranges: 206, 416, multipart, and what is ignored."""

import asyncio

import pytest

from tests.delivery.images import (
    BODY,
    ETAG,
    FAR,
    READY,
    SEED,
    SIZE,
    Image,
    ask,
    assert_is_error,
    assert_is_whole,
    byteranges,
    numbers,
    only,
)


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        pytest.param("bytes=0-0", 0, 1, id="first-byte"),
        pytest.param("bytes=1000-99999", 1000, 100_000, id="below-the-watermark"),
        pytest.param(f"bytes=0-{READY - 1}", 0, READY, id="up-to-the-watermark"),
        pytest.param("bytes=0-", 0, SIZE, id="all-of-it-is-206-too"),
        pytest.param("bytes=200000-", 200_000, SIZE, id="open-across-the-watermark"),
        pytest.param(f"bytes=-{9 * SIZE}", 0, SIZE, id="suffix-longer-than-the-body"),
        pytest.param(f"bytes={FAR}-{FAR}", FAR, FAR + 1, id="one-byte-far-ahead"),
        pytest.param("bytes=5000000-5099999", 5_000_000, 5_100_000, id="far-ahead"),
        pytest.param("bytes=6000000-", 6_000_000, SIZE, id="open-far-ahead"),
        pytest.param(f"bytes={SIZE - 1}-{'9' * 30}", SIZE - 1, SIZE, id="clipped-at-the-end"),
        pytest.param("bytes=-1", SIZE - 1, SIZE, id="last-byte"),
        pytest.param("bytes=-70000", SIZE - 70_000, SIZE, id="suffix"),
        pytest.param("Bytes=1-2", 1, 3, id="unit-in-any-case"),
    ],
)
async def test_a_range_is_206_with_exactly_its_bytes(proxy, place, asked, start, end):
    image = await place()
    async with await proxy.stream(image.path, {"Range": asked}) as answer:
        assert answer.status == 206
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
        assert answer.headers["content-length"] == str(end - start)
        stop = image.reach(start, end)
        assert await answer.read(stop - start) == BODY[start:stop]
        if stop == end:
            assert await answer.rest() == b""


@only("filling")
async def test_a_range_far_ahead_comes_over_a_connection_of_its_own(origin, proxy, place):
    image = await place()
    assert (await proxy.get(image.path, {"Range": "bytes=5000000-5000009"})).body == BODY[5_000_000:5_000_010]
    main, ahead = [request for request in origin.log if request.path == image.resource.path]
    assert (main.range, ahead.range) == (None, "bytes=5000000-")
    assert ahead.headers["if-range"] == ETAG
    assert main.connection != ahead.connection
    assert not main.ended


async def test_a_range_of_what_is_not_here_comes_first_and_the_rest_follows(origin, proxy):
    resource = origin.pattern(f"/cold-{next(numbers)}.img", SIZE, SEED).headers(cache_control="max-age=600").stall_at(0)
    image = Image(resource, 0)
    answer = await proxy.get(image.path, {"Range": "bytes=5000000-5000009"})
    assert (answer.status, answer.body) == (206, BODY[5_000_000:5_000_010])
    assert answer.headers["cache-status"] == "fetchonce; fwd=uri-miss; stored"
    resource.release()
    await proxy.wait_idle(image.resource.path)
    whole = await proxy.get(image.path)
    assert (whole.body, whole.headers["cache-status"]) == (BODY, "fetchonce; hit")
    assert [request.range for request in origin.log if request.path == resource.path] == [None, "bytes=5000000-"]


@only("filling")
async def test_a_range_just_ahead_waits_for_the_transfer_that_comes_by(origin, proxy, place):
    image = await place()
    start, end = READY + 10, READY + 20
    async with await proxy.stream(image.path, {"Range": f"bytes={start}-{end - 1}"}) as answer:
        assert (answer.status, answer.headers["content-length"]) == (206, "10")
        image.resource.release()
        assert await answer.rest() == BODY[start:end]
    assert origin.count(image.resource.path) == 1


@only("filling")
async def test_where_upstream_has_no_ranges_a_range_ahead_waits(origin, proxy, place):
    image = await place(accept_ranges=None)
    async with await proxy.stream(image.path, {"Range": "bytes=-10"}) as answer:
        assert (answer.status, answer.headers["content-length"]) == (206, "10")
        assert answer.headers["accept-ranges"] == "bytes"
        image.resource.release()
        assert await answer.rest() == BODY[-10:]
    assert origin.count(image.resource.path) == 1


async def test_an_upstream_that_promises_ranges_and_gives_none_is_not_asked_over_and_over(origin, proxy_factory):
    own = proxy_factory(config_text="[fill]\nretries = 0\n")
    resource = origin.pattern(f"/lie-{next(numbers)}.img", SIZE, SEED).stall_at(READY).ignore_ranges()
    async with await own.stream("/u" + resource.path, {"Range": "bytes=-10"}):
        await origin.requested(2, resource.path)
        with pytest.raises(AssertionError, match="waited"):
            await origin.requested(20, resource.path, timeout=0.5)


async def test_an_upstream_that_promises_ranges_and_gives_none_still_gives_the_whole(origin, proxy_factory):
    own = proxy_factory(config_text="[fill]\nretries = 0\n")
    resource = origin.pattern(f"/lie-{next(numbers)}.img", SIZE, SEED).stall_at(READY).ignore_ranges()
    path = "/u" + resource.path
    async with await own.stream(path) as whole, await own.stream(path, {"Range": "bytes=-10"}) as end:
        await origin.requested(2, resource.path)
        resource.release()
        assert await whole.rest() == BODY
        assert await end.rest() == BODY[-10:]


@pytest.mark.parametrize(
    ("asked", "ranges"),
    [
        pytest.param("0-0,10-19", [(0, 1), (10, 20)], id="rfc9110-14.6"),
        pytest.param("100-199,0-9", [(100, 200), (0, 10)], id="in-the-order-asked"),
        pytest.param("0-9, -5", [(0, 10), (SIZE - 5, SIZE)], id="around-the-watermark"),
        pytest.param(
            "5000000-5000009,0-9,-1", [(5_000_000, 5_000_010), (0, 10), (SIZE - 1, SIZE)], id="far-ahead-first"
        ),
        pytest.param("0-99,50-149", [(0, 100), (50, 150)], id="overlapping"),
        pytest.param("0-9,0-9,0-9", [(0, 10)] * 3, id="three-times-the-same"),
        pytest.param(f"0-9,{SIZE}-,20-29", [(0, 10), (20, 30)], id="one-is-not-there"),
        pytest.param(",".join(f"{n}-{n}" for n in range(256)), [(n, n + 1) for n in range(256)], id="256"),
    ],
)
async def test_several_ranges_are_the_parts_of_a_multipart(proxy, place, asked, ranges):
    image = await place()
    answer = await proxy.get(image.path, {"Range": f"bytes={asked}"})
    assert answer.status == 206
    assert "content-range" not in answer.headers  # RFC 9110 §15.3.7.2
    assert answer.headers["content-length"] == str(len(answer.body))
    assert byteranges(answer) == [
        (f"bytes {start}-{end - 1}/{SIZE}", "application/octet-stream", BODY[start:end]) for start, end in ranges
    ]


async def test_one_range_left_of_several_is_no_multipart(proxy, image):
    answer = await proxy.get(image.path, {"Range": f"bytes={SIZE}-,3-4"})
    assert (answer.status, answer.headers["content-range"], answer.body) == (206, f"bytes 3-4/{SIZE}", BODY[3:5])


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param("bytes=5-2", id="last-before-first"),
        pytest.param("bytes=a-b", id="no-numbers"),
        pytest.param("bytes=0 - 1", id="space-within"),
        pytest.param("bytes=-", id="no-digits"),
        pytest.param("bytes=", id="empty"),
        pytest.param("0-1", id="no-unit"),
        pytest.param("items=0-1", id="another-unit"),
        pytest.param("bytes=0-1,x", id="one-malformed-spoils-all"),
        pytest.param("bytes=" + ",".join(f"{n}-{n}" for n in range(5000)), id="five-thousand"),
        pytest.param("bytes=" + "0-," * 100, id="the-body-a-hundred-times"),
    ],
)
async def test_a_range_that_need_not_be_honoured_is_ignored(proxy, image, asked):
    await assert_is_whole(proxy, image, {"Range": asked})


async def test_two_range_lines_are_ignored(proxy, image):
    async with await proxy.connect() as connection:
        await connection.send(ask(image.path, "Range: bytes=0-1\r\nRange: bytes=4-5\r\n"))
        assert (await connection.answer()).status == 200


@pytest.mark.parametrize(
    "asked", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5},{9 * SIZE}-", "bytes=-0", f"bytes={'9' * 40}-"]
)
async def test_a_range_that_is_not_there_is_416_with_the_length(proxy, image, asked):
    answer = await proxy.get(image.path, {"Range": asked})
    assert_is_error(answer, 416)
    assert answer.headers["content-range"] == f"bytes */{SIZE}"
    assert str(SIZE) in answer.json()["message"]


async def test_range_is_for_get_alone(proxy, image):
    """RFC 9110 §14.2."""
    for asked in ("bytes=0-9", f"bytes={SIZE}-"):
        answer = await proxy.get(image.path, {"Range": asked}, method="HEAD")
        assert (answer.status, answer.headers["content-length"], answer.body) == (200, str(SIZE), b"")


async def test_nothing_is_no_range_of_an_empty_object(origin, proxy):
    image = Image(origin.body(f"/empty-{next(numbers)}.img", b"").headers(cache_control="max-age=600"), 0)
    for _ in range(2):  # filling, and stored
        for method in ("GET", "HEAD"):
            answer = await proxy.get(image.path, method=method)
            assert (answer.status, answer.headers["content-length"], answer.body) == (200, "0", b"")
        answer = await proxy.get(image.path, {"Range": "bytes=0-"})
        assert (answer.status, answer.headers["content-range"]) == (416, "bytes */0")
        assert (await proxy.get(image.path, {"Range": "bytes=-5"})).status == 200
        await proxy.wait_idle(image.resource.path)


@only("chunked")
async def test_a_range_of_unknown_length_waits_for_the_length(proxy, place):
    image = await place()
    asked = {
        "bytes=-10": (206, BODY[-10:]),
        "bytes=0-9": (206, BODY[:10]),
        "bytes=0-0,-1": (206, None),
        f"bytes={SIZE}-": (416, None),
    }
    waiting = {header: asyncio.create_task(proxy.get(image.path, {"Range": header})) for header in asked}
    await proxy.wait_readers(len(asked), image.resource.path)
    image.resource.release()
    for header, (status, body) in asked.items():
        answer = await waiting[header]
        assert answer.status == status
        assert body is None or answer.body == body
    assert (await waiting[f"bytes={SIZE}-"]).headers["content-range"] == f"bytes */{SIZE}"
    assert [part[2] for part in byteranges(await waiting["bytes=0-0,-1"])] == [BODY[:1], BODY[-1:]]


async def test_a_malformed_range_does_not_wait_for_the_length(proxy, standing):
    async with await proxy.stream(standing["chunked"].path, {"Range": "bytes=5-2"}) as answer:
        assert answer.status == 200
        assert await answer.read(READY) == BODY[:READY]
