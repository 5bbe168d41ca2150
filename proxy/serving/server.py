"""The server: it accepts connections until it is told to stop or to leave, then ends them. For any ASGI app without
lifespan.

We use uvicorn's protocol (connection.py), but not its Server. That one may wait for ever on a client that never reads,
raises once more the signal that stopped it, and polls ten times a second.
"""

import asyncio
import contextlib
import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from ..log import events, log
from .connection import ClientConnection, Shared
from .handshake import TlsListener, TlsSockets
from .movers import Movers
from .replay import Replays
from .request import Limits
from .sendfile import Threads
from .sockets import BACKLOG

DISK_THREADS = 16
"""They wait for a disk, or a moment for a client."""
POLL_SECONDS = 0.05
"""Between two checks, while stopping, whether anything still runs."""
GRACE_SECONDS = 0.5
"""For the app to notice that its connections were aborted, and once more after it is cancelled."""
LEAVE_SECONDS = 6 * 3600.0
"""After `leave`: 50 GB at 2.5 MB/s take less. A client that was suspended does not keep an old version for longer."""


class Server:
    """Serves `app` on listening sockets until it is told to stop. It owns the sockets and closes them."""

    def __init__(
        self,
        app: ASGIApp,
        sockets: Sequence[socket.socket],
        *,
        tls: TlsSockets | None = None,
        limits: Limits | None = None,
        stop_timeout: float = 10.0,
    ) -> None:
        self.stopping = False
        """True from the first signal, stop() or leave(): an endless answer should look at it and end."""
        self._app, self._limits = app, limits or Limits()
        self._sockets, self._tls = sockets, tls
        self._stop_timeout = stop_timeout
        self._is_forced = self._is_leaving = False
        self._private: socket.socket | None = None
        self._is_busy: Callable[[], bool] = lambda: False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._state = ServerState()

    @property
    def connections(self) -> int:
        """How many connections of clients are open."""
        return len(self._state.connections)

    def stop(self) -> None:
        """Accept nothing new, and give running answers `stop_timeout` seconds. For any thread or signal handler."""
        self._is_leaving = False
        self.stopping = True
        if self._loop:
            self._loop.call_soon_threadsafe(self._stop.set)

    def interrupt(self) -> None:
        """stop(); the second call ends running answers at once. For the loop's thread."""
        self._is_forced = self.stopping and not self._is_leaving
        self.stop()

    def leave(self, private: socket.socket, is_busy: Callable[[], bool]) -> None:
        """Another process accepts from our sockets now: accept only from `private`, which becomes the server's.

        Everything that was begun goes to its end, and as long as `is_busy` says so the server stays for the app. A
        client may be sending its next request right now, so each connection gets one more answer. stop() ends all that.
        For the loop's thread.
        """
        if self.stopping:
            private.close()
            return
        self._private, self._is_busy = private, is_busy
        self.stop()
        self._is_leaving = True

    async def wait_stop(self) -> bool:
        """Wait for stop() or leave(); whether it was stop()."""
        await self._stop.wait()
        return not self._is_leaving

    async def run(self) -> None:
        """Serve until SIGTERM (stop) or SIGINT (interrupt), or until one of these methods is called."""
        loop = self._loop = asyncio.get_running_loop()
        state = self._state
        threads = Threads(ThreadPoolExecutor(DISK_THREADS, "send"), Movers(loop))
        replays = Replays(loop, state.connections)
        shared = Shared(self._config(), state, loop, threads, self._limits, replays)
        listeners: list[asyncio.Server] = []
        secure: TlsListener | None = None

        async def listen(sock: socket.socket) -> None:
            listeners.append(await loop.create_server(lambda: ClientConnection(shared), sock=sock, backlog=BACKLOG))

        if self.stopping:
            self._stop.set()
        with self._signals(loop):
            try:
                for sock in self._sockets:
                    await listen(sock)
                if self._tls:
                    secure = TlsListener(self._tls, lambda: ClientConnection(shared), self._limits)
                await self._stop.wait()
            except asyncio.CancelledError:
                self._is_forced = True
                raise
            finally:
                self.stopping = True
                for sock in self._sockets:
                    loop.remove_reader(sock)
                # What was accepted in this turn becomes a connection in the next, and needs its listener for that.
                await asyncio.sleep(0)
                for listener in listeners:
                    listener.close()
                if secure:
                    secure.stop_listening()
                for sock in (*self._sockets, *(self._tls.sockets if self._tls else ())):
                    sock.close()
                try:
                    if self._private:
                        await listen(self._private)
                        await self._left(state, secure)
                        listeners[-1].close()
                    if secure:
                        secure.close()
                    await self._drain(state)
                finally:
                    replays.close()
                    threads.disk.shutdown(wait=False)
                    threads.movers.close()
                    self._loop = None

    def _config(self) -> uvicorn.Config:
        config = uvicorn.Config(
            self._app,
            http=ClientConnection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            date_header=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=math.ceil(self._limits.idle_timeout),  # ClientConnection's own deadline is exact
        )
        config.load()
        return config

    async def _left(self, state: ServerState, secure: TlsListener | None) -> None:
        """Wait until nothing that was begun before `leave` runs, or stop() is called."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LEAVE_SECONDS
        is_quiet = False
        while self._is_leaving and not is_quiet and loop.time() < deadline:
            # Each time anew: what was accepted just before becomes a connection later, after its handshake.
            for connection in list(state.connections):
                if isinstance(connection, ClientConnection):  # all are
                    connection.leave()
            await asyncio.sleep(POLL_SECONDS)
            is_quiet = not (state.connections or state.tasks or (secure and secure.handshakes) or self._is_busy())

    async def _drain(self, state: ServerState) -> None:
        """Give running answers time to end, then end them."""
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
            await asyncio.sleep(0)  # connection_lost where no app was running, and the ends of handshakes

    async def _quiet(self, state: ServerState, seconds: float) -> None:
        """Wait until nothing runs, for at most `seconds`, or until the second SIGINT."""
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
