"""Object stores for tests: real servers, and a wire in front of them that can be cut, slowed and lied on.

versitygw keeps a bucket as a directory and knows conditional writes; `rclone serve s3` does not.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import REPOSITORY, free_port, until

KEY, SECRET = "testkey", "testsecret"
PATIENT = "60s"
"""For servers that help each other on a machine that does much else."""
HEAD_BYTES = 64 * 1024


PROGRAM = REPOSITORY / ".cache" / "versitygw"
"""Made by .ci/run: it takes two minutes."""


class Engine:
    """An S3 server with buckets in directories below `root`. Close it."""

    def __init__(self, root):
        self.root, self.port, self.env = root, free_port(), {"ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
        self._process = None
        root.mkdir(parents=True, exist_ok=True)

    def start(self):
        self._process = subprocess.Popen(
            [*map(str, self.command)],
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self._process.poll() is None, f"{self.command} has ended"
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            time.sleep(0.02)
        raise AssertionError(f"{self.command} does not listen")

    def close(self):
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


class Versitygw(Engine):
    @property
    def command(self):
        return (PROGRAM, "--port", f"127.0.0.1:{self.port}", "--quiet", "posix", self.root)


class Rclone(Engine):
    """It takes If-None-Match for nothing, and overwrites."""

    @property
    def command(self):
        return (
            Path(sys.executable).with_name("rclone"), "serve", "s3", "--addr", f"127.0.0.1:{self.port}",
            "--auth-key", f"{KEY},{SECRET}", self.root,
        )  # fmt: skip


@dataclass
class Asked:
    """A request that came over the wire."""

    method: str
    path: str
    headers: dict[str, str]
    status: int | None = None


@dataclass
class Rule:
    """What is done to requests of which METHOD and path match `pattern`, `times` times."""

    pattern: re.Pattern[str]
    times: float
    status: int | None = None
    """Answered with it, and not passed on."""
    header: str = ""
    """Only to those that carry it."""
    cut_after: int | None = None
    """Body bytes of the answer after which the connection ends."""
    is_stalled: bool = False
    """It does not end then, but waits."""
    rate: float = 0.0
    """Body bytes of the answer in a second; 0: as fast as they come."""
    is_held: bool = False
    """Not answered until `release`."""
    held: threading.Event = field(default_factory=threading.Event)


class Wire:
    """A TCP proxy in front of an engine that understands just enough HTTP. A context manager."""

    def __init__(self, port):
        self._to, self.asked, self._rules = port, [], []
        self._lock = threading.Lock()
        self._sockets = set()
        self._listener = None
        self.port = free_port()

    def __enter__(self):
        self.restore()
        return self

    def __exit__(self, *error):
        for rule in self._rules:
            rule.held.set()
        self.cut()

    # -- faults -------------------------------------------------------------------------------------------------------

    def fail(self, pattern, status, times=float("inf"), header=""):
        self._rules.append(Rule(re.compile(pattern), times, status=status, header=header))

    def cut_body(self, pattern, after, times=float("inf")):
        self._rules.append(Rule(re.compile(pattern), times, cut_after=after))

    def stall_body(self, pattern, after, times=float("inf")):
        """As `cut_body`, but the connection stays open, and nothing more comes until `heal`."""
        self._rules.append(Rule(re.compile(pattern), times, cut_after=after, is_stalled=True))

    def slow_body(self, pattern, rate, times=float("inf")):
        """`rate`: bytes in a second, until `heal`."""
        self._rules.append(Rule(re.compile(pattern), times, rate=rate))

    def hold(self, pattern, times=float("inf")):
        self._rules.append(Rule(re.compile(pattern), times, is_held=True))

    def heal(self):
        """No more faults; what is held goes on."""
        rules, self._rules = self._rules, []
        for rule in rules:
            rule.held.set()

    def cut(self):
        """As if the server were killed: nothing listens, and all connections end."""
        listener, self._listener = self._listener, None
        if listener:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def restore(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    # -- what was asked -----------------------------------------------------------------------------------------------

    def count(self, pattern):
        """How many requests match METHOD and path (without the bucket's name)."""
        return len(self.matching(pattern))

    def matching(self, pattern):
        with self._lock:
            return [each for each in self.asked if re.search(pattern, f"{each.method} {each.path}")]

    # -- the wire -----------------------------------------------------------------------------------------------------

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, client):
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._to)) as server:
            with self._lock:
                self._sockets |= {client, server}
            try:
                while self._exchange(_Reader(client), client, _Reader(server), server):
                    pass
            finally:
                with self._lock:
                    self._sockets -= {client, server}

    def _exchange(self, asks, client, answers, server):
        head = asks.head()
        if not head:
            return False
        method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        headers = _fields(head)
        asked = Asked(method, path, headers)
        with self._lock:
            self.asked.append(asked)
            rules = (each for each in self._rules if each.times > 0 and each.pattern.search(f"{method} {path}"))
            rule = next((each for each in rules if not each.header or each.header in headers), None)
            if rule:
                rule.times -= 1
        length = int(headers.get("content-length", 0))
        if rule and rule.is_held:
            rule.held.wait()
        if rule and rule.status:
            asks.skip(length)
            asked.status = rule.status
            client.sendall(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % rule.status)
            return True
        server.sendall(head)
        if headers.get("expect", "").lower() == "100-continue":
            client.sendall(answers.head())
        asks.copy(server, length)
        if not (head := answers.head()):
            return False
        asked.status = int(head.split(b" ", 2)[1])
        client.sendall(head)
        fields = _fields(head)
        if method == "HEAD" or asked.status in (204, 304):
            return True
        if "chunked" in fields.get("transfer-encoding", ""):
            while size := int((line := answers.line()).split(b";")[0], 16):
                client.sendall(line)
                answers.copy(client, size + 2)
            client.sendall(line + answers.line())
            return True
        length = int(fields["content-length"])
        if rule and rule.cut_after is not None and rule.cut_after < length:
            answers.copy(client, rule.cut_after)
            if rule.is_stalled:
                rule.held.wait()
            return False
        while rule and rule.rate and length and not rule.held.is_set():
            count = min(length, 16 * 1024)
            answers.copy(client, count)
            length -= count
            rule.held.wait(count / rule.rate)
        answers.copy(client, length)
        return True


class _Reader:
    """Bytes of a socket. Each exchange has a new one: nobody here sends ahead."""

    def __init__(self, sock):
        self._sock, self._ahead = sock, b""

    def _more(self):
        data = self._sock.recv(256 * 1024)
        if not data:
            raise OSError("closed")
        return data

    def until(self, end):
        while end not in self._ahead:
            if len(self._ahead) > HEAD_BYTES:
                raise OSError("no head")
            self._ahead += self._more()
        found, _, self._ahead = self._ahead.partition(end)
        return found + end

    def head(self):
        try:
            return self.until(b"\r\n\r\n")
        except OSError:
            return b""

    def line(self):
        return self.until(b"\r\n")

    def copy(self, to, count):
        while count:
            data = self._ahead or self._more()
            piece, self._ahead = data[:count], data[count:]
            to.sendall(piece)
            count -= len(piece)

    def skip(self, count):
        while count:
            data = self._ahead or self._more()
            piece, self._ahead = data[:count], data[count:]
            count -= len(piece)


def _fields(head):
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


class Bucket:
    """One bucket of an engine, over a wire of its own."""

    def __init__(self, engine, name, wire):
        self.name, self.wire, self.folder = name, wire, engine.root / name
        self.folder.mkdir(exist_ok=True)

    def config(self, **more):
        """The section of the configuration."""
        keys = {
            "url": f"s3://{self.name}/images",
            "endpoint": f"http://127.0.0.1:{self.wire.port}",
            "access_key_id": KEY,
            "secret_access_key": SECRET,
            "timeout": PATIENT,
            **more,
        }
        return "[s3]\n" + "".join(f'{key} = "{value}"\n' for key, value in keys.items())

    def files(self, pattern):
        """What is in it, by a glob below the prefix."""
        return sorted(path for path in (self.folder / "images").glob(pattern) if path.is_file())

    def rewrite_entry(self, entry):
        """Replace the one entry in it, by a dict or any text; within its file, whose attributes are the object's."""
        (path,) = self.files("urls/*.json")
        path.write_text(entry if isinstance(entry, str) else json.dumps(entry))

    async def wait(self, blobs, urls=None):
        """Wait until it holds as many bodies and entries."""
        urls = blobs if urls is None else urls
        await until(lambda: (len(self.files("blobs/*/*")), len(self.files("urls/*.json"))) == (blobs, urls))
