"""A connection is used again where that costs nothing, and replaced where upstream has closed it meanwhile."""

import contextlib
import hashlib
import ssl
import time

import pytest
import trustme

from proxy.errors import UpstreamError
from proxy.upstream.exchange import DIRECT_BYTES, DRAIN_BYTES
from tests.upstream.test_client import BODY, read
from tests.upstream.wire import answer, wire

SMALL = BODY[:3000]
WHOLE = answer(f"Content-Length: {len(SMALL)}", 'ETag: "a"', body=SMALL)
CHUNKED = answer("Transfer-Encoding: chunked", body=b"bb8\r\n" + SMALL + b"\r\n0\r\n\r\n")
CONFIRMED = answer('ETag: "a"', status="304 Not Modified")
MISSING = answer("Content-Length: 3", body=b"no\n", status="404 Not Found")
MOVED = answer("Location: /there", "Content-Length: 3000", body=SMALL, status="302 Found")
NEXT = answer("Content-Length: 4", body=b"next")
IF_CHANGED = (("if-none-match", '"a"'),)


def ask(upstream, url, method="GET", headers=(), count=0):
    """Open, read `count` bytes, and close."""
    with upstream.open(url, method=method, headers=headers) as exchange:
        done = 0
        while done < count:
            done += exchange.read_into(memoryview(bytearray(count - done)))
        return exchange.status


@pytest.fixture
def tls(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context, {"proxy": "", "ca_bundle": str(tmp_path / "ca.pem")}


REUSED = {
    "a small body": (WHOLE, "GET", (), 0),
    "a small body, half read": (WHOLE, "GET", (), 1500),
    "a small body, read, without asking for its end": (WHOLE, "GET", (), 3000),
    "a small body in chunks": (CHUNKED, "GET", (), 0),
    "a small body in chunks, read, without asking for its end": (CHUNKED, "GET", (), 3000),
    "HEAD": (answer("Content-Length: 99999999"), "HEAD", (), 0),
    "304": (CONFIRMED, "GET", IF_CHANGED, 0),
    "404": (MISSING, "GET", (), 0),
    "no content": (answer(status="204 No Content"), "GET", (), 0),
}


@pytest.mark.parametrize(("sent", "method", "headers", "count"), REUSED.values(), ids=REUSED)
def test_a_connection_is_used_again_after(make_upstream, tls, sent, method, headers, count):
    context, over_tls = tls
    for server_tls, settings in ((None, {"proxy": ""}), (context, over_tls)):
        with wire([sent, sent, NEXT], tls=server_tls) as server:
            upstream = make_upstream(server.url(), upstream=settings)
            for _ in range(2):
                ask(upstream, server.url(), method, headers, count)
            ask(upstream, server.url())
            assert [number for number, _ in server.requests] == [0, 0, 0]


def test_a_connection_is_used_again_after_a_redirect(make_upstream):
    with wire([MOVED, WHOLE, NEXT]) as server:
        upstream = make_upstream(server.url())
        ask(upstream, server.url("/here"))
        ask(upstream, server.url())
        assert [number for number, _ in server.requests] == [0, 0, 0]


def test_a_thousand_small_objects_cost_one_connection(origin, make_upstream):
    upstream = make_upstream()
    for n in range(1000):
        origin.body(f"/{n}", SMALL)
        read(upstream.open(origin.url(f"/{n}")))
    assert {request.connection for request in origin.log} == {1}


def test_as_many_connections_stay_as_were_used_at_once(origin, make_upstream):
    origin.body("/x", SMALL)
    upstream = make_upstream()
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            for exchange in [stack.enter_context(upstream.open(origin.url("/x"))) for _ in range(50)]:
                read(exchange)
    assert len({request.connection for request in origin.log}) == 50


@pytest.mark.parametrize("size", [DRAIN_BYTES + 1, DIRECT_BYTES * 3])
def test_the_rest_of_a_larger_body_is_not_read_for_it(origin, make_upstream, size):
    origin.pattern("/x", size).stall_at(size - 1)
    upstream = make_upstream(fill={"read_timeout": "60s"})
    began = time.monotonic()
    for _ in range(2):
        ask(upstream, origin.url("/x"), count=1)
    assert time.monotonic() - began < 20
    assert [request.connection for request in origin.log] == [1, 2]


def test_a_rest_that_does_not_come_is_not_waited_for(origin, make_upstream):
    origin.body("/x", SMALL).stall_at(1000)
    upstream = make_upstream(fill={"read_timeout": "60s"})
    began = time.monotonic()
    for _ in range(2):
        ask(upstream, origin.url("/x"))
    assert time.monotonic() - began < 20
    assert [request.connection for request in origin.log] == [1, 2]


def test_chunks_without_end_are_not_read_to_it(make_upstream):
    endless = answer("Transfer-Encoding: chunked", body=(b"10000\r\n" + bytes(65536) + b"\r\n") * 100)
    with wire([endless], [NEXT]) as server:
        upstream = make_upstream(server.url())
        ask(upstream, server.url())
        ask(upstream, server.url())
        assert [number for number, _ in server.requests] == [0, 1]


FAKE = answer("Content-Length: 4", body=b"fake")
EXCESS = {
    "a body of HEAD": (answer("Content-Length: 3000", body=SMALL), "HEAD", 0),
    "a body of 304": (CONFIRMED + SMALL, "GET", 0),
    "more than Content-Length": (answer("Content-Length: 3", body=SMALL), "GET", 3),
    "more than Content-Length, not read": (answer("Content-Length: 3", body=SMALL), "GET", 0),
    "another answer behind Content-Length": (WHOLE + FAKE, "GET", 3000),
    "another answer behind chunks": (CHUNKED + FAKE, "GET", 3000),
}


@pytest.mark.parametrize(("sent", "method", "count"), EXCESS.values(), ids=EXCESS)
def test_what_comes_behind_an_answer_is_no_answer_to_the_next_request(make_upstream, sent, method, count):
    with wire([sent, b""], [NEXT]) as server:
        upstream = make_upstream(server.url())
        ask(upstream, server.url(), method, count=count)
        assert read(upstream.open(server.url())) == (hashlib.sha256(b"next").hexdigest(), 4)


SMALLS = {
    "all of it": (WHOLE, 3000),
    "more than Content-Length": (answer("Content-Length: 3", body=SMALL), 3),
    "another answer behind it": (WHOLE + FAKE, 3000),
    "an empty one": (answer("Content-Length: 0"), 0),
    "more than none": (answer("Content-Length: 0", body=SMALL), 0),
}


@pytest.mark.parametrize("piece", [1 << 20, 100])
@pytest.mark.parametrize(("sent", "length"), SMALLS.values(), ids=SMALLS)
def test_a_small_body_read_at_once_is_what_content_length_says_and_no_more(make_upstream, tls, sent, length, piece):
    context, over_tls = tls
    for server_tls, settings in ((None, {"proxy": ""}), (context, over_tls)):
        with wire([sent, b""], [NEXT], tls=server_tls, piece=piece) as server:
            upstream = make_upstream(server.url(), upstream=settings)
            exchange = upstream.open(server.url())
            assert exchange.read_small(length, 10) == SMALL[:length]
            assert read(exchange, 1000) == (hashlib.sha256(SMALL[:length]).hexdigest(), length)
            assert read(upstream.open(server.url())) == (hashlib.sha256(b"next").hexdigest(), 4)


@pytest.mark.parametrize("is_polite", [True, False])
@pytest.mark.parametrize("count", [0, 1500, 2999])
def test_a_small_body_that_is_cut_is_none(make_upstream, tls, count, is_polite):
    context, over_tls = tls
    sent = answer("Content-Length: 3000", body=SMALL[:count])
    for server_tls, settings in ((None, {"proxy": ""}), (context, over_tls)):
        with wire([sent], tls=server_tls, is_polite=is_polite) as server:
            exchange = make_upstream(server.url(), upstream=settings).open(server.url())
            assert exchange.read_small(3000, 10) is None
            with pytest.raises(UpstreamError, match=f"broke off at byte {count} of 3000"):
                read(exchange)


ASKED = {"GET": ("GET", (), NEXT), "HEAD": ("HEAD", (), answer()), "conditional": ("GET", IF_CHANGED, CONFIRMED)}


@pytest.mark.parametrize(("method", "headers", "last"), ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("ending", ["plain", "close_notify", "cut"])
def test_a_connection_closed_while_it_was_idle_is_replaced_at_once(make_upstream, tls, method, headers, last, ending):
    context, over_tls = tls
    server_tls, settings = (None, {"proxy": ""}) if ending == "plain" else (context, over_tls)
    # The second request has been received when the connection ends: the client cannot have seen it before.
    with wire([WHOLE, b""], [last], tls=server_tls, is_polite=ending != "cut") as server:
        upstream = make_upstream(server.url(), upstream=settings)
        ask(upstream, server.url())
        status = ask(upstream, server.url(), method, headers)
        assert status == int(last.split(b" ")[1])
        assert [number for number, _ in server.requests] == [0, 0, 1]


def test_a_connection_that_was_reset_while_it_was_idle_is_replaced_too(origin, make_upstream):
    origin.body("/x", SMALL)
    upstream = make_upstream()
    ask(upstream, origin.url("/x"))
    origin.cut()
    assert ask(upstream, origin.url("/x")) == 200
    assert [request.connection for request in origin.log] == [1, 2]


def test_several_of_them_are_replaced_by_one_that_is_new(make_upstream):
    with wire([WHOLE, b""], [WHOLE, b""], [NEXT]) as server:
        upstream = make_upstream(server.url())
        with upstream.open(server.url()), upstream.open(server.url()):
            pass
        assert ask(upstream, server.url()) == 200
        assert sorted(number for number, _ in server.requests) == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("first", [[], [WHOLE]], ids=["a new connection", "a used one"])
@pytest.mark.parametrize("begun", [b"", b"H"], ids=["no byte", "a byte"])
def test_but_no_request_is_repeated_that_may_have_been_answered(make_upstream, first, begun):
    if first and not begun:
        return  # the case above
    with wire([*first, begun], [NEXT]) as server:
        upstream = make_upstream(server.url())
        for _ in first:
            ask(upstream, server.url())
        with pytest.raises(UpstreamError, match="cannot be fetched") as told:
            upstream.open(server.url())
        assert told.value.is_transient
        assert {number for number, _ in server.requests} == {0}


def test_who_stops_a_transfer_late_does_not_stop_the_next_one_on_its_connection(origin, make_upstream):
    origin.body("/x", SMALL)
    origin.body("/y", BODY).stall_at(1000)
    upstream = make_upstream()
    first = upstream.open(origin.url("/x"))
    read(first)
    second = upstream.open(origin.url("/y"))
    origin.wait_stalled("/y")
    first.abort()
    origin.release()
    assert read(second)[1] == len(BODY)
    assert [request.connection for request in origin.log] == [1, 1]


def test_a_connection_stopped_before_its_next_request_is_replaced(origin, make_upstream):
    origin.body("/x", SMALL)
    upstream = make_upstream()
    first = upstream.open(origin.url("/x"))
    read(first)
    first.abort()
    assert ask(upstream, origin.url("/x")) == 200
