"""One proxy before one origin, what it is asked, and what that costs it."""

import contextlib
import hashlib
import http.client
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.load import Answers, Load
from tests.bench.origins import MB, Object, Origins
from tests.bench.peers import Peer, Site
from tests.bench.processes import Server, Usage, running

PATIENCE_SECONDS = 300
BUSY_CONNECTIONS = 8
"""From here on, each worker must have had some of them."""
IDLE_PART = 0.05
"""A worker with less of all CPU seconds than this had none ..."""
JUDGED_SECONDS = 0.2
"""... if they are so many that the kernel's ticks can tell."""


class Wrong(Exception):
    """The proxy has not done what was asked of it."""


class Idle(Exception):
    """The kernel gave a worker of the proxy no connection: the run says nothing about the proxy."""


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement."""

    figure: float
    """In the unit of the case."""
    seconds: float
    requests: int
    bytes: int
    cpu: float
    """CPU seconds of all processes of the proxy."""
    peak_rss: int
    """Bytes, of all of them together."""
    first_byte: float
    """Seconds, median."""
    client: float
    """CPU seconds of the load client in one second. At 1, it was the limit."""
    upstream: float | None = None
    """How many times the body came from upstream, where it was not stored before."""


@dataclass(slots=True)
class Stage:
    peer: Peer
    site: Site
    origins: Origins
    program: Path
    """The load client."""
    server: Server | None = None
    """None: it does not run, or there is no proxy at all."""
    paths: dict[str, str] = field(default_factory=dict)
    """Of what is stored, by the name of the object."""

    @property
    def load(self) -> Load:
        return Load(self.program, self.site.port)

    def empty(self) -> None:
        """Its cache. It does not run."""
        shutil.rmtree(self.site.cache, ignore_errors=True)
        self.site.cache.mkdir()
        self.paths.clear()

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """In the block the proxy runs, on the cache as it is."""
        if not self.peer.command:
            yield
            return
        with running(lambda: self.peer.server(self.site)) as self.server:
            yield
        self.server = None

    def unseen(self, wanted: Object) -> str:
        """The path of the object, as nobody has asked for it."""
        return self.peer.prefix + self.origins.unseen(wanted)

    def stored(self, wanted: Object) -> str:
        """The path of the object, which is stored, is checked, and was served from the cache twice."""
        if wanted.name not in self.paths:
            path = self.unseen(wanted)
            self.check(path, wanted)
            self.settle()
            for _ in range(2):
                right(self.load.once(path, 1, wanted.size))
            self.paths[wanted.name] = path
        return self.paths[wanted.name]

    def settle(self) -> None:
        """What the proxy does behind its answers, and the disk behind that, is no part of what is timed next."""
        if self.server:
            self.server.wait_idle()
        os.sync()

    def check(self, path: str, wanted: Object) -> None:
        """Raises Wrong if a plain GET brings another body."""
        digest = hashlib.sha256()
        for piece in self.get(path):
            digest.update(piece)
        if digest.hexdigest() != wanted.sha256:
            raise Wrong("the body is wrong")

    def check_range(self, path: str, wanted: Object, start: int, length: int) -> None:
        """The same for a range."""
        with wanted.file.open("rb") as file:
            file.seek(start)
            if b"".join(self.get(path, f"bytes={start}-{start + length - 1}")) != file.read(length):
                raise Wrong("a range is wrong")

    def get(self, path: str, range: str = "") -> Iterator[bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.site.port, timeout=PATIENCE_SECONDS)
        with contextlib.closing(connection):
            try:
                connection.request("GET", path, headers={"Range": range} if range else {})
                answer = connection.getresponse()
                if answer.status != (206 if range else 200):
                    raise Wrong(f"status {answer.status}")
                while piece := answer.read(MB):
                    yield piece
            except (OSError, http.client.HTTPException) as error:
                raise Wrong(f"no answer: {error!r}") from error

    def timed(self, figure: Callable[[Answers], float], connections: int, ask: Callable[[], Answers]) -> Run:
        """Raises Wrong and Idle."""
        if self.server:
            self.server.forget_peak()
        before = self.usage()
        answers = right(ask())
        after = self.usage()
        cpu = after.cpu_since(before)
        if self.server and self.peer.worker and connections >= BUSY_CONNECTIONS:
            workers = [cpu[pid] for pid in self.server.titled(self.peer.worker)]
            if sum(workers) > JUDGED_SECONDS and min(workers) < IDLE_PART * sum(workers):
                raise Idle("a worker had no connection")
        return Run(
            figure=figure(answers),
            seconds=answers.seconds,
            requests=answers.requests,
            bytes=answers.bytes,
            cpu=sum(cpu.values()),
            peak_rss=after.peak,
            first_byte=answers.first_byte,
            client=answers.cpu / answers.seconds,
        )

    def usage(self) -> Usage:
        return self.server.usage() if self.server else Usage({}, 0, 0)

    def times_sent(self, path: str, size: int) -> float:
        """How many times the body of `size` has come from upstream. `path` may have a `#`."""
        return self.origins.sent(path.removeprefix(self.peer.prefix).partition("#")[0]) / size


def right(answers: Answers) -> Answers:
    """Raises Wrong."""
    if answers.error:
        raise Wrong(answers.error)
    return answers
