"""A body is whole only where its end is known, and a head is read as RFC 9112 has it."""

import hashlib
import socket
import ssl
import threading

import pytest
import trustme

from proxy.errors import UpstreamError
from proxy.rules.entry import field
from proxy.upstream.exchange import DIRECT_BYTES
from tests.upstream.test_client import BODY, read, tunnel
from tests.upstream.wire import answer, wire


@pytest.fixture
def tls(tmp_path):
    """A server's context for 127.0.0.1, and the settings of who trusts it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context, {"proxy": "", "ca_bundle": str(tmp_path / "ca.pem")}


CHUNK = b"3e8\r\n" + BODY[:1000] + b"\r\n"
ENDINGS = {
    "the connection's end": (answer(body=BODY), len(BODY)),
    "an empty body": (answer(), 0),
    "HTTP/1.0": (answer(body=BODY).replace(b"1.1", b"1.0", 1), len(BODY)),
    "connection: close": (answer("Connection: close", body=BODY), len(BODY)),
}
CUT = {
    "at a chunk's end": answer("Transfer-Encoding: chunked", body=CHUNK),
    "before a chunk's end": answer("Transfer-Encoding: chunked", body=CHUNK[:-2]),
    "within the last chunk": answer("Transfer-Encoding: chunked", body=CHUNK + b"0\r\n"),
    "before the first chunk": answer("Transfer-Encoding: chunked"),
    "a byte too short": answer(f"Content-Length: {len(BODY)}", body=BODY[:-1]),
}


@pytest.mark.parametrize(("sent", "length"), ENDINGS.values(), ids=ENDINGS)
def test_the_end_of_a_plain_connection_is_the_end_of_the_body(make_upstream, sent, length):
    with wire([sent]) as server:
        assert read(make_upstream(server.url()).open(server.url()))[1] == length


@pytest.mark.parametrize(("sent", "length"), ENDINGS.values(), ids=ENDINGS)
def test_over_tls_it_is_one_only_with_close_notify(make_upstream, tls, sent, length):
    context, upstream = tls
    with wire([sent], tls=context) as server:
        assert read(make_upstream(server.url(), upstream=upstream).open(server.url()))[1] == length
    with wire([sent], tls=context, is_polite=False) as server:
        exchange = make_upstream(server.url(), upstream=upstream).open(server.url())
        with pytest.raises(UpstreamError, match=f"broke off at byte {length}: .*close_notify"):
            read(exchange)


@pytest.mark.parametrize("is_polite", [True, False])
@pytest.mark.parametrize("sent", CUT.values(), ids=CUT)
def test_a_cut_body_is_never_whole(make_upstream, tls, sent, is_polite):
    context, over_tls = tls
    for server_tls, upstream in ((None, {"proxy": ""}), (context, over_tls)):
        with wire([sent], tls=server_tls, is_polite=is_polite) as server:
            exchange = make_upstream(server.url(), upstream=upstream).open(server.url())
            with pytest.raises(UpstreamError, match="broke off"):
                read(exchange)


def test_a_large_body_that_is_cut_over_tls_is_never_whole(make_upstream, tls):
    context, upstream = tls
    size = DIRECT_BYTES * 3
    sent = answer(f"Content-Length: {size}", body=bytes(size - 1))
    with wire([sent], tls=context, is_polite=False) as server:
        exchange = make_upstream(server.url(), upstream=upstream).open(server.url())
        with pytest.raises(UpstreamError, match=f"broke off at byte {size - 1} of {size}"):
            read(exchange)


def test_in_a_proxys_tunnel_the_end_must_be_known_too(make_upstream, tls):
    context, upstream = tls
    with (
        wire([answer(body=BODY)], tls=context, is_polite=False) as server,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        port = int(server.url().rpartition(":")[2].strip("/"))
        threading.Thread(target=tunnel, args=(listener, port, []), daemon=True).start()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        exchange = make_upstream(server.url(), upstream={**upstream, "proxy": proxy}).open(server.url())
        with pytest.raises(UpstreamError, match="close_notify"):
            read(exchange)


@pytest.mark.parametrize("is_polite", [True, False])
def test_a_connection_that_is_cut_before_the_head_may_be_asked_again(make_upstream, tls, is_polite):
    context, upstream = tls
    with (
        wire([b""], tls=context, is_polite=is_polite) as server,
        pytest.raises(UpstreamError, match="cannot be fetched") as told,
    ):
        make_upstream(server.url(), upstream=upstream).open(server.url())
    assert told.value.is_transient


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "302 Found"])
def test_two_framings_at_once_are_refused_at_once(make_upstream, status):
    sent = answer("Transfer-Encoding: chunked", "Content-Length: 1000", "Location: /y", status=status)
    with wire([sent, b""]) as server, pytest.raises(UpstreamError, match="Transfer-Encoding and Content-Length"):
        make_upstream(server.url()).open(server.url())


@pytest.mark.parametrize(("method", "status"), [("HEAD", "200 OK"), ("GET", "304 Not Modified")])
def test_what_has_no_body_may_name_both(make_upstream, method, status):
    sent = answer("Transfer-Encoding: chunked", "Content-Length: 1000", status=status)
    with wire([sent]) as server, make_upstream(server.url()).open(server.url(), method=method) as exchange:
        assert exchange.status == int(status[:3])


HEADS = {
    "a space": b'HTTP/1.1 200 OK\r\nETag : "a"\r\nContent-Length \t: 3\r\n\r\nabc',
    "bare line feeds": b'HTTP/1.1 200 OK\nETag : "a"\nContent-Length : 3\n\nabc',
    "after an interim head": b"HTTP/1.1 103 Early\r\nLink : <x>\r\n\r\n"
    b'HTTP/1.1 200 OK\r\nETag : "a"\r\nContent-Length: 3\r\n\r\nabc',
    "chunks": b'HTTP/1.1 200 OK\r\nETag : "a"\r\nTransfer-Encoding : chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n',
}


@pytest.mark.parametrize("sent", HEADS.values(), ids=HEADS)
def test_white_space_before_a_colon_is_removed(make_upstream, sent):
    with wire([sent]) as server:
        exchange = make_upstream(server.url()).open(server.url())
        assert field(exchange.headers, "etag") == '"a"'
        assert read(exchange)[1] == 3


def test_a_head_may_come_in_pieces_and_over_tls(make_upstream, tls):
    context, upstream = tls
    with wire([HEADS["a space"]], tls=context, piece=1) as server:
        exchange = make_upstream(server.url(), upstream=upstream).open(server.url())
        assert field(exchange.headers, "etag") == '"a"'
        assert read(exchange)[1] == 3


def test_what_looks_like_a_head_in_a_body_stays(make_upstream):
    body = b"a : b\r\nContent-Length : 3\r\n\r\nHTTP/1.1 200 OK\r\nc : d\r\n\r\n"
    sent = answer(f"Content-Length: {len(body)}", "X: y : z", " folded : x", body=body)
    with wire([sent, sent]) as server:
        upstream = make_upstream(server.url())
        for _ in range(2):
            exchange = upstream.open(server.url())
            assert field(exchange.headers, "x") == "y : z folded : x"
            assert read(exchange)[0] == hashlib.sha256(body).hexdigest()


def test_both_framings_are_seen_through_white_space(make_upstream):
    sent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\nContent-Length : 3\r\n\r\n"
    with wire([sent]) as server, pytest.raises(UpstreamError, match="Transfer-Encoding and Content-Length"):
        make_upstream(server.url()).open(server.url())


@pytest.mark.parametrize("sent", [b"220 mail ready\r\n\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"\r\n\r\n"])
def test_what_is_no_head_is_refused(make_upstream, sent):
    with wire([sent, b""]) as server, pytest.raises(UpstreamError, match="cannot be fetched"):
        make_upstream(server.url()).open(server.url())


def test_a_head_without_end_is_refused(make_upstream):
    endless = b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 30_000
    with wire([endless, b""]) as server, pytest.raises(UpstreamError, match="cannot be fetched"):
        make_upstream(server.url()).open(server.url())
