"""A server under measurement: its start, its end, and what its whole process tree uses (Linux: /proc)."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

START_SECONDS = 30.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.001
IDLE_SECONDS = 0.2
"""A server that uses next to nothing for so long has come to rest ..."""
SETTLE_SECONDS = 10.0
"""... and so long that is waited for."""
ENDING = signal.SIGINT, signal.SIGTERM
TICK = os.sysconf("SC_CLK_TCK")


class Broken(Exception):
    """A server that does not run, and what it said."""


@dataclass(frozen=True, slots=True)
class Usage:
    cpu: Mapping[int, float]
    """CPU seconds by process, with those of its children that have ended."""
    rss: int
    """Resident bytes now, of all processes together. A page of a file counts once for each that has it mapped."""
    peak: int
    """The highest resident bytes of each process since forget_peak(), together."""

    def cpu_since(self, before: "Usage") -> dict[int, float]:
        return {pid: seconds - before.cpu.get(pid, 0) for pid, seconds in self.cpu.items()}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Server:
    def __init__(self, command: Sequence[str], port: int, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.port = port
        self._command, self._log = command, log
        # In a session of its own, so that Ctrl-C reaches only us.
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                cwd=log.parent,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_listening(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), START_SECONDS):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text(errors="replace")[-2000:]
                raise Broken(f"{' '.join(self._command)}\ndid not start; it said:\n{said or '(nothing)'}")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """It, and what it has started."""
        tree = _tree(self.pid)
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in tree[1:]:
            with contextlib.suppress(OSError):
                if os.getsid(pid) == self.pid:  # not another process that has its number by now
                    os.kill(pid, signal.SIGKILL)

    def titled(self, title: str) -> list[int]:
        """Its processes that call themselves so."""
        return [pid for pid in _tree(self.pid) if title in _read(pid, "cmdline")]

    def usage(self) -> Usage:
        cpu, rss, peak = {}, 0, 0
        for pid in _tree(self.pid):
            with contextlib.suppress(OSError, KeyError):  # it has just ended
                cpu[pid] = sum(int(ticks) for ticks in _stat(pid)[11:15]) / TICK
                status = dict(line.split(":", 1) for line in _read(pid, "status").splitlines())
                rss += int(status["VmRSS"].split()[0]) * 1024
                peak += int(status["VmHWM"].split()[0]) * 1024
        return Usage(cpu, rss, peak)

    def wait_idle(self) -> None:
        """Until it uses no more than a tick for a while; not for ever."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            before = self.usage()
            time.sleep(IDLE_SECONDS)
            if sum(self.usage().cpu_since(before).values()) <= 1 / TICK:
                return

    def forget_peak(self) -> None:
        for pid in _tree(self.pid):
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")


@contextlib.contextmanager
def running(make: Callable[[], Server]) -> Iterator[Server]:
    """Listening in the block, and ended after it."""
    server = None
    try:
        with _held():
            server = make()
        server.wait_listening()
        yield server
    finally:
        if server:
            with _held():
                server.stop()


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """Signals that end us wait until after the block. One within Popen or stop() would leave a process behind."""
    came: list[tuple[int, FrameType | None]] = []
    handlers = {number: signal.signal(number, lambda *signal: came.append(signal)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for signum, frame in came:
        handler = handlers[signal.Signals(signum)]
        if callable(handler):
            handler(signum, frame)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may have blanks: state, parent, ..."""
    return _read(pid, "stat").rpartition(")")[2].split()


def _read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text(errors="replace")


def _tree(root: int) -> list[int]:
    """`root` and its children, and theirs."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(name))[1]), []).append(int(name))
    tree = [root]
    for pid in tree:
        tree += children.get(pid, [])
    return tree
