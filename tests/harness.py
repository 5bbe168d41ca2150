"""A real fetchonce process, and a client that hides nothing.

The client speaks HTTP/1.1 by itself, on one socket per request. It decodes nothing but chunks, follows no
redirect, reads no further than asked, and raises Truncated when a body ends early.
Every wait has a limit; the AssertionError says what was waited for.
"""

import asyncio
import contextlib
import hashlib
import inspect
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from proxy.store.partials import Partials
from tests import forks
from tests.forks import FETCHONCE, REPOSITORY

TIMEOUT_SECONDS = 30.0  # for the next byte to arrive, and for what a busy machine is to do
STOP_SECONDS = 20.0
COMMAND_SECONDS = 60.0  # for a command to end
HELD_PORTS = 64  # more than one test has
RECEIVE_BYTES = 256 * 1024
HEAD_LIMIT_BYTES = 256 * 1024
LINE_BYTES = 128  # holds a chunk's size line, and little of its data

STARTED = re.compile(r'server\.started.*\blisten="?https?://\[?([\w.:]+?)\]?:(\d+)')

_numbers = itertools.count(1)  # two processes on one cache directory need two configuration files


async def until(predicate: Callable[[], Any], timeout: float = TIMEOUT_SECONDS) -> Any:  # noqa: ASYNC109 - part of its words
    """Wait until `predicate`, sync or async, returns something true, and return that.

    Raises AssertionError after `timeout` seconds. This is the only place in the tests that sleeps: what another process
    does has no event to wait for."""
    value: Any = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            while True:
                value = predicate()
                if inspect.isawaitable(value):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(0.01)
    raise AssertionError(f"waited {timeout} s for a condition that stayed {value!r}")


_held: deque[socket.socket] = deque()


def free_port() -> int:
    """A port of 127.0.0.1 at which nobody listens, for a server of ours, now or later."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    port: int = held.getsockname()[1]
    # While it is bound here Linux gives it to nobody who takes any, and still to a server that asks for it by number.
    # Elsewhere that server could not have it.
    _held.append(held)
    while len(_held) > (HELD_PORTS if sys.platform == "linux" else 0):
        _held.popleft().close()
    return port


def sidecar(path: Path) -> bytes:
    """The line of JSON that the sidecar `path` is for; others may share its file."""
    lines, key = path.read_bytes().splitlines(), path.name.split(".")[1]
    (line,) = (line for line in lines if json.loads(line)["key"] == key)
    return line


def clean_environment() -> dict[str, str]:
    """This shell's environment without settings of fetchonce and without a proxy, which would get every request."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FETCHONCE_") and not name.lower().endswith("_proxy")
    }


def fetchonce(
    *args: str | Path, code: int = 0, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A fetchonce command, once it has ended with `code`, and without a traceback. `env` adds to this shell's."""
    ran = forks.run(
        [*FETCHONCE, *map(str, args)],
        cwd=REPOSITORY,
        env={**clean_environment(), **(env or {})},
        timeout=COMMAND_SECONDS,
    )
    said = f"{args} ended with {ran.returncode}; it said:\n{ran.stdout}{ran.stderr}"
    assert ran.returncode == code, said
    assert "Traceback" not in ran.stdout + ran.stderr, said
    return ran


class Truncated(Exception):
    """The connection ended before the body; `partial` is what the failed call had read."""

    def __init__(self, message: str, partial: bytes) -> None:
        super().__init__(message)
        self.partial = partial


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: dict[str, str]
    """Names lower-case; several lines joined by ", "."""
    body: bytes
    head: bytes
    """Status line and fields as received."""

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One socket to the server, for requests sent in pieces and for several requests on one connection."""

    def __init__(self, client: "Client", sock: socket.socket) -> None:
        self._client = client
        self._sock = sock
        self._ahead = b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket at once, whatever is in progress."""
        self._client._release(self._sock)

    async def send(self, data: bytes) -> None:
        async with self._client._patience(f"sending {len(data)} bytes"):
            await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def receive(self, limit: int = RECEIVE_BYTES) -> bytes:
        """The next bytes, at most `limit`; b"" once the server has closed. Raises ConnectionError after a reset."""
        if not self._ahead:
            async with self._client._patience("receiving a byte, or the end"):
                return await asyncio.get_running_loop().sock_recv(self._sock, limit)
        data, self._ahead = self._ahead[:limit], self._ahead[limit:]
        return data

    def give_back(self, data: bytes) -> None:
        """Put back what receive() returned beyond what was needed."""
        self._ahead = data + self._ahead

    async def rest(self) -> bytes:
        """Everything until the server closes or resets the connection."""
        data = bytearray()
        with contextlib.suppress(ConnectionError):
            while piece := await self.receive():
                data += piece
        return bytes(data)

    async def answer(self, method: str = "GET", *, is_last: bool = False) -> "Stream":
        """The next response, once its head has arrived. `is_last`: nothing may follow its body."""
        received = b""
        while b"\r\n\r\n" not in received:
            piece = await self.receive()
            if not piece:
                raise Truncated(f"the connection ended within the head of the response: {received!r}", received)
            received += piece
            assert len(received) <= HEAD_LIMIT_BYTES, f"no end of the response head: {received[:1000]!r}..."
        head, _, self._ahead = received.partition(b"\r\n\r\n")
        return Stream(self, method, head, is_last=is_last)

    def surplus(self) -> bytes:
        """What has arrived and is not read yet; it stays unread."""
        if self._ahead:
            return self._ahead
        try:
            return self._sock.recv(RECEIVE_BYTES, socket.MSG_PEEK)
        except (BlockingIOError, ConnectionError):
            return b""


class Stream:
    """A response whose body is read in pieces, never further than asked."""

    def __init__(self, connection: Connection, method: str, head: bytes, *, is_last: bool) -> None:
        self.connection = connection
        self.head = head
        line, *fields = head.decode("latin-1").split("\r\n")
        version, code, *_ = line.split(" ", 2)
        assert version.startswith("HTTP/1."), f"not an HTTP response: {line!r}"
        self.status = int(code)
        self.headers: dict[str, str] = {}
        for name, _, value in (text.partition(":") for text in fields):
            name, value = name.lower(), value.strip()
            self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value
        self._is_last = is_last
        self.received = 0
        """Body bytes read so far."""
        self._is_chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        self._is_over = method == "HEAD" or self.status in (204, 304)
        self._left: int | None = None
        """Bytes of the body, or of the chunk, still to come; None: until the connection ends."""
        if self._is_chunked:
            self._left = 0
        elif "content-length" in self.headers:
            self._left = int(self.headers["content-length"])
            self._is_over = self._is_over or self._left == 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection at once, as a client that leaves."""
        self.connection.close()

    async def read(self, n: int) -> bytes:
        """Exactly the next `n` bytes of the body; AssertionError if there are fewer."""
        data = bytearray()
        while len(data) < n:
            piece = await self._some(n - len(data), data)
            assert piece, f"the body ended {n - len(data)} bytes before the {n} that were to be read"
            data += piece
        return bytes(data)

    async def rest(self) -> bytes:
        """The body from here to its end."""
        data = bytearray()
        while piece := await self._some(RECEIVE_BYTES, data):
            data += piece
        self._check_end()
        return bytes(data)

    async def broken(self) -> bytes:
        """The rest of a body that must end early; AssertionError if it comes whole."""
        try:
            rest = await self.rest()
        except Truncated as error:
            return error.partial
        raise AssertionError(f"the body came whole; its last {len(rest)} bytes were read just now")

    async def drain(self) -> int:
        """Read the body to its end and drop it; returns how many bytes that were."""
        begun = self.received
        while await self._some(RECEIVE_BYTES, b""):
            pass
        self._check_end()
        return self.received - begun

    async def sha256(self) -> tuple[str, int]:
        """Digest (hex) and length of the body from here to its end, in constant memory."""
        digest, length = hashlib.sha256(), 0
        while piece := await self._some(RECEIVE_BYTES, b""):
            digest.update(piece)
            length += len(piece)
        self._check_end()
        return digest.hexdigest(), length

    async def _some(self, limit: int, partial: bytes | bytearray) -> bytes:
        """The next body bytes, at most `limit`; b"" at the end. `partial`: what the caller has read, for Truncated."""
        if self._is_chunked and not self._is_over and self._left == 0:
            self._left = int((await self._line(partial)).partition(b";")[0], 16)
            if self._left == 0:
                while await self._line(partial):
                    pass  # trailer fields
                self._is_over = True
        if self._is_over:
            return b""
        piece = await self._receive(limit if self._left is None else min(limit, self._left), partial)
        if not piece:
            if self._left is None:
                self._is_over = True
                return b""
            raise self._truncated(partial, "ended")
        self.received += len(piece)
        if self._left is not None:
            self._left -= len(piece)
            if self._left == 0 and self._is_chunked:
                assert await self._line(partial) == b"", "a chunk is longer than its size says"
            self._is_over = self._left == 0 and not self._is_chunked
        return piece

    async def _line(self, partial: bytes | bytearray) -> bytes:
        """The next line of the chunk framing, without its end."""
        received = b""
        while b"\r\n" not in received:
            piece = await self._receive(LINE_BYTES, partial)
            if not piece:
                raise self._truncated(partial, "ended")
            received += piece
        line, _, rest = received.partition(b"\r\n")
        self.connection.give_back(rest)
        return line

    async def _receive(self, limit: int, partial: bytes | bytearray) -> bytes:
        try:
            return await self.connection.receive(limit)
        except ConnectionError as error:
            raise self._truncated(partial, f"broke ({error})") from error

    def _truncated(self, partial: bytes | bytearray, how: str) -> Truncated:
        promised = self.headers.get("content-length", "no known number of")
        return Truncated(f"the connection {how} after {self.received} of {promised} body bytes", bytes(partial))

    def _check_end(self) -> None:
        # On a kept connection these bytes would become the head of the next response.
        surplus = self.connection.surplus() if self._is_last else b""
        assert not surplus, f"bytes after the end of the body: {surplus[:100]!r}"


class Client:
    """Requests to one server, each on a new connection. close() closes those that a test left open."""

    def __init__(self, host: str, port: int, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self.host = host
        self.port = port
        self.timeout = timeout
        """Seconds to wait for each next byte."""
        self._open: set[socket.socket] = set()

    def close(self) -> None:
        for sock in list(self._open):
            self._release(sock)

    async def connect(self) -> Connection:
        sock = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        self._open.add(sock)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with self._patience("a connection"):
                await asyncio.get_running_loop().sock_connect(sock, (self.host, self.port))
        except BaseException:
            self._release(sock)
            raise
        return Connection(self, sock)

    async def get(self, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Response:
        """The whole response. Raises Truncated if its body ends early."""
        async with await self.stream(path, headers, method=method) as stream:
            return Response(stream.status, stream.headers, await stream.rest(), stream.head)

    async def stream(self, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Stream:
        """The response, once its head has arrived. `path` is sent unchanged; `headers` may replace our Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        fields = {"Host": f"{host}:{self.port}"} | dict(headers or {})
        if "host" in (headers or {}):
            del fields["Host"]
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        connection = await self.connect()
        try:
            await connection.send("\r\n".join(lines).encode("latin-1"))
            return await connection.answer(method, is_last=True)
        except BaseException:
            connection.close()
            raise

    async def raw(self, data: bytes, *, close: bool = True) -> bytes:
        """Everything the server answers to exactly these bytes, which must make it close the connection.
        With close=False: the first response to a GET, head and body; the connection may stay open."""
        async with await self.connect() as connection:
            with contextlib.suppress(ConnectionError):  # the server may refuse before it has read everything
                await connection.send(data)
            if close:
                return await connection.rest()
            stream = await connection.answer()
            return stream.head + b"\r\n\r\n" + await stream.rest()

    def _release(self, sock: socket.socket) -> None:
        self._open.discard(sock)
        sock.close()

    @contextlib.asynccontextmanager
    async def _patience(self, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.timeout):
                yield
        except TimeoutError:
            raise AssertionError(f"{self.host}:{self.port}: waited {self.timeout} s for {what}") from None


class Proxy:
    """A fetchonce process in front of an origin, with its own configuration and cache directory."""

    def __init__(
        self,
        cache_dir: Path,
        *args: str,
        mirrors: Mapping[str, str],
        config_text: str = "",
        listen: str = "127.0.0.1:0",
    ) -> None:
        self.cache_dir = cache_dir
        self.log: list[str] = []
        """Every line of standard error so far, of all starts."""
        self.client = Client("127.0.0.1", 0)
        self.config = cache_dir.with_name(f"{cache_dir.name}-{next(_numbers)}.toml")
        """The configuration file. It does not name the shipped mirrors."""
        self.config.write_text(config_text)
        self._command = [*FETCHONCE, "serve", "--listen", listen, "--cache-dir", str(cache_dir)]
        for name, url in mirrors.items():
            self._command += ["--mirror", f"{name}={url}"]
        self._command += args
        self.before: Callable[[int], None] | None = None
        """Called with the pid of a process that is about to begin, for instance to attach strace."""
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._logged = threading.Condition()

    # The process.

    def start(self) -> Self:
        """Start it and wait until it listens."""
        assert self._process is None, "it runs already"
        self._process = forks.Process(
            self._command,
            before=self.before,
            cwd=REPOSITORY,
            env={
                # The default is patient with a broken upstream; a test that wants this sets it.
                "FETCHONCE_FILL_RETRIES": "2",
                **clean_environment(),
                "FETCHONCE_CONFIG": str(self.config),
                "PYTHONUNBUFFERED": "1",
            },
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,  # its children can be killed with it, and Ctrl-C reaches only us
        )
        first, ended = len(self.log), threading.Event()
        self._reader = threading.Thread(target=self._collect, args=(self._process, ended), name="proxy-log")
        self._reader.start()
        with self._logged:
            self._logged.wait_for(lambda: ended.is_set() or self._address(first), STOP_SECONDS)
            address = self._address(first)
        if address is None:
            code = self._end(None if ended.is_set() else signal.SIGKILL)
            said = "\n".join(self.log[first:]) or "(nothing)"
            raise AssertionError(f"{' '.join(self._command)}\ndid not start (exit code {code}); it said:\n{said}")
        self.client.host, self.client.port = address
        return self

    def terminate(self) -> int:
        """Send SIGTERM and return the exit code; AssertionError if it runs on for 20 s."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the process and its children."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Stop it if it runs, and start it again on the same cache directory. Its port may change."""
        if self._process:
            self.terminate()
        return self.start()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal and do not wait; exited() does."""
        os.kill(self.pid, number)

    async def exited(self, timeout: float = STOP_SECONDS) -> int:  # noqa: ASYNC109 - as until
        """Wait until the process has ended, by itself or after send_signal(); returns the exit code."""
        process = self._running
        await until(lambda: process.poll() is not None, timeout)
        return self._end(None)

    def close(self) -> None:
        """Close what is open and stop the process; AssertionError if it ends badly or has logged a traceback."""
        self.client.close()
        code = self.terminate() if self._process else 0
        log = "\n".join(self.log)
        assert code == 0, f"the proxy ended with {code}; it said:\n{log}"
        assert "Traceback" not in log, f"the proxy said a traceback:\n{log}"

    @property
    def pid(self) -> int:
        return self._running.pid

    def memory_bytes(self) -> int:
        """Memory of the process's own (Linux). Mapped files are not in it: theirs is the kernel's to take back."""
        said = re.findall(r"^(RssAnon|VmRSS):\s+(\d+) kB$", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        assert said, f"no VmRSS: process {self.pid} has ended"
        kilobytes = {name: int(size) for name, size in said}
        return kilobytes.get("RssAnon", kilobytes["VmRSS"]) * 1024  # with mapped files, where the kernel tells no more

    def fds(self) -> int:
        """Open file descriptors of the process (Linux)."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    async def wait_log(self, substring: str, timeout: float = TIMEOUT_SECONDS) -> str:  # noqa: ASYNC109 - as until
        """Wait for a line with `substring` in the log; returns the first."""
        try:
            line: str = await until(lambda: next((line for line in self.log if substring in line), ""), timeout)
            return line
        except AssertionError:
            log = "\n".join(self.log)
            raise AssertionError(f"the proxy did not say {substring!r} within {timeout} s, but:\n{log}") from None

    # Requests to it.

    def url(self, path: str = "/") -> str:
        return f"http://{self.client.host}:{self.client.port}{path}"

    async def get(self, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Response:
        return await self.client.get(path, headers, method=method)

    async def stream(self, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Stream:
        return await self.client.stream(path, headers, method=method)

    async def raw(self, data: bytes, *, close: bool = True) -> bytes:
        return await self.client.raw(data, close=close)

    async def connect(self) -> Connection:
        return await self.client.connect()

    async def fetch(self, path: str) -> Response:
        """The whole response, which must be 200. Then waits until nothing is being fetched."""
        response = await self.get(path)
        assert response.status == 200, f"{path}: {response.status} {response.body!r}"
        await self.wait_idle()
        return response

    async def status(self) -> Any:
        """What /-/status says."""
        response = await self.get("/-/status")
        assert response.status == 200, f"/-/status: {response.status} {response.body!r}"
        return response.json()

    def run(self, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """A fetchonce command on the same configuration and cache directory, once it has ended with `code`."""
        return fetchonce(*args, "--config", self.config, "--cache-dir", self.cache_dir, code=code)

    # What it does and holds. `path`: only fills whose URL ends with it.

    async def fills(self, path: str = "") -> list[Any]:
        """The running fills, as /-/status tells them."""
        return [fill for fill in (await self.status())["fills"] if fill["url"].endswith(path)]

    async def wait_idle(self, path: str = "", timeout: float = TIMEOUT_SECONDS) -> None:  # noqa: ASYNC109 - as until
        """Wait until nothing is being fetched."""

        async def is_idle() -> bool:
            return not await self.fills(path)

        await until(is_idle, timeout)

    async def wait_readers(self, n: int, path: str = "", timeout: float = TIMEOUT_SECONDS) -> None:  # noqa: ASYNC109
        """Wait until a fill has `n` readers."""

        async def has_readers() -> bool:
            return any(fill["readers"] == n for fill in await self.fills(path))

        await until(has_readers, timeout)

    async def wait_stored(self, n: int = 1, timeout: float = TIMEOUT_SECONDS) -> None:  # noqa: ASYNC109
        """Wait until `n` objects are stored and nothing is being fetched."""

        async def is_stored() -> bool:
            return len(self.entries()) == n and not await self.fills()

        await until(is_stored, timeout)

    async def wait_begun(self, count: int = 0, timeout: float = TIMEOUT_SECONDS) -> None:  # noqa: ASYNC109
        """Wait until other processes can find an unfinished body, and `count` bytes of it.

        A reader may have bytes that the next process does not know of yet.
        """

        def has_begun() -> bool:
            partials = Partials(self.cache_dir / "partial", self.cache_dir / "locks")
            return any(sum(end - start for start, end in each.extents) >= count for each in partials.records())

        await until(has_begun, timeout)

    async def wait_refusing(self, timeout: float = TIMEOUT_SECONDS) -> None:  # noqa: ASYNC109
        """Wait until new connections are refused."""

        async def is_refused() -> bool:
            try:
                (await self.connect()).close()
            except ConnectionError:
                return True
            return False

        await until(is_refused, timeout)

    def files(self, pattern: str) -> list[Path]:
        """What matches `pattern` in the cache directory."""
        return sorted(self.cache_dir.glob(pattern))

    def entries(self) -> list[Any]:
        """The sidecars of all stored objects."""
        return [json.loads(sidecar(path)) for path in self.files("blobs/*/*.json")]

    async def entry(self, name: str) -> Any:
        """The sidecar of the object with that file name, once nothing is being fetched; None if it was not stored."""
        await self.wait_idle()
        return next((entry for entry in self.entries() if entry["url"].endswith(f"/{name}")), None)

    def accesses(self, method: str, path: str) -> list[str]:
        """The access lines so far of requests by `method` whose path ends with `path`. Each comes behind its answer."""
        return [line for line in self.log if f"method={method} " in line and f"{path} status=" in line]

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "the proxy is not running"
        return self._process

    def _address(self, first: int) -> tuple[str, int] | None:
        """Where it listens, by the log from line `first` on; None: nothing said yet."""
        for line in self.log[first:]:
            if found := STARTED.search(line):
                return found[1], int(found[2])
        return None

    def _collect(self, process: subprocess.Popen[str], ended: threading.Event) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                with self._logged:
                    self.log.append(line.rstrip("\n"))
                    self._logged.notify_all()
        with self._logged:
            ended.set()
            self._logged.notify_all()

    def _end(self, number: signal.Signals | None) -> int:
        """Send a signal to the process (SIGKILL: to its children too), and wait until it has ended."""
        process, self._process = self._running, None
        try:
            match number:
                case signal.SIGKILL:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
                case signal.Signals():
                    process.send_signal(number)
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log = "\n".join(self.log)
            raise AssertionError(f"the proxy still runs {STOP_SECONDS} s after {number}; it said:\n{log}") from None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a dead group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if self._reader:
                self._reader.join(STOP_SECONDS)
        return code
