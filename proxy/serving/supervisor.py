"""Several processes for one server: started, watched, replaced and ended together.

The supervisor serves nothing. It has no thread and no event loop, so it may fork at any time; a new worker begins with
the settings in the supervisor's memory, whatever the file says by then. It holds every listening socket: clients that
come while a worker is dead wait for its successor instead of being reset.

A socket pair links it with each worker. The worker says when it serves, and then that its loop turns; it is told to
leave when another process has taken over. If either ends, however that happens, the other sees the end of the link.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from logging import ERROR, INFO, WARNING
from typing import Any, NoReturn

from ..log import events, log
from . import notify
from .upgrade import Handover

STEADY_SECONDS = 5.0
"""A worker that lived for less died early."""
DEATHS_MAX = 5
"""Early deaths of a worker in a row; one more, and the server ends."""
BACKOFF_SECONDS = 0.2
"""Before the second replacement in a row, doubled for each further one. The first comes at once."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
READY = b"+"
ALIVE = b"."
LEAVE = b"-"


class Link:
    """A worker's end of the link with its supervisor."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """Readable once the supervisor has something to say."""
        return self._sock.fileno()

    def is_to_leave(self) -> bool:
        """What it says: that another process has taken over. Else it is gone, or wants this worker to end at once."""
        return _said(self._sock) == LEAVE

    def alive(self) -> None:
        """Say that the loop turns."""
        with contextlib.suppress(OSError):  # the supervisor is gone, which is_to_leave sees
            self._sock.send(ALIVE)

    def ready(self) -> None:
        """Say that this worker serves and takes signals."""
        self._sock.send(READY)
        # Until now SIGHUP would have killed it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


@dataclass(frozen=True, slots=True)
class _Process:
    """A worker that runs."""

    pid: int
    link: socket.socket
    started_at: float
    is_ready: bool = False


@dataclass(frozen=True, slots=True)
class _Due:
    """A worker to be started."""

    at: float


@dataclass(slots=True, eq=False)
class _Worker:
    sockets: Sequence[socket.socket]
    state: _Process | _Due | None = None
    """None: it does not run, and need not yet or no more."""
    early_deaths: int = 0
    """In a row."""


class Supervisor:
    """One worker for each of `sockets`, which it owns and closes.

    `work` is the life of a worker: it gets its sockets and its link, and returns the exit code. `reload` reads the
    settings again and tells whether they are in force. `started` is called when all workers serve. `handover` begins at
    SIGUSR2.
    """

    def __init__(
        self,
        sockets: Sequence[Sequence[socket.socket]],
        work: Callable[[Sequence[socket.socket], Link], int],
        *,
        reload: Callable[[], bool],
        started: Callable[[], None],
        handover: Handover,
    ) -> None:
        self._workers = [_Worker(own) for own in sockets]
        self._work, self._reload, self._started, self._handover = work, reload, started, handover
        self._is_started = self._is_stopping = self._is_leaving = False
        self._code = 0
        self._alive: set[int] = set()
        """Workers that have said so since the watchdog heard of it last."""
        self._wakes, self._waker = socket.socketpair()

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, or until a worker dies too often; returns the exit code."""
        for sock in (self._wakes, self._waker):
            sock.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno())
        for each in SIGNALS:
            signal.signal(each, lambda *_: None)  # all we need is the byte it writes
        # The first one alone: it prepares the cache directory, or says once what is wrong with it.
        self._workers[0].state = _Due(time.monotonic())
        while not self._is_stopping or self._processes():
            for worker in self._workers:
                if isinstance(worker.state, _Due) and worker.state.at <= time.monotonic():
                    self._start(worker)
            links = [process.link for process in self._processes()]
            watched: list[socket.socket | Handover] = [self._wakes, *links]
            if self._handover.is_under_way:
                watched.append(self._handover)
            readable, _, _ = select.select(watched, [], [], self._seconds_to_next_start())
            if self._wakes in readable:
                for number in self._wakes.recv(4096):
                    self._on_signal(signal.Signals(number))
            for worker in self._workers:
                if isinstance(worker.state, _Process) and worker.state.link in readable:
                    self._on_link(worker, worker.state)
            if self._handover in readable and self._handover.is_under_way and self._handover.end():
                self._leave()
        return self._code

    def _processes(self) -> list[_Process]:
        return [worker.state for worker in self._workers if isinstance(worker.state, _Process)]

    def _seconds_to_next_start(self) -> float | None:
        due = [worker.state.at for worker in self._workers if isinstance(worker.state, _Due)]
        return max(min(due) - time.monotonic(), 0) if due else None

    def _start(self, worker: _Worker) -> None:
        started_at = time.monotonic()
        ours, theirs = socket.socketpair()
        # No signal may come between fork and the worker's own handlers: it would be written to our wakeup socket.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if not pid:
                ours.close()
                self._become(worker, theirs)
            worker.state = _Process(pid, ours, started_at)
        except OSError as error:  # no memory, too many processes
            ours.close()
            self._replace(worker, started_at, error=error)
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _become(self, worker: _Worker, link: socket.socket) -> NoReturn:
        """Run the worker in this process, which is the new one."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for each in SIGNALS:
                # An upgrade is the supervisor's alone, also where all processes are sent its signal.
                signal.signal(each, signal.SIG_IGN if each == signal.SIGUSR2 else signal.SIG_DFL)
            # SIGINT stays blocked. A terminal sends Ctrl-C to us too, and with the supervisor's SIGTERM it would count
            # twice.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR2})
            mine = set(map(id, worker.sockets))
            others = [sock for each in self._workers for sock in each.sockets if id(sock) not in mine]
            links = [process.link for process in self._processes()]
            for sock in (self._wakes, self._waker, *others, *links):
                sock.close()
            code = self._work(worker.sockets, Link(link))
        finally:
            try:
                logging.shutdown()  # which writes what was said last
            finally:
                os._exit(code)  # nothing may bring it back into the supervisor's code

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            if not self._is_stopping and self._reload():
                self._signal_workers(signal.SIGHUP)
        elif number == signal.SIGUSR2:
            if self._is_started and not self._is_stopping:
                self._handover.begin()
        elif not self._is_stopping or self._is_leaving:
            self._stop(0)
        elif number == signal.SIGINT:
            for process in self._processes():
                with contextlib.suppress(OSError):  # it has just ended
                    process.link.shutdown(socket.SHUT_WR)

    def _stop(self, code: int) -> None:
        if not self._is_leaving:
            notify.notify(STOPPING=1)
        self._handover.cancel()
        self._is_leaving = False
        self._end(code)
        self._signal_workers(signal.SIGTERM)

    def _leave(self) -> None:
        """Another process has our sockets: the workers end what they have begun."""
        self._is_leaving = True
        self._end(0)
        for process in self._processes():
            if process.is_ready:
                with contextlib.suppress(OSError):  # it has just ended
                    process.link.send(LEAVE)
            else:
                os.kill(process.pid, signal.SIGTERM)

    def _end(self, code: int) -> None:
        self._is_stopping, self._code = True, code
        for worker in self._workers:
            if isinstance(worker.state, _Due):
                worker.state = None
            for sock in worker.sockets:
                sock.close()  # before the workers close theirs, else a connection could come that nobody accepts

    def _signal_workers(self, number: signal.Signals) -> None:
        for process in self._processes():
            os.kill(process.pid, number)  # if it is dead, its number is still its own until we wait for it

    def _on_link(self, worker: _Worker, process: _Process) -> None:
        if not _said(process.link):
            self._reap(worker, process)
            return
        if process.is_ready:
            self._is_alive(process)
            return
        worker.state = replace(process, is_ready=True)
        log(events, INFO, "worker.started", pid=process.pid)
        if self._is_started or self._is_stopping:
            return
        for other in self._workers:
            if other.state is None:
                other.state = _Due(time.monotonic())
        if all(isinstance(each.state, _Process) and each.state.is_ready for each in self._workers):
            self._is_started = True
            self._started()

    def _is_alive(self, process: _Process) -> None:
        """It has said that its loop turns. The watchdog hears of it once all have; a dead one is replaced instead."""
        self._alive.add(process.pid)
        if not self._is_leaving and self._alive >= {each.pid for each in self._processes() if each.is_ready}:
            notify.notify(WATCHDOG=1)
            self._alive.clear()

    def _reap(self, worker: _Worker, process: _Process) -> None:
        process.link.close()
        worker.state = None
        code = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
        how: dict[str, Any] = {"signal": signal.Signals(-code).name} if code < 0 else {"code": code}
        if not self._is_stopping:
            self._replace(worker, process.started_at, pid=process.pid, **how)
        elif code and (process.is_ready or code != -signal.SIGTERM):
            log(events, WARNING, "worker.died", pid=process.pid, **how)
            self._code = self._code or 1

    def _replace(self, worker: _Worker, started_at: float, **how: Any) -> None:
        """A worker ended that should not have: start it again later, or give up."""
        if not self._is_started:
            # The worker itself has said what keeps it from starting.
            log(events, ERROR, "worker.did_not_start", **how)
            self._stop(how.get("code") or 1)
            return
        is_early = time.monotonic() - started_at < STEADY_SECONDS
        worker.early_deaths = worker.early_deaths + 1 if is_early else 1
        if worker.early_deaths > DEATHS_MAX:
            hint = "the log says why; the other workers end too"
            log(events, ERROR, "worker.given_up", deaths=worker.early_deaths, **how, hint=hint)
            self._stop(1)
            return
        wait = BACKOFF_SECONDS * 2 ** (worker.early_deaths - 2) if worker.early_deaths > 1 else 0.0
        log(events, WARNING, "worker.died", **how, replaced_in=wait)
        worker.state = _Due(time.monotonic() + wait)


def _said(link: socket.socket) -> bytes:
    """What is on the link; b"" once the other end is gone."""
    try:
        return link.recv(4096)
    except ConnectionError:  # it has left something unread
        return b""
