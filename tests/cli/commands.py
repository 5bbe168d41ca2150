"""fetchonce's commands as processes, and the terminal they write to."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import forks
from tests.forks import FETCHONCE, REPOSITORY
from tests.harness import clean_environment

BODY = os.urandom(1_000_000)
BIG = os.urandom(24_000_000)  # more than the buffers of a loopback connection take
FRESH = "max-age=600"

END_SECONDS = 30.0  # no command may take this long
QUICK_SECONDS = 20.0  # more than the 3 s that stopped fills may take, less than a read timeout

COMMANDS = [
    *("serve", "prefetch", "ls", "show", "rm", "url", "pin", "unpin", "prune", "verify", "status"),
    *("export", "import", "service"),
    *("hint", "completion", "man", "config", "config check", "config show"),
    *("lima", "lima install", "lima remove", "lima status"),
    *("s3", "s3 check", "s3 rm"),
    *("vagrant", "vagrant install", "vagrant remove", "vagrant status"),
    *("seed lima", "seed minikube", "rewrite"),
]

CONFIG = """\
shipped_mirrors = false
[[mirror]]
name = "u"
upstreams = ["{origin}"]
[[mirror]]
name = "https-one"
upstreams = ["https://images.example/pub/"]
"""


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)


class Cli:
    """Runs fetchonce on one cache directory; its configuration has the origin as mirror `u`."""

    def __init__(self, cache_dir: Path, config: Path) -> None:
        self.cache_dir, self.config = cache_dir, config
        self.started: list[subprocess.Popen[str]] = []

    def __call__(
        self, *args: str | bytes, code: int = 0, env: Mapping[str, str] | None = None, stdin: str = ""
    ) -> Ran:
        """Run it to its end; it must end with `code` and without a traceback."""
        ran = forks.run(self.command(*args), cwd=REPOSITORY, env=self.env(env), timeout=END_SECONDS, input=stdin)
        return self.judged(args, Ran(ran.returncode, ran.stdout, ran.stderr), code)

    def start(
        self,
        *args: str | bytes,
        env: Mapping[str, str] | None = None,
        fds: Mapping[str, int] | None = None,
        new_python: bool = False,
    ) -> subprocess.Popen[str]:
        """Start it and do not wait; `end` does. `fds`: descriptors in place of pipes. `new_python`: do not fork it."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **(fds or {})}
        make = subprocess.Popen if new_python else forks.Process
        process = make(self.command(*args), cwd=REPOSITORY, env=self.env(env), text=True, **pipes)
        self.started.append(process)
        return process

    def end(self, process, number: signal.Signals | None = None, *, code: int = 0, within: float = END_SECONDS) -> Ran:
        """Send a signal, if any, and wait until it has ended."""
        if number is not None:
            process.send_signal(number)
        out, err = process.communicate(timeout=within)
        return self.judged(process.args[3:], Ran(process.returncode, out or "", err or ""), code)

    def together(self, *lines: list[str | bytes], code: int = 0, new_python: bool = False) -> list[Ran]:
        """Run several at once."""
        processes = [self.start(*line, new_python=new_python) for line in lines]
        return [self.end(process, code=code) for process in processes]

    def ls(self) -> dict[str, dict]:
        return {each["url"]: each for each in self("ls", "--json").json()}

    def command(self, *args: str | bytes) -> list[str | bytes]:
        return [*FETCHONCE, *args]

    def env(self, more: Mapping[str, str] | None) -> dict[str, str]:
        ours = {"FETCHONCE_CONFIG": str(self.config), "FETCHONCE_CACHE_DIR": str(self.cache_dir)}
        return {**clean_environment(), **ours, "COLUMNS": "100", **(more or {})}

    def judged(self, args, ran: Ran, code: int) -> Ran:
        shown = f"{args} ended with {ran.code}\n--- out\n{ran.out}\n--- err\n{ran.err}"
        assert ran.code == code, shown
        assert "Traceback" not in ran.out + ran.err, shown
        return ran


class Terminal:
    """A terminal for a command's standard error, or for all of its output."""

    def __init__(self) -> None:
        self._master, self.fd = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.shown = ""

    @property
    def tail(self) -> str:
        return f"shown last, and not what was waited for: {self.shown[-1000:]!r}"

    def read_until(self, text: str | None, within: float = END_SECONDS) -> str:
        """Everything shown so far, once it has `text`; None: once the command has closed the terminal."""
        if self.fd >= 0:
            os.close(self.fd)  # ours; the command has its copy
            self.fd = -1
        deadline = time.monotonic() + within
        while text is None or text not in self.shown:
            assert select.select([self._master], [], [], max(0, deadline - time.monotonic()))[0], self.tail
            try:
                data = os.read(self._master, 65536)
            except OSError:  # Linux: the other end is closed
                data = b""
            if not data:
                assert text is None, self.tail
                break
            self.shown += data.decode(errors="replace")
        return self.shown

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        for fd in (self.fd, self._master):
            if fd >= 0:
                os.close(fd)


def brought_in(origin, cli, *names, size=100_000) -> dict[str, str]:
    """Upstream URLs by name. They are fetched one after the other, so their times of use are in this order."""
    urls = {}
    for name in names:
        origin.body(f"/{name}.img", os.urandom(size)).headers(cache_control=FRESH)
        cli("prefetch", f"/u/{name}.img")
        urls[name] = origin.url(f"/{name}.img")
    return urls


def blob_of(cli, url) -> Path:
    digest = cli.ls()[url]["digest"].removeprefix("sha256:")
    return cli.cache_dir / "blobs" / digest[:2] / digest


def started(server: "subprocess.Popen[str]") -> str:
    """Wait until it listens; returns its first address."""
    said = ""
    for line in server.stderr:
        said += line
        if found := re.search(r"server\.started listen=(?:http://|unix:)([^,\s]+)", line):
            return found[1]
    raise AssertionError(f"it did not start, and said:\n{said}")


async def served(proxy, count: int) -> bool:
    return (await proxy.status())["totals"]["sent_bytes"] == count
