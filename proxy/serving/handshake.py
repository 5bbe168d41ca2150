"""TLS listeners: each accepted connection first makes its handshake, and so many may be under way at once.

asyncio's own server tells nobody when a handshake fails, so it cannot bound their number. Here each handshake is a task
of the listener, which sees it begin and end.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from logging import ERROR, WARNING
from typing import Any

from ..log import events, log
from .connection import LINGER_SECONDS, REFUSED
from .request import Limits
from .response import error_response

ACCEPT_AGAIN_SECONDS = 1.0
"""After accept() failed, mostly for want of descriptors. asyncio waits as long for plain listeners."""
PLAIN = "this port speaks https: write https:// in place of http://, or use the port that speaks plain http"


@dataclass(frozen=True, slots=True)
class TlsSockets:
    """Listening sockets for https. `context` is called for each connection, and gives the one in force."""

    sockets: Sequence[socket.socket]
    context: Callable[[], ssl.SSLContext]


class TlsListener:
    """Accepts connections, and makes the handshake of each before `make_connection` makes its protocol's transport.

    At most `limits.connections + REFUSED` handshakes are under way: ClientConnection counts only connections that are
    through with theirs. Further clients are dropped.
    """

    def __init__(self, tls: TlsSockets, make_connection: Callable[[], asyncio.Protocol], limits: Limits) -> None:
        self._tls, self._make_connection, self._limits = tls, make_connection, limits
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        for sock in tls.sockets:
            sock.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Accept nothing further, and give up the handshakes under way. The sockets stay their owner's."""
        self._stop_listening()
        if self._pause:
            self._pause.cancel()
        for handshake in self._handshakes:
            handshake.cancel()

    def _listen(self) -> None:
        self._pause = None
        for sock in self._tls.sockets:
            self._loop.add_reader(sock, self._accept, sock)

    def _stop_listening(self) -> None:
        for sock in self._tls.sockets:
            self._loop.remove_reader(sock)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the client has left
        except OSError as error:
            log(events, WARNING, "server.accept_failed", error=error, again_in=ACCEPT_AGAIN_SECONDS)
            self._stop_listening()
            self._pause = self._loop.call_later(ACCEPT_AGAIN_SECONDS, self._listen)
            return
        if len(self._handshakes) >= self._limits.connections + REFUSED:
            sock.close()
            return
        handshake = self._loop.create_task(self._shake_hands(sock))
        self._handshakes.add(handshake)
        handshake.add_done_callback(partial(self._on_end, sock))

    async def _shake_hands(self, sock: socket.socket) -> None:
        await self._loop.connect_accepted_socket(
            self._make_connection,
            sock,
            ssl=self._tls.context(),
            ssl_handshake_timeout=self._limits.header_timeout,
            ssl_shutdown_timeout=LINGER_SECONDS,
        )

    def _on_end(self, sock: socket.socket, handshake: asyncio.Task[object]) -> None:
        self._handshakes.discard(handshake)
        error = None if handshake.cancelled() else handshake.exception()
        if handshake.cancelled() or error:
            sock.close()  # no transport owns it, or one that has given it up
        if error and not isinstance(error, OSError):  # ours: a client that fails or leaves is an OSError
            log(events, ERROR, "server.handshake_failed", error=repr(error))


class ServerContext(ssl.SSLContext):
    """Has its SSLObjects tell a client why the handshake failed, once `sslobject_class` is TellingObject."""

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **named: Any) -> ssl.SSLObject:
        made = super().wrap_bio(incoming, outgoing, *args, **named)
        if isinstance(made, TellingObject):
            made.tell_by(outgoing)
        return made


class TellingObject(ssl.SSLObject):
    """One server side of TLS that tells a client why the handshake failed.

    asyncio sends what OpenSSL has written only while the handshake goes on, and drops it on an error. So an error is
    kept back while something is to be sent, be it OpenSSL's alert or our answer to plain HTTP.
    """

    _outgoing: ssl.MemoryBIO

    def tell_by(self, outgoing: ssl.MemoryBIO) -> None:
        self._outgoing = outgoing  # SSLObject has no constructor to take it

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            if error.reason in ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST"):
                self._outgoing.write(error_response(400, PLAIN))
            if not self._outgoing.pending:
                raise
            # The handshake now ends when the client leaves or says more, or with its time limit.
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the client is being told") from error
