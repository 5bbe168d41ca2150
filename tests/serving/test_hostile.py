"""Hostile input over a raw socket is refused with a reason, and everybody else is still served.

Other tests show how a head is parsed, and rules/test_mirrors.py what a target means. Here one whole server gets all of
it: it must answer with no 5xx of its own, log no traceback, and send nothing upstream.
"""

import asyncio
import json

import pytest

from tests.harness import Proxy, until
from tests.origin import Origin

BODY = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def origin():
    with Origin() as origin:
        yield origin


@pytest.fixture(scope="module")
def proxy(origin, tmp_path_factory):
    proxy = Proxy(tmp_path_factory.mktemp("hostile") / "cache", mirrors={"u": origin.url()}).start()
    yield proxy
    proxy.close()


@pytest.fixture
def nothing_upstream(origin):
    before = origin.requests
    yield
    assert origin.requests == before


@pytest.fixture(autouse=True)
def is_unhurt(proxy):
    first = len(proxy.log)
    yield
    assert "Traceback" not in "\n".join(proxy.log[first:])


def ask(target, *fields, method=b"GET", version=b"1.1", host=b"localhost"):
    head = [method + b" " + target + b" HTTP/" + version, b"Host: " + host, b"Connection: close", *fields, b"", b""]
    return b"\r\n".join(head)


def post(body, *fields):
    length = b"Content-Length: %d" % len(body)
    return ask(b"/-/api/prefetch", length, b"Content-Type: application/json", *fields, method=b"POST") + body


TARGETS = [
    b"/u/../../etc/passwd",
    b"/u/..",
    b"/../u/x",
    b"/u/./x",
    b"/u/%2e%2e/etc/passwd",
    b"/u/%2E./x",
    b"/u/.%2e/x",
    b"/u/%252e%252e/x",
    b"/u/%25252e%25252e%25252fx",
    b"/u/..%2fx",
    b"/u/..%5cx",
    b"/u/..\\x",
    b"/u/a%5c..%5cb",
    b"/u/%c0%ae%c0%ae%00/x",
    b"/u/x%00.img",
    b"/u/x%0d%0aSet-Cookie:%20a=b",
    b"/u/x%250d%250aX:y",
    b"/u/x#y",
    b"/sha256:" + b"0" * 64 + b"/u/../x",
    b"/sha256:../u/x",
    b"/https/u/../x",
    b"/-/../u/x",
    b"/-/%2e%2e/x",
    b"/-/api/entries/../../x",
    b"//evil.example/x",
    b"///u/x",
    b"/evil.example/x",
    b"/http://evil.example/x",
    b"/https:/evil.example/x",
    b"/169.254.169.254/latest/meta-data/",
    b"/localhost/x",
    b"/127.0.0.1:22/x",
    b"/[::1]:22/x",
    b"/2130706433/x",
    b"/u@evil.example/x",
    b"/https/u:p@evil.example/x",
    b"http://evil.example/x",
    b"HTTP://EVIL.example/x",
    b"http://localhost@evil.example/x",
    b"http://localhost:PORT@evil.example/x",
    b"http://evil.example\\@localhost:PORT/x",
    b"http://localhost:PORT/u/../x",
    b"http://localhost:PORT#@evil.example/x",
    b"http://[::1/x",
    b"http:///x",
    b"http://",
    b"ftp://evil.example/x",
    b"file:///etc/passwd",
    b"gopher://localhost:PORT/x",
    b"javascript:alert(1)",
    b"*",
    b"u/x",
    b"?",
    b"/" + b"a/" * 7000,
    b"/u/%" + b"25" * 5000 + b"2e",
    b"/u/\xff\xfe",
    b"/u/\xe2\x80\xae",
    b"/u/x\ty",
    b"/u/x y",
    b"/u/x\x00y",
    b"/u/x\r y",
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: ascii(target)[2:60])
@pytest.mark.usefixtures("nothing_upstream")
async def test_a_hostile_target_goes_nowhere(proxy, target):
    received = await proxy.raw(ask(target.replace(b"PORT", str(proxy.client.port).encode())))
    assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 ", b"HTTP/1.1 404 ", b"HTTP/1.1 405 "))
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"\r\nx-injected" not in received.lower()
    assert b"\r\nset-cookie" not in received.lower()
    assert (await proxy.get("/-/healthz")).status == 200


SMUGGLED = b"GET /u/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
POSTS = {
    "cl.te": [b"Content-Length: 6", b"Transfer-Encoding: chunked"],
    "te.cl": [b"Transfer-Encoding: chunked", b"Content-Length: 4"],
    "te with a space": [b"Transfer-Encoding : chunked"],
    "te with a tab": [b"Transfer-Encoding:\tchunked", b"Content-Length: 6"],
    "te with a vertical tab": [b"Transfer-Encoding: \x0bchunked"],
    "te folded": [b"Transfer-Encoding:", b" chunked"],
    "te twice": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"],
    "te of another name": [b"Transfer-Encoding: xchunked"],
    "te in quotes": [b'Transfer-Encoding: "chunked"'],
    "two lengths": [b"Content-Length: 0", b"Content-Length: 50"],
    "a list of lengths": [b"Content-Length: 0, 50"],
    "a length with a sign": [b"Content-Length: +50"],
    "a length in hex": [b"Content-Length: 0x32"],
    "a length with a space": [b"Content-Length: 5 0"],
    "an enormous length": [b"Content-Length: 99999999999999999999999"],
    "a field in another": [b"X: a\nContent-Length: 50"],
    "a bare cr": [b"X: a\rContent-Length: 50", b"Content-Length: 0"],
    "a nul": [b"X: a\0b"],
    "a field without a name": [b": x"],
    "a field without a colon": [b"nonsense"],
    "a name with a space": [b"Content Length: 50"],
    "a second host": [b"Host: evil.example"],
    "a host in a fold": [b" evil.example"],
}


@pytest.mark.parametrize("fields", POSTS.values(), ids=POSTS)
@pytest.mark.usefixtures("nothing_upstream")
async def test_an_ambiguous_body_hides_no_request(proxy, fields):
    received = await proxy.raw(ask(b"/u/x", *fields, method=b"POST") + b"0\r\n\r\n" + SMUGGLED)
    assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 ", b"HTTP/1.1 501 ", b"HTTP/1.1 405 "))
    assert received.count(b"HTTP/1.1 ") == 1


NO_REQUESTS = {
    "http 0.9": b"GET /u/x\r\n\r\n",
    "http 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(189),
    "smb": b"\0\0\0\x85\xffSMB" + bytes(129),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "socks": b"\x05\x01\x00",
    "nothing but nul": bytes(100_000),
    "nothing but newlines": b"\r\n" * 50_000 + b"X",
    "a method in lower case": ask(b"/u/x", method=b"get"),
    "a method that is none": ask(b"/u/x", method=b"GE\x00T"),
    "an unknown method": ask(b"/u/x", method=b"FROBNICATE"),
    "a known method": ask(b"/u/x", method=b"PROPFIND"),
    "trace": ask(b"/u/x", method=b"TRACE"),
    "a version": ask(b"/u/x", version=b"9.9"),
    "a line break in the target": ask(b"/u/x\r\nX-Injected: y"),
    "no host": b"GET /u/x HTTP/1.1\r\n\r\n",
    "2 MB in one field": ask(b"/u/x", b"X: " + b"x" * 2_000_000),
    "2 MB in many fields": ask(b"/u/x", *[b"X: y"] * 350_000),
    "2 MB of target": ask(b"/u/" + b"x" * 2_000_000),
    "a chunk without end": ask(b"/-/api/prefetch", b"Transfer-Encoding: chunked", method=b"POST") + b"F" * 30 + b"\r\n",
    "a chunk's extension": ask(
        b"/-/api/prefetch", b"Content-Type: application/json", b"Transfer-Encoding: chunked", method=b"POST"
    )
    + b"1;" + b"x" * 9_000_000,
}  # fmt: skip


@pytest.mark.parametrize("data", NO_REQUESTS.values(), ids=NO_REQUESTS)
@pytest.mark.usefixtures("nothing_upstream")
async def test_what_is_no_request_is_refused(proxy, data):
    received = await proxy.raw(data)
    # A client that is still sending when the answer comes may lose it.
    assert not received or int(received[9:12]) in (400, 405, 408, 413, 431, 505), received[:200]
    assert (await proxy.get("/-/healthz")).status == 200


MANY = ",".join(f"{n}-{n}" for n in range(0, 10_000, 2))
FIELDS = [
    {"Range": "bytes=" + MANY},
    {"Range": "bytes=" + "0-," * 10_000},
    {"Range": "bytes=" + "9" * 30_000 + "-"},
    {"Range": "bytes=-" + "9" * 30_000},
    {"Range": "bytes=0-" + "9" * 5000},
    {"Range": "bytes=" + ",".join(["0-"] * 200)},
    {"Range": "bytes=\xb2-\xb3"},
    {"If-None-Match": '"a",' * 10_000},
    {"If-None-Match": '"' * 30_000},
    {"If-Match": "W/" * 20_000},
    {"If-Range": "\xff" * 1000, "Range": "bytes=0-1"},
    {"If-Modified-Since": "Mon, 99 Foo 99999 99:99:99 GMT"},
    {"If-Modified-Since": "9" * 10_000},
    {"If-Unmodified-Since": "Sun, 06 Nov 0000 00:00:00 GMT"},
    {"Cache-Control": "max-age=" + "9" * 10_000},
    {"Cache-Control": "max-age=-1, min-fresh=\xb2, max-stale=x" + "," * 30_000},
    {"Cache-Control": '"' * 30_000},
    {"Cache-Control": "max-age=1=" * 5000},
    {"Authorization": "Basic " + "=" * 30_000},
    {"Accept-Encoding": "gzip;q=" + "9" * 5000},
    {"Via": "1.1 a, " * 5000},
    {"Connection": "close, Host, Range, Content-Length"},
    {"Expect": "200-nonsense"},
    {"Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQ", "Connection": "Upgrade, HTTP2-Settings"},
    {"X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example", "X-Original-URL": "/-/status"},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: ascii(fields)[1:60])
async def test_a_hostile_field_is_ignored_or_refused(origin, proxy, fields):
    origin.body("/x.img", BODY).headers(cache_control="max-age=600")
    for _ in range(2):  # while the body is fetched, and from the store
        answer = await proxy.get("/u/x.img", {"Connection": "close", **fields})
        assert answer.status in (200, 206, 304, 400, 412, 416)
        if answer.status == 200:
            assert answer.body == BODY
        assert len(answer.body) <= 2 * len(BODY)
    assert (await proxy.get("/u/x.img")).body == BODY


ORDERS = {
    "no json": b"{",
    "deep json": b"[" * 100_000,
    "a deep value": b'{"url": ' + b'{"a":' * 50_000,
    "a long number": b'{"url": ' + b"9" * 50_000 + b"}",
    "not utf-8": b'{"url": "\xff\xfe"}',
    "utf-16": '{"url": "x"}'.encode("utf-16"),
    "half a character": b'{"url": "/u/\\ud800"}',
    "a nul": b'{"url": "/u/\\u0000"}',
    "a line break": b'{"url": "/u/x\\r\\nHost: evil"}',
    "nothing": b"",
    "null": b"null",
    "a list": b"[1]",
    "a file": b'{"url": "file:///etc/passwd"}',
    "dots": b'{"url": "https://u/../../etc/passwd"}',
    "ours": b'{"url": "/-/status"}',
    "evil": b'{"url": "http://evil.example/"}',
    "a wrong pin": b'{"url": "/u/x", "pin": 1}',
    "a wrong digest": b'{"url": "/u/x", "digest": "md5:00"}',
}


@pytest.mark.parametrize("body", ORDERS.values(), ids=ORDERS)
@pytest.mark.usefixtures("nothing_upstream")
async def test_a_hostile_order_is_refused(proxy, body):
    received = await proxy.raw(post(body))
    head, _, said = received.partition(b"\r\n\r\n")
    if b" 200 " in head.split(b"\r\n")[0]:  # the error was found later, and the stream tells it
        assert b'"state": "failed"' in said
    else:
        assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))
        assert json.loads(said)["message"]


@pytest.mark.usefixtures("nothing_upstream")
async def test_a_page_elsewhere_orders_nothing(proxy):
    for fields in ([b"Origin: http://evil.example"], [b"Origin: null"], [b"Sec-Fetch-Site: cross-site"]):
        assert (await proxy.raw(post(b'{"url": "/u/x"}', *fields))).startswith(b"HTTP/1.1 403 ")


async def test_who_sends_a_head_byte_by_byte_holds_nobody_up(origin, proxy_factory):
    proxy = proxy_factory(config_text='[server]\nheader_timeout = "1s"\nconnections = 400\n')
    origin.body("/x.img", BODY)
    slow = []
    for _ in range(300):
        slow.append(await proxy.connect())
        await slow[-1].send(b"GET /u/x.img HTTP/1.1\r\nHost: loc")  # now: who says nothing at all is told nothing
    assert (await proxy.get("/u/x.img")).body == BODY
    told = await asyncio.gather(*(connection.rest() for connection in slow))
    assert all(each.startswith(b"HTTP/1.1 408 ") for each in told)
    assert (await proxy.get("/u/x.img")).body == BODY


async def test_who_reads_nothing_costs_nothing(origin, proxy):
    size = 64 << 20
    origin.pattern("/big.img", size)
    before = proxy.memory_bytes()
    lazy = [await proxy.connect() for _ in range(50)]
    for connection in lazy:
        await connection.send(ask(b"/u/big.img"))
    assert (await proxy.get("/-/healthz")).status == 200
    await until(lambda: any(entry["url"].endswith("/big.img") for entry in proxy.entries()))
    await until(lambda: proxy.memory_bytes() - before < size / 2)
