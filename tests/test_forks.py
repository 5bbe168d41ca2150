"""A forked process is what a new Python would be."""

import os
import signal
import subprocess
import sys

import pytest

from tests import forks
from tests.forks import FETCHONCE, REPOSITORY
from tests.harness import clean_environment

PIPES = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

linux_only = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="nothing is forked there")


@pytest.mark.parametrize(
    "args", [["--version"], ["config", "show"], ["config", "check"], ["sreve"], ["rm"]], ids=" ".join
)
def test_it_says_the_same_and_ends_the_same(tmp_path, args):
    config = tmp_path / "it is 5° cold.toml"
    config.write_text("[fill]\nretries = 7\n" if args[-1] == "show" else "listen = 3\n")
    options = {"cwd": REPOSITORY, "env": {**clean_environment(), "FETCHONCE_CONFIG": str(config), "COLUMNS": "70"}}
    new = subprocess.run([*FETCHONCE, *args], capture_output=True, text=True, timeout=30, **options)
    forked = forks.run([*FETCHONCE, *args], 30, **options)
    assert (forked.returncode, forked.stdout, forked.stderr) == (new.returncode, new.stdout, new.stderr)
    assert new.stdout or new.stderr


@linux_only
def test_it_is_a_process_of_its_own(tmp_path):
    command = [*FETCHONCE, "serve", "--listen", "127.0.0.1:0", "--cache-dir", str(tmp_path / "cache")]
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 0)):
        before: list[int] = []
        with forks.Process(command, text=True, start_new_session=True, before=before.append, **PIPES) as process:
            try:
                assert before == [process.pid]
                assert any("server.started" in line for line in process.stderr)
                assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
                ends = [os.stat(f"/proc/{process.pid}/fd/{fd}").st_ino for fd in (1, 2)]
                assert ends == [os.fstat(pipe.fileno()).st_ino for pipe in (process.stdout, process.stderr)]
                assert process.poll() is None
                process.send_signal(number)
                assert process.wait(20) == code
            finally:
                process.kill()
        assert process.poll() == code


@linux_only
def test_only_what_a_new_python_would_do_alike_is_forked():
    env = clean_environment()
    for command, extra, is_forked in (
        (FETCHONCE, {}, True),
        (FETCHONCE, {"PYTHONWARNINGS": "error"}, False),
        ([sys.executable, "-c", ""], {}, False),
    ):
        process = forks.Process([*command, "--version"], cwd=REPOSITORY, env={**env, **extra}, text=True, **PIPES)
        process.communicate(timeout=30)
        assert (process.returncode, process._is_forked) == (0, is_forked)
