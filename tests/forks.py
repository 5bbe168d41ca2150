"""fetchonce processes without the start of Python and its imports, which take nine tenths of a short run.

A template process has imported fetchonce, and forks for each process that is wanted. What it forks is like any other
process, with arguments, environment, directory and descriptors of its own; it runs `python -m proxy` from the first
line to its exit. tests/cli starts `serve` and the help of each command in a Python of their own.
"""

import atexit
import functools
import gc
import importlib
import inspect
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
FETCHONCE = [sys.executable, "-m", "proxy"]
MESSAGE_BYTES = 128 * 1024
INTERPRETER = ("PYTHON", "LC_", "LANG")
"""Python reads variables of these names as it starts. It has to start anew where they are not the template's."""


class Template:
    """Our end of the template process. Any thread may call."""

    def __init__(self) -> None:
        self.settings = _of_interpreter(os.environ)
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.forks", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, cwd=REPOSITORY, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        atexit.register(self._end)

    def ask(self, question: dict[str, Any], fds: Sequence[int] = ()) -> Any:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(question).encode()], fds)
            answer = self._socket.recv(MESSAGE_BYTES)
        assert answer, "the template process has ended"
        return json.loads(answer)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()


@functools.cache
def _template() -> Template:
    return Template()


def _of_interpreter(env: Mapping[str, str]) -> dict[str, str]:
    # Unbuffered or not, each line of standard error comes at once.
    return {name: value for name, value in env.items() if name.startswith(INTERPRETER) and name != "PYTHONUNBUFFERED"}


class Process(subprocess.Popen[str]):
    """A subprocess.Popen that is forked from the template where it can be: on Linux, if it is to run fetchonce.

    `before` is called with the pid of the process, which begins when that returns.
    Popen makes the pipes, and calls the other methods to start the process and to ask how it ended."""

    _is_forked = False

    def __init__(self, *args: Any, before: Callable[[int], None] | None = None, **options: Any) -> None:
        self._before = before
        super().__init__(*args, **options)

    def _execute_child(self, *args: Any) -> None:
        base = subprocess.Popen._execute_child
        wanted = inspect.signature(base).bind(self, *args).arguments
        command, env = [os.fsdecode(word) for word in wanted["args"]], dict(wanted["env"] or os.environ)
        if (
            not hasattr(os, "pidfd_open")  # not Linux
            or command[: len(FETCHONCE)] != FETCHONCE
            or _of_interpreter(env) != _template().settings
        ):
            assert not self._before, "only a forked process can wait"
            base(self, *args)
            return
        question = {
            "args": command[len(FETCHONCE) :],
            "cwd": os.fsdecode(wanted["cwd"] or os.getcwd()),
            "env": env,
            "is_session": wanted["start_new_session"],
        }
        pipes = [wanted[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        fds = [own if fd == -1 else fd for own, fd in enumerate((pipes[0], pipes[3], pipes[5]))]
        begins, begin = os.pipe()
        try:
            self._is_forked = True
            self.pid = _template().ask(question, [*fds, begins])
            self._child_created = True
            if self._before:
                self._before(self.pid)
        finally:
            os.close(begins)
            os.close(begin)
            self._close_pipe_fds(*pipes)

    def _internal_poll(self, *args: Any, **named: Any) -> int | None:
        if not self._is_forked:
            return super()._internal_poll(*args, **named)
        if self._waitpid_lock.acquire(blocking=False):
            try:
                if self.returncode is None:
                    pid, status = self._wait_for(self.pid, os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        return self._wait_for(self.pid, wait_flags) if self._is_forked else super()._try_wait(wait_flags)

    def _wait_for(self, pid: int, flags: int) -> tuple[int, int]:
        """As os.waitpid, which is for children only."""
        if not flags & os.WNOHANG:
            fd = os.pidfd_open(pid)
            try:
                ended = select.poll()
                ended.register(fd, select.POLLIN)
                ended.poll()
            finally:
                os.close(fd)
        pid, status = _template().ask({"pid": pid})
        return pid, status


def run(
    args: Sequence[str | bytes | Path], timeout: float, input: str | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run, with text for input and output."""
    stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
    pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Process(args, text=True, **pipes, **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(args, process.returncode, out, err)


# -- in the template ---------------------------------------------------------------------------------------------------


def main(control: socket.socket) -> None:
    """Fork for each who asks; returns in a forked process that is ready to run fetchonce. Ends when nobody can ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who are forked
    import proxy

    for module in pkgutil.walk_packages(proxy.__path__, "proxy."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.freeze()  # a command would spend most of its time on collecting what it never had
    while True:
        message, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 4)
        if not message:
            sys.exit()
        question = json.loads(message)
        if "pid" in question:
            answer: object = os.waitpid(question["pid"], os.WNOHANG)
        elif not (answer := os.fork()):
            control.close()
            become(question, fds)
            return
        for fd in fds:
            os.close(fd)
        control.send(json.dumps(answer).encode())


def become(wanted: dict[str, Any], fds: Sequence[int]) -> None:
    """`fds`: standard input, output and error, and one that ends when the process may begin."""
    if wanted["is_session"]:
        os.setsid()
    *standard, begins = fds
    for number, fd in enumerate(standard):
        os.dup2(fd, number)
        os.close(fd)
    os.read(begins, 1)  # it is closed when we may begin
    os.close(begins)
    # Another object: the one we were started with takes its descriptor for /dev/null, in which one can seek.
    sys.stdout = os.fdopen(1, "w", encoding=sys.stdout.encoding, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    time.tzset()
    sys.argv[1:] = wanted["args"]
    sys.orig_argv[1:] = ["-m", "proxy", *wanted["args"]]  # by which an upgrade starts its successor


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("proxy", run_name="__main__", alter_sys=True)
