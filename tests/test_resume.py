"""A transfer that breaks, stalls or lies is taken up at the gap; no reader ever gets a wrong whole file."""

import asyncio
import os

import pytest

from tests.harness import Truncated, until
from tests.origin import LAST_MODIFIED, Origin, pattern_sha256

BODY = os.urandom(600_000)
MIDDLE = 250_000


@pytest.fixture
def other():
    """A second mirror of the same content."""
    with Origin() as other:
        yield other


@pytest.fixture
def pair(origin, other, proxy_factory):
    return proxy_factory(mirrors={"u": f"{origin.url()},{other.url()}"})


async def fills_over(proxy):
    return not (await proxy.status())["fills"]


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
    assert [request.status for request in other.log] == [200]


async def test_another_mirror_with_other_bytes_is_never_mixed_in(origin, other, pair):
    origin.body("/x.img", BODY).close_at(MIDDLE)
    other.body("/x.img", os.urandom(len(BODY))).headers(etag='"another"')
    with pytest.raises(Truncated) as broken:
        await pair.get("/u/x.img")
    assert BODY.startswith(broken.value.partial)
    await until(lambda: fills_over(pair))
    assert not list((pair.cache_dir / "blobs").glob("*/*"))


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
    assert origin.log[-1].range is None  # then all of it was asked for, and compared


async def test_a_chunked_body_is_taken_up_too(origin, proxy):
    origin.body("/x.json", BODY).chunked().close_at(MIDDLE, times=1)
    assert (await proxy.get("/u/x.json")).body == BODY


async def test_a_length_that_is_a_lie_never_ends_whole(origin, proxy):
    origin.body("/x.img", BODY).short(1000)
    with pytest.raises(Truncated):
        await proxy.get("/u/x.img")


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
    size = 96 << 20
    origin.pattern("/big.img", size, seed=3).throttle(16 << 20)
    assert (await (await proxy.stream("/u/big.img")).sha256())[0] == pattern_sha256(size, 3)
    assert len({request.connection for request in origin.log}) >= 4
    assert origin.bytes_sent("/big.img") < size * 1.2


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


# -- the matrix --------------------------------------------------------------------------------------------------------

FAULTS = {
    "close": lambda resource, at: resource.close_at(at, times=1),
    "reset": lambda resource, at: resource.reset_at(at, times=1),
    "always close": lambda resource, at: resource.close_at(at),
    "stall": lambda resource, at: resource.stall_at(at, times=1),
    "short": lambda resource, at: resource.short(len(BODY) - at or 1),
    "content-range": lambda resource, at: resource.close_at(at, times=1).content_range_off_by(7),
    "ignored range": lambda resource, at: resource.close_at(at, times=1).ignore_ranges(),
    "no validator": lambda resource, at: resource.close_at(at, times=1).headers(etag=None, last_modified=None),
    "chunked": lambda resource, at: resource.chunked().close_at(at, times=1),
    "503": lambda resource, at: resource.close_at(at, times=1).status(503, times=1),
    "429": lambda resource, at: resource.status(429, {"Retry-After": "0"}, times=1),
    "redirect loop": lambda resource, at: resource.redirect(resource.path, times=12),
}


@pytest.mark.parametrize("readers", [1, 8])
@pytest.mark.parametrize("mirrors", [1, 2])
@pytest.mark.parametrize("at", [0, MIDDLE, len(BODY) - 1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_no_reader_gets_a_wrong_whole_file(origin, other, proxy_factory, fault, at, mirrors, readers):
    proxy = proxy_factory(
        mirrors={"u": ",".join([origin.url(), other.url()][:mirrors])}, config_text='[fill]\nread_timeout = "500ms"\n'
    )
    FAULTS[fault](origin.body("/x.img", BODY), at)
    other.body("/x.img", BODY)

    async def read(first=0):
        """How it ended; a slow reader takes `first` bytes, and the rest after all others have ended."""
        start = b""
        try:
            async with await proxy.stream("/u/x.img") as stream:
                if stream.status != 200:
                    return str(stream.status)
                start = await stream.read(first)
                if first:
                    await others_ended.wait()
                body = start + await stream.rest()
        except Truncated as broken:
            assert BODY.startswith(start + broken.partial)  # noqa: PT017 - one of two ends that are right
            return "broken"
        assert body == BODY
        return "whole"

    others_ended = asyncio.Event()
    slow = asyncio.create_task(read(first=1 if readers > 1 else 0))
    outcomes = set(await asyncio.gather(*(read() for _ in range(readers - 1))))
    others_ended.set()
    outcomes.add(await slow)
    may_fail = fault == "short" or (mirrors == 1 and fault in ("always close", "redirect loop"))
    assert outcomes == {"whole"} or (may_fail and outcomes <= {"whole", "broken", "502"})


async def test_a_strong_date_resumes_where_there_is_no_tag(origin, proxy):
    assert LAST_MODIFIED < 1_800_000_000  # long ago: a strong validator
    origin.body("/x.img", BODY).headers(etag=None).close_at(MIDDLE, times=1)
    assert (await proxy.get("/u/x.img")).body == BODY
    assert origin.log[1].headers["if-range"].endswith("GMT")
