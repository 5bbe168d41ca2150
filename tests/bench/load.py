"""The load client of load.c: compiled once into .cache/, run once for each measurement."""

import contextlib
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.forks import REPOSITORY

SOURCE = Path(__file__).with_name("load.c")
COMPILERS = "cc", "gcc", "clang"


class Missing(Exception):
    """What the benchmark needs and this machine does not have."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the client got. Times in seconds."""

    seconds: float
    requests: int
    bytes: int
    cpu: float
    """CPU seconds of the client itself. It has one thread: near `seconds`, it was the limit."""
    first_byte: float
    """Median, from the question to the first byte of the body."""
    p50: float
    p99: float
    error: str | None
    """What went wrong first."""


def compiled() -> Path:
    """The program. Its name holds the digest of the source, so that a changed source is compiled again."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    program = REPOSITORY / ".cache" / f"load-{digest}"
    if not program.exists():
        compiler = next(filter(shutil.which, COMPILERS), None)
        if compiler is None:
            raise Missing("no C compiler (Debian: apt install gcc libc6-dev)")
        program.parent.mkdir(exist_ok=True)
        unfinished = program.with_suffix(".new")
        built = subprocess.run([compiler, "-O2", "-o", unfinished, SOURCE], capture_output=True, text=True)
        if built.returncode:
            raise Missing(f"{compiler} cannot compile {SOURCE.name} (Debian: apt install libc6-dev):\n{built.stderr}")
        unfinished.replace(program)
    return program


@dataclass(frozen=True, slots=True)
class Load:
    """The client, for one server on 127.0.0.1."""

    program: Path
    port: int

    def once(self, path: str, connections: int, size: int) -> Answers:
        """All connections ask for the object at the same time."""
        return self._run("once", connections, path, "-s", size)

    def loop(self, path: str, connections: int, seconds: float, size: int) -> Answers:
        """Each connection asks again and again."""
        return self._run("loop", connections, path, "-t", seconds, "-s", size)

    def ranges(self, path: str, connections: int, seconds: float, size: int, length: int) -> Answers:
        """The same for `length` bytes at a random offset of the object, which has `size`."""
        return self._run("loop", connections, path, "-t", seconds, "-s", size, "-r", length)

    def numbered(self, path: str, connections: int, count: int, size: int) -> Answers:
        """`#` in the path becomes each number below `count`, once."""
        return self._run("list", connections, path, "-c", count, "-s", size)

    @contextlib.contextmanager
    def stalled(self, path: str, connections: int) -> Iterator[Answers]:
        """In the block, each connection has asked, and has read the head and no more."""
        command = self._command("stall", connections, path)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdin
            assert client.stdout
            try:
                yield Answers(**json.loads(client.stdout.readline()))
            finally:
                client.stdin.close()  # which ends it

    def _command(self, *words: object) -> list[str]:
        mode, connections, path, *options = map(str, words)
        return [str(self.program), *options, mode, connections, str(self.port), path]

    def _run(self, *words: object) -> Answers:
        ran = subprocess.run(self._command(*words), stdout=subprocess.PIPE, text=True, check=True)
        return Answers(**json.loads(ran.stdout))
