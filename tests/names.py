"""Names and addresses of our own: `unshare --user --map-root-user --mount --net python -m tests.names X`.

In a network namespace that has only loopback we can take a public address, and run a name server that changes its
answers. No code is replaced: resolver, sockets and addresses are real.
"""

import contextlib
import ipaddress
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from proxy.config import load
from proxy.errors import UpstreamError
from proxy.upstream.client import Upstream
from tests.origin import Origin

PUBLIC = "93.184.216.34"
SHUT = "93.184.216.35"
"""Public and ours, but nothing listens there."""
PROXY_FREE = {"upstream": {"proxy": ""}, "fill": {"connect_timeout": "2s"}}


class NameServer:
    """Answers A and AAAA (RFC 1035, RFC 3596). Each name has a list of answers; the last one stays."""

    def __init__(self) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []
        """The name of each A query."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            question, client = self._socket.recvfrom(4096)
            self._socket.sendto(self._answer(question), client)

    def _answer(self, question: bytes) -> bytes:
        labels, at = [], 12
        while length := question[at]:
            labels.append(question[at + 1 : at + 1 + length].decode())
            at += 1 + length
        name, (kind,) = ".".join(labels).lower(), struct.unpack_from(">H", question, at + 1)
        version = {1: 4, 28: 6}.get(kind)
        turns = self.names.get(name, [[]])
        told = [ipaddress.ip_address(each) for each in turns[0]]
        records = [each.packed for each in told if each.version == version]
        if kind == 1:
            self.asked.append(name)
        if kind == 28 and len(turns) > 1:  # the resolver asks A first, then AAAA: one turn
            turns.pop(0)
        head = question[:2] + struct.pack(">HHHHH", 0x8180, 1, len(records), 0, 0)
        body = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 0, len(each)) + each for each in records)
        return head + question[12 : at + 5] + body


@contextlib.contextmanager
def way_out() -> Iterator[Upstream]:
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "fetchonce.toml")
        config.write_text(f"shipped_mirrors = false\n[cache]\ndir = '{directory}'\n")
        upstream = Upstream(load(str(config), PROXY_FREE), "fetchonce-test")
    try:
        yield upstream
    finally:
        upstream.close()


def asked(url: str) -> str:
    """The body at `url`, over a new connection, or the error message."""
    with way_out() as upstream:
        try:
            with upstream.open(url) as exchange:
                buffer = memoryview(bytearray(100))
                return bytes(buffer[: exchange.read_into(buffer)]).decode()
        except UpstreamError as error:
            return error.message


def a_public_name_is_reached(names: NameServer, world: Origin, inside: Origin) -> None:
    names.names["good.example"] = [[PUBLIC]]
    assert asked("http://good.example/x") == "world"
    assert world.log[0].headers["host"] == "good.example"


def a_name_that_turns_inside_after_the_check_is_not_followed(names: NameServer, world: Origin, inside: Origin) -> None:
    names.names["turn.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert asked("http://turn.example/x") == "world"
    assert names.asked == ["turn.example"]
    assert "turn.example means 127.0.0.1, a loopback address" in asked("http://turn.example/x")


def of_several_addresses_only_the_public_are_tried(names: NameServer, world: Origin, inside: Origin) -> None:
    names.names["mixed.example"] = [["127.0.0.1", "::1", SHUT, PUBLIC, "10.0.0.1"]]
    assert asked("http://mixed.example/x") == "world"


def a_name_inside_is_refused(names: NameServer, world: Origin, inside: Origin) -> None:
    for address in ("127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"):
        names.names["inside.example"] = [[address]]
        assert "inside.example means " in asked("http://inside.example/x"), address


def a_redirect_to_a_name_inside_is_refused(names: NameServer, world: Origin, inside: Origin) -> None:
    names.names |= {"good.example": [[PUBLIC]], "inside.example": [["127.0.0.1"]]}
    world.body("/away", b"").redirect("http://inside.example/x")
    said = asked("http://good.example/away")
    assert "redirects to http://inside.example/x: it was not fetched: inside.example means 127.0.0.1" in said


def an_error_of_the_connection_stays_one(names: NameServer, world: Origin, inside: Origin) -> None:
    names.names["shut.example"] = [[SHUT, "127.0.0.1"]]
    assert "shut.example refused the connection" in asked("http://shut.example/x")
    assert "the name none.example cannot be resolved" in asked("http://none.example/x")
    assert "cannot be" in asked(f"http://{'x' * 64}.example/x")


SCENARIOS: dict[str, Callable[[NameServer, Origin, Origin], None]] = {
    scenario.__name__: scenario
    for scenario in (
        a_public_name_is_reached,
        a_name_that_turns_inside_after_the_check_is_not_followed,
        of_several_addresses_only_the_public_are_tried,
        a_name_inside_is_refused,
        a_redirect_to_a_name_inside_is_refused,
        an_error_of_the_connection_stays_one,
    )
}


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in (PUBLIC, SHUT):
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("nameserver 127.0.0.1\n")
        file.flush()
        subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)
        with Origin(host=PUBLIC, port=80) as world, Origin(port=80) as inside:
            world.body("/x", b"world")
            inside.body("/x", b"inside")
            SCENARIOS[sys.argv[1]](NameServer(), world, inside)
            assert inside.requests == 0


if __name__ == "__main__":
    main()
