"""A service manager: what it hears of us, and the sockets it gives us."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import httpx
import pytest

from proxy.serving.notify import notify, watchdog_seconds
from proxy.store.servers import running
from tests.cli.commands import started
from tests.harness import REPOSITORY, clean_environment
from tests.serving.lineage import lineages

lineage = pytest.fixture(lineages)
WATCHDOG_SECONDS = 0.6


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(path)
        self.sock.settimeout(20)

    def told(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.sock.recv(4096).decode().splitlines())

    def next(self) -> dict[str, str]:
        """What it is told next, but for signs of life."""
        while (told := self.told()) == {"WATCHDOG": "1"}:
            pass
        return told

    def hear_out(self, seconds: float) -> None:
        """Until nothing came for so long; TimeoutError then."""
        self.sock.settimeout(seconds)
        while True:
            self.told()


@pytest.fixture
def manager(monkeypatch):
    with tempfile.TemporaryDirectory() as directory:
        manager = Manager(f"{directory}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"{directory}/notify")
        yield manager
        manager.sock.close()


@pytest.mark.parametrize("workers", [1, 2])
async def test_it_hears_of_each_step(manager, lineage, workers):
    server = lineage("--workers", str(workers))
    serving = f"serving http://{server.proxy.client.host}:{server.proxy.client.port}"
    assert manager.next() == {"MAINPID": str(server.pid), "READY": "1", "STATUS": serving}

    def reloaded():
        told = manager.next()
        assert 0 < time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000 - int(told["MONOTONIC_USEC"]) < 20e6
        assert told["RELOADING"] == "1"
        return manager.next()

    os.kill(server.pid, signal.SIGHUP)
    assert reloaded() == {"MAINPID": str(server.pid), "READY": "1", "STATUS": serving}
    server.proxy.config.write_text("[fill]\nconections = 3\n")
    os.kill(server.pid, signal.SIGHUP)
    assert reloaded()["STATUS"] == f"{serving}; the new configuration is wrong"
    os.kill(server.pid, signal.SIGUSR2)
    told = reloaded()
    assert (told["MAINPID"], told["READY"]) == (str(server.pid), "1")
    assert "upgrade failed" in told["STATUS"]
    server.proxy.config.write_text("")
    await server.upgrade()
    assert reloaded() == {"MAINPID": str(server.pid), "READY": "1", "STATUS": serving}
    await server.stop()
    assert manager.next() == {"STOPPING": "1"}


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_loop_that_does_not_turn_is_noticed(manager, lineage, workers, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_SECONDS * 1e6)))
    server = lineage("--workers", str(workers))
    for turn in range(2):
        while manager.told() != {"WATCHDOG": "1"}:
            pass
        if not turn:
            await server.upgrade()  # the new process goes on with it
            await server.ended(1)
    stopped = running(server.proxy.cache_dir)[0].pid
    os.kill(stopped, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            manager.hear_out(2 * WATCHDOG_SECONDS)
    finally:
        os.kill(stopped, signal.SIGCONT)


def test_an_abstract_socket_and_no_socket(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify(READY=1)
    name = f"fetchonce-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    notify(READY=1)  # nobody listens
    manager = Manager(f"\0{name}")
    notify(STATUS="one\nline", READY=1)
    assert manager.told() == {"STATUS": "one line", "READY": "1"}
    manager.sock.close()


def test_the_watchdog_waits_for_half_of_its_time_and_for_its_process_alone(monkeypatch):
    for microseconds, pid, expected in [
        ("3000000", str(os.getpid()), 1.5),
        ("3000000", "", 1.5),
        ("3000000", "1", None),
        ("0", "", None),
        ("", "", None),
    ]:
        monkeypatch.setenv("WATCHDOG_USEC", microseconds)
        monkeypatch.setenv("WATCHDOG_PID", pid)
        assert watchdog_seconds() == expected


PASS = """
import json, os, sys
fds, names, command = json.loads(sys.argv[1])
fds = [os.dup2(fd, 100 + place) for place, fd in enumerate(fds)]
for place, fd in enumerate(fds):
    os.dup2(fd, 3 + place)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(names)}
os.execv(command[0], command)
"""
"""What a service manager does between fork and exec."""


def activated(cache_dir, sockets, *args, names=(), config=""):
    """A server that is given `sockets`."""
    file = cache_dir.with_suffix(".toml")
    file.write_text(f"shipped_mirrors = false\n{config}")
    command = [sys.executable, "-m", "proxy", "serve", "--config", str(file), "--cache-dir", str(cache_dir), *args]
    fds = [sock.fileno() for sock in sockets]
    return subprocess.Popen(
        [sys.executable, "-c", PASS, json.dumps([fds, names, command])],
        cwd=REPOSITORY,
        env=clean_environment(),
        pass_fds=fds,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, number=signal.SIGTERM):
    if number:
        process.send_signal(number)
    said = process.communicate(timeout=20)[1]
    return process.returncode, said


@pytest.mark.parametrize("workers", ["1", "2"])
def test_passed_sockets_are_used_in_place_of_the_configured_addresses(tmp_path, workers):
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        early = socket.create_connection(other.getsockname())
        early.sendall(b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        addresses = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in (one, other)]
        server = activated(tmp_path / "cache", [one, other], "--workers", workers, "--listen", "127.0.0.1:1")
    assert started(server) == addresses[0]
    with early, early.makefile() as answer:
        assert answer.read().endswith('{"status":"ok"}')  # it waited while nothing ran
    for address in addresses:
        assert httpx.get(f"http://{address}/-/healthz", trust_env=False).status_code == 200
    assert {record.listen for record in running(tmp_path / "cache")} == {tuple(addresses)}

    server.send_signal(signal.SIGUSR2)  # and they go over to the next one
    while "upgrade.done" not in (line := server.stderr.readline()):
        assert line
    pid = int(line.split("pid=")[1].split()[0])
    for address in addresses:
        assert httpx.get(f"http://{address}/-/healthz", trust_env=False).status_code == 200
    os.kill(pid, signal.SIGTERM)
    assert ended(server, None)[0] == 0


def test_https_is_spoken_on_a_socket_of_that_name_or_of_an_address_that_is_configured_so(tmp_path):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    addresses = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in sockets]
    config = f'listen = ["https://{addresses[1]}"]\n[server]\ntls_cert = "{tmp_path}/none.pem"\n'
    server = activated(tmp_path / "cache", sockets, names=("fetchonce.socket", "", "https"), config=config)
    for sock in sockets:
        sock.close()
    code, said = ended(server, None)
    assert code == 2
    assert "server.tls_cert" in said  # only https needs it


def test_what_cannot_be_listened_on_is_refused(tmp_path):
    datagrams, (one, other) = socket.socket(type=socket.SOCK_DGRAM), socket.socketpair()
    with one, other, datagrams, socket.socket() as plain, open(tmp_path / "file", "w") as file:
        for each in (plain, other, datagrams, file):
            code, said = ended(activated(tmp_path / "cache", [each]), None)
            assert code == 2
            assert "descriptor 3, which was passed to listen on, is no " in said


def test_a_passed_socket_that_the_network_reaches_needs_access_too(tmp_path):
    with socket.create_server(("0.0.0.0", 0)) as sock:
        code, said = ended(activated(tmp_path / "cache", [sock]), None)
    assert code == 2
    assert "is reachable from the network, and nobody there may ask" in said


def test_variables_for_another_process_are_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    file = tmp_path / "f.toml"
    file.write_text("shipped_mirrors = false\n")
    command = [sys.executable, "-m", "proxy", "serve", "--config", file, "--cache-dir", tmp_path / "c"]
    server = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"],
        cwd=REPOSITORY,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert httpx.get(f"http://{started(server)}/-/healthz", trust_env=False).status_code == 200
    assert ended(server)[0] == 0
