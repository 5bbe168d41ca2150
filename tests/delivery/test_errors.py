"""Errors say what happened; a bad target never reaches upstream."""

import json

import pytest

from tests.delivery.images import SMALL, ask, assert_is_error, numbers, small
from tests.harness import Response

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
