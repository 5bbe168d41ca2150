"""A lease, parents and a bucket at once: one server asks upstream, the others read along, the bucket keeps it."""

import asyncio

import pytest

from tests.fleet.conftest import FRESH
from tests.fleet.test_lease import HALF, SIZE, begun, digest, whole
from tests.fleet.test_s3 import wait_quiet
from tests.harness import free_port, until
from tests.origin import pattern_sha256

BLOBS = r"GET .*/blobs/"


@pytest.fixture
def image(origin):
    return origin.pattern("/x.img", SIZE).headers(cache_control=FRESH, etag='"1"')


@pytest.fixture
def together(server, redis, bucket):
    """Starts several that share leases and the bucket; each with all others as parents, if it `has_parents`."""

    def make(count, *, has_parents=False):
        config = redis.config() + bucket.config()
        own = [f"127.0.0.1:{free_port()}" for _ in range(count)]
        parents = [f"http://{each}" for each in own] if has_parents else []
        return [server(*parents, own=each, config=config) for each in own]

    return make


@pytest.mark.parametrize("has_parents", [False, True])
async def test_upstream_gives_it_once_and_the_bucket_is_given_it_once(origin, image, together, bucket, has_parents):
    servers = together(3, has_parents=has_parents)
    image.stall_at(HALF)
    tasks = await begun(servers, 4)
    image.release()
    await whole(tasks)
    assert origin.count("/x.img") == 1
    await bucket.wait(1)
    for each in servers:
        await wait_quiet(each)
    assert bucket.wire.count(r"PUT .*/blobs/.*partNumber=1\b") == 1
    told = [await each.status() for each in servers]
    assert sorted(each["totals"]["peer_bytes"] for each in told) == [0, SIZE, SIZE]
    assert {each["lease"] for each in told} == {"answers"}
    assert {state for each in told for state in each["peers"].values()} == {"answers"}
    # The disks of all are lost: the bucket has it.
    (another,) = together(1)
    async with await another.stream("/u/x.img") as stream:
        assert await digest(stream) == pattern_sha256(SIZE, 0)
    assert origin.count("/x.img") == 1


@pytest.fixture
async def kept(image, together, bucket):
    """The image is in the bucket, and on no disk."""
    (first,) = together(1)
    await first.fetch("/u/x.img")
    await bucket.wait(1)
    first.terminate()
    bucket.wire.asked.clear()
    return image


async def test_what_the_bucket_has_one_takes_from_it_and_the_others_read_along(origin, kept, together, bucket):
    servers = together(3)
    await whole(await begun(servers, 4))
    assert origin.count("/x.img") == 1
    takers = {str(each.headers.get("range")) for each in bucket.wire.matching(BLOBS)}
    assert len(takers) == bucket.wire.count(BLOBS)  # no byte was asked for twice
    for each in servers:
        await each.wait_stored()


async def test_the_one_that_takes_it_from_the_bucket_is_killed(origin, kept, together, bucket):
    holder, *others = together(3)
    bucket.wire.stall_body(BLOBS, 4 * 1024**2)
    kept.delay_headers_until_released()  # which the holder asks after some seconds
    lost = await holder.stream("/u/x.img")
    await lost.read(1024**2)
    tasks = await begun(others, 2)
    holder.kill()
    bucket.wire.heal()
    origin.release()
    await whole(tasks)
    await until(lambda: sum("lease.taken_over" in line for each in others for line in each.log) == 1)
    assert origin.count("/x.img") <= 2


async def test_without_redis_and_bucket_each_goes_on_by_itself(origin, image, together, redis, bucket):
    servers = together(3)
    image.stall_at(HALF)
    tasks = await begun(servers, 2)
    redis.kill()
    bucket.wire.cut()
    image.release()
    await whole(tasks)
    origin.body("/y.img", b"y" * 3000).headers(cache_control=FRESH)
    answers = await asyncio.gather(*(each.get("/u/y.img") for each in servers))
    assert {answer.body for answer in answers} == {b"y" * 3000}
    assert (await servers[0].status())["lease"] == "left alone"
    assert "left alone for a while: Redis" in servers[0].run("status").stdout
