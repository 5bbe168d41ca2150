"""Running other programs, and what the tests of them share."""

import asyncio
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from proxy.tools.hints import Addresses, find
from tests.harness import REPOSITORY

SIZE = 48 << 20
SEED = 7
RATE = 24 << 20
FORMS = ["by URL", "as http_proxy"]


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


async def run(*command, check=True, cwd=None, env=None, merged=False):
    """(exit code, output) of a program, which must succeed unless `check` is off. `merged`: with standard error."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        cwd=cwd,
        env={**environment, **(env or {})},
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:  # the test has timed out
            process.kill()
            await process.wait()
    assert not check or process.returncode == 0, f"{command} exited {process.returncode}\n{out!r}\n{err!r}"
    return process.returncode, out


def typed(tool, proxy, **places):
    """What the README says to type for `tool`, line by line, to this proxy: HOST is its mirror `u`.

    `places`: what to put in place of other words.
    """
    (hint,) = find(tool)
    places = {"HOST": "u", **places}
    lines = [Addresses(base=proxy.url("")).fill(step.text) for step in hint.steps]
    return [functools.reduce(lambda line, pair: line.replace(*pair), places.items(), line) for line in lines]


def build_go(name, folder, package="."):
    """The program `package` of the module in tests/clients/NAME, from its Go modules, as FOLDER/NAME."""
    go = shutil.which("go")
    if not go:
        pytest.skip("Go is not installed")
    version = tuple(map(int, subprocess.check_output([go, "env", "GOVERSION"], text=True).strip()[2:].split(".")[:2]))
    if version < (1, 25):
        pytest.skip(f"the modules need Go 1.25 or newer, here is {'.'.join(map(str, version))}")
    program, cache = folder / name, REPOSITORY / ".cache" / "go-build"
    cache.mkdir(parents=True, exist_ok=True)
    # Without optimizing, and without what debuggers need, all of limactl compiles in two thirds of the time.
    fast = ["-gcflags=all=-N -l -dwarf=false", "-ldflags=-s -w -X github.com/lima-vm/lima/v2/pkg/version.Version=2.2.0"]
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would compile everything twice
        subprocess.run(
            # The tests that run meanwhile come first: some of them measure rates.
            ["nice", go, "build", "-trimpath", *fast, "-o", program, package],
            cwd=Path(__file__).parent / name,
            env={**os.environ, "CGO_ENABLED": "0", "GOCACHE": str(cache)},
            check=True,
        )
    return program


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
