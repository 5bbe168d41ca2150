"""Response fields, HEAD, and what the cache says of itself."""

import os
import re

import pytest

from tests.delivery.images import (
    BODY,
    ETAG,
    MODIFIED,
    READY,
    SAME_EVERYWHERE,
    SEED,
    SIZE,
    SMALL,
    Image,
    ask,
    numbers,
    only,
    seen,
    small,
)
from tests.harness import until
from tests.origin import Origin

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
    await proxy.wait_idle(image.resource.path)
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
            await own.wait_idle(image.resource.path)
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
    await proxy.wait_idle(image.resource.path)
    stored = await seen(proxy, image)
    assert (stored["content-length"], stored["etag"], stored["last-modified"]) == (str(SIZE), ETAG, MODIFIED)


async def test_ranges_are_announced_without_a_length_too(proxy, standing):
    assert (await proxy.get(standing["chunked"].path, method="HEAD")).headers["accept-ranges"] == "bytes"


async def test_end_to_end_fields_are_handed_on_and_those_of_one_connection_are_not(origin, proxy):
    ours = {"content-disposition": 'attachment; filename="x"', "x-amz-meta-id": "1", "link": "</sig>", "vary": "Accept"}
    ours |= {"x-goog-stored-content-length": "9", "x-goog-hash": "md5=x"}  # Harvester reads the length there
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
    assert await proxy.fills(image.resource.path) == []
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
    await proxy.wait_idle(resource.path)
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
    await proxy.wait_idle(resource.path)
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
    resource.generation(os.urandom(1000))
    await said("fwd=stale; fwd-status=200; stored", age=3)
    await proxy.wait_idle(resource.path)
    resource.status(503, times=1)
    await said("fwd=stale; fwd-status=503", age=3)


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
        await proxy.wait_idle(resource.path)
    assert origin.count(resource.path) == 2


async def test_a_second_reader_does_not_make_it_storable(origin, proxy):
    resource = origin.body(f"/token-{next(numbers)}", SMALL).headers(cache_control="private").stall_at(1000)
    async with await proxy.stream("/u" + resource.path), await proxy.stream("/u" + resource.path):
        resource.release()
        await proxy.wait_idle(resource.path)
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

    await until(is_older)
    image.resource.release()
    await proxy.wait_idle(image.resource.path)
    assert await age() > 100
