"""An https upstream keeps the promises of a plain one."""

import contextlib
import socket
import ssl
import threading

import pytest
import trustme

from tests.origin import Origin, pattern_sha256

SIZE = 8 << 20
CUT = (4 << 20) + 12_345
"""Bytes on the wire: within a record of 16 KB."""


@pytest.fixture
def https():
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with Origin(tls=context) as origin:
        yield origin, authority


def relay(listener, port, limits):
    """Connections to `port`, each of which is cut after so many bytes from there."""
    with contextlib.suppress(OSError):
        for limit in limits:
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=copy, args=(near, far, 1 << 40), daemon=True).start()
            threading.Thread(target=copy, args=(far, near, limit), daemon=True).start()


def copy(source, sink, limit):
    with contextlib.suppress(OSError), source, sink:
        while limit and (data := source.recv(min(65536, limit))):
            sink.sendall(data)
            limit -= len(data)
        for each in (source, sink):
            each.shutdown(socket.SHUT_RDWR)


async def test_a_cut_within_a_record_is_gone_on_with_at_the_record(https, proxy_factory, tmp_path):
    origin, authority = https
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    origin.pattern("/x.img", SIZE, seed=3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=relay, args=(listener, origin.port, [CUT, 1 << 40]), daemon=True).start()
        proxy = proxy_factory(
            mirrors={"u": f"https://localhost:{port}"}, config_text=f"[upstream]\nca_bundle = '{tmp_path}/ca.pem'\n"
        )
        async with await proxy.stream("/u/x.img") as stream:
            assert await stream.sha256() == (pattern_sha256(SIZE, 3), SIZE)
        first, second = origin.log
        kept = int(second.range.removeprefix("bytes=").partition("-")[0])
        assert CUT - 2 * 16_384 - 16_384 < kept < CUT
        assert (first.range, second.status) == (None, 206)
