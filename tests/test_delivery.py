"""What a client gets, end to end: ranges, preconditions, fields and errors through a real process.

A body is in one of three states. `stored`: whole, on disk. `filling`: READY bytes are there, the transfer stands still,
and upstream honours ranges. `chunked`: the same, but its length is known only at the end. What can be said or sent in
the middle of a fill must be, so a transfer is released only where a test says that somebody has to wait for it.
One process serves them all, each object at a path of its own; a test that stops its process or origin has another.
"""

import asyncio
import contextlib
import email.utils
import functools
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from email import message_from_bytes

import pytest

from proxy.rules.segments import NEAR_BYTES
from tests.harness import Client, Connection, Proxy, Response, Truncated, until
from tests.origin import LAST_MODIFIED, Origin, Pattern, Resource, pattern_bytes

MIB = 1024**2
SIZE, SEED = 6 * MIB, 7
READY = MIB // 4
FAR = READY + NEAR_BYTES + 1
"""From here on a reader does not wait for the transfer that stands at READY."""
BODY = pattern_bytes(SIZE, SEED)
ETAG = Pattern(SIZE, SEED).etag
MODIFIED = email.utils.formatdate(LAST_MODIFIED, usegmt=True)
BEFORE = email.utils.formatdate(LAST_MODIFIED - 1, usegmt=True)
AFTER = email.utils.formatdate(LAST_MODIFIED + 1, usegmt=True)
SMALL = os.urandom(30_000)
PATIENCE_SECONDS = 10.0
NEVER = '[fill]\nread_timeout = "10m"\n'
"""A stalled transfer is not given up: that would mend what a test is to find."""
SAME_EVERYWHERE = ("last-modified", "etag", "accept-ranges", "content-type")

numbers = itertools.count(1)


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        yield origin


@pytest.fixture(scope="module")
def proxy(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Mirrors: `u` the origin, `down` nobody, `half` nobody and then the origin."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen: nobody else gets the port
        down = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
        proxy = Proxy(
            tmp_path_factory.mktemp("delivery") / "cache",
            mirrors={"u": origin.url(), "down": down, "half": f"{down},{origin.url()}"},
            config_text=NEVER,
        )
        proxy.client.timeout = PATIENCE_SECONDS
        with contextlib.closing(proxy):
            yield proxy.start()


@dataclass(frozen=True, slots=True)
class Image:
    """An object of BODY, in its state."""

    resource: Resource
    ready: int
    """Bytes from its beginning that can be had now."""

    @property
    def path(self) -> str:
        return "/u" + self.resource.path

    def reach(self, start: int, end: int) -> int:
        """How far from `start` on a reader of [start, end) gets now."""
        return end if start >= FAR else min(end, self.ready)


@pytest.fixture(scope="module")
def standing(origin: Origin, proxy: Proxy) -> Iterator[dict[str, Image]]:
    """One object in each state, for requests that leave it there."""
    images = {state: asyncio.run(bring(origin, proxy, state)) for state in ("stored", "filling", "chunked")}
    yield images
    for image in images.values():
        image.resource.release()


@pytest.fixture(params=["stored", "filling"])
def image(request: pytest.FixtureRequest, standing: dict[str, Image]) -> Image:
    return standing[request.param]


Place = Callable[..., Awaitable[Image]]


@pytest.fixture(params=["stored", "filling"])
async def place(request: pytest.FixtureRequest, origin: Origin, proxy: Proxy) -> AsyncIterator[Place]:
    """Brings an object of the test's own, with these fields of upstream's, into the state."""
    placed: list[Image] = []

    async def place(**fields: str | None) -> Image:
        placed.append(await bring(origin, proxy, request.param, **fields))
        return placed[-1]

    yield place
    for image in placed:
        image.resource.release()
        await at_rest(proxy, image)


def only(*states: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("place", states, indirect=True)


async def bring(origin: Origin, proxy: Proxy, state: str, **fields: str | None) -> Image:
    resource = origin.pattern(f"/{state}-{next(numbers)}.img", SIZE, SEED).headers(cache_control="max-age=600")
    resource.headers(**fields)
    if state == "chunked":
        resource.chunked()
    if state != "stored":
        resource.stall_at(READY, times=1)
    image = Image(resource, SIZE if state == "stored" else READY)
    async with await proxy.stream(image.path) as first:
        assert await first.read(image.ready) == BODY[: image.ready]
    if state == "stored":
        await at_rest(proxy, image)
    return image


async def small(origin: Origin, proxy: Proxy, **fields: str | None) -> Image:
    """A stored object of SMALL."""
    resource = origin.body(f"/small-{next(numbers)}.img", SMALL).headers(cache_control="max-age=600").headers(**fields)
    image = Image(resource, len(SMALL))
    assert (await proxy.get(image.path)).body == SMALL
    await at_rest(proxy, image)
    return image


async def at_rest(proxy: Proxy, image: Image) -> None:
    """Wait until nobody fills it any more."""

    async def is_over() -> bool:
        return not any(fill["url"].endswith(image.resource.path) for fill in (await proxy.status())["fills"])

    await until(is_over)


# -- ranges ------------------------------------------------------------------------------------------------------------


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
    await at_rest(proxy, image)
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
        await at_rest(proxy, image)


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
    await until(lambda: _readers(proxy, image, len(asked)))
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


# -- the same fields everywhere ----------------------------------------------------------------------------------------


@only("filling")
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="all"),
        pytest.param({"etag": None}, id="no-etag"),
        pytest.param({"etag": 'W/"weak"'}, id="weak-etag"),
        pytest.param(
            {"etag": '"odd ,;=\xe9!"', "last_modified": "Tuesday, 14-Nov-23 22:13:20 GMT"}, id="odd-but-theirs"
        ),
        pytest.param({"etag": "unquoted", "last_modified": "long ago"}, id="malformed-but-theirs"),
        pytest.param({"last_modified": None}, id="no-last-modified"),
        pytest.param({"etag": None, "last_modified": None, "content_type": None}, id="nothing"),
        pytest.param({"accept_ranges": "none", "content_type": "text/plain; charset=latin-1"}, id="no-ranges-upstream"),
    ],
)
async def test_head_200_and_206_say_the_same_during_the_fill_and_after_it(proxy, place, fields):
    image = await place(**fields)
    upstream = {"last_modified": MODIFIED, "etag": ETAG, "content_type": "application/octet-stream"} | fields
    first = await seen(proxy, image)
    assert first["accept-ranges"] == "bytes"
    said = {name: first.get(name.replace("_", "-")) for name in ("last_modified", "etag", "content_type")}
    if upstream["etag"] is None:
        assert re.fullmatch(r'"[!#-~]+"', said.pop("etag"))  # ours, and strong
    assert said.items() <= upstream.items()

    image.resource.release()
    await at_rest(proxy, image)
    assert await seen(proxy, image) == first


@pytest.mark.parametrize("state", ["stored", "partial"])
async def test_our_etag_is_the_same_after_a_restart(origin, proxy_factory, state):
    path = "/restarted.img"
    resource = origin.pattern(path, SIZE, SEED).headers(etag=None, cache_control="max-age=600")
    image = Image(resource, READY)
    own = proxy_factory()
    if state == "partial":
        resource.stall_at(READY, times=1)
    async with await own.stream(image.path) as first:
        etag = first.headers["etag"]
        await first.read(READY)
        if state == "stored":
            await first.rest()
            await at_rest(own, image)
    own.restart()
    after = await own.get(image.path, {"If-Range": etag, "Range": f"bytes={READY}-"})
    assert (after.status, after.headers["etag"]) == (206, etag)
    assert after.body == BODY[READY:]


async def test_our_etag_outlives_a_revalidation_and_ends_with_its_generation(origin, proxy):
    image = await small(origin, proxy, etag=None)
    etag = (await proxy.get(image.path)).headers["etag"]
    again = await proxy.get(image.path, {"Cache-Control": "no-cache"})
    assert again.headers["cache-status"].endswith("fwd-status=304")
    assert again.headers["etag"] == etag
    image.resource.generation(os.urandom(1000))
    new = await proxy.get(image.path, {"Cache-Control": "no-cache"})
    assert new.headers["cache-status"] == "fetchonce; fwd=request; fwd-status=200; stored"
    assert new.headers["etag"] != etag
    other = await small(origin, proxy, etag=None)
    assert (await proxy.get(other.path)).headers["etag"] != etag


@only("chunked")
async def test_without_a_length_everything_else_is_said(proxy, place):
    image = await place()
    for method in ("GET", "HEAD"):
        async with await proxy.stream(image.path, method=method) as answer:
            assert "content-length" not in answer.headers
            assert (answer.headers["etag"], answer.headers["last-modified"]) == (ETAG, MODIFIED)
            assert answer.headers["content-type"] == "application/octet-stream"
    image.resource.release()
    await at_rest(proxy, image)
    stored = await seen(proxy, image)
    assert (stored["content-length"], stored["etag"], stored["last-modified"]) == (str(SIZE), ETAG, MODIFIED)


async def test_ranges_are_announced_without_a_length_too(proxy, standing):
    assert (await proxy.get(standing["chunked"].path, method="HEAD")).headers["accept-ranges"] == "bytes"


async def test_end_to_end_fields_are_handed_on_and_those_of_one_connection_are_not(origin, proxy):
    ours = {"content-disposition": 'attachment; filename="x"', "x-amz-meta-id": "1", "link": "</sig>", "vary": "Accept"}
    theirs = {"set-cookie": "a=b", "connection": "x-hop", "x-hop": "1", "keep-alive": "timeout=5", "alt-svc": "clear"}
    resource = origin.body(f"/fields/{next(numbers)}.img", SMALL).headers(
        ours | theirs | {"cache-control": "max-age=9"}
    )
    for asked in ({"method": "HEAD"}, {}, {"method": "HEAD"}, {"headers": {"Range": "bytes=0-9"}}, {}):
        fields = (await proxy.get("/u" + resource.path, **asked)).headers
        assert {name: fields.get(name) for name in ours} == ours
        assert not theirs.keys() & fields.keys()


async def test_a_cookie_of_upstream_is_not_sent_back(origin, proxy):
    for name in ("first", "second"):
        origin.body(f"/cookies/{name}.img", SMALL).headers(set_cookie="a=b")
        await proxy.get(f"/u/cookies/{name}.img")
    (request,) = [request for request in origin.log if request.path == "/cookies/second.img"]
    assert "cookie" not in request.headers


# -- HEAD --------------------------------------------------------------------------------------------------------------


async def test_head_on_a_miss_asks_upstream_with_head_and_stores_nothing(origin, proxy):
    image = Image(origin.pattern(f"/head-{next(numbers)}.img", SIZE, SEED), 0)
    head = await proxy.get(image.path, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(SIZE)
    assert head.headers["cache-status"] == "fetchonce; fwd=uri-miss"
    assert [request.method for request in origin.log if request.path == image.resource.path] == ["HEAD"]
    assert not any(fill["url"].endswith(image.resource.path) for fill in (await proxy.status())["fills"])
    assert (await proxy.get(image.path, {"Cache-Control": "only-if-cached"})).status == 504

    got = await proxy.get(image.path)
    assert got.headers["cache-status"] == "fetchonce; fwd=uri-miss; stored"
    for name in ("content-length", *SAME_EVERYWHERE):
        assert head.headers[name] == got.headers[name]


async def test_head_on_a_miss_makes_up_no_etag(origin, proxy):
    resource = origin.body(f"/head-{next(numbers)}.img", SMALL).headers(etag=None)
    head = await proxy.get("/u" + resource.path, method="HEAD")
    got = await proxy.get("/u" + resource.path)
    assert head.headers.get("etag") in (None, got.headers["etag"])


async def test_head_on_a_miss_has_a_date(origin, proxy):
    resource = origin.body(f"/head-{next(numbers)}.img", SMALL).headers(date=None)
    assert "date" in (await proxy.get("/u" + resource.path, method="HEAD")).headers


@pytest.mark.parametrize("status", [405, 501, 403])
async def test_an_upstream_that_refuses_head_is_asked_with_get_which_fills(origin, proxy, status):
    resource = origin.body(f"/head-{next(numbers)}.img", SMALL).refuse_head(status).headers(cache_control="max-age=600")
    head = await proxy.get("/u" + resource.path, method="HEAD")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(SMALL)), b"")
    assert head.headers["cache-status"] == "fetchonce; fwd=uri-miss; stored"
    await at_rest(proxy, Image(resource, 0))
    hit = await proxy.get("/u" + resource.path)
    assert (hit.body, hit.headers["cache-status"]) == (SMALL, "fetchonce; hit")
    assert [request.method for request in origin.log if request.path == resource.path] == ["HEAD", "GET"]


async def test_head_of_what_upstream_does_not_have_is_its_404(origin, proxy):
    answer = await proxy.get(f"/u/none-{next(numbers)}.img", method="HEAD")
    assert (answer.status, answer.body) == (404, b"")
    assert int(answer.headers["content-length"]) > 0


async def test_head_joins_a_fill_or_the_store_and_does_not_ask(origin, proxy, image):
    before = origin.count(image.resource.path, None)
    assert (await proxy.get(image.path, method="HEAD")).headers["content-length"] == str(SIZE)
    assert origin.count(image.resource.path, None) == before


# -- preconditions -----------------------------------------------------------------------------------------------------


PRECONDITIONS = {
    "rfc9110-13.1.2-same": ({"If-None-Match": ETAG}, 304),
    "rfc9110-13.1.2-weak-comparison": ({"If-None-Match": f"W/{ETAG}"}, 304),
    "rfc9110-13.1.2-list": ({"If-None-Match": f'"a", {ETAG}, "b"'}, 304),
    "rfc9110-13.1.2-star": ({"If-None-Match": "*"}, 304),
    "rfc9110-13.1.2-other": ({"If-None-Match": '"other"'}, 200),
    "rfc9110-13.1.3-inm-wins": ({"If-None-Match": '"other"', "If-Modified-Since": AFTER}, 200),
    "rfc9110-13.1.3-same": ({"If-Modified-Since": MODIFIED}, 304),
    "rfc9110-13.1.3-after": ({"If-Modified-Since": AFTER}, 304),
    "rfc9110-13.1.3-before": ({"If-Modified-Since": BEFORE}, 200),
    "rfc9110-13.1.3-no-date": ({"If-Modified-Since": "recently"}, 200),
    "rfc9110-13.1.1-same": ({"If-Match": ETAG}, 200),
    "rfc9110-13.1.1-star": ({"If-Match": "*"}, 200),
    "rfc9110-13.1.1-strong-comparison": ({"If-Match": f"W/{ETAG}"}, 412),
    "rfc9110-13.1.1-other": ({"If-Match": '"other"'}, 412),
    "rfc9110-13.2.2-if-match-first": ({"If-Match": '"other"', "If-None-Match": ETAG}, 412),
    "rfc9110-13.1.4-if-match-wins": ({"If-Match": ETAG, "If-Unmodified-Since": BEFORE}, 200),
    "rfc9110-13.1.4-same": ({"If-Unmodified-Since": MODIFIED}, 200),
    "rfc9110-13.1.4-before": ({"If-Unmodified-Since": BEFORE}, 412),
    "rfc9110-13.2.2-before-range": ({"If-None-Match": ETAG, "Range": "bytes=0-9"}, 304),
    "rfc9110-13.2.2-before-416": ({"If-Match": '"other"', "Range": f"bytes={SIZE}-"}, 412),
    "rfc9110-13.2.2-then-range": ({"If-Match": ETAG, "Range": "bytes=0-9"}, 206),
    "rfc9110-13.1.5-tag": ({"If-Range": ETAG, "Range": "bytes=0-9"}, 206),
    "rfc9110-13.1.5-date": ({"If-Range": MODIFIED, "Range": "bytes=0-9"}, 206),
    "rfc9110-13.1.5-other-tag": ({"If-Range": '"other"', "Range": "bytes=0-9"}, 200),
    "rfc9110-13.1.5-weak-tag": ({"If-Range": f"W/{ETAG}", "Range": "bytes=0-9"}, 200),
    "rfc9110-13.1.5-other-date": ({"If-Range": AFTER, "Range": "bytes=0-9"}, 200),
    "rfc9110-13.1.5-no-date": ({"If-Range": "recently", "Range": "bytes=0-9"}, 200),
    "rfc9110-13.1.5-instead-of-416": ({"If-Range": '"other"', "Range": f"bytes={SIZE}-"}, 200),
    "rfc9110-13.1.5-416": ({"If-Range": ETAG, "Range": f"bytes={SIZE}-"}, 416),
    "rfc9110-13.1.5-without-range": ({"If-Range": ETAG}, 200),
}


@pytest.mark.parametrize(
    ("state", "asked", "status"),
    [
        pytest.param(state, asked, status, id=f"{state}-{name}")
        for state in ("stored", "filling", "chunked")
        for name, (asked, status) in PRECONDITIONS.items()
        if state != "chunked" or status not in (206, 416)  # these wait for the length
    ],
)
async def test_preconditions(proxy, standing, state, asked, status):
    image = standing[state]
    for method in ("GET", "HEAD"):
        expected = status if method == "GET" or status not in (206, 416) else 200  # Range is for GET (§14.2)
        async with await proxy.stream(image.path, asked, method=method) as answer:
            assert answer.status == expected
            match expected:
                case 304:
                    assert (answer.headers["etag"], answer.headers["last-modified"]) == (ETAG, MODIFIED)
                    assert answer.headers["cache-control"] == "max-age=600"
                    assert "date" in answer.headers
                    assert not {"content-length", "content-type", "transfer-encoding"} & answer.headers.keys()
                case 200 if method == "GET":
                    assert await answer.read(100) == BODY[:100]
                case 206:
                    assert await answer.rest() == BODY[:10]
                case 412 if method == "GET":
                    assert set(json.loads(await answer.rest())) == {"message"}


@pytest.mark.parametrize(
    ("fields", "condition"),
    [
        pytest.param({"etag": 'W/"weak"'}, 'W/"weak"', id="weak-tag"),
        pytest.param({"date": MODIFIED}, MODIFIED, id="date-as-young-as-the-answer"),
    ],
)
async def test_if_range_with_a_weak_validator_gives_the_whole(proxy, place, fields, condition):
    """RFC 9110 §13.1.5, §8.8.2.2."""
    image = await place(**fields)
    await assert_is_whole(proxy, image, {"Range": "bytes=0-9", "If-Range": condition})


async def test_preconditions_know_our_own_etag(proxy, place):
    image = await place(etag=None)
    etag = (await proxy.get(image.path, method="HEAD")).headers["etag"]
    assert (await proxy.get(image.path, {"If-None-Match": etag})).status == 304
    assert (await proxy.get(image.path, {"If-Match": etag, "Range": "bytes=0-9"})).body == BODY[:10]
    assert (await proxy.get(image.path, {"If-Range": etag, "Range": "bytes=0-9"})).status == 206
    assert (await proxy.get(image.path, {"If-Match": ETAG})).status == 412


async def test_a_condition_of_the_client_stays_here_and_fills_nevertheless(origin, proxy):
    resource = origin.body(f"/new-{next(numbers)}.img", SMALL).headers(cache_control="max-age=600")
    asked = {
        "If-Modified-Since": AFTER,
        "Range": "bytes=0-9",
        "If-Range": MODIFIED,
        "Cookie": "x",
    }
    assert (await proxy.get("/u" + resource.path, asked)).status == 304
    await at_rest(proxy, Image(resource, 0))
    (request,) = [request for request in origin.log if request.path == resource.path]
    assert request.status == 200
    assert not {name.lower() for name in asked} & request.headers.keys()
    assert (await proxy.get("/u" + resource.path)).headers["cache-status"] == "fetchonce; hit"


async def test_a_304_names_its_content_location(origin, proxy):
    image = await small(origin, proxy, content_location="/there.img")
    assert (await proxy.get(image.path, {"If-None-Match": "*"})).headers["content-location"] == "/there.img"


# -- bytes -------------------------------------------------------------------------------------------------------------


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
        await at_rest(proxy, Image(resource, 0))
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
    await until(lambda: _readers(proxy, Image(resource, 0), 1))
    resource.release()
    if chunked and asked:
        assert_is_error(await asking, 502)  # nothing was said yet: it can still be told
    else:
        with pytest.raises(Truncated):
            await asking
    await at_rest(proxy, Image(resource, 0))


@pytest.mark.parametrize("state", ["filling", "stored"])
async def test_a_slow_reader_holds_nobody_up(origin, proxy, state):
    size = 24 * MIB  # more than the kernel takes for a client that does not read
    resource = origin.pattern(f"/slow-{next(numbers)}.img", size, SEED).headers(cache_control="max-age=600")
    path, body = "/u" + resource.path, pattern_bytes(size, SEED)
    if state == "stored":
        assert (await proxy.get(path)).body == body
        await at_rest(proxy, Image(resource, 0))
    async with await proxy.stream(path) as slow:  # the one that makes the fill, if there is one
        assert await slow.read(1) == body[:1]
        others = await asyncio.gather(*(proxy.get(path) for _ in range(3)))
        assert all(other.body == body for other in others)
        assert (await proxy.get(path, {"Range": "bytes=-1"})).body == body[-1:]
        await at_rest(proxy, Image(resource, 0))
        assert await slow.rest() == body[1:]
    assert origin.count(resource.path) == 1


# -- what the cache says of itself -------------------------------------------------------------------------------------


async def test_cache_status_age_and_via_on_every_kind_of_answer(origin, proxy):
    resource = origin.body(f"/said-{next(numbers)}.img", SMALL)
    resource.headers(cache_control="max-age=600", age="100", via="1.1 theirs").stall_at(1000)
    path = "/u" + resource.path

    async def said(expected: str, headers=None, *, method="GET", status=200, age=100):
        async with await proxy.stream(path, headers, method=method) as answer:
            assert answer.status == status
            assert answer.headers["cache-status"] == f"fetchonce; {expected}"
            assert age <= int(answer.headers["age"]) <= age + 10
            if status < 400:
                assert answer.headers["via"] == "1.1 theirs, 1.1 fetchonce"

    await said("fwd=uri-miss", method="HEAD")
    await said("fwd=uri-miss; stored")
    await said("fwd=uri-miss; collapsed")
    await said("fwd=uri-miss; collapsed", method="HEAD")
    await said("fwd=uri-miss; collapsed", {"Range": "bytes=0-9"}, status=206)
    await said("fwd=uri-miss; collapsed", {"If-None-Match": "*"}, status=304)
    await said("fwd=uri-miss; collapsed", {"Range": "bytes=90000-"}, status=416)
    resource.release()
    await at_rest(proxy, Image(resource, 0))
    await said("hit")
    await said("hit", method="HEAD")
    await said("hit", {"Range": "bytes=0-9"}, status=206)
    await said("hit", {"Range": "bytes=0-0,5-5"}, status=206)
    await said("hit", {"If-None-Match": "*"}, status=304)
    await said("hit", {"Range": "bytes=90000-"}, status=416)

    resource.headers(cache_control="max-age=0", age="3")
    await proxy.get(path, {"Cache-Control": "no-cache"})  # from now on it is stale
    await said("fwd=stale; fwd-status=304", age=3)
    await said("fwd=stale; fwd-status=304", {"Range": "bytes=0-9"}, status=206, age=3)
    await said("fwd=stale; fwd-status=304", {"If-None-Match": "*"}, status=304, age=3)
    resource.status(503, times=1)
    await said("fwd=stale; fwd-status=503", age=3)
    resource.generation(os.urandom(1000))
    # The failure is remembered; who insists asks all the same.
    await said("fwd=stale; fwd-status=200; stored", {"Cache-Control": "no-cache"}, age=3)


async def test_cache_status_of_a_stale_answer_without_upstream(proxy_factory):
    with Origin() as origin:
        own = proxy_factory(mirrors={"u": origin.url()})
        image = await small(origin, own, cache_control="max-age=0")
    stale = await own.get(image.path)
    assert (stale.status, stale.body) == (200, SMALL)
    assert stale.headers["cache-status"].startswith("fetchonce; fwd=stale")


async def test_an_answer_that_may_not_be_stored_says_so(origin, proxy):
    resource = origin.body(f"/token-{next(numbers)}", SMALL).headers(cache_control="no-store")
    for _ in range(2):
        assert (await proxy.get("/u" + resource.path)).headers["cache-status"] == "fetchonce; fwd=uri-miss; stored=?0"
        await at_rest(proxy, Image(resource, 0))
    assert origin.count(resource.path) == 2


async def test_a_second_reader_does_not_make_it_storable(origin, proxy):
    resource = origin.body(f"/token-{next(numbers)}", SMALL).headers(cache_control="private").stall_at(1000)
    async with await proxy.stream("/u" + resource.path), await proxy.stream("/u" + resource.path):
        resource.release()
        await at_rest(proxy, Image(resource, 0))
    answer = await proxy.get("/u" + resource.path, {"Cache-Control": "only-if-cached"})
    assert answer.status == 504


async def test_a_fresh_entry_that_the_request_does_not_accept_is_not_called_stale(origin, proxy):
    image = await small(origin, proxy)
    answer = await proxy.get(image.path, {"Cache-Control": "no-cache"})
    assert answer.headers["cache-status"] == "fetchonce; fwd=request; fwd-status=304"


async def test_a_request_that_we_refuse_is_not_said_to_be_forwarded(origin, proxy):
    image = await small(origin, proxy)
    for answer in (
        await proxy.get("/u/a/../b"),
        await proxy.get("/example.org/x"),
        await proxy.get(image.path, method="DELETE"),
        await proxy.get(image.path, {"If-Match": '"other"'}),
    ):
        assert answer.status in (400, 403, 405, 412)
        assert "fwd" not in answer.headers["cache-status"]


async def test_a_stale_entry_that_upstream_has_no_more_is_not_called_a_miss(origin, proxy):
    image = await small(origin, proxy)
    image.resource.status(404)
    answer = await proxy.get(image.path, {"Cache-Control": "no-cache"})
    assert answer.status == 404
    assert "fwd=uri-miss" not in answer.headers["cache-status"]


async def test_what_is_refused_before_it_is_read_has_cache_status_and_date(proxy):
    head, _, _ = (await proxy.raw(ask("/u/a b"), close=False)).lower().partition(b"\r\n\r\n")
    assert b"\r\ncache-status: fetchonce" in head
    assert b"\r\ndate: " in head


@only("filling")
async def test_a_body_grows_older_while_it_fills(proxy, place):
    image = await place(age="100")

    async def age() -> int:
        return int((await proxy.get(image.path, method="HEAD")).headers["age"])

    async def is_older() -> bool:
        return await age() > 100

    await until(is_older, timeout=2)
    image.resource.release()
    await at_rest(proxy, image)
    assert await age() > 100


@pytest.mark.parametrize(
    ("asked", "is_asked"),
    [
        pytest.param({}, False, id="nothing"),
        pytest.param({"Cache-Control": "no-cache"}, True, id="rfc9111-5.2.1.4-no-cache"),
        pytest.param({"Cache-Control": "No-Cache"}, True, id="rfc9111-5.2-any-case"),
        pytest.param({"Cache-Control": 'x="a, b", no-cache'}, True, id="rfc9111-5.2-in-a-list"),
        pytest.param({"Cache-Control": 'x="no-cache"'}, False, id="rfc9111-5.2-in-quotes"),
        pytest.param({"Pragma": "no-cache"}, True, id="rfc9111-5.4-pragma"),
        pytest.param({"Pragma": "no-cache", "Cache-Control": "max-age=900"}, False, id="rfc9111-5.4-pragma-is-second"),
        pytest.param({"Cache-Control": "max-age=0"}, True, id="rfc9111-5.2.1.1-max-age-0"),
        pytest.param({"Cache-Control": 'max-age="0"'}, True, id="rfc9111-5.2-quoted"),
        pytest.param({"Cache-Control": "max-age=50"}, True, id="rfc9111-5.2.1.1-younger-than-it-is"),
        pytest.param({"Cache-Control": "max-age=500"}, False, id="rfc9111-5.2.1.1-old-enough"),
        pytest.param({"Cache-Control": "max-age=soon"}, True, id="rfc9111-4.2.1-malformed-is-stale"),
        pytest.param({"Cache-Control": "no-store"}, False, id="rfc9111-5.2.1.5-what-is-stored-is-served"),
        pytest.param({"Cache-Control": "only-if-cached"}, False, id="rfc9111-5.2.1.7-cached"),
    ],
)
async def test_request_cache_control(origin, proxy, asked, is_asked):
    image = await small(origin, proxy, age="100")
    for _ in range(2):
        before = origin.count(image.resource.path)
        answer = await proxy.get(image.path, asked)
        assert (answer.status, answer.body) == (200, SMALL)
        assert origin.count(image.resource.path) - before == is_asked


@pytest.mark.parametrize("asked", ["only-if-cached", "only-if-cached, max-age=5", "no-cache, only-if-cached"])
async def test_only_if_cached_is_504_where_upstream_would_be_asked(origin, proxy, asked):
    path = f"/u/none-{next(numbers)}.img"
    if asked != "only-if-cached":
        path = (await small(origin, proxy, age="100")).path
    before = origin.requests
    for method in ("GET", "HEAD"):
        answer = await proxy.get(path, {"Cache-Control": asked}, method=method)
        assert answer.status == 504
    assert origin.requests == before


async def test_no_store_of_the_request_keeps_nothing(origin, proxy):
    resource = origin.body(f"/unkept-{next(numbers)}.img", SMALL).headers(cache_control="max-age=600")
    answer = await proxy.get("/u" + resource.path, {"Cache-Control": "no-store"})
    assert (answer.body, answer.headers["cache-status"]) == (SMALL, "fetchonce; fwd=uri-miss; stored=?0")
    await at_rest(proxy, Image(resource, 0))
    assert (await proxy.get("/u" + resource.path, {"Cache-Control": "only-if-cached"})).status == 504


async def test_no_store_of_one_client_is_not_that_of_another(origin, proxy):
    resource = origin.body(f"/kept-{next(numbers)}.img", SMALL).headers(cache_control="max-age=600").stall_at(1000)
    path = "/u" + resource.path
    async with await proxy.stream(path, {"Cache-Control": "no-store"}), await proxy.stream(path):
        resource.release()
        await at_rest(proxy, Image(resource, 0))
    assert (await proxy.get(path, {"Cache-Control": "only-if-cached"})).body == SMALL


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "headers", "status", "words"),
    [
        pytest.param("/u/a/../b.img", {}, 400, ["segment"], id="400-dot-segment"),
        pytest.param("/example.org/x.img", {}, 403, ["example.org", "--allow", "[[mirror]]"], id="403-unknown-host"),
        pytest.param("/v/x.img", {}, 403, ['"v"', "[[mirror]]"], id="403-unknown-name"),
        pytest.param("/u/none.img", {}, 404, ["http://127.0.0.1:", "/none.img", "404"], id="404"),
        pytest.param("/u/gone.img", {}, 410, ["/gone.img", "removed"], id="410"),
        pytest.param("/u/teapot.img", {}, 418, ["/teapot.img", "418"], id="another-4xx"),
        pytest.param("/u/here.img", {"If-Match": '"other"'}, 412, ["precondition"], id="412"),
        pytest.param("/u/limited.img", {}, 429, ["/limited.img", "wait"], id="429"),
        pytest.param("/u/failing.img", {}, 502, ["/failing.img", "500"], id="502-upstream-500"),
        pytest.param("/down/x.img", {}, 502, ["refused", "/x.img"], id="502-refused"),
        pytest.param("/u/loop.img", {}, 502, ["/loop.img", "redirects"], id="502-redirect-loop"),
        pytest.param("/u/ftp.img", {}, 502, ["/ftp.img", "ftp://"], id="502-redirect-elsewhere"),
        pytest.param("/u/busy.img", {}, 503, ["/busy.img", "again"], id="503"),
        pytest.param("/u/x.img", {"Cache-Control": "only-if-cached"}, 504, ["/x.img", "only-if-cached"], id="504"),
    ],
)
async def test_errors_are_json_that_says_what_happened(origin, proxy, method, path, headers, status, words):
    origin.body("/here.img", SMALL)
    for name, code in {"gone": 410, "teapot": 418, "failing": 500}.items():
        origin.body(f"/{name}.img", b"").status(code, body=b"<h1>no</h1>")
    origin.body("/limited.img", b"").status(429, {"Retry-After": "9"})
    origin.body("/busy.img", b"").status(503, {"Retry-After": "9"})
    origin.body("/loop.img", b"").redirect("/loop.img")
    origin.body("/ftp.img", b"").redirect("ftp://127.0.0.1/x")
    async with await proxy.connect() as connection:
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        for _ in range(2):  # an error does not end the connection
            await connection.send(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode())
            answer = await connection.answer(method)
            response = Response(answer.status, answer.headers, await answer.rest(), answer.head)
            if method == "HEAD":
                assert (response.status, response.body) == (status, b"")
                response = await proxy.get(path, headers)
                assert int(answer.headers["content-length"]) > 0
            assert_is_error(response, status)
            for word in words:
                assert word in response.json()["message"]
            assert response.headers.get("retry-after") == ("9" if status in (429, 503) else None)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [201, 203, 204, 206, 300, 304])
async def test_an_answer_of_upstream_that_is_neither_the_body_nor_an_error_is_502(origin, proxy, status, method):
    resource = origin.body(f"/odd-{next(numbers)}.img", b"").status(status)
    assert (await proxy.get("/u" + resource.path, method=method)).status == 502


async def test_head_and_get_fail_alike_where_several_upstreams_fail_differently(proxy):
    path = f"/half/none-{next(numbers)}.img"
    assert (await proxy.get(path)).status == 404
    assert (await proxy.get(path, method="HEAD")).status == 404


async def test_silence_of_upstream_is_504(origin, proxy_factory):
    own = proxy_factory(config_text='[fill]\nread_timeout = "100ms"\n')
    resource = origin.body(f"/silent-{next(numbers)}.img", SMALL).delay_headers_until_released()
    answer = await own.get("/u" + resource.path)
    resource.release()
    assert_is_error(answer, 504)
    assert resource.path in answer.json()["message"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
async def test_other_methods_are_405_with_allow(origin, proxy, method):
    image = await small(origin, proxy)
    before = origin.requests
    async with await proxy.connect() as connection:
        body = b"GET /u/smuggled HTTP/1.1\r\nHost: x\r\n\r\n" if method in ("POST", "PUT", "PATCH") else b""
        head = f"{method} {image.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        await connection.send(head.encode() + body + ask(image.path))
        refused = await connection.answer(method)
        assert_is_error(Response(refused.status, refused.headers, await refused.rest(), refused.head), 405)
        assert refused.headers["allow"] == "GET, HEAD"
        after = await connection.answer()
        assert (after.status, await after.rest()) == (200, SMALL)
    assert origin.requests == before


async def test_connect_is_405_and_told_what_to_do_instead(proxy):
    answer = await proxy.get("example.org:443", method="CONNECT")
    assert_is_error(answer, 405)
    assert answer.headers["allow"] == "GET, HEAD"
    assert "https://" in answer.json()["message"]
    assert f"by {proxy.url()} in the URL" in answer.json()["message"]


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(target, id=target.decode("latin-1").encode("unicode_escape").decode()[:40])
        for target in (
            b"/u/../x",
            b"/u/..",
            b"/../etc/passwd",
            b"/u/./x",
            b"/u/a/%2e%2e/x",
            b"/u/a/.%2E/x",
            b"/u/a%2f..%2fx",
            b"/u/a/%252e%252e/x",
            b"/u/a/%25252e%25252e%25252fx",
            b"/%2e%2e/u/x",
            b"/" + b"u/%" + b"25" * 20 + b"2e",
            b"/u/a\0b",
            b"/u/a%00b",
            b"/u/a%2500b",
            b"/u/a\\..\\b",
            b"/u/a%5c..%5cb",
            b"/u/a%255Cb",
            b"/u/a%0d%0aSet-Cookie:x",
            b"/u/a%0dx",
            b"/u/a%250a",
            b"/u/a b",
            b"/u/a\tb",
            b"/u/x#fragment",
            b"/u/x?a#b",
            b"/u/caf\xc3\xa9",
            b"u/x",
            b"*",
            b"",
            b"//x",
            b"http://",
            b"ftp://example.org/x",
            b"http://user:pass@127.0.0.1/x",
            b"/user@127.0.0.1/x",
            b"/127.0.0.1:99999/x",
            b"/http/",
            b"/v2/x",
            b"/sha256:00/x",
            b"/u/" + b"a" * 20_000,
        )
    ],
)
async def test_a_bad_target_is_400_and_the_next_one_is_served(origin, proxy, target):
    before = origin.requests
    request = b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head, _, body = (await proxy.raw(request, close=False)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head.lower()
    assert set(json.loads(body)) == {"message"}
    assert origin.requests == before
    assert (await proxy.get("/-/healthz")).status == 200


# -- connections -------------------------------------------------------------------------------------------------------


def ask(path: str, headers: str = "", *, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()


@only("filling")
async def test_a_dozen_pipelined_requests_are_answered_in_order(origin, proxy, place):
    growing, whole = await place(), await small(origin, proxy)
    ahead = READY + 100  # near: it waits for the transfer that stands still
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
                assert connection.surplus() == b""  # nobody overtakes the one that waits
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


# -- beside nginx ------------------------------------------------------------------------------------------------------

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
NGINX_CONF = """
daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off; default_type application/octet-stream; if_modified_since before; etag on;
    client_body_temp_path {root}/a; proxy_temp_path {root}/b; fastcgi_temp_path {root}/c;
    uwsgi_temp_path {root}/d; scgi_temp_path {root}/e;
    server {{ listen 127.0.0.1:{port} reuseport; root {root}/tree; }}
}}
"""
THERE = os.urandom(300_000)


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """nginx with THERE at /disk.img."""
    if not NGINX:
        pytest.skip("nginx is not installed")
    root = tmp_path_factory.mktemp("nginx")
    (root / "tree").mkdir()
    (root / "tree" / "disk.img").write_bytes(THERE)
    os.utime(root / "tree" / "disk.img", (LAST_MODIFIED, LAST_MODIFIED))
    with socket.socket() as ours:
        # Bound and not listening, it keeps the port for nginx, whose socket has SO_REUSEPORT too.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("127.0.0.1", 0))
        port = ours.getsockname()[1]
        (root / "nginx.conf").write_text(NGINX_CONF.format(root=root, port=port))
        command = [NGINX, "-p", str(root), "-c", "nginx.conf", "-e", str(root / "error.log")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        client = Client("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        try:
            asyncio.run(until(functools.partial(_listens, port)))
            yield client
        finally:
            client.close()
            process.terminate()
            _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def before_nginx(nginx: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """fetchonce in front of it, so that both speak of the same ETag."""
    proxy = Proxy(tmp_path_factory.mktemp("before") / "cache", mirrors={"n": f"http://127.0.0.1:{nginx.port}/"})
    proxy.client.timeout = PATIENCE_SECONDS
    with contextlib.closing(proxy):
        yield proxy.start()


L = len(THERE)
AGREED = {
    "whole": {},
    "first-byte": {"Range": "bytes=0-0"},
    "all": {"Range": "bytes=0-"},
    "middle": {"Range": "bytes=1000-199999"},
    "last-byte": {"Range": f"bytes={L - 1}-"},
    "clipped": {"Range": f"bytes=299000-{L + 1000}"},
    "suffix": {"Range": "bytes=-5000"},
    "long-suffix": {"Range": f"bytes=-{L + 1}"},
    "unit-in-any-case": {"Range": "BYTES=0-9"},
    "another-unit": {"Range": "items=0-9"},
    "no-unit": {"Range": "0-9"},
    "past-the-end": {"Range": f"bytes={L}-"},
    "far-past-the-end": {"Range": "bytes=9000000-9000001"},
    "suffix-0": {"Range": "bytes=-0"},
    "two": {"Range": "bytes=0-9,100-199"},
    "two-with-space": {"Range": "bytes=0-9 , 100-199"},
    "backwards": {"Range": "bytes=100-199,0-9"},
    "with-suffix": {"Range": "bytes=0-9,-10"},
    "overlapping": {"Range": "bytes=0-99,50-149"},
    "twice": {"Range": "bytes=7-8,7-8"},
    "one-past-the-end": {"Range": f"bytes=1-9,{L}-"},
    "more-than-there-is": {"Range": f"bytes=1-,1-{L - 1}"},
    "inm-same": {"If-None-Match": "{etag}"},
    "inm-weak": {"If-None-Match": "W/{etag}"},
    "inm-list": {"If-None-Match": '"x", {etag}'},
    "inm-star": {"If-None-Match": "*"},
    "inm-other": {"If-None-Match": '"x"'},
    "inm-and-range": {"If-None-Match": "{etag}", "Range": "bytes=0-9"},
    "inm-other-and-range": {"If-None-Match": '"x"', "Range": "bytes=0-9"},
    "ims-same": {"If-Modified-Since": MODIFIED},
    "ims-after": {"If-Modified-Since": AFTER},
    "ims-before": {"If-Modified-Since": BEFORE},
    "ims-rfc850": {"If-Modified-Since": "Tuesday, 14-Nov-23 22:13:20 GMT"},
    "ims-asctime": {"If-Modified-Since": "Tue Nov 14 22:13:20 2023"},
    "ims-no-date": {"If-Modified-Since": "x"},
    "im-same": {"If-Match": "{etag}"},
    "im-weak": {"If-Match": "W/{etag}"},
    "im-list": {"If-Match": '"x", {etag}'},
    "im-star": {"If-Match": "*"},
    "im-other": {"If-Match": '"x"'},
    "im-and-range": {"If-Match": "{etag}", "Range": "bytes=0-9"},
    "im-other-and-inm": {"If-Match": '"x"', "If-None-Match": "{etag}"},
    "ius-same": {"If-Unmodified-Since": MODIFIED},
    "ius-before": {"If-Unmodified-Since": BEFORE},
    "ius-after": {"If-Unmodified-Since": AFTER},
    "if-range-tag": {"If-Range": "{etag}", "Range": "bytes=0-9"},
    "if-range-date": {"If-Range": MODIFIED, "Range": "bytes=0-9"},
    "if-range-other-tag": {"If-Range": '"x"', "Range": "bytes=0-9"},
    "if-range-weak-tag": {"If-Range": "W/{etag}", "Range": "bytes=0-9"},
    "if-range-before": {"If-Range": BEFORE, "Range": "bytes=0-9"},
    "if-range-after": {"If-Range": AFTER, "Range": "bytes=0-9"},
    "if-range-two-ranges": {"If-Range": "{etag}", "Range": "bytes=0-9,20-29"},
    "if-range-past-the-end": {"If-Range": "{etag}", "Range": f"bytes={L}-"},
    "if-range-other-past-the-end": {"If-Range": '"x"', "Range": f"bytes={L}-"},
}
DIFFERENT = {
    # RFC 9110 §14.2: an invalid ranges-specifier may be ignored or refused. nginx refuses; a client that cannot write
    # a Range is better off with the whole body than with an error.
    "last-before-first": ({"Range": "bytes=5-2"}, 416, 200),
    "no-digits": ({"Range": "bytes=-"}, 416, 200),
    "no-numbers": ({"Range": "bytes=a-b"}, 416, 200),
    # §5.6.1.2: empty members of a list are to be taken. nginx takes no list without a number.
    "empty-member": ({"Range": "bytes=,0-9"}, 416, 206),
    # §14.1.2: an end past the body is its end, however large. nginx refuses what does not fit into 63 bits.
    "large-number": ({"Range": "bytes=0-99999999999999999999"}, 416, 206),
    # §13.1.3, §13.2.2: with an If-None-Match the date is not looked at. nginx wants both to hold.
    "inm-before-ims": ({"If-None-Match": "{etag}", "If-Modified-Since": BEFORE}, 200, 304),
    # §13.1.4, §13.2.2: the same of If-Match and If-Unmodified-Since.
    "im-before-ius": ({"If-Match": "{etag}", "If-Unmodified-Since": BEFORE}, 412, 200),
}


@pytest.mark.parametrize("asked", AGREED.values(), ids=AGREED.keys())
async def test_nginx_answers_the_same(nginx, before_nginx, asked):
    etag = (await nginx.get("/disk.img", method="HEAD")).headers["etag"]
    headers = {name: value.replace("{etag}", etag) for name, value in asked.items()}
    theirs = await nginx.get("/disk.img", headers)
    query = f"?{next(numbers)}"  # another object to us, the same to nginx
    for state in ("filling", "stored"):
        ours = await before_nginx.get("/n/disk.img" + query, headers)
        assert (state, ours.status) == (state, theirs.status)
        assert ours.headers.get("content-range") == theirs.headers.get("content-range")
        if ours.status < 400:
            for name in ("etag", "last-modified", "accept-ranges"):
                # nginx leaves Accept-Ranges out of a 304, and versions of it out of a 206; it is no lie there.
                assert ours.headers.get(name) == theirs.headers.get(name) or name not in theirs.headers
        if ours.headers.get("content-type", "").startswith("multipart/"):
            assert byteranges(ours) == byteranges(theirs)  # their boundary has another length, so Content-Length has
        elif ours.status < 400:
            assert ours.body == theirs.body
            for name in ("content-type", "content-length"):
                assert ours.headers.get(name) == theirs.headers.get(name)
        await until(functools.partial(_has_no_fill, before_nginx))


@pytest.mark.parametrize(("asked", "theirs", "ours"), DIFFERENT.values(), ids=DIFFERENT.keys())
async def test_where_nginx_answers_otherwise(nginx, before_nginx, asked, theirs, ours):
    etag = (await nginx.get("/disk.img", method="HEAD")).headers["etag"]
    headers = {name: value.replace("{etag}", etag) for name, value in asked.items()}
    assert (await nginx.get("/disk.img", headers)).status == theirs
    assert (await before_nginx.get("/n/disk.img", headers)).status == ours


async def test_nginx_answers_head_with_a_range_by_206_and_we_do_not(nginx, before_nginx):
    """RFC 9110 §14.2: a server must ignore a Range field of another method than GET."""
    theirs = await nginx.get("/disk.img", {"Range": "bytes=0-9"}, method="HEAD")
    ours = await before_nginx.get("/n/disk.img", {"Range": "bytes=0-9"}, method="HEAD")
    assert (theirs.status, ours.status) == (206, 200)
    assert ours.headers["content-length"] == str(L)


# -- helpers -----------------------------------------------------------------------------------------------------------


async def seen(proxy: Proxy, image: Image) -> dict[str, str]:
    """What HEAD, GET and a range agree upon, with the Content-Length of the whole."""
    heads = []
    for method, headers in (
        ("HEAD", {}),
        ("GET", {}),
        ("GET", {"Range": "bytes=10-19"}),
        ("GET", {"Range": "bytes=0-"}),
    ):
        async with await proxy.stream(image.path, headers, method=method) as answer:
            fields = {name: answer.headers[name] for name in SAME_EVERYWHERE if name in answer.headers}
            fields["content-length"] = answer.headers["content-length"]
            if answer.status == 206:
                span, _, total = answer.headers["content-range"].removeprefix("bytes ").partition("/")
                start, end = map(int, span.split("-"))
                assert answer.headers["content-length"] == str(end + 1 - start)
                fields["content-length"] = total
            heads.append(fields)
    assert all(fields == heads[0] for fields in heads)
    return heads[0]


async def assert_is_whole(proxy: Proxy, image: Image, headers: dict[str, str]) -> None:
    """The answer is 200 with the whole body, as far as that can be seen now."""
    async with await proxy.stream(image.path, headers) as answer:
        assert (answer.status, answer.headers["content-length"]) == (200, str(SIZE))
        assert "content-range" not in answer.headers
        assert await answer.read(image.ready) == BODY[: image.ready]


def assert_is_error(answer: Response, status: int) -> None:
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["cache-status"].startswith("fetchonce; ")
    assert email.utils.parsedate_to_datetime(answer.headers["date"])
    assert not {"etag", "last-modified", "transfer-encoding"} & answer.headers.keys()
    said = answer.json()
    assert set(said) == {"message"}
    assert len(said["message"]) > 20


def byteranges(answer: Response) -> list[tuple[str, str, bytes]]:
    """Content-Range, Content-Type and bytes of each part, as a mime parser reads them."""
    content_type = answer.headers["content-type"]
    message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + answer.body)
    assert message.get_content_type() == "multipart/byteranges"
    assert not message.defects
    return [
        (part["content-range"], part["content-type"], part.get_payload(decode=True)) for part in message.get_payload()
    ]


async def http_1_0(proxy: Proxy, path: str, headers: str = "") -> Connection:
    """A connection on which this was asked, without a Host."""
    connection = await proxy.connect()
    await connection.send(f"GET {path} HTTP/1.0\r\n{headers}\r\n".encode())
    return connection


async def _readers(proxy: Proxy, image: Image, count: int) -> bool:
    fills = (await proxy.status())["fills"]
    return any(fill["url"].endswith(image.resource.path) and fill["readers"] == count for fill in fills)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


async def _has_no_fill(proxy: Proxy) -> bool:
    return not (await proxy.status())["fills"]
