"""Listening sockets that come from another process, and go to the next one: an upgrade that no client notices.

The old process starts a new one as it was started itself and gives it every listening socket. Both accept until the new
one serves and says so; then the old one leaves: it accepts nothing more and ends what it has begun. Clients that wait
in a backlog stay there, because the sockets are the same. A new one that does not come up changes nothing.

A service manager may have opened the sockets before us (sd_listen_fds(3)); then they are what we listen on.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import MutableMapping, Sequence
from logging import ERROR, INFO, WARNING
from typing import Any

from ..config import HTTPS
from ..errors import ConfigError
from ..log import events, log
from . import notify
from .sockets import address_of, fits

VARIABLE = "FETCHONCE_HANDOVER"
FIRST = 3
"""The first descriptor that a service manager passes."""
READY = b"+"
START_SECONDS = 300
"""A new process that does not serve after so long is given up. A big index may take minutes to rebuild."""


class Inherited:
    """The sockets that we were started with."""

    def __init__(
        self, sockets: Sequence[socket.socket] = (), listen: Sequence[str] = (), link: socket.socket | None = None
    ) -> None:
        self.listen = tuple(listen)
        """The addresses to listen on in place of the configured ones; empty if the configuration decides."""
        self._sockets, self._link = list(sockets), link

    @classmethod
    def receive(cls, environ: MutableMapping[str, str]) -> "Inherited":
        """Take them over; what `environ` says of them is removed. Raises ConfigError for what is not a socket."""
        names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", VARIABLE)
        pid, count, labels, handover = (environ.pop(name, "") for name in names)
        if handover:
            given = json.loads(handover)
            signal.alarm(START_SECONDS)  # ends us if we do not come up
            return cls([_taken(fd) for fd in given["sockets"]], given["listen"], socket.socket(fileno=given["link"]))
        if pid != str(os.getpid()) or not count.isdecimal():
            return cls()
        sockets = [_taken(fd) for fd in range(FIRST, FIRST + int(count))]
        secure = {sockets[index] for index, label in enumerate(labels.split(":")) if label == "https"}
        addresses = (f"{HTTPS if sock in secure else ''}{address_of(sock)}" for sock in sockets)
        return cls(sockets, tuple(dict.fromkeys(addresses)))

    def claim(self, listen: str) -> list[socket.socket]:
        """All sockets on one address that `listen` means; the caller closes them. Raises ConfigError."""
        for sock in self._sockets:
            if fits(sock, listen):
                name = address_of(sock)
                mine = [each for each in self._sockets if address_of(each) == name]
                self._sockets = [each for each in self._sockets if each not in mine]
                return mine
        return []

    def close_unclaimed(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._sockets = []

    def ready(self) -> None:
        """Tell the process before us, if there is one, that we serve."""
        if self._link:
            signal.alarm(0)
            with self._link, contextlib.suppress(OSError):  # the old process is gone
                self._link.send(READY)
            self._link = None


class Handover:
    """To a new process, as the old one sees it. `sockets` are all that listen, `listen` as in Inherited."""

    def __init__(self, sockets: Sequence[socket.socket], listen: Sequence[str]) -> None:
        self._sockets, self._listen = sockets, listen
        self._link: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_under_way(self) -> bool:
        """A new process is coming up; `fileno` is readable once there is news of it."""
        return self._link is not None

    def fileno(self) -> int:
        assert self._link
        return self._link.fileno()

    def begin(self) -> bool:
        """Start a new process; False if none was started, and the log says why."""
        if self.is_under_way:
            log(events, WARNING, "upgrade.ignored", why="a new process is coming up already")
            return False
        if os.getpid() == 1:
            hint = "this is the first process of a container, which ends with it: start a new container"
            log(events, ERROR, "upgrade.failed", hint=hint)
            return False
        notify.reloading("upgrading")
        self._link, theirs = socket.socketpair()
        fds = [sock.fileno() for sock in self._sockets]
        given = json.dumps({"link": theirs.fileno(), "sockets": fds, "listen": list(self._listen)})
        # WATCHDOG_PID names us. Without it the new process knows that the watchdog waits for it.
        env = {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"} | {VARIABLE: given}
        # A signal that is ignored stays so in the new process until it can take it; else it would die of a second one.
        ours = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        try:
            self._process = subprocess.Popen(command(), env=env, pass_fds=(theirs.fileno(), *fds))
        except OSError as error:
            self._fail(error=error)
            return False
        finally:
            signal.signal(signal.SIGUSR2, ours)
            theirs.close()
        log(events, INFO, "upgrade.started", pid=self._process.pid)
        return True

    def end(self) -> bool:
        """After news of the new process: whether it serves. If it has ended instead, we go on."""
        assert self._link
        assert self._process
        if not self._link.recv(len(READY)):
            code = self._process.wait()
            self._fail(**({"signal": signal.Signals(-code).name} if code < 0 else {"code": code}))
            return False
        self._close()
        log(events, INFO, "upgrade.done", pid=self._process.pid, hint="running answers and fills end here")
        return True

    def cancel(self) -> None:
        """We stop before the new process serves: it does not come."""
        if self.is_under_way and self._process:
            self._process.terminate()
            self._close()

    def _close(self) -> None:
        if self._link:
            self._link.close()
            self._link = None

    def _fail(self, **why: Any) -> None:
        self._close()
        log(events, ERROR, "upgrade.failed", **why, hint="the old process goes on; the new one has said why above")
        notify.ready("the last upgrade failed: the log says why")


def command() -> list[str]:
    """How this process was started. A script goes by its own path: an update may have given it another Python."""
    words = sys.orig_argv[1:]
    is_script = bool(words) and os.path.isfile(words[0]) and os.access(words[0], os.X_OK)
    return words if is_script else [sys.executable, *words]


def _taken(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(f"descriptor {fd}, which was passed to listen on, is no socket: {error.strerror}") from error
    sock.set_inheritable(False)
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigError(f"descriptor {fd}, which was passed to listen on, is no listening stream socket")
    return sock
