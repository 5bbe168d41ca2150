"""JSON whose URLs become ours: `rewrite` of a [[mirror]]."""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import http.client
import itertools
import json
import re
import ssl

import pytest
import trustme

from tests.harness import Proxy
from tests.origin import Origin

numbers = itertools.count(1)
TOKEN = "s3cr:et/"
CONFIG = """\
shipped_mirrors = false
[access]
token = "{token}"
hosts = ["cache.example"]
[server]
tls_cert = '{pem}'
[[mirror]]
name = "u"
upstreams = ["{origin}"]
rewrite = ['\\.json$']
[[mirror]]
name = "images"
upstreams = ["https://images.example/pub/"]
"""
ITSELF = 'x "quoted" \\ / é 😀 \u2028 https://images.example/pub/a'
DOCUMENT = {
    "https://images.example/pub/name": 1,
    "url": "https://images.example/pub/noble.img?x=1&y=%2F",
    "list": ["http://images.example/pub/a", "https://other.example/b", "https://images.example/elsewhere", ITSELF],
    "text": ITSELF,
    "number": 1.50,
}
TEXT = (
    json.dumps(DOCUMENT, indent=1, ensure_ascii=False)
    .replace('"https://images.example/pub/noble', r'"https:\/\/images.example\/pub\/noble')
    .replace("1.5", "15e-1")
    .encode()
)


def given(base):
    """TEXT with our URLs; every other byte is as it was."""
    return TEXT.replace(
        rb'"https:\/\/images.example\/pub\/noble.img?x=1&y=%2F"',
        f'"{base}/images.example/pub/noble.img?x=1&y=%2F"'.encode(),
    ).replace(b'"http://images.example/pub/a"', f'"{base}/http/images.example/pub/a"'.encode())


@pytest.fixture(scope="module")
def origin():
    with Origin() as origin:
        yield origin


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    ca = trustme.CA()
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path_factory.getbasetemp() / "own.pem")
    return ca


@pytest.fixture(scope="module")
def proxy(origin, ca, tmp_path_factory):
    """Mirrors: `u` is the origin, whose .json is rewritten; `images` is never asked. It listens for https too."""
    text = CONFIG.format(token=TOKEN, pem=tmp_path_factory.getbasetemp() / "own.pem", origin=origin.url())
    cache = tmp_path_factory.mktemp("rewritten") / "cache"
    with contextlib.closing(Proxy(cache, "--listen", "https://127.0.0.1:0", mirrors={}, config_text=text)) as proxy:
        yield proxy.start()


@pytest.fixture
def document(origin):
    """An object at a path of its own, with TEXT or another body, and these fields of upstream's."""

    def make(body=TEXT, **fields):
        path = f"/documents/{next(numbers)}.json"
        return origin.body(path, body).headers({"cache_control": "max-age=600", "content_type": "text/plain"} | fields)

    return make


def same(answer):
    """The fields by which clients tell one answer from another."""
    return {name: value for name, value in answer.headers.items() if name not in ("age", "date", "cache-status")}


async def test_urls_of_configured_hosts_are_ours_and_every_other_byte_is_upstreams(proxy, document, origin):
    assert json.loads(TEXT) == DOCUMENT
    resource = document(vary="Accept", content_digest="sha-256=:AAAA:")
    path = f"/u{resource.path}"
    got = await proxy.get(path)
    assert got.body == given(proxy.url("").rstrip("/"))
    assert json.loads(got.body) == DOCUMENT | {
        "url": proxy.url("/images.example/pub/noble.img?x=1&y=%2F"),
        "list": [proxy.url("/http/images.example/pub/a"), *DOCUMENT["list"][1:]],
    }
    assert got.headers["content-length"] == str(len(got.body))
    assert got.headers["accept-ranges"] == "none"
    assert got.headers["vary"] == "Accept, Host, Authorization"
    assert got.headers["cache-status"] == "fetchonce; fwd=uri-miss; stored"
    assert re.fullmatch(r'"fetchonce-[0-9a-f]{32}"', got.headers["etag"])
    assert not {"last-modified", "content-digest"} & got.headers.keys()
    stored = await proxy.get(path)
    assert (same(stored), stored.body) == (same(got), got.body)
    assert stored.headers["cache-status"] == "fetchonce; hit"
    assert origin.count(resource.path, None) == 1
    entry = await proxy.entry(resource.path.rpartition("/")[2])
    assert entry["sha256"] == hashlib.sha256(TEXT).hexdigest()  # what is kept is upstream's


async def test_head_says_what_get_says_on_a_miss_and_on_a_hit(proxy, document, origin):
    resource = document()
    path = f"/u{resource.path}"
    first = await proxy.get(path, method="HEAD")
    got = await proxy.get(path)
    assert (first.status, first.body, same(first)) == (200, b"", same(got))
    assert same(await proxy.get(path, method="HEAD")) == same(got)
    assert [request.method for request in origin.log if request.path == resource.path] == ["GET"]


async def test_conditions_are_about_the_rewritten_body(proxy, document):
    resource = document()
    path = f"/u{resource.path}"
    etag = (await proxy.get(path)).headers["etag"]
    theirs = resource.shown()[1]
    for fields, status in [
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": f'"other", W/{etag}'}, 304),
        ({"If-None-Match": theirs["etag"]}, 200),
        ({"If-Match": etag}, 200),
        ({"If-Match": theirs["etag"]}, 412),
        ({"If-Modified-Since": theirs["last-modified"]}, 200),
        ({"Range": "bytes=0-9"}, 200),
        ({"Range": "bytes=99999999-"}, 200),
        ({"Range": "bytes=0-9", "If-Range": etag}, 200),
    ]:
        for method in ("GET", "HEAD"):
            answer = await proxy.get(path, fields, method=method)
            assert answer.status == status, fields
            if status == 200:
                assert answer.body == (given(proxy.url("").rstrip("/")) if method == "GET" else b"")
            if status == 304:
                assert (answer.headers["etag"], answer.headers["vary"]) == (etag, "Host, Authorization")
                assert "content-length" not in answer.headers


async def test_while_it_fills_and_after_a_revalidation_it_is_the_same(proxy, document, origin):
    resource = document().stall_at(100)
    path = f"/u{resource.path}"
    asked = [asyncio.create_task(proxy.get(path, method=method)) for method in ("GET", "GET", "HEAD")]
    await proxy.wait_readers(3, resource.path)
    resource.release()
    answers = [await each for each in asked]
    await proxy.wait_idle(resource.path)
    answers.append(await proxy.get(path, {"Cache-Control": "no-cache"}))
    assert answers[-1].headers["cache-status"] == "fetchonce; fwd=request; fwd-status=304"
    assert [same(each) for each in answers] == [same(answers[0])] * 4
    assert [each.body for each in answers] == [answers[0].body, answers[0].body, b"", answers[0].body]
    assert origin.count(resource.path) == 2


async def test_what_breaks_off_is_an_error_and_no_half_of_it(proxy, document):
    resource = document().close_at(100)
    answer = await proxy.get(f"/u{resource.path}")
    assert answer.status == 502
    assert "message" in answer.json()


@pytest.mark.parametrize("fields", [{}, {"cache_control": "private"}], ids=["kept", "passed on"])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
async def test_what_is_no_json_or_too_long_is_as_upstream_has_it(proxy, document, fields, is_chunked):
    long = b'["https://images.example/pub/a","' + b"x" * (5 << 20) + b'"]'
    url = b'"https://images.example/pub/a"'
    bodies = {
        "gzip": gzip.compress(TEXT),
        "malformed": TEXT[:-1],
        "text behind it": TEXT + b"{",
        "UTF-16": TEXT.decode().encode("utf-16-le"),
        "Latin-1": TEXT.decode().replace("😀", "").replace("\u2028", "").encode("latin-1"),
        "deep": b"[" * 100_000 + url + b"]" * 100_000,
        "long": long,
        "a page": b"<!doctype html>" + url * 100_000,
        "no URL of ours": b'{"url": "https://other.example/a"}',
        "empty": b"",
    }
    for what, body in bodies.items():
        resource = document(body, **fields)
        theirs = resource.shown()[1]
        if is_chunked:
            resource.chunked()
        for _ in range(2):
            answer = await proxy.get(f"/u{resource.path}")
            assert answer.status == 200, what
            assert answer.body == body, what
            assert answer.headers["etag"] == theirs["etag"]
            assert answer.headers["last-modified"] == theirs["last-modified"]
            assert (answer.headers["accept-ranges"], answer.headers.get("vary")) == ("bytes", None)
            if what != "empty" and not (is_chunked and fields):
                part = await proxy.get(f"/u{resource.path}", {"Range": "bytes=1-20"})
                assert (part.status, part.body) == (206, body[1:21]), what
            await proxy.wait_idle(resource.path)
    resource = document(TEXT, **fields)
    if is_chunked:
        resource.chunked()
    for method in ("HEAD", "GET"):
        answer = await proxy.get(f"/u{resource.path}", method=method)
        assert answer.body == (given(proxy.url("").rstrip("/")) if method == "GET" else b"")
        assert answer.headers["content-length"] == str(len(given(proxy.url("").rstrip("/"))))


async def test_each_client_gets_the_address_it_has_used(proxy, document, ca, origin):
    resource = document()
    path, port = f"/u{resource.path}", proxy.client.port
    basic = base64.b64encode(f"me:{TOKEN}".encode()).decode()
    tags = set()
    for target, fields, base in [
        (path, {"host": "localhost"}, "http://localhost"),
        (path, {"host": "Cache.Example:80"}, "http://Cache.Example:80"),
        (path, {"host": f"[::1]:{port}"}, f"http://[::1]:{port}"),
        (path, {"host": "host.lima.internal:8642"}, "http://host.lima.internal:8642"),
        (f"http://localhost:{port}{path}", {"host": "other.example"}, f"http://localhost:{port}"),
        (path, {"authorization": f"Bearer {TOKEN}", "host": "localhost:1"}, "http://localhost:1"),
        (path, {"authorization": "Basic YTpi", "host": "localhost:2"}, "http://localhost:2"),
        (path, {"authorization": f"basic {basic}", "host": "localhost"}, "http://me:s3cr%3Aet%2F@localhost"),
    ]:
        answer = await proxy.get(target, fields)
        assert answer.body == given(base)
        assert answer.headers["vary"] == "Host, Authorization"
        # A token in the body is no cache's but the client's own.
        assert answer.headers["cache-control"] == ("max-age=600, private" if "@" in base else "max-age=600")
        tags.add(answer.headers["etag"])
    assert len(tags) == 8

    https = int(re.search(r"https://127\.0\.0\.1:(\d+)", "\n".join(proxy.log))[1])

    def over_tls():
        context = ssl.create_default_context()
        ca.configure_trust(context)
        connection = http.client.HTTPSConnection("127.0.0.1", https, timeout=10, context=context)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read()

    assert await asyncio.to_thread(over_tls) == given(f"https://127.0.0.1:{https}")
    assert origin.count(resource.path, None) == 1


async def test_who_does_not_name_us_or_asks_for_a_digest_gets_upstreams_bytes(proxy, document, origin):
    resource = document()
    digest = hashlib.sha256(TEXT).hexdigest()
    for method in ("HEAD", "GET"):
        as_proxy = await proxy.get(origin.url(resource.path), method=method)
        assert as_proxy.body == (TEXT if method == "GET" else b"")
        assert (as_proxy.headers["accept-ranges"], as_proxy.headers.get("vary")) == ("bytes", None)
    answer = await proxy.raw(f"GET /u{resource.path} HTTP/1.0\r\n\r\n".encode())
    assert answer.endswith(TEXT)
    assert (await proxy.get(f"/sha256:{digest}/u{resource.path}")).body == TEXT
    for method in ("HEAD", "GET"):
        plain = await proxy.get(f"/u{resource.path}", {"Cache-Control": "no-transform"}, method=method)
        assert plain.body == (TEXT if method == "GET" else b"")
        assert plain.headers["etag"] == resource.shown()[1]["etag"]
    other = origin.body("/documents/other.txt", TEXT)
    assert (await proxy.get(f"/u{other.path}")).body == TEXT
