"""Several processes for one server: started, watched, replaced, ended together.

The supervisor serves nothing. It has no thread and no event loop, so it may fork at any time, and a worker begins with
the settings it has in memory, whatever the file says by then. It holds every listening socket: what comes while a
worker is dead waits for its successor instead of being reset.

A socket pair joins it with each worker: the worker writes one byte when it serves; the end of either side tells the
other that this process is gone, however it went.
"""

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import ERROR, INFO, WARNING
from typing import Any, NoReturn

from ..log import events, log

STEADY_SECONDS = 5.0
"""A worker that lived for less died at once."""
DEATHS_MAX = 5
"""So often in a row a worker may die at once."""
BACKOFF_SECONDS = 0.2
"""Before the second replacement in a row, doubled for each further one; the first comes at once."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
READY = b"+"


class Link:
    """A worker's end of what joins it with its supervisor."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """Readable once the supervisor is gone, or wants us to be."""
        return self._sock.fileno()

    def ready(self) -> None:
        """This worker serves, and takes signals."""
        self._sock.send(READY)
        # Until now it would have been killed by it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


@dataclass(slots=True, eq=False)
class _Worker:
    sockets: Sequence[socket.socket]
    pid: int = 0
    link: socket.socket | None = None
    """None: it does not run."""
    is_ready: bool = False
    due: float | None = None
    """When to start it; None: not yet, or it runs."""
    started_at: float = 0.0
    deaths: int = 0
    """In a row, at once."""


class Supervisor:
    """One worker for each of `sockets`, which it owns and closes.

    `work` is the life of a worker: it gets its sockets and its link, and its result is the exit code. `reload` reads
    the settings again and tells whether they are in force. `started` is called when all of them serve.
    """

    def __init__(
        self,
        sockets: Sequence[Sequence[socket.socket]],
        work: Callable[[Sequence[socket.socket], Link], int],
        *,
        reload: Callable[[], bool],
        started: Callable[[], None],
    ) -> None:
        self._workers = [_Worker(own) for own in sockets]
        self._work, self._reload, self._started = work, reload, started
        self._is_started = self._is_stopping = False
        self._code = 0
        self._wakes, self._waker = socket.socketpair()

    def run(self) -> int:
        """Until SIGTERM or SIGINT, or a worker that cannot live: the exit code."""
        for sock in (self._wakes, self._waker):
            sock.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno())
        for each in SIGNALS:
            signal.signal(each, lambda *_: None)  # the byte that it writes is what counts
        # One alone: it puts the cache directory right, or says what is wrong with it, once.
        self._workers[0].due = time.monotonic()
        while self._is_running():
            for worker in self._workers:
                if worker.due is not None and worker.due <= time.monotonic():
                    self._start(worker)
            readable, _, _ = select.select([self._wakes, *self._links()], [], [], self._patience())
            if self._wakes in readable:
                for number in self._wakes.recv(4096):
                    self._on_signal(signal.Signals(number))
            for worker in [worker for worker in self._workers if worker.link in readable]:
                self._hear(worker)
        return self._code

    def _is_running(self) -> bool:
        return not self._is_stopping or bool(self._links())

    def _links(self) -> list[socket.socket]:
        return [worker.link for worker in self._workers if worker.link]

    def _patience(self) -> float | None:
        due = [worker.due for worker in self._workers if worker.due is not None]
        return max(min(due) - time.monotonic(), 0) if due else None

    def _start(self, worker: _Worker) -> None:
        worker.due, worker.is_ready, worker.started_at = None, False, time.monotonic()
        ours, theirs = socket.socketpair()
        # No signal between fork and the worker's own handlers: it would be written to our wakeup socket, as if for us.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if not pid:
                ours.close()
                self._become(worker, theirs)
            worker.pid, worker.link = pid, ours
        except OSError as error:  # no memory, too many processes
            ours.close()
            self._lost(worker, error=error)
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _become(self, worker: _Worker, link: socket.socket) -> NoReturn:
        """In the new process."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            # A terminal's Ctrl-C goes to us too, and would count twice: SIGINT stays blocked, SIGTERM will come.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            mine = set(map(id, worker.sockets))
            others = [sock for each in self._workers for sock in each.sockets if id(sock) not in mine]
            for sock in (self._wakes, self._waker, *others, *self._links()):
                sock.close()
            code = self._work(worker.sockets, Link(link))
        finally:
            os._exit(code)

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            if not self._is_stopping and self._reload():
                self._tell(signal.SIGHUP)
        elif not self._is_stopping:
            self._stop(0)
        elif number == signal.SIGINT:
            for link in self._links():
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    link.shutdown(socket.SHUT_WR)

    def _stop(self, code: int) -> None:
        self._is_stopping, self._code = True, code
        for worker in self._workers:
            worker.due = None
            for sock in worker.sockets:
                sock.close()  # ours first: a connection that came after the workers' would wait for nobody
        self._tell(signal.SIGTERM)

    def _tell(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.link:
                os.kill(worker.pid, number)  # it may be dead, but not yet waited for: nobody else has its number

    def _hear(self, worker: _Worker) -> None:
        assert worker.link
        if not worker.link.recv(len(READY)):
            self._bury(worker)
            return
        worker.is_ready = True
        log(events, INFO, "worker.started", pid=worker.pid)
        if self._is_started or self._is_stopping:
            return
        for other in self._workers:
            if not other.link:
                other.due = time.monotonic()
        if all(each.is_ready for each in self._workers):
            self._is_started = True
            self._started()

    def _bury(self, worker: _Worker) -> None:
        assert worker.link
        worker.link.close()
        worker.link = None
        code = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        how: dict[str, Any] = {"signal": signal.Signals(-code).name} if code < 0 else {"code": code}
        if not self._is_stopping:
            self._lost(worker, pid=worker.pid, **how)
        elif code and (worker.is_ready or code != -signal.SIGTERM):
            log(events, WARNING, "worker.died", pid=worker.pid, **how)
            self._code = self._code or 1

    def _lost(self, worker: _Worker, **how: Any) -> None:
        """There is one worker less, and nobody asked for it: replace it, or give up."""
        if not self._is_started:
            # What keeps it from starting it has said itself.
            log(events, ERROR, "worker.did_not_start", **how)
            self._stop(how.get("code") or 1)
            return
        worker.deaths = 1 if time.monotonic() - worker.started_at >= STEADY_SECONDS else worker.deaths + 1
        if worker.deaths > DEATHS_MAX:
            hint = "the log says why; the other workers end too"
            log(events, ERROR, "worker.given_up", deaths=worker.deaths, **how, hint=hint)
            self._stop(1)
            return
        wait = BACKOFF_SECONDS * 2 ** (worker.deaths - 2) if worker.deaths > 1 else 0.0
        log(events, WARNING, "worker.died", **how, replaced_in=wait)
        worker.due = time.monotonic() + wait
