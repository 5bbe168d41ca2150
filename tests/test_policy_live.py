"""The caching policy over real sockets: what upstream is asked, what is served, and what Cache-Status says of it."""

import json
import os
import re

import pytest

from tests.harness import until
from tests.origin import Origin

BODY = os.urandom(50_000)
OTHER = os.urandom(50_000)
PAGE = b"<!doctype html><title>Log in</title>"


def mirror(origin, *lines, urls=()):
    """Configuration of the mirror `m`, whose /latest/ moves and whose /v1/ never changes."""
    upstreams = json.dumps([origin.url(), *urls])
    text = f'[[mirror]]\nname = "m"\nupstreams = {upstreams}\nmoving = ["/latest/"]\nimmutable = ["/v1/"]\n'
    return text + "\n".join(lines)


def told(answer):
    return answer.headers["cache-status"].removeprefix("fetchonce; ")


# -- RFC 9111 ----------------------------------------------------------------------------------------------------------


async def test_an_answer_that_was_old_when_it_came_is_that_much_older(origin, proxy):
    """RFC 9111 §4.2.3: apparent age."""
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    origin.body("/old.img", BODY).headers(cache_control="max-age=600", date=date)
    first = await proxy.fetch("/u/old.img")
    assert int(first.headers["age"]) > 900_000_000
    assert told(await proxy.get("/u/old.img")) == "fwd=stale; fwd-status=304"


async def test_no_cache_goes_all_the_way_and_asks_even_for_what_never_changes(origin, proxy_factory):
    """RFC 9111 §5.2.1.4: how diskimage-builder repairs its copy."""
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    image = origin.body("/v1/noble.img", BODY)
    await proxy.fetch("/m/v1/noble.img")
    assert told(await proxy.get("/m/v1/noble.img")) == "hit"
    image.generation(OTHER)
    answer = await proxy.get("/m/v1/noble.img", {"Cache-Control": "no-cache"})
    assert (answer.body, told(answer)) == (OTHER, "fwd=request; fwd-status=200; stored")
    assert origin.log[-1].headers["cache-control"] == "no-cache"
    await proxy.wait_idle()
    assert (await proxy.get("/m/v1/noble.img")).body == OTHER
    assert origin.requests == 2


@pytest.mark.parametrize(
    ("fields", "is_stored"),
    [
        pytest.param({"cache_control": "must-understand, no-store"}, True, id="rfc9111-5.2.2.3"),
        pytest.param({"cdn_cache_control": "no-store", "cache_control": "max-age=60"}, False, id="rfc9213-2.2"),
        pytest.param({"cache_control": 'private="x-user", max-age=60'}, True, id="rfc9111-5.2.2.7"),
        pytest.param({"vary": "*"}, False, id="rfc9111-4.1"),
    ],
)
async def test_what_is_stored(origin, proxy, fields, is_stored):
    origin.body("/a.img", BODY).headers(x_user="me", **fields)
    answer = await proxy.get("/u/a.img")
    assert told(answer) == ("fwd=uri-miss; stored" if is_stored else "fwd=uri-miss; stored=?0")
    assert ("x-user" in answer.headers) is ("private" not in fields.get("cache_control", ""))
    await proxy.wait_idle()
    assert (await proxy.get("/u/a.img", {"Cache-Control": "only-if-cached, max-stale"})).status in (200, 504)
    assert len(proxy.entries()) == is_stored


async def test_a_client_s_cookies_stay_here(origin, proxy):
    origin.body("/a.img", BODY).headers(cache_control="max-age=600")
    await proxy.get("/u/a.img", {"Cookie": "secret"})
    await proxy.wait_idle()
    assert told(await proxy.get("/u/a.img")) == "hit"
    (asked,) = origin.log
    assert "secret" not in str(asked.headers)


async def test_a_request_for_another_variant_is_asked_upstream_and_replaces_it(origin, proxy):
    """RFC 9111 §4.1; Vagrant asks one URL for the page and for the box's metadata."""
    box = origin.body("/ubuntu/jammy64", BODY).headers(cache_control="max-age=600", vary="Accept, Accept-Encoding")
    await proxy.fetch("/u/ubuntu/jammy64")
    assert told(await proxy.get("/u/ubuntu/jammy64", {"Accept": "*/*", "Accept-Encoding": "gzip"})) == "hit"
    box.generation(OTHER)
    json_only = {"Accept": "application/json"}
    answer = await proxy.get("/u/ubuntu/jammy64", json_only)
    assert (answer.body, told(answer)) == (OTHER, "fwd=vary-miss; fwd-status=200; stored")
    assert origin.log[-1].headers["accept"] == "application/json"
    await proxy.wait_idle()
    assert told(await proxy.get("/u/ubuntu/jammy64", json_only)) == "hit"
    # By a 304 upstream says that the stored one fits this request too; then it is used.
    assert told(await proxy.get("/u/ubuntu/jammy64")) == "fwd=vary-miss; fwd-status=304"
    assert told(await proxy.get("/u/ubuntu/jammy64")) == "hit"


async def test_what_a_client_negotiates_by_goes_upstream_byte_for_byte(origin, proxy):
    origin.body("/a.img", BODY)
    assert (await proxy.get("/u/a.img", {"Accept": 'text/x; p="\xe9"'})).status == 200
    assert origin.log[-1].headers["accept"] == 'text/x; p="\xe9"'


async def test_head_of_what_is_not_stored_negotiates_too(origin, proxy):
    origin.body("/ubuntu/jammy64", BODY)
    await proxy.get("/u/ubuntu/jammy64", {"Accept": "application/json"}, method="HEAD")
    assert [(request.method, request.headers["accept"]) for request in origin.log] == [("HEAD", "application/json")]


async def test_who_wants_another_variant_than_the_one_on_its_way_waits_for_a_fill_of_its_own(origin, proxy):
    box = origin.body("/box", BODY).headers(cache_control="max-age=600", vary="Accept").stall_at(1000)
    async with await proxy.stream("/u/box", {"Accept": "text/html"}) as first, await proxy.connect() as second:
        await second.send(b"GET /u/box HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n\r\n")

        async def has_joined():
            return (await proxy.status())["fills"][0]["readers"] == 2

        await until(has_joined)
        box.generation(OTHER)
        origin.release()
        assert await first.rest() == BODY
        stream = await second.answer()
        assert await stream.rest() == OTHER
        assert told(stream) == "fwd=vary-miss; fwd-status=200; stored"
    assert [request.headers["accept"] for request in origin.log] == ["text/html", "application/json"]


async def test_a_304_about_another_generation_is_no_confirmation(origin, proxy):
    """RFC 9111 §4.3.4."""
    image = origin.body("/a.img", BODY).headers(cache_control="max-age=0")
    await proxy.fetch("/u/a.img")
    image.generation(OTHER).status(304, {"ETag": '"other"'}, times=1)
    answer = await proxy.get("/u/a.img")
    assert (answer.body, told(answer)) == (OTHER, "fwd=stale; fwd-status=200; stored")
    assert [request.status for request in origin.log] == [200, 304, 200]
    assert "if-none-match" not in origin.log[-1].headers


async def test_stale_while_revalidate_answers_at_once_and_asks_behind_the_answer(origin, proxy):
    """RFC 5861 §3."""
    image = origin.body("/a.img", BODY).headers(cache_control="max-age=0, stale-while-revalidate=600")
    await proxy.fetch("/u/a.img")
    image.generation(OTHER).delay_headers_until_released()
    for _ in range(3):
        answer = await proxy.get("/u/a.img")  # upstream says nothing yet
        assert answer.body == BODY
        assert re.fullmatch(r"hit; ttl=-\d+", told(answer))
    await origin.requested(2)
    origin.release()

    async def is_new():
        return (await proxy.get("/u/a.img")).body == OTHER

    await until(is_new)
    assert "if-none-match" in origin.log[1].headers


async def test_max_stale_takes_what_is_stale_without_asking(origin, proxy):
    origin.body("/a.img", BODY).headers(cache_control="max-age=0")
    await proxy.fetch("/u/a.img")
    answer = await proxy.get("/u/a.img", {"Cache-Control": "max-stale=600"})
    assert (answer.body, origin.requests) == (BODY, 1)
    assert re.fullmatch(r"hit; ttl=-\d+", told(answer))


# -- when upstream fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "cache_control", "lines", "served"),
    [
        pytest.param("/a.img", "max-age=0", (), True, id="rfc9111-4.2.4-disconnected"),
        pytest.param("/a.img", "max-age=0, must-revalidate", (), False, id="rfc9111-5.2.2.2-must-revalidate"),
        pytest.param("/a.img", "no-cache", (), False, id="rfc9111-5.2.2.4-no-cache"),
        pytest.param("/latest/a.img", "no-cache", ('ttl = "0s"',), True, id="a-mirror-s-rule-decides-of-its-own"),
        pytest.param("/latest/a.img", "", ('ttl = "0s"', 'stale_if_error = "0s"'), False, id="stale-if-error-0"),
        pytest.param("/v1/a.img", "no-cache", (), True, id="what-never-changes"),
    ],
)
async def test_what_is_served_without_upstream(proxy_factory, path, cache_control, lines, served, method):
    with Origin() as origin:
        proxy = proxy_factory(mirrors={}, config_text=mirror(origin, *lines))
        origin.body(path, BODY).headers(cache_control=cache_control)
        await proxy.fetch("/m" + path)
    answer = await proxy.get("/m" + path, method=method)
    if "v1" in path:
        assert told(answer) == "hit"
    else:
        assert told(answer) == "fwd=stale; detail=unreachable"
    assert answer.status == (200 if served or method == "HEAD" else 504)
    if method == "GET" and not served:
        assert "refused the connection" in answer.json()["message"]
        assert "may not be used without asking" in answer.json()["message"]
    if method == "GET" and served:
        assert answer.body == BODY
    assert "warning" not in answer.headers


async def test_offline_serves_what_is_stored_at_any_age_and_says_so(origin, proxy_factory, tmp_path):
    online = proxy_factory(cache_dir=tmp_path / "cache")
    origin.body("/a.img", BODY).headers(cache_control="max-age=0, must-revalidate")
    await online.fetch("/u/a.img")
    online.terminate()
    offline = proxy_factory("--offline", cache_dir=tmp_path / "cache")
    for method in ("GET", "HEAD"):
        answer = await offline.get("/u/a.img", {"Cache-Control": "no-cache"}, method=method)
        assert answer.status == 200
        assert re.fullmatch(r"hit; ttl=-\d+", told(answer))
    assert (await offline.get("/u/b.img", method="HEAD")).status == 504
    assert origin.requests == 1


# -- what upstream does not have ---------------------------------------------------------------------------------------


async def test_that_there_is_no_such_object_is_asked_once(origin, proxy):
    first = await proxy.get("/u/none.img")
    assert (first.status, told(first)) == (404, "fwd=uri-miss; fwd-status=404")
    for method, headers in (("GET", {}), ("HEAD", {}), ("GET", {"Cache-Control": "only-if-cached"})):
        again = await proxy.get("/u/none.img", headers, method=method)
        assert again.status == 404
        assert re.fullmatch(r"hit; ttl=\d; detail=negative", told(again))
        assert int(again.headers["age"]) < 10
        assert method == "HEAD" or again.json() == first.json()
    assert origin.requests == 1


async def test_what_has_come_into_being_is_found_by_no_cache_and_then_by_everybody(origin, proxy):
    assert (await proxy.get("/u/new.img")).status == 404
    origin.body("/new.img", BODY).headers(cache_control="max-age=0")
    assert (await proxy.get("/u/new.img")).status == 404
    assert (await proxy.get("/u/new.img", {"Cache-Control": "no-cache"})).body == BODY
    await proxy.wait_idle()
    assert told(await proxy.get("/u/new.img")) == "fwd=stale; fwd-status=304"


@pytest.mark.parametrize(
    ("status", "fields", "lines"),
    [
        pytest.param(404, {}, ('negative_ttl = "0s"',), id="set-to-0"),
        pytest.param(404, {"Cache-Control": "no-store"}, (), id="rfc9111-5.2.2.5-no-store"),
        pytest.param(403, {}, (), id="403"),
        pytest.param(500, {}, (), id="500"),
    ],
)
async def test_other_errors_are_asked_again(origin, proxy_factory, status, fields, lines):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin, *lines))
    origin.body("/a.img", b"").status(status, fields)
    for count in (1, 2):
        answer = await proxy.get("/m/a.img")
        assert answer.status == (502 if status == 500 else status)
        assert told(answer) == f"fwd=uri-miss; fwd-status={status}"
        assert origin.count("/a.img") == count


async def test_a_page_under_the_name_of_an_image_is_nobody_s_image(origin, proxy):
    origin.body("/noble.img", PAGE).headers(content_type="text/html; charset=utf-8", cache_control="max-age=600")
    for method in ("GET", "HEAD"):
        answer = await proxy.get("/u/noble.img", method=method)
        assert answer.status == 502
    assert "web page" in (await proxy.get("/u/noble.img")).json()["message"]
    assert proxy.files("blobs/*/*") == []


async def test_where_one_mirror_has_a_page_the_next_one_is_asked(origin, proxy_factory):
    with Origin() as portal:
        portal.body("/noble.img", PAGE).headers(content_type="text/html")
        origin.body("/noble.img", BODY)
        proxy = proxy_factory(mirrors={}, config_text=mirror(portal, urls=[origin.url()]))
        assert (await proxy.get("/m/noble.img")).body == BODY
        assert portal.requests == 1


async def test_what_is_stored_is_served_where_a_page_has_taken_its_place(origin, proxy):
    origin.body("/noble.img", BODY).headers(cache_control="max-age=0")
    await proxy.fetch("/u/noble.img")
    origin.body("/noble.img", PAGE).headers(content_type="text/html")
    answer = await proxy.get("/u/noble.img")
    assert (answer.status, answer.body) == (200, BODY)
    assert told(answer) == "fwd=stale; detail=web-page"


# -- image and checksum file are of one time ---------------------------------------------------------------------------

SUMS = ('ttl = "1h"', 'checksums = ["SHA256SUMS", "SHA512SUMS"]')


async def test_a_new_image_has_its_checksum_files_asked_for_with_it(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin, *SUMS))
    image = origin.body("/latest/noble.img", BODY)
    sums = {name: origin.body(f"/latest/{name}", b"old\n") for name in ("SHA256SUMS", "SHA512SUMS")}
    for path in ("noble.img", *sums):
        await proxy.fetch(f"/m/latest/{path}")
    for resource, new in ((image, OTHER), *((each, b"new\n") for each in sums.values())):
        resource.generation(new)
    assert (await proxy.get("/m/latest/noble.img", {"Cache-Control": "no-cache"})).body == OTHER
    await origin.happens(lambda: all(origin.count(f"/latest/{name}") == 2 for name in sums))
    await proxy.wait_idle()
    for name in sums:
        answer = await proxy.get(f"/m/latest/{name}")
        assert (answer.body, told(answer)) == (b"new\n", "hit")


async def test_an_image_that_has_not_changed_leaves_its_checksum_files_alone(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin, *SUMS))
    origin.body("/latest/SHA256SUMS", b"sums\n")
    origin.body("/latest/noble.img", BODY)
    for path in ("SHA256SUMS", "noble.img"):
        await proxy.fetch(f"/m/latest/{path}")
    assert told(await proxy.get("/m/latest/noble.img", {"Cache-Control": "no-cache"})) == "fwd=request; fwd-status=304"
    await proxy.wait_idle()
    assert origin.count("/latest/SHA256SUMS") == 1


async def test_a_new_checksum_file_makes_the_images_beside_it_stale(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin, *SUMS))
    sums = origin.body("/latest/SHA256SUMS", b"old\n")
    image = origin.body("/latest/noble.img", BODY)
    for path in ("SHA256SUMS", "noble.img"):
        await proxy.fetch(f"/m/latest/{path}")
    assert told(await proxy.get("/m/latest/noble.img")) == "hit"
    sums.generation(b"new\n")
    image.generation(OTHER)
    assert (await proxy.get("/m/latest/SHA256SUMS", {"Cache-Control": "no-cache"})).body == b"new\n"
    await proxy.wait_idle()
    answer = await proxy.get("/m/latest/noble.img")
    assert (answer.body, told(answer)) == (OTHER, "fwd=stale; fwd-status=200; stored")
    await proxy.wait_idle()
    assert told(await proxy.get("/m/latest/noble.img")) == "hit"


async def test_what_never_changes_does_not_care_about_a_new_checksum_file(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin, *SUMS))
    origin.body("/v1/noble.img", BODY)
    await proxy.fetch("/m/v1/noble.img")
    origin.body("/v1/SHA256SUMS", b"new\n")
    await proxy.fetch("/m/v1/SHA256SUMS")
    assert told(await proxy.get("/m/v1/noble.img")) == "hit"


# -- what Cache-Status says --------------------------------------------------------------------------------------------


async def test_head_and_get_tell_the_same_trouble_the_same_way(proxy_factory):
    with Origin() as origin:
        proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    answers = [await proxy.get("/m/a.img", method=method) for method in ("HEAD", "GET")]
    assert [(answer.status, told(answer)) for answer in answers] == [(502, "fwd=uri-miss; detail=unreachable")] * 2


async def test_our_own_endpoints_have_no_cache_status(proxy):
    assert "cache-status" not in (await proxy.get("/-/healthz")).headers
