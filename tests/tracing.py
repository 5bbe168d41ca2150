"""The system calls of a process that runs, as strace lists them."""

import contextlib
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


class Call(NamedTuple):
    thread: int
    name: str
    text: str
    """With its arguments and its result."""


@contextlib.contextmanager
def traced(pid: int, calls: str, output: Path) -> Iterator[list[Call]]:
    """Those of `calls` (separated by commas) that the process makes in the block, in a list that is filled at its end.

    strace writes them to `output`.
    """
    found: list[Call] = []
    command = ["strace", "-f", "-e", f"trace={calls}", "-e", "signal=none", "-o", str(output), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracing:
        assert tracing.stderr
        assert "attached" in (said := tracing.stderr.readline()), said
        try:
            yield found
        finally:
            tracing.send_signal(signal.SIGINT)
            tracing.communicate()  # it says of each thread that it lets go, and dies half way if nobody reads that
    for line in output.read_text(errors="replace").splitlines():
        if made := re.match(r"(\d+) +((\w+)\(.*)", line):
            found.append(Call(int(made[1]), made[3], made[2]))
