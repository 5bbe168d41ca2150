"""A mirror that redirects to several nodes, one that limits requests, and answers that bring nothing.

One plain GET gets the whole body there; so does a client here, and upstream gets no more requests than it bears.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import socket
import threading
from dataclasses import dataclass

import pytest

from tests.harness import Truncated
from tests.origin import Origin, pattern_sha256

BODY = os.urandom(600_000)
SIZE = len(BODY)
MIDDLE = 250_000
BIG = 80 << 20
SEED = 3
SECRET = "X-Signature=0123456789abcdef"
TURNS = 200
NAMES = ("/x.img", "/big.img", "/x.json")


@dataclass
class Site:
    """A redirector that sends each request to the next of two nodes, by a signed URL."""

    front: Origin
    a: Origin
    b: Origin

    @property
    def mirrors(self):
        """The nodes are named because they are not public."""
        return {"u": self.front.url(), "a": self.a.url(), "b": self.b.url()}

    def body(self, path, body=BODY, other=None):
        """The same bytes at both nodes under other tags, or `other` ones at the second. Returns what they serve."""
        self.alternate(path, self.a, self.b)
        return (
            self.a.body(path, body).headers(etag='"of-a"'),
            self.b.body(path, body if other is None else other).headers(etag='"of-b"'),
        )

    def pattern(self, path, size=BIG):
        self.alternate(path, self.a, self.b)
        return (
            self.a.pattern(path, size, SEED).headers(etag='"of-a"'),
            self.b.pattern(path, size, SEED).headers(etag='"of-b"'),
        )

    def alternate(self, path, *nodes, **fields):
        turns = self.front.body(path, b"")
        for turn in range(TURNS):
            location = nodes[turn % len(nodes)].url(f"{path}?{SECRET}")
            turns.status(302, {"Location": location, **fields}, times=1)

    def gets(self, path):
        return [request for node in (self.a, self.b) for request in node.log if request.is_for(path)]

    def bytes_sent(self, path):
        return self.a.bytes_sent(path) + self.b.bytes_sent(path)


@pytest.fixture
def site(origin, other):
    with Origin() as third:
        yield Site(origin, other, third)


@pytest.fixture
def proxy(site, proxy_factory):
    return proxy_factory(mirrors=site.mirrors)


def dates(a, b, which):
    match which:
        case "none":
            a.headers(last_modified=None), b.headers(last_modified=None)
        case "different":
            b.headers(last_modified="Wed, 15 Nov 2023 22:13:20 GMT")


# -- the rest of a body ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["equal", "none", "different"])
async def test_a_break_is_gone_on_with_at_the_same_node(site, proxy, which):
    a, b = site.body("/x.img")
    dates(a, b, which)
    a.close_at(MIDDLE, times=1)
    assert (await proxy.get("/u/x.img")).body == BODY
    assert site.front.count("/x.img") == 1
    assert [request.status for request in site.a.log] == [200, 206]
    assert site.b.requests == 0


@pytest.mark.parametrize("which", ["equal", "none", "different"])
async def test_a_node_that_dies_is_replaced_by_the_other(site, proxy, which):
    a, b = site.body("/x.img")
    dates(a, b, which)
    a.stall_at(MIDDLE)
    async with await proxy.stream("/u/x.img") as stream:
        assert await stream.read(MIDDLE) == BODY[:MIDDLE]
        await asyncio.to_thread(site.a.stop)
        assert await stream.rest() == BODY[MIDDLE:]
    assert (await proxy.fetch("/u/x.img")).body == BODY
    assert site.a.requests == 1  # stored
    sent = site.b.bytes_sent("/x.img")
    if which == "different":
        assert sent == len(BODY)  # nothing but a comparison of everything can tell
    else:
        assert sent < len(BODY) - MIDDLE + 100_000


@pytest.mark.parametrize("which", ["equal", "none", "different"])
async def test_a_node_with_other_bytes_is_never_mixed_in(site, proxy, which):
    wrong = os.urandom(len(BODY))
    a, b = site.body("/x.img", other=wrong)
    dates(a, b, which)
    a.stall_at(MIDDLE)
    async with await proxy.stream("/u/x.img") as stream:
        assert await stream.read(MIDDLE) == BODY[:MIDDLE]
        await asyncio.to_thread(site.a.stop)
        assert await stream.broken() == b""
    await proxy.wait_idle()
    assert proxy.entries() == []
    site.alternate("/x.img", site.b)
    assert (await proxy.fetch("/u/x.img")).body == wrong  # what upstream has now


async def test_a_node_with_other_bytes_is_passed_over(site, proxy):
    """The redirector leads to it by turns, and the right one answers again in time."""
    a, _ = site.body("/x.img", other=os.urandom(len(BODY)))
    a.close_at(MIDDLE, times=1).status(503, times=1, of_ranges=True)
    assert (await proxy.get("/u/x.img")).body == BODY


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_a_signed_url_that_has_expired_is_asked_for_again(site, proxy, status):
    a, _ = site.body("/x.img")
    a.stall_at(MIDDLE)
    async with await proxy.stream("/u/x.img") as stream:
        assert await stream.read(MIDDLE) == BODY[:MIDDLE]
        a.status(status)
        site.a.cut()
        assert await stream.rest() == BODY[MIDDLE:]
    assert site.front.count("/x.img") == 2
    assert [request.status for request in site.b.log] == [206]


async def test_every_connection_breaks_and_the_bytes_come(site, proxy_factory):
    proxy = proxy_factory(mirrors=site.mirrors, config_text="[fill]\nretries = 5\n")
    a, b = site.body("/x.img")
    for at in range(100_000, 600_000, 100_000):
        (a if at % 200_000 else b).close_at(at)
    assert (await proxy.get("/u/x.img")).body == BODY
    assert site.bytes_sent("/x.img") < 1.05 * len(BODY) + 10 * 64 * 1024


async def test_a_killed_server_goes_on_at_whichever_node_it_meets(site, proxy):
    size = 16 << 20
    a, _ = site.pattern("/big.img", size)
    a.stall_at(size // 2)
    async with await proxy.stream("/u/big.img") as stream:
        await stream.read(size // 2)
        await proxy.wait_begun(size // 2)
        proxy.kill()
    await asyncio.to_thread(proxy.start)
    assert (await (await proxy.stream("/u/big.img")).sha256())[0] == pattern_sha256(size, SEED)
    assert [request.status for request in site.b.log] == [206]
    assert site.bytes_sent("/big.img") < size * 1.5


async def test_what_a_killed_server_left_is_compared_and_not_mixed(site, proxy):
    wrong = os.urandom(8 << 20)
    body = os.urandom(8 << 20)
    a, _ = site.body("/x.img", body, wrong)
    a.stall_at(4 << 20)
    async with await proxy.stream("/u/x.img") as stream:
        await stream.read(4 << 20)
        await proxy.wait_begun(4 << 20)
        proxy.kill()
    site.alternate("/x.img", site.b)
    await asyncio.to_thread(proxy.start)
    ends = []
    for _ in range(2):
        try:
            ends.append((await proxy.get("/u/x.img")).body)
        except Truncated as broken:
            ends.append(broken.partial)
        await proxy.wait_idle()
    assert ends[-1] == wrong
    assert ends[0] == wrong or body.startswith(ends[0])


async def test_a_resumed_fill_whose_object_changes_breaks_its_readers(site, proxy):
    body, new = os.urandom(8 << 20), os.urandom(8 << 20)
    site.alternate("/x.img", site.a)
    a = site.a.body("/x.img", body).stall_at(4 << 20, times=1).stall_at(6 << 20, times=1)
    async with await proxy.stream("/u/x.img") as stream:
        await stream.read(4 << 20)
        await proxy.wait_begun(4 << 20)
        proxy.kill()
    await asyncio.to_thread(proxy.start)
    async with await proxy.stream("/u/x.img") as stream:
        assert await stream.read(6 << 20) == body[: 6 << 20]
        a.generation(new)
        site.a.cut()
        assert await stream.broken() == b""
    await proxy.wait_idle()
    assert (await proxy.fetch("/u/x.img")).body == new
    assert not any("internal error" in line for line in proxy.log)


# -- many connections --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["equal", "none", "different"])
async def test_a_big_body_comes_whole_and_once(site, proxy, which):
    a, b = site.pattern("/big.img")
    dates(a.throttle(24 << 20), b.throttle(24 << 20), which)
    assert (await (await proxy.stream("/u/big.img")).sha256())[0] == pattern_sha256(BIG, SEED)
    assert site.front.count("/big.img") == 1
    assert len(site.gets("/big.img")) > 1
    assert site.bytes_sent("/big.img") <= 1.5 * BIG  # what the buffers of a closed connection hold comes twice


async def test_a_big_body_comes_whole_where_signed_urls_are_good_for_one_request(site, proxy):
    a, b = site.pattern("/big.img")
    for node in (a, b):
        node.throttle(24 << 20).status(403, of_ranges=True)
    assert (await (await proxy.stream("/u/big.img")).sha256())[0] == pattern_sha256(BIG, SEED)
    assert [request.status for request in site.gets("/big.img")] == [200, 403]
    assert site.bytes_sent("/big.img") == BIG


async def test_a_big_body_comes_whole_where_one_node_breaks_again_and_again(site, proxy):
    a, b = site.pattern("/big.img")
    a.throttle(24 << 20)
    b.throttle(24 << 20)
    for eighth in (1, 3, 5, 7):
        a.reset_at(BIG * eighth // 8, times=1)
    assert (await (await proxy.stream("/u/big.img")).sha256())[0] == pattern_sha256(BIG, SEED)
    assert site.bytes_sent("/big.img") <= 1.5 * BIG  # what a reset discards on its way


# -- what goes to whom -------------------------------------------------------------------------------------------------


async def test_a_clients_login_reaches_no_node(site, proxy_factory):
    proxy = proxy_factory(mirrors=site.mirrors)
    a, b = site.body("/x.img")
    everybody = {"Cache-Control": "public, max-age=60"}
    for each in (a, b):
        each.headers(everybody)
    site.alternate("/x.img", site.a, site.b, **everybody)
    a.stall_at(MIDDLE)
    login = {"Authorization": "Bearer of-the-client"}
    async with await proxy.stream("/u/x.img", login) as stream:
        assert await stream.read(MIDDLE) == BODY[:MIDDLE]
        await asyncio.to_thread(site.a.stop)
        assert await stream.rest() == BODY[MIDDLE:]
    assert {request.headers.get("authorization") for request in site.front.log} == {"Bearer of-the-client"}
    assert not any("authorization" in request.headers for request in (*site.a.log, *site.b.log))


async def test_the_query_of_a_signed_url_is_not_shown(site, proxy):
    a, b = site.body("/x.img")
    a.stall_at(MIDDLE)
    b.status(403)
    async with await proxy.stream("/u/x.img") as stream:
        await stream.read(MIDDLE)
        shown = str(await proxy.status()) + proxy.run("status").stdout
        await asyncio.to_thread(site.a.stop)
        await stream.broken()
    await proxy.wait_idle()
    shown += (await proxy.get("/u/x.img")).body.decode("latin-1")
    shown += "".join(file.read_text("latin-1") for file in proxy.files("*/*.json"))
    assert site.a.url() in shown  # but where it comes from is
    assert "Signature" not in shown
    assert not any("Signature" in line for line in proxy.log)


async def test_a_revalidation_that_will_meet_another_node_goes_by_date(site, proxy):
    a, b = site.body("/x.json")
    for each in (a, b):
        each.headers(cache_control="no-cache")
    assert (await proxy.fetch("/u/x.json")).body == BODY
    assert (await proxy.fetch("/u/x.json")).body == BODY
    assert (await proxy.fetch("/u/x.json")).body == BODY
    assert [request.status for request in (*site.a.log, *site.b.log)] == [200, 304, 304]
    asked = site.b.log[0]
    assert "if-modified-since" in asked.headers
    assert "if-none-match" not in asked.headers


async def test_a_revalidation_without_a_date_goes_by_tag(site, proxy):
    site.alternate("/x.json", site.a)
    site.a.body("/x.json", BODY).headers(last_modified=None, cache_control="no-cache")
    for _ in range(2):
        assert (await proxy.fetch("/u/x.json")).body == BODY
    assert [request.status for request in site.a.log] == [200, 304]


async def test_a_new_object_at_another_node_replaces_what_is_stored(site, proxy):
    new = os.urandom(1000)
    a, b = site.body("/x.json", other=new)
    for each in (a, b):
        each.headers(cache_control="no-cache")
    b.headers(last_modified="Wed, 15 Nov 2023 22:13:20 GMT")
    assert (await proxy.fetch("/u/x.json")).body == BODY
    assert (await proxy.fetch("/u/x.json")).body == new


# -- passed through ----------------------------------------------------------------------------------------------------


async def test_a_body_that_is_not_kept_is_gone_on_with_at_its_node(site, proxy):
    a, b = site.body("/x.img")
    for each in (a, b):
        each.headers(cache_control="no-store")
    a.close_at(MIDDLE, times=1).close_at(MIDDLE + 100_000, times=1)
    assert (await proxy.get("/u/x.img")).body == BODY
    assert site.front.count("/x.img") == 1
    assert [request.status for request in site.a.log] == [200, 206, 206]
    assert proxy.entries() == []


async def test_a_body_that_is_not_kept_is_not_gone_on_with_by_another_node(site, proxy):
    """There are no bytes to compare."""
    a, b = site.body("/x.img")
    for each in (a, b):
        each.headers(cache_control="no-store")
    a.stall_at(MIDDLE)
    async with await proxy.stream("/u/x.img") as stream:
        await stream.read(MIDDLE)
        await asyncio.to_thread(site.a.stop)
        assert await stream.broken() == b""


async def test_a_body_that_is_not_kept_comes_on_from_the_mirror_that_gave_it(origin, other, proxy_factory):
    proxy = proxy_factory(mirrors={"u": f"{origin.url()},{other.url()}"})
    origin.body("/x.img", BODY).status(503)
    other.body("/x.img", BODY).headers(cache_control="no-store").close_at(MIDDLE, times=1)
    assert (await proxy.get("/u/x.img")).body == BODY
    assert origin.count("/x.img") == 1
    assert [request.status for request in other.log] == [200, 206]


# -- requests are not free ---------------------------------------------------------------------------------------------


async def test_a_small_body_costs_one_request(origin, proxy_factory):
    proxy = proxy_factory()
    origin.body("/x.img", BODY)
    await proxy.fetch("/u/x.img")
    assert origin.count("/x.img", None) == 1


def too_many(resource):
    resource.status(429, {"Retry-After": "3600"})


def overloaded(resource):
    resource.status(503)


@pytest.mark.parametrize("refuse", [too_many, overloaded])
@pytest.mark.parametrize("allowed", [1, 2, 3])
async def test_a_limit_of_requests_breaks_nothing_and_is_remembered(origin, proxy_factory, refuse, allowed):
    """However many connections it takes before it refuses, what runs goes on to the end."""
    proxy = proxy_factory()
    resource = origin.pattern("/big.img", BIG, SEED).throttle(16 << 20)
    other = origin.pattern("/other.img", BIG, SEED + 1)
    async with await proxy.stream("/u/big.img") as stream:
        await stream.read(1000)
        # On a busy machine a second connection may make it no faster, and then there is no third.
        await origin.happens(lambda: origin.count("/big.img") >= allowed or origin.bytes_sent("/big.img") >= BIG, 30)
        refuse(resource)
        rest = await stream.sha256()
    assert rest[1] == BIG - 1000
    statuses = [request.status for request in origin.log if request.is_for("/big.img")]
    refused = [status for status in statuses if status not in (200, 206)]
    assert len(refused) <= 4  # those that were on their way at once
    assert (await proxy.entry("big.img"))["sha256"] == pattern_sha256(BIG, SEED)
    assert origin.bytes_sent("/big.img") <= 1.5 * BIG
    if not refused:
        return  # more connections than it had made it no faster
    other.throttle(32 << 20)
    assert (await (await proxy.stream("/u/other.img")).sha256())[0] == pattern_sha256(BIG, SEED + 1)
    assert origin.count("/other.img") == 1


async def test_a_refused_second_connection_breaks_nothing(proxy_factory):
    """A server that takes one connection, and no other until it is closed."""
    with OneConnection(BIG) as server:
        proxy = proxy_factory(mirrors={"u": server.url})
        digest, size = await (await proxy.stream("/u/big.img")).sha256()
        assert (digest, size) == (server.sha256, BIG)
        assert server.accepted == 1


class OneConnection:
    """Closes its listener with the first connection."""

    def __init__(self, size):
        self._block = os.urandom(1 << 20)
        self._size = size
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.sha256 = hashlib.sha256(self._block * (size >> 20)).hexdigest()
        self.accepted = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listener.close()
        self._thread.join(10)

    def _serve(self):
        with self._listener:
            sock, _ = self._listener.accept()
            self.accepted += 1
        with sock, contextlib.suppress(ConnectionError):
            sock.recv(65536)
            head = f'HTTP/1.1 200 OK\r\nETag: "a"\r\nAccept-Ranges: bytes\r\nContent-Length: {self._size}\r\n\r\n'
            sock.sendall(head.encode())
            pace = threading.Event()
            for _ in range(self._size >> 20):
                sock.sendall(self._block)
                pace.wait(1 / 24)


async def test_connections_of_a_mirror(origin, proxy_factory):
    text = f'[[mirror]]\nname = "one"\nupstreams = ["{origin.url()}"]\nconnections = 1\n'
    proxy = proxy_factory(config_text=text, mirrors={})
    origin.pattern("/big.img", BIG, SEED).throttle(48 << 20)
    assert (await (await proxy.stream("/one/big.img")).sha256())[0] == pattern_sha256(BIG, SEED)
    assert origin.count("/big.img", None) == 1


# -- no progress is a failure ------------------------------------------------------------------------------------------


class Scripted:
    """Breaks the whole body off in the middle; what it answers to any further request is given."""

    def __init__(self, again, fields=""):
        """`again`: makes the answer from the first byte that was asked for, and whether a range was.

        `fields`: more lines of the first answer.
        """
        self.log = []
        """The first byte of each request for the body; None for all of it."""
        self._again, self._fields = again, fields
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        with socket.create_connection(self._listener.getsockname()):
            self._listener.close()
        self._thread.join(10)

    def _serve(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(ConnectionError):
                if b"\r\n\r\n" not in (head := sock.recv(65536)):
                    continue
                found = re.search(rb"\r\nrange: bytes=(\d+)-", head, re.IGNORECASE)
                if b" /x.img " not in head:
                    sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    continue
                self.log.append(int(found[1]) if found else None)
                if len(self.log) == 1:
                    sock.sendall(answer(200, BODY, tags=TAGS + self._fields)[: -(len(BODY) - MIDDLE)])
                else:
                    sock.sendall(self._again(int(found[1]) if found else 0, found is not None))


TAGS = 'ETag: "a"\r\nLast-Modified: Tue, 14 Nov 2023 22:13:20 GMT\r\nAccept-Ranges: bytes\r\n'


def answer(status, body, *, start=0, end=None, tags=TAGS, length=None, total=SIZE):
    """A response; `length`: what its framing says instead."""
    lines = f"HTTP/1.1 {status} X\r\n{tags}Connection: close\r\n"
    if status == 206:
        lines += f"Content-Range: bytes {start}-{(len(BODY) if end is None else end) - 1}/{total}\r\n"
    lines += length if length is not None else f"Content-Length: {len(body)}\r\n"
    return lines.encode() + b"\r\n" + body


CHUNKED = "Transfer-Encoding: chunked\r\n"

NOTHING = {
    "206 in chunks without a byte": lambda start, part: answer(206, b"0\r\n\r\n", start=start, length=CHUNKED),
    "206 without a byte": lambda start, part: answer(206, b"", start=start),
    "206 that breaks off at once": lambda start, part: answer(206, b"", start=start, length="Content-Length: 9\r\n"),
    "206 until the end without a byte": lambda start, part: answer(206, b"", start=start, length=""),
    "200 without a byte": lambda start, part: answer(200, b""),
    "200 in chunks without a byte": lambda start, part: answer(200, b"0\r\n\r\n", length=CHUNKED),
    "200 that breaks off at once": lambda start, part: answer(200, b"", length=f"Content-Length: {len(BODY)}\r\n"),
    "200 of the same bytes as before": lambda start, part: answer(
        200, BODY[:MIDDLE], length=f"Content-Length: {len(BODY)}\r\n"
    ),
    "200 in chunks of the same bytes as before": lambda start, part: answer(
        200, b"%x\r\n%b\r\n0\r\n\r\n" % (MIDDLE, BODY[:MIDDLE]), length=CHUNKED
    ),
    "nothing at all": lambda start, part: b"",
    "416": lambda start, part: answer(416, b""),
    "204": lambda start, part: answer(204, b"", length=""),
    "304": lambda start, part: answer(304, b"", length=""),
}


@pytest.mark.parametrize("kept", ["kept", "passed"])
@pytest.mark.parametrize("again", NOTHING)
async def test_an_answer_without_a_byte_counts_as_a_failure(proxy_factory, again, kept):
    with Scripted(NOTHING[again], "Cache-Control: no-store\r\n" if kept == "passed" else "") as server:
        proxy = proxy_factory(mirrors={"u": server.url})
        async with await proxy.stream("/u/x.img") as stream:
            assert await stream.broken() == BODY[:MIDDLE]
        await proxy.wait_idle()
        assert 2 <= len(server.log) <= 4  # the first, and the retries
        assert proxy.entries() == []


@pytest.mark.parametrize("size", [1, 1000, 100_000])
async def test_a_server_that_gives_less_than_was_asked_for_is_asked_for_the_whole(proxy_factory, size):
    def again(start, is_part):
        if not is_part:
            return answer(200, BODY)
        end = min(start + size, len(BODY))
        return answer(206, BODY[start:end], start=start, end=end)

    with Scripted(again) as server:
        proxy = proxy_factory(mirrors={"u": server.url})
        assert (await proxy.fetch("/u/x.img")).body == BODY
        assert len(server.log) <= 3


async def test_a_part_that_ends_early_is_not_taken_for_the_end_of_what_is_passed_through(proxy_factory):
    def again(start, is_part):
        if not is_part:
            return answer(200, BODY)
        return answer(206, BODY[start : start + 100_000], start=start, end=min(start + 100_000, len(BODY)))

    with Scripted(again, "Cache-Control: no-store\r\n") as server:
        proxy = proxy_factory(mirrors={"u": server.url})
        assert (await proxy.get("/u/x.img")).body == BODY


async def test_with_nobody_left_to_read_it_gives_up_sooner(proxy_factory):
    with Scripted(NOTHING["206 in chunks without a byte"]) as server:
        proxy = proxy_factory(mirrors={"u": server.url}, config_text="[fill]\nretries = 4\n")
        stream = await proxy.stream("/u/x.img")
        await stream.read(MIDDLE)
        stream.close()
        await proxy.wait_idle()
        assert len(server.log) <= 4


# -- generations are never mixed ---------------------------------------------------------------------------------------

NEW = os.urandom(len(BODY))
OTHER_TAG = TAGS.replace('"a"', '"new"')


def part_of(body, tags, total=SIZE):
    def again(start, is_part):
        if is_part:
            return answer(206, body[start:], start=start, tags=tags, total=total)
        return answer(200, body, tags=TAGS if body is BODY else OTHER_TAG)

    return again


PARTS = {
    "without the tag": (part_of(BODY, ""), "right"),
    "with the date but not the tag": (part_of(BODY, TAGS.partition("\r\n")[2]), "right"),
    "without the tag, of another body": (part_of(NEW, ""), "broken"),
    "with another tag": (part_of(NEW, OTHER_TAG), "broken"),
    "with another total": (part_of(NEW + NEW, TAGS, total=2 * len(BODY)), "broken"),
    "with a wrong total, of the same body": (part_of(BODY, TAGS, total=len(BODY) + 1), "right"),
    "with an unknown total": (part_of(BODY, TAGS, total="*"), "right"),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kept", ["kept", "passed"])
async def test_a_part_is_taken_only_with_the_validator_of_the_whole(proxy_factory, part, kept):
    again, end = PARTS[part]
    with Scripted(again, "Cache-Control: no-store\r\n" if kept == "passed" else "") as server:
        proxy = proxy_factory(mirrors={"u": server.url})
        async with await proxy.stream("/u/x.img") as stream:
            assert await stream.read(MIDDLE) == BODY[:MIDDLE]
            if end == "right":
                assert await stream.rest() == BODY[MIDDLE:]
            else:
                assert await stream.broken() == b""
        await proxy.wait_idle()
        assert len(proxy.entries()) == (end == "right" and kept == "kept")


# -- dead upstreams do not starve live ones ----------------------------------------------------------------------------


async def test_many_hanging_answers_of_one_upstream_keep_no_other_waiting(origin, other, proxy_factory):
    proxy = proxy_factory(mirrors={"dead": origin.url(), "live": other.url()})
    other.body("/x.img", BODY)
    waiting = []
    try:
        for number in range(200):
            origin.body(f"/{number}.img", BODY).delay_headers_until_released()
            waiting.append(asyncio.create_task(proxy.stream(f"/dead/{number}.img")))
        await origin.requested(128, timeout=30)
        async with asyncio.timeout(20):  # less than what hangs would take to fail
            assert (await proxy.get("/live/x.img")).body == BODY
    finally:
        origin.release()
        for stream in await asyncio.gather(*waiting):
            stream.close()
    await proxy.wait_idle(timeout=60)
