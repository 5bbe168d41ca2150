"""Listening for TLS: the handshakes that are under way, their number, and what a client is told when one fails.

asyncio's own server tells nobody that a handshake has failed, so their number could not be counted there. Here each is
a task of the listener, which sees it begin and end.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from logging import WARNING
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
    """Accepts connections and runs their handshakes, at most `limits.connections + REFUSED` at once.

    Clients above that are dropped. ClientConnection keeps the limit of connections, but it only counts those whose
    handshake has succeeded.
    """

    def __init__(self, tls: TlsSockets, make_connection: Callable[[], asyncio.Protocol], limits: Limits) -> None:
        self._tls, self._make_connection, self._limits = tls, make_connection, limits
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        for sock in tls.sockets:
            sock.setblocking(False)
        self._listen()

    @property
    def handshakes(self) -> int:
        """How many are under way."""
        return len(self._handshakes)

    def stop_listening(self) -> None:
        """Accept nothing further. The listening sockets stay open."""
        self._remove_readers()
        if self._pause:
            self._pause.cancel()

    def close(self) -> None:
        """Cancel the handshakes under way, once nothing is accepted any more."""
        for handshake in self._handshakes:
            handshake.cancel()

    def _listen(self) -> None:
        self._pause = None
        for sock in self._tls.sockets:
            self._loop.add_reader(sock, self._accept, sock)

    def _remove_readers(self) -> None:
        for sock in self._tls.sockets:
            self._loop.remove_reader(sock)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the client has left
        except OSError as error:
            self._remove_readers()  # else the loop would call us again at once
            self._pause = self._loop.call_later(ACCEPT_AGAIN_SECONDS, self._listen)
            log(events, WARNING, "server.accept_failed", error=error, again_in=ACCEPT_AGAIN_SECONDS)
            return
        if len(self._handshakes) >= self._limits.connections + REFUSED:
            sock.close()
            return
        shaking_hands = self._loop.connect_accepted_socket(
            self._make_connection,
            sock,
            ssl=self._tls.context(),
            ssl_handshake_timeout=self._limits.header_timeout,
            ssl_shutdown_timeout=LINGER_SECONDS,
        )
        handshake = self._loop.create_task(shaking_hands)
        self._handshakes.add(handshake)
        handshake.add_done_callback(partial(self._on_end, sock))

    def _on_end(self, sock: socket.socket, handshake: asyncio.Task[object]) -> None:
        self._handshakes.discard(handshake)
        error = None if handshake.cancelled() else handshake.exception()
        if handshake.cancelled() or error:
            sock.close()  # it has no transport, or one that has already closed
        if error and not isinstance(error, OSError):  # a client that fails or leaves is an OSError; this is our mistake
            events.error("server.handshake_failed", exc_info=error)


class ServerContext(ssl.SSLContext):
    """Gives each TellingObject the buffer that it tells the client by."""

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **named: Any) -> ssl.SSLObject:
        made = super().wrap_bio(incoming, outgoing, *args, **named)
        if isinstance(made, TellingObject):
            made.tell_by(outgoing)
        return made


class TellingObject(ssl.SSLObject):
    """Tells a client why its handshake failed: by OpenSSL's alert, or in plain HTTP if that is what the client speaks.

    asyncio sends the outgoing bytes only while the handshake goes on, and drops them when do_handshake raises an error.
    So do_handshake asks for more input instead, as long as there are bytes to be sent.
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
            # The handshake ends when the client leaves or says more, or with its time limit.
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the client is being told") from error
