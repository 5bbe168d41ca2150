"""Killed at any moment, it goes on where it was: real processes, SIGKILL, bytes compared."""

import asyncio
import random

import pytest

from tests.harness import Truncated, until
from tests.origin import pattern_bytes, pattern_sha256

SIZE = 64 << 20
SEED = 5


async def has_begun(proxy):
    return list((proxy.cache_dir / "partial").glob("*.json"))


async def stored(proxy):
    return list((proxy.cache_dir / "blobs").glob("*/*.json")) and not (await proxy.status())["fills"]


async def test_after_sigkill_the_fill_goes_on_where_it_was(origin, proxy):
    half = SIZE // 2
    origin.pattern("/x.img", SIZE, SEED).stall_at(half, times=1)
    async with await proxy.stream("/u/x.img") as stream:
        assert await stream.read(half) == pattern_bytes(SIZE, SEED, 0, half)
        await until(lambda: has_begun(proxy))
        proxy.kill()
    proxy.start()
    assert (await (await proxy.stream("/u/x.img")).sha256())[0] == pattern_sha256(SIZE, SEED)
    assert [request.range for request in origin.log] == [None, f"bytes={half}-"]
    assert origin.bytes_sent("/x.img") == SIZE


async def test_a_client_that_comes_back_with_its_range_completes(origin, proxy):
    half = SIZE // 2
    origin.pattern("/x.img", SIZE, SEED).stall_at(half, times=1)
    async with await proxy.stream("/u/x.img") as stream:
        got = await stream.read(half)
        etag = stream.headers["etag"]
        await until(lambda: has_begun(proxy))
        proxy.kill()
    proxy.start()
    rest = await proxy.get("/u/x.img", {"Range": f"bytes={half}-", "If-Range": etag})
    assert rest.status == 206
    assert got + rest.body == pattern_bytes(SIZE, SEED)


async def test_after_a_power_cut_only_the_durable_page_is_believed(origin, proxy):
    half = SIZE // 2
    origin.pattern("/x.img", SIZE, SEED).stall_at(half, times=1)
    async with await proxy.stream("/u/x.img") as stream:
        await stream.read(half)
        await until(lambda: has_begun(proxy))
        proxy.kill()
    (state,) = (proxy.cache_dir / "partial").glob("*.state")
    page = bytearray(state.read_bytes())
    page[8:44] = b"another life of the machine".ljust(36)  # the live page is of before the power cut
    state.write_bytes(page)
    (part,) = (proxy.cache_dir / "partial").glob("*.part")
    with open(part, "r+b") as file:  # what no fdatasync covered came back as anything
        file.write(bytes(half))
    proxy.start()
    assert (await (await proxy.stream("/u/x.img")).sha256())[0] == pattern_sha256(SIZE, SEED)
    assert origin.bytes_sent("/x.img") == half + SIZE


async def test_a_body_that_was_whole_and_not_stored_yet_is_stored_without_fetching_it(origin, proxy, proxy_factory):
    origin.pattern("/x.img", SIZE, SEED).headers(cache_control="max-age=600")
    async with await proxy.stream("/u/x.img") as stream:
        await stream.read(SIZE)
        proxy.kill()  # between the last byte and the commit, if we are quick; else it is a hit
    proxy.start()
    assert (await (await proxy.stream("/u/x.img")).sha256())[0] == pattern_sha256(SIZE, SEED)
    assert origin.bytes_sent("/x.img") == SIZE


@pytest.mark.timeout(600)
async def test_fifty_random_kills(origin, proxy):
    """Bytes always right, no stuck lock, no orphan left, and little fetched twice."""
    chance = random.Random(2026)
    origin.pattern("/x.img", SIZE, SEED).throttle(24 << 20)
    got, kills, etag = b"", 0, None
    while kills < 50:
        wanted = min(SIZE, len(got) + chance.randrange(1, 2 << 20))
        fields = {"Range": f"bytes={len(got)}-", "If-Range": etag} if got else {}
        try:
            async with await proxy.stream("/u/x.img", fields) as stream:
                assert stream.status == (206 if got else 200)
                etag = stream.headers["etag"]
                got += await stream.read(wanted - len(got))
        except Truncated as broken:
            got += broken.partial
        if len(got) == SIZE:
            break
        proxy.kill()
        kills += 1
        proxy.start()
    rest = await proxy.get("/u/x.img", {"Range": f"bytes={len(got)}-", "If-Range": etag}) if len(got) < SIZE else None
    assert got + (rest.body if rest else b"") == pattern_bytes(SIZE, SEED)
    await until(lambda: stored(proxy), timeout=30)
    assert not list((proxy.cache_dir / "partial").iterdir())
    # Each kill costs at most what was on its way in buffers, and what came before the first page was written.
    assert origin.bytes_sent("/x.img") <= SIZE + kills * (6 << 20)


async def test_a_kill_leaves_no_lock(origin, proxy):
    origin.pattern("/x.img", SIZE, SEED).stall_at(1 << 20, times=1)
    async with await proxy.stream("/u/x.img") as stream:
        await stream.read(1000)
        proxy.kill()
    proxy.start()
    async with asyncio.timeout(20):
        assert (await (await proxy.stream("/u/x.img")).sha256())[0] == pattern_sha256(SIZE, SEED)
