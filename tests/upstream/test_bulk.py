"""A large body comes in batches, over TLS too; what breaks off behind some bytes takes none of them away."""

import contextlib
import socket
import ssl
import threading

import pytest
import trustme

from proxy.errors import UpstreamError, UpstreamTimeout
from proxy.upstream.bulk import Bulk
from tests.origin import Origin, pattern_sha256
from tests.upstream.test_client import read

RECORD = 16 * 1024
"""The most that one call of SSL_read gives (RFC 8446 §5.1)."""


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def server_tls(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def pair(authority, server_tls):
    """The two ends of a TLS connection, ours first."""
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)
    near, far = socket.socketpair()
    ends = []
    shaking = threading.Thread(target=lambda: ends.append(server_tls.wrap_socket(far, server_side=True)))
    shaking.start()
    ours = trust.wrap_socket(near, server_hostname="localhost", suppress_ragged_eofs=False)
    shaking.join()
    with ours, ends[0]:
        yield ours, ends[0]


@pytest.fixture
def buffer():
    return memoryview(bytearray(1 << 20))


def test_all_records_that_have_come_are_one_batch(pair, buffer):
    ours, theirs = pair
    theirs.sendall(bytes(5 * RECORD))
    assert Bulk(ours, 5).read_into(buffer) == 5 * RECORD


def test_a_batch_is_no_longer_than_its_buffer(pair, buffer):
    ours, theirs = pair
    theirs.sendall(bytes(range(256)) * 320)
    bulk = Bulk(ours, 5)
    assert [bulk.read_into(buffer[:30_000]) for _ in range(3)] == [30_000, 30_000, 21_920]
    assert buffer[21_919] == 255


@pytest.mark.parametrize("broken", [b"", b"\x17\x03\x03\x40\x11" + bytes(1000)], ids=["between records", "within one"])
def test_a_cut_is_told_after_the_records_before_it(pair, buffer, broken):
    ours, theirs = pair
    theirs.sendall(bytes(2 * RECORD))
    socket.socket.send(theirs, broken)
    socket.socket.shutdown(theirs, socket.SHUT_WR)
    bulk = Bulk(ours, 5)
    assert bulk.read_into(buffer) == 2 * RECORD
    for _ in range(2):
        with pytest.raises(ssl.SSLEOFError):
            bulk.read_into(buffer)


def test_close_notify_is_the_end(pair, buffer):
    ours, theirs = pair
    theirs.sendall(bytes(RECORD))
    with contextlib.suppress(OSError):
        theirs.settimeout(0)
        theirs.unwrap()
    bulk = Bulk(ours, 5)
    assert [bulk.read_into(buffer) for _ in range(3)] == [RECORD, 0, 0]


def test_a_reset_is_no_end(buffer):
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        ours.send(b"x")  # unread: close() resets
        theirs.close()
        with pytest.raises(ConnectionResetError):
            Bulk(ours, 5).read_into(buffer)


@pytest.fixture
def https(server_tls):
    with Origin(tls=server_tls) as origin:
        yield origin


@pytest.fixture
def opened(https, authority, make_upstream, tmp_path):
    """The exchange of a large body over TLS that stalls half way, by its `timeout`."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    https.pattern("/x", 8 << 20, seed=3).stall_at(4 << 20)
    url = https.url("/x").replace("127.0.0.1", "localhost")

    def opens(timeout):
        settings = {"proxy": "", "ca_bundle": str(tmp_path / "ca.pem")}
        return make_upstream(url, upstream=settings, fill={"read_timeout": timeout}).open(url)

    return opens


def test_a_stop_wakes_a_thread_that_waits_for_a_record(https, opened):
    exchange = opened("60s")
    threading.Thread(target=lambda: (https.wait_stalled("/x"), exchange.abort())).start()
    with pytest.raises(UpstreamError, match="was stopped"):
        read(exchange)


def test_a_stall_over_tls_is_a_timeout(opened):
    with pytest.raises(UpstreamTimeout, match=f"sent nothing for 1 s at byte {4 << 20} of {8 << 20}"):
        read(opened("1s"))


def test_a_stall_that_ends_is_none(https, opened):
    exchange = opened("60s")
    threading.Thread(target=lambda: (https.wait_stalled("/x"), https.release("/x"))).start()
    assert read(exchange) == (pattern_sha256(8 << 20, 3), 8 << 20)
