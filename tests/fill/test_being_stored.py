"""A body that has come whole and is not stored yet is decided about as it will be once it is (RFC 9111 §4)."""

import asyncio
import hashlib
import json
import os

import pytest

from tests.harness import until

BODY = os.urandom(1_500_000)
PATIENCE_SECONDS = 0.3  # for what must not happen


@pytest.fixture
async def whole(origin, proxy_factory):
    """Makes a body whole that waits for its checksum file: the stream that has all of it but the last byte."""
    text = f'[[mirror]]\nname = "m"\nupstreams = {json.dumps([origin.url()])}\nchecksums = ["SHA256SUMS"]\n'
    proxy = proxy_factory(mirrors={}, config_text="shipped_mirrors = false\n" + text)

    async def make(**fields):
        origin.body("/a.img", BODY).headers(**fields)
        sums = f"{hashlib.sha256(BODY).hexdigest()} a.img\n".encode()
        origin.body("/SHA256SUMS", sums).delay_headers_until_released()
        stream = await proxy.stream("/m/a.img")
        await stream.read(len(BODY) - 1)

        async def is_whole():
            return any(fill["bytes"] == len(BODY) for fill in (await proxy.status())["fills"])

        await until(is_whole)
        return proxy, stream

    return make


def told(answer):
    return answer.headers["cache-status"].removeprefix("fetchonce; ")


async def test_what_is_fresh_is_a_hit_at_once(origin, whole):
    proxy, first = await whole(cache_control="max-age=600")
    async with first, await proxy.stream("/m/a.img") as second:
        assert told(second) == "hit"
        assert await second.read(len(BODY) - 1) == BODY[:-1]
        origin.release()
        assert await first.rest() == await second.rest() == BODY[-1:]
    assert origin.count("/a.img") == 1


@pytest.mark.parametrize(
    ("fields", "asked", "expected"),
    [
        pytest.param({"cache_control": "max-age=0"}, {}, "fwd=stale; fwd-status=304", id="expired"),
        pytest.param(
            {"cache_control": "max-age=600"},
            {"Cache-Control": "no-cache"},
            "fwd=request; fwd-status=304",
            id="no-cache",
        ),
        pytest.param(
            {"cache_control": "max-age=600", "vary": "Accept"},
            {"Accept": "text/html"},
            "fwd=vary-miss; fwd-status=304",
            id="another-variant",
        ),
    ],
)
async def test_what_would_be_asked_about_is_asked_about_once_it_is_stored(origin, whole, fields, asked, expected):
    proxy, first = await whole(**fields)
    second = asyncio.create_task(proxy.get("/m/a.img", asked))
    assert not (await asyncio.wait([second], timeout=PATIENCE_SECONDS))[0]
    origin.release()
    assert await first.rest() == BODY[-1:]
    assert ((await second).body, told(await second)) == (BODY, expected)
    assert [request.status for request in origin.log if request.path == "/a.img"] == [200, 304]


async def test_small_bodies_one_after_the_other_are_asked_about_each_time(origin, proxy):
    origin.body("/a.json", b"{}").headers(cache_control="max-age=0")
    assert told(await proxy.get("/u/a.json")) == "fwd=uri-miss; stored"
    for _ in range(5):
        assert told(await proxy.get("/u/a.json")) == "fwd=stale; fwd-status=304"
