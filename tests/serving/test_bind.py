"""Addresses to listen on."""

import errno
import socket
import stat

import pytest

from proxy.errors import ConfigError
from proxy.serving.sockets import bind


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
async def test_bind(listen):
    try:
        listener = bind(listen)
    except ConfigError as error:
        if "[::1]" in listen and getattr(error.__cause__, "errno", 0) in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            pytest.skip("no IPv6 here")
        raise
    with listener, socket.create_connection(listener.getsockname()[:2]):  # it listens already
        assert listener.getsockname()[1] > 0


async def test_a_port_in_use():
    with bind("127.0.0.1:0") as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            bind(f"127.0.0.1:{port}")
        with socket.create_connection(("127.0.0.1", port)) as client:
            listener.accept()[0].close()  # first, so that the port is in TIME_WAIT for a while
            assert client.recv(1) == b""
    assert f"127.0.0.1:{port}" in caught.value.message
    assert f"port {port} is in use; another fetchonce? try --listen 127.0.0.1:0" in caught.value.message
    bind(f"127.0.0.1:{port}").close()  # free again at once


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("8642", "expected HOST:PORT"),
        (":8642", "expected HOST:PORT"),
        ("127.0.0.1:http", "expected HOST:PORT"),
        ("127.0.0.1:65536", "expected HOST:PORT"),
        ("127.0.0.1:-1", "expected HOST:PORT"),
        ("::1:8642", "in brackets"),
        ("no.such.host.invalid:8642", "not known"),
        ("192.0.2.1:8642", "does not have that address"),
        ("unix:/no/such/directory/s", "make its directory"),
        ("unix:/tmp/" + "x" * 200, "too long"),
        ("unix:", "cannot listen on unix:"),
    ],
)
def test_an_address_that_cannot_be_had(listen, words):
    with pytest.raises(ConfigError) as caught:
        bind(listen)
    assert words in caught.value.message
    assert listen in caught.value.message


def test_a_unix_socket_is_for_its_owner(tmp_path):
    path = tmp_path / "s"
    with bind(f"unix:{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(ConfigError, match="in use"):
            bind(f"unix:{path}")
    with bind(f"unix:{path}"), socket.socket(socket.AF_UNIX) as client:  # the file of the dead one was replaced
        client.connect(str(path))


def test_a_unix_path_that_is_something_else_is_kept(tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError, match="not a socket"):
        bind(f"unix:{path}")
    assert path.read_text() == "data"
