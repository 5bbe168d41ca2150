"""A body is whole only where its end is known, and a head is read as RFC 9112 has it."""

import socket
import ssl
import threading

import pytest
import trustme

from proxy.errors import UpstreamError
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
    assert told.value.may_pass


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
