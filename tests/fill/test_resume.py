"""A transfer that breaks, stalls or lies is resumed at the gap; no reader ever gets a wrong file as whole.

`./run test -s -k matrix tests/fill/test_resume.py` runs every fault in every place and prints what readers got.
"""

import asyncio
import functools
import hashlib
import os
from collections import Counter

import pytest

from tests.harness import Truncated, until
from tests.origin import LAST_MODIFIED, Origin, Pattern, pattern_bytes, pattern_sha256

BODY = os.urandom(600_000)
MIDDLE = 250_000


@pytest.fixture
def pair(origin, other, proxy_factory):
    return proxy_factory(mirrors={"u": f"{origin.url()},{other.url()}"})


async def test_a_break_is_taken_up_at_the_byte_where_it_was(origin, proxy):
    origin.body("/x.img", BODY).reset_at(MIDDLE, times=1)
    assert (await proxy.get("/u/x.img")).body == BODY
    again = origin.log[1]
    assert again.range.startswith("bytes=")
    assert again.headers["if-range"] == origin.log[1].headers["if-range"]
    assert origin.bytes_sent("/x.img") <= len(BODY) + MIDDLE


async def test_the_same_mirror_is_asked_once_more_and_then_the_next(origin, other, pair):
    origin.body("/x.img", BODY).close_at(MIDDLE)
    other.body("/x.img", BODY)
    assert (await pair.get("/u/x.img")).body == BODY
    assert origin.count("/x.img") == 2
    assert other.count("/x.img") == 1


async def test_a_mirror_that_failed_comes_last_for_a_while(origin, other, pair):
    other.body("/x.img", BODY)
    other.body("/y.img", BODY)
    origin.stop()
    assert (await pair.get("/u/x.img")).body == BODY
    origin.restart()
    origin.body("/y.img", BODY)
    assert (await pair.get("/u/y.img")).body == BODY
    assert origin.count("/y.img") == 0


async def test_another_mirror_with_other_tags_is_compared_and_gone_on_with(origin, other, pair):
    origin.body("/x.img", BODY).close_at(MIDDLE)
    other.body("/x.img", BODY).headers(etag='"another"')
    assert (await pair.get("/u/x.img")).body == BODY
    assert [request.status for request in other.log] == [206]


async def test_another_mirror_with_other_bytes_is_never_mixed_in(origin, other, pair):
    origin.body("/x.img", BODY).close_at(MIDDLE)
    other.body("/x.img", os.urandom(len(BODY))).headers(etag='"another"')
    with pytest.raises(Truncated) as broken:
        await pair.get("/u/x.img")
    assert BODY.startswith(broken.value.partial)
    await pair.wait_idle()
    assert pair.files("blobs/*/*") == []


async def test_without_a_validator_the_overlap_is_compared(origin, proxy):
    origin.body("/x.img", BODY).headers(etag=None, last_modified=None).close_at(MIDDLE, times=1)
    assert (await proxy.get("/u/x.img")).body == BODY
    assert [request.range for request in origin.log] == [None, None]


async def test_without_a_validator_another_body_is_never_mixed_in(origin, proxy):
    resource = origin.body("/x.img", BODY).headers(etag=None, last_modified=None).stall_at(MIDDLE, times=1)
    async with await proxy.stream("/u/x.img") as stream:
        assert await stream.read(MIDDLE) == BODY[:MIDDLE]
        resource.generation(os.urandom(len(BODY))).headers(etag=None, last_modified=None)
        origin.cut()
        with pytest.raises(Truncated) as broken:
            await stream.rest()
    assert broken.value.partial == b""


async def test_ignored_ranges_are_gone_on_with_as_one_stream(origin, proxy):
    origin.body("/x.img", BODY).ignore_ranges().close_at(MIDDLE, times=1)
    assert (await proxy.get("/u/x.img")).body == BODY


async def test_a_wrong_content_range_is_not_believed(origin, proxy):
    origin.body("/x.img", BODY).content_range_off_by(1000).close_at(MIDDLE, times=1)
    assert (await proxy.get("/u/x.img")).body == BODY
    assert origin.log[-1].range is None  # then the whole was requested, and compared


async def test_a_chunked_body_is_taken_up_too(origin, proxy):
    origin.body("/x.json", BODY).chunked().close_at(MIDDLE, times=1)
    assert (await proxy.get("/u/x.json")).body == BODY


async def test_a_length_that_is_a_lie_never_ends_whole(origin, proxy):
    origin.body("/x.img", BODY).short(1000)
    with pytest.raises(Truncated):
        await proxy.get("/u/x.img")


@pytest.mark.parametrize("mirrors", [1, 2])
async def test_a_length_that_was_a_lie_is_not_gone_on_with(origin, other, proxy_factory, mirrors):
    proxy = proxy_factory(mirrors={"u": ",".join([origin.url(), other.url()][:mirrors])})
    origin.body("/x.img", BODY).short(1000, times=None if mirrors == 2 else 1)
    other.body("/x.img", BODY)
    with pytest.raises(Truncated):
        await proxy.get("/u/x.img")
    await proxy.wait_idle()
    assert (await proxy.get("/u/x.img")).body == BODY


async def test_a_changed_object_breaks_its_readers_and_is_fetched_anew(origin, proxy):
    new = os.urandom(len(BODY))
    resource = origin.body("/x.img", BODY).stall_at(MIDDLE, times=1)
    async with await proxy.stream("/u/x.img") as stream:
        assert await stream.read(MIDDLE) == BODY[:MIDDLE]
        resource.generation(new)
        origin.cut()
        with pytest.raises(Truncated) as broken:
            await stream.rest()
    assert broken.value.partial == b""
    assert (await proxy.get("/u/x.img")).body == new


async def test_a_busy_upstream_is_asked_again(origin, proxy):
    origin.body("/x.img", BODY).status(503, {"Retry-After": "0"}, times=2)
    assert (await proxy.get("/u/x.img")).body == BODY


async def test_retry_after_in_the_middle_is_waited_for(origin, proxy):
    resource = origin.body("/x.img", BODY).stall_at(MIDDLE, times=1)
    async with await proxy.stream("/u/x.img") as stream:
        await stream.read(MIDDLE)
        resource.status(429, {"Retry-After": "1"}, times=1)
        origin.cut()
        assert await stream.rest() == BODY[MIDDLE:]
    line = await proxy.wait_log("answered 429")
    assert "retry_in=1.0" in line


async def test_eight_readers_notice_only_a_pause(origin, proxy):
    origin.body("/x.img", BODY).reset_at(MIDDLE, times=1).close_at(MIDDLE + 100_000, times=1)
    answers = await asyncio.gather(*(proxy.get("/u/x.img") for _ in range(8)))
    assert {answer.body for answer in answers} == {BODY}


async def test_a_big_object_comes_over_several_connections(origin, proxy):
    size = 72 << 20
    origin.pattern("/big.img", size, seed=3).throttle(1 << 20)  # slow beside whatever a busy machine can do
    async with await proxy.stream("/u/big.img") as stream:
        await until(lambda: len({request.connection for request in origin.log}) >= 4)
        origin.pattern("/big.img", size, seed=3)
        origin.cut()  # the rest comes as fast as it can
        assert (await stream.sha256())[0] == pattern_sha256(size, 3)
    assert origin.bytes_sent("/big.img") < size * 1.5


async def test_connections_1_is_one_connection(origin, proxy_factory):
    size = 65 << 20
    proxy = proxy_factory(config_text="[fill]\nconnections = 1\n")
    origin.pattern("/big.img", size, seed=3).throttle(32 << 20)
    assert (await (await proxy.stream("/u/big.img")).sha256())[0] == pattern_sha256(size, 3)
    assert origin.count("/big.img") == 1


async def test_an_upstream_that_says_it_is_too_much_is_left_with_one(origin, proxy):
    size = 65 << 20
    resource = origin.pattern("/big.img", size, seed=3).throttle(24 << 20)
    async with await proxy.stream("/u/big.img") as stream:
        await stream.read(1000)
        resource.status(429)
        assert (await stream.sha256())[0]
    assert [request.status for request in origin.log] == [200, 429]


async def test_a_strong_date_resumes_where_there_is_no_tag(origin, proxy):
    assert LAST_MODIFIED < 1_800_000_000  # long ago: a strong validator
    origin.body("/x.img", BODY).headers(etag=None).close_at(MIDDLE, times=1)
    assert (await proxy.get("/u/x.img")).body == BODY
    assert origin.log[1].headers["if-range"].endswith("GMT")


async def test_the_front_goes_on_while_a_connection_far_ahead_stands_still(origin, proxy_factory):
    proxy = proxy_factory(config_text='[fill]\nread_timeout = "10m"\n')
    size, ahead = 30 << 20, 20 << 20
    resource = origin.pattern("/big.img", size, seed=3).throttle(2 << 20, times=1).close_at(3 << 20, times=1)
    resource.stall_at(ahead + (1 << 20), times=1)
    async with await proxy.stream("/u/big.img") as front, await proxy.stream(
        "/u/big.img", {"Range": f"bytes={ahead}-"}
    ) as far:
        await far.read(1 << 20)
        await origin.stalled("/big.img")
        assert await front.read(ahead) == pattern_bytes(size, 3)[:ahead]
        origin.release()
        assert await far.rest() == pattern_bytes(size, 3)[ahead + (1 << 20) :]
        assert await front.rest() == pattern_bytes(size, 3)[ahead:]


# -- the matrix --------------------------------------------------------------------------------------------------------

NEW = os.urandom(len(BODY))
IMPATIENT = '[fill]\nread_timeout = "1s"\n'  # nowhere else: on a busy machine an origin may be silent for as long


def status(code, fields=None, *, times):
    """In place of the first answer, or of the answer to the request after a break."""

    def script(resource, at):
        if at:
            resource.close_at(at, times=1)
        resource.status(code, fields, times=times, of_ranges=at > 0)

    return script


FAULTS = {
    "close": lambda resource, at: resource.close_at(at, times=1),
    "reset": lambda resource, at: resource.reset_at(at, times=1),
    "always close": lambda resource, at: resource.close_at(at),
    "stall": lambda resource, at: resource.stall_at(at, times=1),
    "short length": lambda resource, at: resource.short(len(BODY) - at or 1),
    "wrong content-range": lambda resource, at: resource.close_at(at, times=1).content_range_off_by(7),
    "ignored range": lambda resource, at: resource.close_at(at, times=1).ignore_ranges(),
    "changed etag": lambda resource, at: resource.stall_at(at, times=1),  # and what the test does then
    "corrupt bytes": lambda resource, at: resource.corrupt_at(at),
    "no validator": lambda resource, at: resource.close_at(at, times=1).headers(etag=None, last_modified=None),
    "chunked": lambda resource, at: resource.chunked().close_at(at, times=1),
    "503 once": status(503, times=1),
    "503 twice": status(503, times=2),
    "429": status(429, {"Retry-After": "0"}, times=1),
    "redirect loop": status(302, {"Location": "/x.img"}, times=None),
    # Behind a redirector, the first node breaks for good and another one has the rest.
    "nodes, equal dates": lambda resource, at: resource.close_at(at),
    "nodes, different dates": lambda resource, at: resource.close_at(at),
    "nodes by turns": lambda resource, at: resource.close_at(at, times=2),
}


def may_be(fault, at, mirrors):
    """How a reader's request may end: `right`, `broken` or both."""
    match fault:
        case "short length":
            return {"broken"}  # the reader's head has a length that no mirror has bytes for
        case "changed etag" | "corrupt bytes":
            return {"broken"}
        case "always close" | "redirect loop" if mirrors == 1:
            return {"broken"}
        case "503 twice" if mirrors == 1 and at:
            return {"broken"}  # with the break before them, more than the retries in the tests' configuration
    return {"right"}


@pytest.fixture(scope="module")
def outcomes():
    """How many readers ended in which way, by fault; printed at the end."""
    counts = Counter()
    yield counts
    print(f"\n{'fault':40}{'right':>8}{'broken':>8}{'wrong':>8}")
    for fault in dict.fromkeys(fault for fault, _ in counts):
        print(f"{fault:40}" + "".join(f"{counts[fault, end]:8}" for end in ("right", "broken", "wrong")))


async def ending(stream_of, bodies, *, pause=None, is_corrupt=False):
    """How it ended: `right`, `broken` or `wrong`. The reader waits for `pause`, if given, after its first byte."""
    start = b""
    try:
        async with await stream_of() as stream:
            if stream.status != 200:
                return "broken" if stream.status in (429, 502, 503) else "wrong"
            if pause:
                start = await stream.read(1)
                await pause.wait()
            body = start + await stream.rest()
    except Truncated as broken:
        got = start + broken.partial
        # Corrupt bytes are sent on as they come; they are recognised only at the last one.
        return "broken" if is_corrupt or any(body.startswith(got) for body in bodies) else "wrong"
    return "right" if body in bodies else "wrong"


PLACES = {"first": 0, "middle": MIDDLE, "last": len(BODY) - 1}


@pytest.mark.parametrize("mirrors", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
async def test_matrix_no_reader_gets_a_wrong_whole_file(proxy_factory, outcomes, fault, mirrors):
    """All places, with one reader and with eight, side by side: they mostly wait."""
    async with asyncio.TaskGroup() as group:
        for place, at in PLACES.items():
            for readers in (1, 8):
                cell = one_cell(proxy_factory, outcomes, fault, at, mirrors, readers)
                group.create_task(cell, name=f"{fault}, {place}, {mirrors} mirrors, {readers} readers")


async def one_cell(proxy_factory, outcomes, fault, at, mirrors, readers):
    is_redirected = fault.startswith("nodes")
    with Origin() as origin, Origin() as other, Origin() as front:
        named = {"a": origin.url(), "b": other.url()} if is_redirected else {}
        urls = [front.url() if is_redirected else origin.url(), other.url()]
        proxy = proxy_factory(
            mirrors={"u": ",".join(urls[:mirrors]), **named},
            config_text=IMPATIENT if fault == "stall" else "",
            start=False,
        )
        await asyncio.to_thread(proxy.start)
        resource = origin.body("/x.img", BODY)
        FAULTS[fault](resource, at)
        spare = other.body("/x.img", BODY)
        if is_redirected:
            spare.headers(etag='"another"')
            turns = front.body("/x.img", b"")
            for turn in range(100):
                turns.redirect((origin, other)[turn % 2].url("/x.img"), times=1)
        if fault == "nodes, different dates":
            spare.headers(last_modified="Wed, 15 Nov 2023 22:13:20 GMT")
        digest = f"/sha256:{hashlib.sha256(BODY).hexdigest()}" if fault == "corrupt bytes" else ""
        stream = functools.partial(proxy.stream, f"{digest}/u/x.img")
        read = functools.partial(ending, stream, [BODY, NEW], is_corrupt=bool(digest))
        others_ended = asyncio.Event()
        slow = asyncio.create_task(read(pause=others_ended if readers > 1 else None))
        quick = [asyncio.create_task(read()) for _ in range(readers - 1)]
        if fault == "changed etag":
            await origin.stalled("/x.img")
            resource.generation(NEW)
            origin.cut()
        ends = await asyncio.gather(*quick)
        others_ended.set()
        ends.append(await slow)
        outcomes.update((fault, end) for end in ends)
        assert set(ends) <= may_be(fault, at, mirrors), asyncio.current_task().get_name()
        # A wrong body is not kept: the next reader gets the new body, or the right one if a mirror has it.
        if fault == "changed etag":
            assert await ending(stream, [NEW]) == "right"
        elif fault == "corrupt bytes":
            assert await read() == ("right" if mirrors == 2 else "broken")


BIG = 65 << 20
BIG_SEED = 3
BREAK = BIG * 5 // 8
"""In the part that the second connection fetches, and in no earlier one."""

BIG_FAULTS = {
    **{fault: FAULTS[fault] for fault in ("close", "reset", "stall", "changed etag", "corrupt bytes")},
    "wrong content-range": lambda resource, at: resource.content_range_off_by(7, times=1),
    "ignored range": lambda resource, at: resource.ignore_ranges(times=1),
    "503": lambda resource, at: resource.status(503, times=1, of_ranges=True),
    "429": lambda resource, at: resource.status(429, {"Retry-After": "0"}, times=1, of_ranges=True),
    "redirect loop": lambda resource, at: resource.redirect(resource.path, times=12, of_ranges=True),
    "limit of requests": lambda resource, at: resource.status(429, {"Retry-After": "3600"}, of_ranges=True),
    "forbidden": lambda resource, at: resource.status(403, of_ranges=True),
}


@pytest.mark.parametrize("fault", BIG_FAULTS)
async def test_matrix_of_one_connection_among_several(origin, proxy_factory, outcomes, fault):
    proxy = proxy_factory(config_text=(IMPATIENT if fault == "stall" else "[fill]\n") + "connections = 4\n")
    resource = origin.pattern("/x.img", BIG, BIG_SEED).throttle(24 << 20)
    BIG_FAULTS[fault](resource, BREAK)
    digest = f"/sha256:{pattern_sha256(BIG, BIG_SEED)}" if fault == "corrupt bytes" else ""
    bodies = [pattern_bytes(BIG, BIG_SEED), pattern_bytes(BIG, BIG_SEED + 1)]
    reading = asyncio.create_task(
        ending(functools.partial(proxy.stream, f"{digest}/u/x.img"), bodies, is_corrupt=bool(digest))
    )
    if fault == "changed etag":
        await origin.stalled("/x.img")
        resource.generation(Pattern(BIG, BIG_SEED + 1))
        origin.cut()
    end = await reading
    outcomes[f"{fault}, one of several", end] += 1
    assert len({request.connection for request in origin.log}) > 1
    assert end == ("broken" if fault in ("changed etag", "corrupt bytes") else "right")
