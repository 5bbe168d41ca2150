"""The way out: bodies by either path, and errors that name their cause."""

import hashlib
import select
import socket
import ssl
import threading

import pytest
import trustme

from proxy.errors import ConfigError, UpstreamError, UpstreamTimeout
from proxy.rules.entry import field
from proxy.upstream.exchange import DIRECT_BYTES
from proxy.upstream.location import node
from tests.origin import Origin, pattern_sha256

BODY = bytes(range(256)) * 1000


def read(exchange, room=1 << 20):
    """SHA-256 and length of the body."""
    state, length, buffer = hashlib.sha256(), 0, memoryview(bytearray(room))
    with exchange:
        while count := exchange.read_into(buffer):
            state.update(buffer[:count])
            length += count
    return state.hexdigest(), length


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, DIRECT_BYTES, DIRECT_BYTES + 70_000, 9 << 20])
@pytest.mark.parametrize("room", [1000, 1 << 20])
def test_a_body_of_known_length(origin, make_upstream, size, room):
    origin.pattern("/x", size, seed=3)
    exchange = make_upstream().open(origin.url("/x"))
    assert (exchange.status, exchange.length) == (200, size)
    assert read(exchange, room) == (pattern_sha256(size, 3), size)


def test_a_large_body_leaves_httpx_and_a_small_one_gives_its_connection_back(origin, make_upstream):
    upstream = make_upstream()
    origin.pattern("/large", 8 << 20, seed=3)
    origin.body("/small", BODY)
    with upstream.open(origin.url("/large")) as exchange:
        buffer = memoryview(bytearray(1 << 20))
        assert exchange.read_into(buffer)
        assert exchange._bulk is not None
    for _ in range(2):
        read(upstream.open(origin.url("/small")))
    connections = [request.connection for request in origin.log]
    assert connections[1] == connections[2] != connections[0]


def test_a_chunked_body(origin, make_upstream):
    origin.pattern("/x", 3 << 20, seed=3).chunked()
    exchange = make_upstream().open(origin.url("/x"))
    assert exchange.length is None
    assert read(exchange) == (pattern_sha256(3 << 20, 3), 3 << 20)


def test_a_body_over_tls(make_upstream, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with Origin(tls=context) as origin:
        origin.pattern("/x", 9 << 20, seed=3)
        url = origin.url("/x").replace("127.0.0.1", "localhost")
        trusting = make_upstream(url, upstream={"proxy": "", "ca_bundle": str(tmp_path / "ca.pem")})
        assert read(trusting.open(url)) == (pattern_sha256(9 << 20, 3), 9 << 20)
        with pytest.raises(
            UpstreamError, match=r"TLS with localhost:\d+ failed: unable to get local issuer.*ca_bundle"
        ):
            make_upstream(url).open(url)


@pytest.mark.parametrize("size", [1000, 8 << 20])
def test_a_body_that_ends_early_is_an_error(origin, make_upstream, size):
    origin.pattern("/x", size, seed=3).close_at(size // 2)
    exchange = make_upstream().open(origin.url("/x"))
    with pytest.raises(UpstreamError, match=f"broke off at byte {size // 2} of {size}"):
        read(exchange)


def test_a_truncated_chunked_body_is_an_error(origin, make_upstream):
    origin.body("/x", BODY).chunked_truncated_at(1000)
    with pytest.raises(UpstreamError, match="broke off"):
        read(make_upstream().open(origin.url("/x")))


@pytest.mark.parametrize("size", [100_000, 8 << 20])
def test_a_body_that_stands_still_is_a_timeout(origin, make_upstream, size):
    origin.pattern("/x", size, seed=3).stall_at(size // 2)
    with pytest.raises(UpstreamTimeout, match="sent nothing for 1 s"):
        read(make_upstream(fill={"read_timeout": "1s"}).open(origin.url("/x")))


def test_an_answer_that_does_not_come_is_a_timeout(origin, make_upstream):
    origin.body("/x", BODY).delay_headers_until_released()
    with pytest.raises(UpstreamTimeout, match="did not answer in time"):
        make_upstream(fill={"read_timeout": "200ms"}).open(origin.url("/x"))


@pytest.mark.parametrize("size", [100_000, 8 << 20])
def test_abort_wakes_the_reading_thread(origin, make_upstream, size):
    origin.pattern("/x", size, seed=3).stall_at(size // 2)
    exchange = make_upstream().open(origin.url("/x"))
    threading.Thread(target=lambda: (origin.wait_stalled("/x"), exchange.abort())).start()
    with pytest.raises(UpstreamError):
        read(exchange)


def test_the_cause_is_named(origin, make_upstream):
    upstream = make_upstream("http://127.0.0.1:9/")
    with pytest.raises(UpstreamError, match="127.0.0.1:9 refused the connection"):
        upstream.open("http://127.0.0.1:9/x")
    with pytest.raises(UpstreamError, match=r"name none.invalid cannot be resolved"):
        upstream.open("http://none.invalid/x")
    with pytest.raises(UpstreamError, match="the proxy on the way|refused"):
        make_upstream(upstream={"proxy": "http://127.0.0.1:9"}).open(origin.url("/x"))


def test_an_upstream_that_is_no_url_is_a_mistake_of_the_configuration(make_upstream):
    with pytest.raises(ConfigError, match="no URL"):
        make_upstream("https://a.b:port/")


def test_requests_are_byte_transparent(origin, make_upstream):
    compressed = b"\x1f\x8b" + BODY
    origin.body("/x.gz", compressed).headers(content_encoding="gzip")
    exchange = make_upstream().open(origin.url("/x.gz"))
    assert field(exchange.headers, "content-encoding") == "gzip"
    assert read(exchange) == (hashlib.sha256(compressed).hexdigest(), len(compressed))
    assert origin.log[0].headers["accept-encoding"] == "identity"
    assert origin.log[0].headers["via"] == "1.1 fetchonce-test"


def test_through_a_proxy_the_path_goes_out_byte_for_byte(origin, make_upstream):
    origin.body("http://far.invalid/a%2Fb|%zz", BODY)
    with make_upstream(upstream={"proxy": origin.url()}).open("http://far.invalid/a%2Fb|%zz?x=%7E") as exchange:
        assert exchange.status == 200
    assert origin.log[0].path == "http://far.invalid/a%2Fb|%zz?x=%7E"
    assert origin.log[0].headers["host"] == "far.invalid"


def test_through_a_tunnel_of_a_proxy(make_upstream, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("far.invalid").configure_cert(context)
    with Origin(tls=context) as far, socket.create_server(("127.0.0.1", 0)) as listener:
        far.pattern("/a%2Fb|", 9 << 20, seed=3)
        heads = []
        threading.Thread(target=tunnel, args=(listener, far.port, heads), daemon=True).start()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        upstream = make_upstream(upstream={"proxy": proxy, "ca_bundle": str(tmp_path / "ca.pem")})
        assert read(upstream.open("https://far.invalid/a%2Fb|")) == (pattern_sha256(9 << 20, 3), 9 << 20)
    assert heads[0].startswith(b"CONNECT far.invalid:443 HTTP/1.1\r\n")
    assert far.log[0].path == "/a%2Fb|"


def tunnel(listener, port, heads):
    """One CONNECT, whatever its target, to `port` on this machine."""
    near, _ = listener.accept()
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += near.recv(1)
    heads.append(head)
    near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    with near, socket.create_connection(("127.0.0.1", port)) as far:
        other = {near: far, far: near}
        while True:
            for each in select.select(list(other), [], [])[0]:
                data = each.recv(65536)
                if not data:
                    return
                other[each].sendall(data)


def test_a_redirect_keeps_the_target_as_it_is(origin, make_upstream):
    origin.body("/a", b"").redirect("/b%2Fc/~d%7e?sig=a%2Bb/c&x=|")
    origin.body("/b%2Fc/~d%7e", BODY)
    with make_upstream().open(origin.url("/a")) as exchange:
        assert exchange.status == 200
        assert exchange.final_url == origin.url("/b%2Fc/~d%7e?sig=a%2Bb/c&x=|")
    assert origin.log[1].path == "/b%2Fc/~d%7e?sig=a%2Bb/c&x=|"


def test_the_node_is_the_server_that_answered(origin, make_upstream):
    with Origin() as other:
        other.body("/x", BODY)
        origin.body("/x", BODY)
        origin.body("/a", b"").redirect(other.url("/x"))
        upstream = make_upstream(other.url())
        for url, node in ((origin.url("/x"), origin.url("")), (origin.url("/a"), other.url(""))):
            with upstream.open(url) as exchange:
                assert exchange.node == node


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.b/x", "https://a.b:443"),
        ("http://A.b:80/x?y", "http://a.b:80"),
        ("http://[::1]:8/x", "http://[::1]:8"),
        ("http://b\xfccher.example/", "http://xn--bcher-kva.example:80"),
    ],
)
def test_a_node_is_written_in_one_way(url, expected):
    assert node(url) == expected


def test_a_redirect_to_something_else_is_refused(origin, make_upstream):
    origin.body("/a", b"").redirect("file:///etc/passwd")
    with pytest.raises(UpstreamError, match="no http"):
        make_upstream().open(origin.url("/a"))
