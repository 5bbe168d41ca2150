"""Listening sockets, and their life until SIGTERM. For any ASGI app that needs no lifespan.

uvicorn's own Server is not used: it may wait for ever on a client that never reads, raises the signal it was stopped by
once more, and polls ten times a second. Its protocol is (connection.py).
"""

import asyncio
import contextlib
import errno
import logging
import math
import os
import signal
import socket
import ssl
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from uvicorn.server import ServerState

from ..config import HTTPS
from ..errors import ConfigError
from ..log import events, log
from .connection import LINGER_SECONDS, App, Limits, Protocol

BACKLOG = 4096
SEND_THREADS = 16
"""As many as there are cores move bytes; the others wait for a disk, or a moment for a client."""
POLL_SECONDS = 0.05
"""While stopping."""
GRACE_SECONDS = 0.5
"""For the app to notice that its connections were aborted, and again that they were cancelled."""


class Server:
    """Serves `app` on listening sockets until it is told to stop. It owns the sockets and closes them."""

    def __init__(
        self,
        app: App,
        sockets: Sequence[socket.socket],
        *,
        limits: Limits | None = None,
        stop_timeout: float = 10.0,
        tls_sockets: Sequence[socket.socket] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.stopping = False
        """True from the first signal or stop(): an endless answer should look at it and end."""
        self._app, self._limits = app, limits or Limits()
        self._sockets = [*((sock, None) for sock in sockets), *((sock, tls) for sock in tls_sockets)]
        self._stop_timeout = stop_timeout
        self._is_forced = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """As SIGTERM: nothing new is taken, running answers go on for `stop_timeout` s. From any thread or handler."""
        self.stopping = True
        if self._loop:
            self._loop.call_soon_threadsafe(self._stop.set)

    def interrupt(self) -> None:
        """As SIGINT: stop(), and the second time at once. From the loop."""
        self._is_forced = self.stopping
        self.stop()

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or stop(); a second SIGINT ends it at once."""
        loop = self._loop = asyncio.get_running_loop()
        state = ServerState()
        threads = ThreadPoolExecutor(SEND_THREADS, "send")
        listeners: list[asyncio.Server] = []
        if self.stopping:
            self._stop.set()
        with self._signals(loop):
            try:
                config = self._config()
                for sock, tls in self._sockets:
                    listeners.append(
                        await loop.create_server(
                            lambda: Protocol(config, state, {}, loop, self._limits, threads),
                            sock=sock,
                            backlog=BACKLOG,
                            ssl=tls,
                            ssl_handshake_timeout=self._limits.header_timeout if tls else None,
                            ssl_shutdown_timeout=LINGER_SECONDS if tls else None,
                        )
                    )
                await self._stop.wait()
            except asyncio.CancelledError:
                self._is_forced = True
                raise
            finally:
                self.stopping = True
                for listener in listeners:
                    listener.close()
                for sock, _ in self._sockets:
                    sock.close()
                try:
                    await self._drain(state)
                finally:
                    threads.shutdown(wait=False)
                    self._loop = None

    def _config(self) -> uvicorn.Config:
        config = uvicorn.Config(
            self._app,
            loop="asyncio",
            http=Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            workers=1,
            log_config=None,
            access_log=False,
            date_header=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=math.ceil(self._limits.idle_timeout),  # Protocol's own clock is exact
            timeout_graceful_shutdown=math.ceil(self._stop_timeout),
        )
        config.load()
        return config

    async def _drain(self, state: ServerState) -> None:
        """Let running answers end, for a while; then end them."""
        for connection in list(state.connections):
            connection.shutdown()
        await self._quiet(state, self._stop_timeout)
        if cut := len(state.connections):
            log(events, logging.WARNING, "server.stop_cut", connections=cut, after=self._stop_timeout)
        for connection in list(state.connections):
            connection.transport.abort()
        if tasks := set(state.tasks):
            await asyncio.wait(tasks, timeout=GRACE_SECONDS)  # ClientGone ends them
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=GRACE_SECONDS)
        for _ in range(3):
            await asyncio.sleep(0)  # connection_lost, where no app was running; with TLS it takes two turns

    async def _quiet(self, state: ServerState, seconds: float) -> None:
        """Wait until nothing runs, or `seconds`, or a second Ctrl-C."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (state.connections or state.tasks) and not self._is_forced and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # signals go to the main thread alone
            yield
            return
        handlers = {signal.SIGINT: self.interrupt, signal.SIGTERM: self.stop}
        before = {number: signal.getsignal(number) for number in handlers}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number, former in before.items():
                loop.remove_signal_handler(number)
                if former is not None:  # None: not set from Python
                    signal.signal(number, former)


# -- listening sockets -------------------------------------------------------------------------------------------------


def bind(listen: str) -> socket.socket:
    """A listening socket for `HOST:PORT`, `[v6]:PORT`, both also after `https://`, or `unix:PATH`; port 0 takes a free
    one. Raises ConfigError."""
    if listen.startswith("unix:"):
        return _bind_unix(listen, listen.removeprefix("unix:"))
    host, _, port = listen.removeprefix(HTTPS).rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"cannot listen on {listen}: write an IPv6 address in brackets, such as [::1]:8642")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(
            f"cannot listen on {listen}: expected HOST:PORT such as 127.0.0.1:8642, https://HOST:PORT or unix:PATH"
        )
    try:
        family, _, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen on {listen}: the host {host} is not known here ({error})") from error
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # so that [::] and 0.0.0.0 are two listeners
        sock.bind(address)
        sock.listen(BACKLOG)  # at once: the address is ours from here on, and early clients wait instead of failing
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {listen}: {_why(error, port)}") from error
    return sock


def shared(sock: socket.socket, workers: int) -> list[socket.socket]:
    """The listening sockets of that many workers for the address of `sock`: one each, between which the kernel balances
    connections (Linux), else the same for all. Raises ConfigError.

    With one for all, the first to wake accepts whatever waits: few workers get most of it.
    """
    if workers == 1 or sys.platform != "linux" or sock.family == socket.AF_UNIX:
        return [sock] * workers
    sockets = [sock]
    try:
        # Only now: set before bind(), it would let a second server in beside us.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for _ in range(workers - 1):
            other = socket.socket(sock.family, sock.type, sock.proto)
            sockets.append(other)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if sock.family == socket.AF_INET6:
                other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            other.bind(sock.getsockname())
            other.listen(BACKLOG)
    except OSError as error:
        for each in sockets:
            each.close()
        raise ConfigError(f"cannot listen with {workers} workers: {error.strerror or error}") from error
    return sockets


def _why(error: OSError, port: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use; another fetchonce? try --listen 127.0.0.1:0 (any free port), or stop it"
        case errno.EACCES:
            return f"port {port} needs privileges; use one above 1023, such as 8642"
        case errno.EADDRNOTAVAIL:
            return "this machine does not have that address; use 127.0.0.1 or one that `ip address` or `ifconfig` shows"
    return error.strerror or str(error)


def _bind_unix(listen: str, path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(listen, path)
        sock.bind(path)
        os.chmod(path, 0o600)  # before listen(): until then nobody can connect
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        hint = "; make its directory first" if error.errno == errno.ENOENT else ""
        raise ConfigError(f"cannot listen on {listen}: {error.strerror or error}{hint}") from error
    except ConfigError:
        sock.close()
        raise
    return sock


def _remove_stale(listen: str, path: str) -> None:
    """Remove the socket file of a server that is dead. ConfigError for one that lives, and for anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"cannot listen on {listen}: what is there is not a socket; remove it or name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise ConfigError(f"cannot listen on {listen}: it is in use; another fetchonce? name another path, or stop it")
