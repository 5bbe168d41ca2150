"""Preconditions, and what Cache-Control of a request asks for."""

import json

import pytest

from tests.delivery.images import (
    AFTER,
    BEFORE,
    BODY,
    ETAG,
    MODIFIED,
    SIZE,
    SMALL,
    assert_is_whole,
    numbers,
    small,
)

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
    await proxy.wait_idle(resource.path)
    (request,) = [request for request in origin.log if request.path == resource.path]
    assert request.status == 200
    assert not {name.lower() for name in asked} & request.headers.keys()
    assert (await proxy.get("/u" + resource.path)).headers["cache-status"] == "fetchonce; hit"


async def test_a_304_names_its_content_location(origin, proxy):
    image = await small(origin, proxy, content_location="/there.img")
    assert (await proxy.get(image.path, {"If-None-Match": "*"})).headers["content-location"] == "/there.img"


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
    await proxy.wait_idle(resource.path)
    assert (await proxy.get("/u" + resource.path, {"Cache-Control": "only-if-cached"})).status == 504


async def test_no_store_of_one_client_is_not_that_of_another(origin, proxy):
    resource = origin.body(f"/kept-{next(numbers)}.img", SMALL).headers(cache_control="max-age=600").stall_at(1000)
    path = "/u" + resource.path
    async with await proxy.stream(path, {"Cache-Control": "no-store"}), await proxy.stream(path):
        resource.release()
        await proxy.wait_idle(resource.path)
    assert (await proxy.get(path, {"Cache-Control": "only-if-cached"})).body == SMALL
