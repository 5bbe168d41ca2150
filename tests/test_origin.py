"""The origin does what its script says, judged by http.client and bare sockets."""

import asyncio
import contextlib
import hashlib
import http.client
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from email.utils import formatdate, parsedate_to_datetime

import pytest
import trustme

from tests.harness import Client
from tests.origin import LAST_MODIFIED, PATTERN_BLOCK_BYTES, Origin, Pattern, Request, pattern_bytes, pattern_sha256

BODY = random.Random(1).randbytes(1_000_000)
OTHER = random.Random(2).randbytes(700_000)
SIZE = len(BODY)
WHOLE = f"bytes 0-{SIZE - 1}/{SIZE}"
DATE = formatdate(LAST_MODIFIED, usegmt=True)
EARLIER = formatdate(LAST_MODIFIED - 1, usegmt=True)
LATER = formatdate(LAST_MODIFIED + 1, usegmt=True)
CLIENT_SECONDS = 30


class Answer:
    """A response as http.client reads it."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.is_whole = True
        try:
            self.body = response.read()
        except http.client.IncompleteRead as error:
            self.is_whole, self.body = False, error.partial


def fetch(origin: Origin, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", origin.port, timeout=CLIENT_SECONDS)
    with contextlib.closing(connection):
        connection.request(method, path, headers=dict(headers or {}))
        return Answer(connection.getresponse())


@contextlib.contextmanager
def asked(origin: Origin, path: str, **fields: str) -> Iterator[socket.socket]:
    """A bare socket on which a GET was sent."""
    with socket.create_connection(("127.0.0.1", origin.port), timeout=CLIENT_SECONDS) as sock:
        lines = [f"GET {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        sock.sendall("\r\n".join(lines).encode())
        yield sock


def read_head(sock: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = sock.recv(1)
        assert piece, f"the connection ended within the head: {head!r}"
        head += piece
    return head


def read_exactly(sock: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        piece = sock.recv(n - len(data))
        assert piece, f"the connection ended after {len(data)} of {n} bytes"
        data += piece
    return data


def read_rest(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def is_silent(sock: socket.socket) -> bool:
    """Whether neither a byte nor the end has arrived."""
    sock.setblocking(False)
    try:
        sock.recv(1)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(CLIENT_SECONDS)
    return False


def ended(origin: Origin) -> Request:
    """Wait until the only request has ended, and return it."""
    origin.wait_for(lambda: len(origin.log) == 1 and origin.log[0].ended)
    return origin.log[0]


# An honest origin -----------------------------------------------------------------------------------------------------


def test_get_has_body_and_default_headers(origin: Origin) -> None:
    origin.body("/a/noble.img", BODY)
    answer = fetch(origin, "/a/noble.img")
    assert answer.status == 200
    assert answer.body == BODY
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["last-modified"] == DATE
    assert answer.headers["accept-ranges"] == "bytes"
    assert re.fullmatch(r'"[0-9a-f]{24}"', answer.headers["etag"])
    assert abs(parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()) < 5


def test_head_says_what_get_says_and_sends_no_body(origin: Origin) -> None:
    origin.body("/noble.img", BODY)
    with socket.create_connection(("127.0.0.1", origin.port), timeout=CLIENT_SECONDS) as sock:
        sock.sendall(b"HEAD /noble.img HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, rest = read_head(sock), read_rest(sock)
    assert rest == b""
    got = fetch(origin, "/noble.img").headers
    told = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
    assert {name.lower(): value for name, value in told.items()} | {"date": got["date"]} == got


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/SHA256SUMS", "application/octet-stream"),
        ("/x.qcow2", "application/octet-stream"),
        ("/index.html", "text/html; charset=utf-8"),
        ("/notes.txt", "text/plain; charset=utf-8"),
        ("/box.json", "application/json"),
    ],
)
def test_content_type_follows_extension(origin: Origin, path: str, expected: str) -> None:
    origin.body(path, b"x")
    assert fetch(origin, path).headers["content-type"] == expected


def test_headers_are_set_and_left_out(origin: Origin) -> None:
    origin.body("/a", b"x").headers({"Cache-Control": "max-age=60"}, etag=None, last_modified="yesterday")
    headers = fetch(origin, "/a").headers
    assert headers["cache-control"] == "max-age=60"
    assert headers["last-modified"] == "yesterday"
    assert "etag" not in headers


def test_body_without_length_ends_with_the_connection(origin: Origin) -> None:
    origin.body("/a", BODY).headers(content_length=None)
    with asked(origin, "/a") as sock:
        assert b"Content-Length" not in read_head(sock)
        assert read_rest(sock) == BODY
    assert ended(origin).completed


def test_unknown_path_is_a_small_html_404(origin: Origin) -> None:
    answer = fetch(origin, "/nowhere.img")
    assert (answer.status, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert b"Not Found" in answer.body
    assert origin.log[0].status == 404


def test_other_methods_are_refused(origin: Origin) -> None:
    origin.body("/a", b"x")
    answer = fetch(origin, "/a", method="POST")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_nonsense_ends_the_connection(origin: Origin) -> None:
    with socket.create_connection(("127.0.0.1", origin.port), timeout=CLIENT_SECONDS) as sock:
        sock.sendall(b"nonsense\r\n\r\n")
        assert read_rest(sock) == b""
    assert origin.requests == 0


def test_connection_serves_several_requests(origin: Origin) -> None:
    origin.body("/a", BODY)
    origin.body("/b", OTHER).chunked()
    connection = http.client.HTTPConnection("127.0.0.1", origin.port, timeout=CLIENT_SECONDS)
    with contextlib.closing(connection):
        for path, method, body in (("/a", "GET", BODY), ("/a", "HEAD", b""), ("/b", "GET", OTHER), ("/a", "GET", BODY)):
            connection.request(method, path)
            assert connection.getresponse().read() == body
    assert [request.connection for request in origin.log] == [1, 1, 1, 1]
    fetch(origin, "/a")
    assert origin.log[-1].connection == 2


@pytest.mark.parametrize(
    ("asked_for", "status", "content_range", "start", "end"),
    [
        ("bytes=0-9", 206, f"bytes 0-9/{SIZE}", 0, 10),
        ("bytes=400000-", 206, f"bytes 400000-{SIZE - 1}/{SIZE}", 400_000, SIZE),
        ("bytes=0-", 206, WHOLE, 0, SIZE),
        ("bytes=-5", 206, f"bytes {SIZE - 5}-{SIZE - 1}/{SIZE}", SIZE - 5, SIZE),
        (f"bytes=-{SIZE * 2}", 206, WHOLE, 0, SIZE),
        (f"bytes=999999-{SIZE * 2}", 206, f"bytes 999999-999999/{SIZE}", SIZE - 1, SIZE),
        (f"bytes={SIZE}-", 416, f"bytes */{SIZE}", 0, 0),
        ("bytes=-0", 416, f"bytes */{SIZE}", 0, 0),
        ("bytes=9-0", 200, None, 0, SIZE),
        ("bytes=0-1,5-6", 200, None, 0, SIZE),
        ("bytes=-", 200, None, 0, SIZE),
        ("bytes=a-b", 200, None, 0, SIZE),
        ("lines=0-9", 200, None, 0, SIZE),
    ],
)
def test_range(origin: Origin, asked_for: str, status: int, content_range: str | None, start: int, end: int) -> None:
    origin.body("/a", BODY)
    answer = fetch(origin, "/a", {"Range": asked_for})
    assert (answer.status, answer.headers.get("content-range")) == (status, content_range)
    assert answer.body == BODY[start:end]
    assert answer.headers["content-length"] == str(end - start)
    assert origin.log[0].range == asked_for


@pytest.mark.parametrize(
    ("etag", "condition", "status"),
    [
        ('"v1"', '"v1"', 206),
        ('"v1"', '"v2"', 200),
        ('"v1"', "v1", 200),
        ('"v1"', DATE, 206),
        ('"v1"', LATER, 200),
        ('W/"v1"', 'W/"v1"', 200),
        ('W/"v1"', '"v1"', 200),
        (None, '"v1"', 200),
        (None, DATE, 206),
    ],
)
def test_if_range(origin: Origin, etag: str | None, condition: str, status: int) -> None:
    origin.body("/a", BODY).headers(etag=etag)
    answer = fetch(origin, "/a", {"Range": "bytes=10-19", "If-Range": condition})
    assert answer.status == status
    assert answer.body == (BODY[10:20] if status == 206 else BODY)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"If-None-Match": '"v1"'}, 304),
        ({"If-None-Match": 'W/"v1"'}, 304),
        ({"If-None-Match": '"v0", "v1"'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"v2"'}, 200),
        ({"If-None-Match": '"v2"', "If-Modified-Since": DATE}, 200),
        ({"If-Modified-Since": DATE}, 304),
        ({"If-Modified-Since": LATER}, 304),
        ({"If-Modified-Since": EARLIER}, 200),
        ({"If-Modified-Since": "soon"}, 200),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_conditional_request(origin: Origin, fields: dict[str, str], status: int, method: str) -> None:
    origin.body("/a", BODY).headers(etag='"v1"', cache_control="max-age=5")
    answer = fetch(origin, "/a", fields, method)
    assert answer.status == status
    assert (answer.headers["etag"], answer.headers["cache-control"]) == ('"v1"', "max-age=5")
    assert ("content-length" in answer.headers) is (status == 200)
    assert answer.body == (BODY if (status, method) == (200, "GET") else b"")


def test_a_status_of_ranges_leaves_whole_requests_alone(origin: Origin) -> None:
    origin.body("/a", BODY).status(503, times=1, of_ranges=True)
    ranged = {"Range": "bytes=10-19"}
    assert [fetch(origin, "/a", fields).status for fields in ({}, ranged, ranged)] == [200, 503, 206]


def test_weak_etag_is_compared_weakly(origin: Origin) -> None:
    origin.body("/a", BODY).headers(etag='W/"v1"')
    assert [fetch(origin, "/a", {"If-None-Match": tag}).status for tag in ('"v1"', 'W/"v1"', '"v2"')] == [304, 304, 200]


# Faults ---------------------------------------------------------------------------------------------------------------


def test_stall_holds_until_released(origin: Origin) -> None:
    origin.body("/a", BODY).stall_at(400_000)
    with asked(origin, "/a") as sock:
        read_head(sock)
        assert read_exactly(sock, 400_000) == BODY[:400_000]
        origin.wait_stalled("/a")
        assert is_silent(sock)
        assert (origin.bytes_sent("/a"), origin.log[0].completed, origin.log[0].ended) == (400_000, False, False)
        origin.release("/a")
        assert read_exactly(sock, SIZE - 400_000) == BODY[400_000:]
    assert ended(origin).completed


def test_released_stall_holds_nobody_but_a_new_one_does(origin: Origin) -> None:
    resource = origin.body("/a", BODY).stall_at(400_000)
    origin.release()
    assert fetch(origin, "/a").body == BODY
    resource.stall_at(500_000)
    with asked(origin, "/a") as sock:
        read_head(sock)
        read_exactly(sock, 500_000)
        origin.wait_stalled("/a")


def test_stall_can_be_scripted_into_a_running_response(origin: Origin) -> None:
    resource = origin.body("/a", BODY).stall_at(100)
    with asked(origin, "/a") as sock:
        read_head(sock)
        origin.wait_stalled("/a")
        resource.release().stall_at(200)
        assert read_exactly(sock, 200) == BODY[:200]
        origin.wait_stalled("/a")
        assert is_silent(sock)


def test_release_of_one_path_holds_the_others(origin: Origin) -> None:
    origin.body("/a", BODY).stall_at(10)
    origin.body("/b", BODY).stall_at(10)
    origin.release("/a")
    assert fetch(origin, "/a").body == BODY
    with asked(origin, "/b"):
        origin.wait_stalled("/b")


def test_fault_is_met_only_where_the_byte_is_sent(origin: Origin) -> None:
    origin.body("/a", BODY).stall_at(400_000)
    for spec, body in (("0-399999", BODY[:400_000]), ("400001-", BODY[400_001:])):
        assert fetch(origin, "/a", {"Range": f"bytes={spec}"}).body == body
    with asked(origin, "/a", Range="bytes=400000-400000") as sock:
        origin.wait_stalled("/a")
        assert b" 206 " in read_head(sock)
        assert is_silent(sock)


def test_stall_notices_that_the_client_left(origin: Origin) -> None:
    origin.body("/a", BODY).stall_at(10)
    with asked(origin, "/a") as sock:
        origin.wait_stalled("/a")
        read_head(sock)
        read_exactly(sock, 10)
    assert not ended(origin).completed
    with pytest.raises(AssertionError, match="stalled"):
        origin.wait_stalled("/a", 0)


def test_close_breaks_at_offset(origin: Origin) -> None:
    origin.body("/a", BODY).close_at(400_000)
    answer = fetch(origin, "/a")
    assert (answer.is_whole, answer.body) == (False, BODY[:400_000])
    assert answer.headers["content-length"] == str(SIZE)
    request = ended(origin)
    assert (request.status, request.bytes_sent, request.completed) == (200, 400_000, False)


def test_fault_with_times_lets_the_resume_pass(origin: Origin) -> None:
    origin.body("/a", BODY).close_at(400_000, times=1).close_at(600_000, times=1)
    first = fetch(origin, "/a")
    second = fetch(origin, "/a", {"Range": "bytes=400000-"})
    third = fetch(origin, "/a", {"Range": "bytes=600000-"})
    assert [first.is_whole, second.is_whole, third.is_whole] == [False, False, True]
    assert first.body + second.body + third.body == BODY


def test_fault_without_times_stays(origin: Origin) -> None:
    origin.body("/a", BODY).close_at(400_000)
    for _ in range(3):
        answer = fetch(origin, "/a", {"Range": "bytes=400000-"})
        assert (answer.status, answer.is_whole, answer.body) == (206, False, b"")


@pytest.mark.parametrize("offset", [0, 1, 300_000])
def test_reset_breaks_with_rst_after_the_bytes_before_it(origin: Origin, offset: int) -> None:
    origin.body("/a", BODY).reset_at(offset)
    with asked(origin, "/a") as sock:
        read_head(sock)
        assert read_exactly(sock, offset) == BODY[:offset]
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert not ended(origin).completed


def test_short_promises_more_than_there_is(origin: Origin) -> None:
    origin.body("/a", BODY).short(10, times=1)
    assert fetch(origin, "/a", method="HEAD").headers["content-length"] == str(SIZE + 10)
    assert fetch(origin, "/a", {"Range": "bytes=0-9"}).headers["content-length"] == "10"
    answer = fetch(origin, "/a")
    assert (answer.headers["content-length"], answer.is_whole, answer.body) == (str(SIZE + 10), False, BODY)
    assert fetch(origin, "/a").is_whole
    assert [request.completed for request in origin.log] == [True, True, False, True]


def test_chunked_has_no_length(origin: Origin) -> None:
    origin.body("/a", BODY).chunked()
    answer = fetch(origin, "/a")
    assert (answer.headers["transfer-encoding"], answer.body) == ("chunked", BODY)
    assert "content-length" not in answer.headers
    assert fetch(origin, "/a", {"Range": "bytes=5-9"}).body == BODY[5:10]
    assert "content-length" not in fetch(origin, "/a", method="HEAD").headers


def test_chunked_truncated_lacks_the_last_chunk(origin: Origin) -> None:
    origin.body("/a", BODY).chunked_truncated_at(100, times=1)
    with asked(origin, "/a") as sock:
        assert b"Transfer-Encoding: chunked" in read_head(sock)
        assert read_rest(sock) == b"64\r\n" + BODY[:100] + b"\r\n"
    assert not ended(origin).completed
    assert fetch(origin, "/a").headers["content-length"] == str(SIZE)


def test_ranges_can_be_ignored(origin: Origin) -> None:
    origin.body("/a", BODY).ignore_ranges(times=1)
    assert fetch(origin, "/a").status == 200  # asks for no range, uses nothing up
    ignored = fetch(origin, "/a", {"Range": "bytes=5-9"})
    assert (ignored.status, ignored.body) == (200, BODY)
    assert fetch(origin, "/a", {"Range": "bytes=5-9"}).status == 206


def test_conditions_can_be_ignored(origin: Origin) -> None:
    origin.body("/a", BODY).ignore_conditions(times=1)
    etag = fetch(origin, "/a").headers["etag"]
    assert [fetch(origin, "/a", {"If-None-Match": etag}).status for _ in range(2)] == [200, 304]


def test_head_can_be_refused(origin: Origin) -> None:
    origin.body("/a", BODY).refuse_head(times=1).refuse_head(403, times=1)
    assert [fetch(origin, "/a", method="HEAD").status for _ in range(3)] == [405, 403, 200]
    assert fetch(origin, "/a").status == 200


def test_statuses_follow_each_other_and_then_all_is_well(origin: Origin) -> None:
    origin.body("/a", BODY).status(503, {"Retry-After": "1"}, b"later", times=2).status(429, times=1)
    answers = [fetch(origin, "/a") for _ in range(4)]
    assert [answer.status for answer in answers] == [503, 503, 429, 200]
    assert (answers[0].headers["retry-after"], answers[0].body) == ("1", b"later")
    assert "etag" not in answers[0].headers
    assert answers[3].body == BODY


def test_redirect_names_its_target(origin: Origin) -> None:
    origin.body("/b", BODY)
    origin.body("/a", b"").redirect(origin.url("/b"), 307)
    for method in ("GET", "HEAD"):
        answer = fetch(origin, "/a", method=method)
        assert (answer.status, answer.headers["location"]) == (307, f"http://127.0.0.1:{origin.port}/b")


def test_throttle_keeps_its_rate(origin: Origin) -> None:
    origin.body("/a", BODY).throttle(2_000_000, times=1)
    began = time.monotonic()
    assert fetch(origin, "/a").body == BODY
    assert time.monotonic() - began >= 0.45  # 0.5 s at that rate; the pause after the last piece is not waited for


def test_corrupt_flips_one_byte(origin: Origin) -> None:
    origin.body("/a", BODY).corrupt_at(300_000).corrupt_at(300_001, times=1)
    flipped = bytes([BODY[300_000] ^ 0xFF])
    assert fetch(origin, "/a", {"Range": "bytes=0-299999"}).body == BODY[:300_000]
    assert fetch(origin, "/a").body == BODY[:300_000] + flipped + bytes([BODY[300_001] ^ 0xFF]) + BODY[300_002:]
    assert fetch(origin, "/a").body == BODY[:300_000] + flipped + BODY[300_001:]
    assert fetch(origin, "/a", {"Range": "bytes=300000-300000"}).body == flipped


def test_content_range_can_lie(origin: Origin) -> None:
    origin.body("/a", BODY).content_range_off_by(1, times=1)
    assert fetch(origin, "/a").headers.get("content-range") is None
    lie = fetch(origin, "/a", {"Range": "bytes=10-19"})
    assert (lie.headers["content-range"], lie.body) == (f"bytes 11-20/{SIZE}", BODY[10:20])
    assert fetch(origin, "/a", {"Range": "bytes=10-19"}).headers["content-range"] == f"bytes 10-19/{SIZE}"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_headers_can_wait_for_release(origin: Origin, method: str) -> None:
    origin.body("/a", BODY).delay_headers_until_released()
    with socket.create_connection(("127.0.0.1", origin.port), timeout=CLIENT_SECONDS) as sock:
        sock.sendall(f"{method} /a HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        origin.wait_stalled("/a")
        assert is_silent(sock)
        assert origin.log[0].status == 0
        origin.release()
        assert b" 200 " in read_head(sock)


def test_generation_has_new_validators_and_leaves_running_responses_alone(origin: Origin) -> None:
    resource = origin.body("/a", BODY).stall_at(10, times=1)
    with asked(origin, "/a") as sock:
        old = read_head(sock)
        origin.wait_stalled("/a")
        resource.generation(OTHER)
        new = fetch(origin, "/a")
        origin.release()
        assert read_exactly(sock, SIZE) == BODY
    assert new.body == OTHER
    assert new.headers["etag"].encode() not in old
    assert new.headers["last-modified"] != DATE
    assert DATE.encode() in old
    assert fetch(origin, "/a", {"If-None-Match": new.headers["etag"]}).status == 304
    assert fetch(origin, "/a", {"If-Modified-Since": DATE}).status == 200


# Pattern bodies -------------------------------------------------------------------------------------------------------


def test_pattern_is_the_same_whole_and_in_parts() -> None:
    size = 3 * PATTERN_BLOCK_BYTES + 17
    whole = pattern_bytes(size, 5)
    assert len(whole) == size
    assert hashlib.sha256(whole).hexdigest() == pattern_sha256(size, 5)
    for start in (0, 1, PATTERN_BLOCK_BYTES - 1, PATTERN_BLOCK_BYTES, size - 1, size):
        for length in (0, 1, 1000, PATTERN_BLOCK_BYTES + 5, size):
            assert pattern_bytes(size, 5, start, start + length) == whole[start : start + length]


def test_pattern_shows_a_wrong_offset_and_a_wrong_seed() -> None:
    size, probe = 600 * PATTERN_BLOCK_BYTES, 10 * PATTERN_BLOCK_BYTES + 12_345
    right = pattern_bytes(size, 5, probe, probe + 64)
    shifts = [1, -1, 4096, PATTERN_BLOCK_BYTES, -PATTERN_BLOCK_BYTES, 256 * PATTERN_BLOCK_BYTES]
    for wrong in [
        *(pattern_bytes(size, 5, probe + s, probe + s + 64) for s in shifts),
        pattern_bytes(size, 6, probe, probe + 64),
    ]:
        assert sum(a == b for a, b in zip(right, wrong, strict=True)) < 8


def test_pattern_is_served_like_any_body(origin: Origin) -> None:
    size = 1024**3
    origin.pattern("/big.img", size, 7)
    start = 700 * PATTERN_BLOCK_BYTES - 50
    answer = fetch(origin, "/big.img", {"Range": f"bytes={start}-{start + 99}"})
    assert answer.headers["content-range"] == f"bytes {start}-{start + 99}/{size}"
    assert answer.body == pattern_bytes(size, 7, start, start + 100)
    etag = fetch(origin, "/big.img", method="HEAD").headers["etag"]
    origin.body("/big.img", b"").generation(Pattern(size, 8))
    assert fetch(origin, "/big.img", method="HEAD").headers["etag"] != etag


# Counters and waiting -------------------------------------------------------------------------------------------------


def test_requests_are_counted_by_path_and_method(origin: Origin) -> None:
    origin.body("/a", BODY)
    fetch(origin, "/a")
    fetch(origin, "/a?token=1", {"X-One": "1"})
    fetch(origin, "/a", {"Range": "bytes=0-9"})
    fetch(origin, "/a", method="HEAD")
    fetch(origin, "/b")
    origin.wait_for(lambda: all(request.ended for request in origin.log))
    assert origin.requests == 5
    assert (origin.count("/a"), origin.count("/a", "HEAD"), origin.count("/a", None)) == (3, 1, 4)
    assert (origin.count("/a?token=1"), origin.count("/b"), origin.count("/c")) == (1, 1, 0)
    assert origin.bytes_sent("/a") == 2 * SIZE + 10
    second = origin.log[1]
    assert (second.path, second.headers["x-one"], second.range, second.status) == ("/a?token=1", "1", None, 200)


def test_resource_with_query_comes_before_the_one_without(origin: Origin) -> None:
    origin.body("/a", b"plain")
    origin.body("/a?v=2", b"second")
    assert [fetch(origin, path).body for path in ("/a", "/a?v=2", "/a?v=3")] == [b"plain", b"second", b"plain"]


def test_counters_hold_under_concurrent_requests(origin: Origin) -> None:
    origin.body("/a", BODY[:1000]).status(503, times=30)
    statuses: list[int] = []  # append is atomic
    threads = [
        threading.Thread(target=lambda: statuses.extend(fetch(origin, "/a").status for _ in range(10)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    origin.wait_for(lambda: all(request.completed for request in origin.log))
    assert origin.requests == 80
    assert sorted(statuses) == [200] * 50 + [503] * 30
    assert origin.bytes_sent("/a") == 50_000


def test_waiting_in_vain_tells_what_did_happen(origin: Origin) -> None:
    origin.body("/a", BODY).stall_at(10)
    with asked(origin, "/a", Range="bytes=5-20"):
        origin.wait_stalled("/a")
        with pytest.raises(AssertionError, match=r"2 requests for /a") as caught:
            origin.wait_requests(2, "/a", timeout=0.01)
        assert "GET /a range=bytes=5-20 -> 206, 5 bytes, running" in str(caught.value)
        assert "stalled: /a" in str(caught.value)
        with pytest.raises(AssertionError, match="2 stalled responses"):
            origin.wait_stalled("/a", 0.01, n=2)


async def test_waiting_does_not_hold_the_loop(origin: Origin) -> None:
    resource = origin.body("/a", BODY).stall_at(10)
    client = Client("127.0.0.1", origin.port)
    stalled = asyncio.create_task(origin.stalled("/a"))
    both = asyncio.create_task(origin.requested(2))
    async with await client.stream("/a"), await client.stream("/a"):
        await asyncio.gather(stalled, both, origin.stalled("/a", n=2))
        resource.release()
        await origin.happens(lambda: origin.bytes_sent("/a") > 20)
    with pytest.raises(AssertionError, match="3 requests"):
        await origin.requested(3, timeout=0.01)


# Going away and coming back -------------------------------------------------------------------------------------------


def test_stop_breaks_running_responses_and_refuses_new_ones(origin: Origin) -> None:
    origin.body("/stalled", BODY).stall_at(10)
    origin.pattern("/unread", 1024**3)  # more than the kernel holds: the origin is blocked in send
    origin.body("/slow", BODY).throttle(10)
    with asked(origin, "/stalled") as one, asked(origin, "/unread") as two, asked(origin, "/slow") as three:
        origin.wait_stalled("/stalled")
        origin.wait_for(lambda: origin.bytes_sent("/unread") and origin.bytes_sent("/slow"))
        origin.stop()
        for sock in (one, two, three):
            read_head(sock)
            with contextlib.suppress(ConnectionResetError):
                read_rest(sock)
        with pytest.raises(ConnectionRefusedError):
            fetch(origin, "/stalled")
    assert [(request.ended, request.completed) for request in origin.log] == [(True, False)] * 3
    origin.stop()


def test_restart_serves_the_same_script_at_the_same_port(origin: Origin) -> None:
    origin.body("/a", BODY).status(503, times=2)
    port = origin.port
    assert fetch(origin, "/a").status == 503
    origin.stop()
    origin.restart()
    assert origin.port == port
    assert [fetch(origin, "/a").status for _ in range(2)] == [503, 200]
    assert origin.requests == 3


def test_cut_breaks_connections_and_welcomes_new_ones(origin: Origin) -> None:
    origin.body("/a", BODY).stall_at(10, times=1)
    with asked(origin, "/a") as sock:
        origin.wait_stalled("/a")
        origin.cut()
        read_head(sock)
        assert read_rest(sock) == BODY[:10]
    assert fetch(origin, "/a").body == BODY


def test_tls_serves_the_same_script() -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    with Origin(tls=server) as origin:
        assert origin.url("/a") == f"https://127.0.0.1:{origin.port}/a"
        origin.body("/a", BODY).close_at(400_000, times=1).stall_at(500_000)
        for body, is_whole in ((BODY[:400_000], False), (BODY[:500_000], False), (BODY, True)):
            connection = http.client.HTTPSConnection("127.0.0.1", origin.port, timeout=CLIENT_SECONDS, context=client)
            with contextlib.closing(connection):
                connection.request("GET", "/a")
                response = connection.getresponse()
                if body == BODY[:500_000]:
                    origin.wait_stalled("/a")
                    origin.restart()
                    origin.release()
                answer = Answer(response)
                assert (answer.body, answer.is_whole) == (body, is_whole)


def test_tls_handshake_that_fails_is_no_request() -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(server)
    with Origin(tls=server) as origin:
        connection = http.client.HTTPSConnection("127.0.0.1", origin.port, context=ssl.create_default_context())
        with contextlib.closing(connection), pytest.raises(ssl.SSLCertVerificationError):
            connection.request("GET", "/a")
        assert origin.requests == 0
