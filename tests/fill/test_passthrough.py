"""Bodies that are not stored: each client has its own transfer, with the same guarantees."""

import asyncio
import hashlib
import os

import pytest

from tests.fill.test_verify import mirror, sums
from tests.harness import until
from tests.origin import Origin

BODY = os.urandom(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
WRONG = "0" * 64
OURS = "no-store"
NO_ROOM = '[cache]\nmax_size = "1MB"\n'


@pytest.fixture
def cramped(proxy_factory):
    """fetchonce with too little room for any of the bodies."""
    return proxy_factory(config_text=NO_ROOM)


# Answers that may not be shared ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_control", ["no-store", "private"])
async def test_clients_at_once_get_an_answer_each(origin, proxy, cache_control):
    token = origin.body("/token", BODY).headers(cache_control=cache_control).delay_headers_until_released(times=1)
    first = asyncio.create_task(proxy.get("/u/token"))
    await origin.requested(1)
    second = asyncio.create_task(proxy.get("/u/token"))
    await proxy.wait_readers(2)
    token.release()
    answers = await first, await second
    assert [answer.body for answer in answers] == [BODY, BODY]
    assert {answer.headers["cache-status"] for answer in answers} == {"fetchonce; fwd=uri-miss; stored=?0"}
    assert origin.count("/token") == 2
    assert proxy.files("blobs/*/*") == []


async def test_it_is_asked_for_with_the_client_s_own_credentials(origin, proxy):
    origin.body("/secret", BODY).headers(cache_control="max-age=600")
    for token in ("Bearer a", "Bearer b"):
        assert (await proxy.get("/u/secret", {"Authorization": token})).body == BODY
    assert [request.headers.get("authorization") for request in origin.log] == ["Bearer a", "Bearer b"]
    assert proxy.files("blobs/*/*") == []


@pytest.mark.parametrize("allowed", ["public, max-age=600", "s-maxage=600", "max-age=600, must-revalidate"])
async def test_what_upstream_says_is_everybody_s_is_kept_in_spite_of_credentials(origin, proxy, allowed):
    origin.body("/public", BODY).headers(cache_control=allowed)
    await proxy.get("/u/public", {"Authorization": "Bearer a"})
    assert (await proxy.get("/u/public")).headers["cache-status"] == "fetchonce; hit"


async def test_credentials_are_for_the_first_mirror_alone(origin, proxy_factory):
    with Origin() as other:
        proxy = proxy_factory(mirrors={"u": f"{origin.url()},{other.url()}"})
        origin.body("/x", BODY).status(503)
        other.body("/x", BODY)
        assert (await proxy.get("/u/x", {"Authorization": "Bearer a"})).status == 503
        assert not other.log
        assert (await proxy.get("/u/x")).body == BODY


async def test_a_range_of_it_is_fetched_as_a_range(origin, proxy):
    origin.body("/token", BODY).headers(cache_control=OURS)
    answer = await proxy.get("/u/token", {"Range": "bytes=-10"})
    assert (answer.status, answer.body) == (206, BODY[-10:])
    assert answer.headers["content-range"] == f"bytes {len(BODY) - 10}-{len(BODY) - 1}/{len(BODY)}"
    assert [request.range for request in origin.log] == [None, f"bytes={len(BODY) - 10}-"]


async def test_several_ranges_of_it(origin, proxy):
    origin.body("/token", BODY).headers(cache_control=OURS)
    answer = await proxy.get("/u/token", {"Range": "bytes=5-9,2000000-2000004"})
    assert answer.status == 206
    assert BODY[5:10] in answer.body
    assert BODY[2_000_000:2_000_005] in answer.body


async def test_without_a_length_it_comes_whole_whatever_the_range(origin, proxy):
    origin.body("/token", BODY).headers(cache_control=OURS).chunked()
    answer = await proxy.get("/u/token", {"Range": "bytes=5-9"})
    assert (answer.status, answer.body) == (200, BODY)


async def test_a_condition_that_holds_ends_its_transfer(origin, proxy):
    origin.body("/token", BODY).headers(cache_control=OURS, etag='"a"').throttle(100_000)
    assert (await proxy.get("/u/token", {"If-None-Match": '"a"'})).status == 304
    await origin.happens(lambda: origin.log[0].ended and not origin.log[0].completed)


async def test_a_client_that_leaves_ends_its_transfer(origin, proxy):
    origin.body("/token", BODY).headers(cache_control=OURS).stall_at(1_000_000)
    async with await proxy.stream("/u/token") as stream:
        await stream.read(1_000_000)
    await origin.happens(lambda: origin.log[0].ended)


async def test_a_client_that_does_not_read_holds_upstream_up(origin, proxy):
    size = 200 << 20
    origin.pattern("/token", size).headers(cache_control=OURS)
    async with await proxy.stream("/u/token") as stream:
        await stream.read(1)
        before = proxy.memory_bytes()
        seen = []

        def is_at_rest():
            seen.append(origin.bytes_sent("/token"))
            return seen.count(seen[-1]) > 20  # there is no event for what must not happen

        await until(is_at_rest)
        assert seen[-1] < size  # what the socket buffers hold; a proxy that read on would soon have it all
        await until(lambda: proxy.memory_bytes() - before < 20 << 20)


async def test_a_break_is_noticed_by_nobody(origin, proxy):
    origin.body("/token", BODY).headers(cache_control=OURS, etag='"a"').close_at(1_000_000, times=1)
    assert (await proxy.get("/u/token")).body == BODY
    assert [request.range for request in origin.log] == [None, "bytes=1000000-"]


async def test_the_next_mirror_goes_on(origin, proxy_factory):
    with Origin() as other:
        proxy = proxy_factory(mirrors={"u": f"{origin.url()},{other.url()}"})
        origin.body("/token", BODY).headers(cache_control=OURS, etag='"a"').close_at(1_000_000)
        other.body("/token", BODY).headers(cache_control=OURS, etag='"a"')
        assert (await proxy.get("/u/token")).body == BODY


async def test_another_generation_is_never_mixed_in(origin, proxy):
    token = origin.body("/token", BODY).headers(cache_control=OURS, etag='"a"').stall_at(1_000_000, times=1)
    async with await proxy.stream("/u/token") as stream:
        assert await stream.read(1_000_000) == BODY[:1_000_000]
        token.generation(os.urandom(len(BODY))).headers(cache_control=OURS, etag='"b"')
        origin.cut()
        assert await stream.broken() == b""


async def test_without_a_validator_a_break_is_a_broken_connection(origin, proxy):
    origin.body("/token", BODY).headers(cache_control=OURS, etag=None, last_modified=None).close_at(1_000_000)
    assert await (await proxy.stream("/u/token")).broken() == BODY[:1_000_000]


async def test_a_checksum_file_that_may_not_be_kept_still_counts(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    origin.body("/noble.img", BODY)
    origin.body("/SHA256SUMS", sums(b"another")).headers(cache_control=OURS)
    assert await (await proxy.stream("/m/noble.img")).broken() == BODY[:-1]
    origin.body("/SHA256SUMS", sums(BODY)).headers(cache_control=OURS)
    assert (await proxy.get("/m/noble.img")).body == BODY


# No room --------------------------------------------------------------------------------------------------------------


async def test_eight_readers_get_what_has_no_room(origin, cramped):
    origin.body("/large", BODY).close_at(2_000_000, times=3)
    answers = await asyncio.gather(*(cramped.get("/u/large") for _ in range(8)))
    assert {answer.body for answer in answers} == {BODY}


async def test_no_room_and_the_right_digest(origin, cramped):
    origin.body("/large", BODY)
    assert (await cramped.get(f"/sha256:{SHA256}/u/large")).body == BODY


@pytest.mark.parametrize("log", ["", "[log]\naccess = false\n"], ids=["logged", "not logged"])
async def test_no_room_and_the_wrong_digest(origin, proxy_factory, log):
    cramped = proxy_factory(config_text=NO_ROOM + log)
    origin.body("/large", BODY)
    assert await (await cramped.stream(f"/sha256:{WRONG}/u/large")).broken() == BODY[:-1]
    assert "digest mismatch" in await cramped.wait_log("delivery.broken")


async def both(origin, proxy, *paths):
    """Two streams of one fill that has no room. The client of the first path has begun it."""
    large = origin.body("/large", BODY).delay_headers_until_released(times=1)
    first = asyncio.create_task(proxy.stream(paths[0]))
    await origin.requested(1)
    second = asyncio.create_task(proxy.stream(paths[1]))
    await proxy.wait_readers(2)
    large.release()
    return await first, await second


async def test_no_room_and_a_wrong_digest_of_one_who_did_not_begin_it(origin, cramped):
    first, second = await both(origin, cramped, "/u/large", f"/sha256:{WRONG}/u/large")
    assert await first.rest() == BODY
    assert await second.broken() == BODY[:-1]


async def test_no_room_and_a_wrong_digest_is_nobody_else_s(origin, cramped):
    first, second = await both(origin, cramped, f"/sha256:{WRONG}/u/large", "/u/large")
    assert await first.broken() == BODY[:-1]
    assert await second.rest() == BODY


async def test_no_room_and_a_checksum_file(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin) + NO_ROOM)
    origin.body("/noble.img", BODY)
    origin.body("/SHA256SUMS", sums(b"another"))
    assert await (await proxy.stream("/m/noble.img")).broken() == BODY[:-1]
    origin.body("/SHA256SUMS", sums(BODY))  # the stored file has changed, so it is fetched again before it counts
    assert (await proxy.get("/m/noble.img")).body == BODY


async def test_the_last_byte_alone_cannot_be_verified(origin, cramped):
    """A range is sent, but not the last byte, as of any body whose digest is not known yet."""
    origin.body("/large", BODY)
    path = f"/sha256:{SHA256}/u/large"
    assert (await cramped.get(path, {"Range": "bytes=1000-1999"})).body == BODY[1000:2000]
    assert await (await cramped.stream(path, {"Range": "bytes=2000000-"})).broken() == BODY[2_000_000:-1]


async def test_prefetch_of_what_has_no_room_fails_and_says_why(origin, cramped):
    origin.body("/large", BODY)
    done = cramped.run("prefetch", "/u/large", code=1)
    assert "cache.max_size is 1.0 MB" in done.stderr
