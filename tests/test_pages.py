"""Other people's pages, which come from our address: none becomes an image, and none acts in our name."""

import pytest

PAGE = b"<!doctype html><script>fetch('/-/api/prefetch', {method: 'POST'})</script>"


@pytest.mark.parametrize(
    "path", ["/files/a.tar.bz2/download", "/download?file=a.iso", "/get.php?name=x.qcow2&mirror=1", "/latest", "/named"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_no_page_becomes_an_image(origin, proxy, path, method):
    html = {"content_type": "text/html; charset=utf-8", "cache_control": "max-age=1000"}
    origin.body("/named", PAGE).headers(**html, content_disposition='attachment; filename="a.img"')
    origin.body("/latest", b"").redirect("/pool/a.iso")
    origin.body("/pool/a.iso", b"").redirect("/login")
    for other in ("/login", "/files/a.tar.bz2/download", "/download", "/get.php"):
        origin.body(other, PAGE).headers(**html)
    answer = await proxy.get(f"/u{path}", method=method)
    assert (answer.status, answer.headers["cache-status"]) == (502, "fetchonce; fwd=uri-miss; detail=web-page")
    assert not list((proxy.cache_dir / "blobs").glob("*/*"))
    for ordinary in ("/login", "/download?q=a"):
        assert (await proxy.get(f"/u{ordinary}", method=method)).status == 200


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/xhtml+xml", None])
@pytest.mark.parametrize("said", ["max-age=1000", "no-store"])
async def test_what_a_browser_runs_is_confined(origin, proxy, kind, said):
    page = origin.body("/page", PAGE).headers(content_type=kind, cache_control=said)
    page.headers({
        "Content-Security-Policy": "default-src *",
        "X-Content-Type-Options": "nosniff",
        "Clear-Site-Data": '"*"',
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Credentials": "true",
        "Set-Cookie": "a=b",
        "Strict-Transport-Security": "max-age=1000",
        "Refresh": "0; url=/-/status",
        "Link": "</-/status>; rel=preload; as=fetch",
    })  # fmt: skip
    for method, fields in (("GET", {}), ("HEAD", {}), ("GET", {"Range": "bytes=0-5"})):
        answer = await proxy.get("/u/page", fields, method=method)
        assert answer.status in (200, 206)
        # Several policies hold all at once.
        assert answer.headers["content-security-policy"] == "default-src *, sandbox"
        assert answer.headers["x-content-type-options"] == "nosniff"
        theirs = {"clear-site-data", "set-cookie", "strict-transport-security", "refresh", "link"}
        assert not theirs & set(answer.headers)
        assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_an_image_is_not(origin, proxy):
    origin.body("/a.img", PAGE)
    assert "content-security-policy" not in (await proxy.get("/u/a.img")).headers


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        # What forms can send, and fetch() without asking first.
        ("text/plain", {}),
        ("application/x-www-form-urlencoded", {}),
        ("multipart/form-data; boundary=x", {}),
        (None, {}),
        ("text/plain; application/json", {}),
        # A page that is confined has no origin.
        ("application/json", {"Origin": "null"}),
        ("application/json", {"Origin": "https://example.org"}),
        ("application/json", {"Sec-Fetch-Site": "cross-site"}),
        ("application/json", {"Sec-Fetch-Site": "same-site"}),
    ],
)
async def test_our_own_endpoints_take_nothing_from_such_a_page(origin, proxy, kind, fields):
    origin.body("/a.img", PAGE)
    body = b'{"url": "/u/a.img"}'
    named = {**({"Content-Type": kind} if kind else {}), **fields}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    head = f"POST /-/api/prefetch HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    async with await proxy.connect() as connection:
        await connection.send(head.encode() + body)
        assert (await connection.answer("POST")).status == 403
    assert origin.requests == 0
