"""One client connection: it parses requests, answers them in order, and keeps the limits. For any ASGI app.

A subclass of uvicorn's protocol that knows no cache. The app sends file bytes with `http.response.zerocopysend`
(response.py, sendfile.py). A client's mistakes are answered in JSON, after the answers that come before them.
"""

import asyncio
import socket
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from logging import DEBUG, INFO, WARNING
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from ..log import events, log
from .deadline import Deadline
from .replay import QUESTION_BYTES, Replays
from .request import Limits, Refused, check_fields, head_size, split_target
from .response import Response, error_response, send_again
from .sendfile import FileSender, Threads

FEED_BYTES = 16 * 1024
"""Given to the parser at once. A head that starts within such a piece may exceed its limit by as much."""
PIPELINED = 64
"""Requests that may wait behind the one being answered; then reading stops. One read may bring more: after twice as
many, the rest is dropped behind a `Connection: close`, and the client sends it again (RFC 9112 §9.3.2)."""
LINGER_SECONDS = 2.0
"""How long a refused client may go on sending before it is cut off."""
REFUSED = 128
"""Connections above the limit that are told so; further ones are dropped."""
TLS_HANDSHAKE = b"\x16\x03"
"""How a TLS client begins (RFC 8446 §5.1). It cannot show an answer in plain text to its user, so we log it too."""
TLS = "this port speaks plain http: write http://, or listen on https://HOST:PORT too (fetchonce tls init)"
KEEPIDLE_SECONDS = 60
"""Silence after which the kernel asks whether the peer still lives."""


class Reading(Enum):
    """What the connection expects from its client."""

    IDLE = auto()  # the next request
    HEAD = auto()  # the rest of a request line and its fields
    BODY = auto()  # the rest of a request's body
    # What comes in these states is dropped, unparsed:
    DONE = auto()  # the last request has been read
    DEAF = auto()  # the client was refused, or the server stops in the middle of a head: it may still be sending
    LINGER = auto()  # all is written, and the client gets time to stop sending


@dataclass(frozen=True, slots=True)
class Shared:
    """What all connections of a server have in common."""

    config: uvicorn.Config
    state: ServerState
    loop: asyncio.AbstractEventLoop
    threads: Threads
    limits: Limits
    replays: Replays


class ClientConnection(HttpToolsProtocol):
    """Requests in, responses out in the same order, and one deadline for all time limits.

    Reading goes on while an answer is sent: this is how we notice that a client has left.
    """

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.config, shared.state, {}, shared.loop)
        self._limits, self._threads, self.replays = shared.limits, shared.threads, shared.replays
        self.running: Response | None = None
        """The response whose turn it is."""
        self._waiting: deque[Response] = deque()
        """Those that come after it, in order."""
        self._refusal: bytes | None = None
        """The answer that ends the connection, until its turn comes."""
        self._reading = Reading.IDLE
        self._incoming: Response | None = None
        """The response to the request whose body is being read; None outside of BODY."""
        self._begun = 0
        """Requests begun so far."""
        self._piece = 0
        """Size of the piece that the parser was given last."""
        self._is_spread = self._is_last = False
        """Whether the head came in more than one piece; whether the connection ends with the next response."""
        self._head_bytes = self._body_bytes = self._body_wire = 0
        """Read so far of the current request; `_body_wire` counts its chunk framing and trailers too."""
        self._deadline = Deadline(shared.loop, self._on_deadline)

    # The transport's callbacks.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.peer = (self.client and self.client[0], self.server, self.scheme)
        self.sender = FileSender(self.loop, self._threads, transport)
        if transport.get_extra_info("sslcontext"):
            transport.set_write_buffer_limits(64 * 1024)  # sslproto pauses at `size >= high`: with 0 it never resumes
        else:
            # sendfile needs an empty buffer. It also keeps a slow client at one piece of the app's.
            transport.set_write_buffer_limits(0)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                if self.client is None:
                    transport.abort()  # it has left: what it has sent must not pass as the request of a unix socket
                    return
                # asyncio sets it only on sockets made with proto=IPPROTO_TCP, and accepted ones may not be.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if hasattr(socket, "TCP_KEEPIDLE"):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPIDLE_SECONDS)
            # No send timeout and no TCP_USER_TIMEOUT: the latter would also end a client that lives and pauses.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        excess = len(self.connections) - self._limits.connections
        if excess > REFUSED:
            transport.abort()
        elif excess > 0:
            if excess == 1:
                log(events, WARNING, "server.full", connections=self._limits.connections)
            self._refuse(503, f"all {self._limits.connections} connections are taken; try again later")
        else:
            self._deadline.set(self._limits.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self.sender.close()
        self._deadline.close()
        if self.running:
            self.running.disconnect()
        self.running = self._incoming = None
        self._waiting.clear()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        # A client that closes its sending side counts as gone: a FIN says no more than that. Abort, because close()
        # would wait for a buffer that nobody may ever read.
        if self.running:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf or self._repeat(data):
            return
        begun, is_first = self._begun, self._reading is Reading.IDLE and self.running is None
        if len(data) <= FEED_BYTES:
            self._feed(data)
        else:
            view = memoryview(data)
            for start in range(0, len(data), FEED_BYTES):
                self._feed(view[start : start + FEED_BYTES])
                if self._is_deaf:
                    return
        if self._reading is Reading.HEAD:
            is_clock_due = self._begun > max(begun, 1)  # the first head's time began with the connection
        else:
            is_clock_due = self._reading is Reading.BODY and self._incoming is self.running  # anew with each piece
        if is_clock_due:
            self._set_deadline()
        is_alone = is_first and self._reading is Reading.IDLE and self._begun == begun + 1
        if is_alone and self.running and not self._body_bytes and len(data) <= QUESTION_BYTES:
            self.running.question = data

    def _repeat(self, data: bytes) -> bool:
        """Answer `data` as the same bytes were answered before, if that answer is at hand."""
        if self.running or self._reading is not Reading.IDLE or self._is_last or self.flow.write_paused:
            return False
        if len(data) > QUESTION_BYTES or self.transport.is_closing():
            return False
        answer = self.replays.find(self.peer, data)
        if answer is None or not send_again(self, answer):
            return False
        self._begun += 1
        if self.running:
            self._deadline.clear()
        else:
            self.expire_idle()
        return True

    def _feed(self, data: bytes | memoryview) -> None:
        before, begun = self._reading, self._begun
        self._piece = len(data)
        try:
            self.parser.feed_data(data)
            if not self._is_deaf:
                self._is_spread = self._reading is Reading.HEAD
                self._count_piece(before, begun)
        except Refused as error:
            self._refuse(error.status, error.message)
        except httptools.HttpParserUpgrade:
            self._reading = Reading.DONE  # CONNECT or Upgrade: the app answers, and no HTTP can follow
        except httptools.HttpParserCallbackError as error:
            match error.__context__:
                case Refused() as refused:
                    if not self._is_deaf:
                        self._refuse(refused.status, refused.message)
                case cause:
                    raise cause or error from None
        except httptools.HttpParserError as error:
            if not self._is_deaf:
                is_tls = data[:2] == TLS_HANDSHAKE
                self._refuse(400, TLS if is_tls else f"malformed request: {error}", INFO if is_tls else DEBUG)

    def _count_piece(self, before: Reading, begun: int) -> None:
        """Count the piece just parsed if it belongs to one head, or to one body, as a whole. Raises Refused.

        A piece in which a request begins behind another one is not counted. So a head may exceed its limit by
        FEED_BYTES until it is complete; then it is counted exactly.
        """
        new = self._begun - begun
        if self._reading is Reading.HEAD and new == (1 if before is Reading.IDLE else 0):
            self._head_bytes += self._piece
            self._limits.check_head(self._head_bytes)
        elif self._reading is Reading.BODY and new == 0:
            self._body_wire += self._piece
            self._limits.check_body_on_wire(self._body_wire)

    @property
    def _is_deaf(self) -> bool:
        return self._reading in (Reading.DONE, Reading.DEAF, Reading.LINGER)

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        if self._is_deaf:
            raise Refused(400, "")  # ends the parsing; nobody is told
        self._begun += 1
        self._reading = Reading.HEAD
        self._is_spread = False
        self._head_bytes = self._body_bytes = self._body_wire = 0
        super().on_message_begin()
        self.scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}  # 2.4: send() raises once the client is gone
        self.scope["extensions"] = {"http.response.zerocopysend": {}}

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is Reading.HEAD:  # else a trailer field
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        parser, scope, url = self.parser, self.scope, self.url
        method = scope["method"] = parser.get_method().decode("ascii")
        version = scope["http_version"] = parser.get_http_version()
        if self._is_spread or self._piece > self._limits.header_bytes:
            self._limits.check_head(head_size(method, url, self.headers))
        check_fields(version, self.headers, self._limits)
        scope["raw_target"] = url  # type: ignore[typeddict-unknown-key]
        scope["path"], scope["raw_path"], scope["query_string"] = split_target(method, url)
        response = self._incoming = Response(
            self,
            keep_alive=version == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and not self._is_last,
        )
        self._reading = Reading.BODY
        self._deadline.clear()
        if self.running is None:
            self.run(response, self.app)
            return
        self._waiting.append(response)
        if len(self._waiting) >= PIPELINED:
            self.flow.pause_reading()
            if len(self._waiting) >= 2 * PIPELINED:
                response.make_last()

    def on_body(self, body: bytes) -> None:
        assert self._incoming
        self._body_bytes += len(body)
        self._limits.check_body(self._body_bytes)
        self._incoming.feed(body)

    def on_message_complete(self) -> None:
        assert self._incoming
        self._incoming.feed_end()
        self._reading = Reading.IDLE if self._incoming.keep_alive else Reading.DONE
        if self._incoming is self.running:
            self._deadline.clear()
        self._incoming = None

    # Answers in their order.

    def run(self, response: Response, app: Any) -> None:
        """It is the turn of `response`, for which `app` is called."""
        self.replays.tell()  # the app may be asked what it has counted
        self.running = response
        self._start_asgi_task(response, app)

    def on_response_complete(self) -> None:
        """The running response is written: start the next one, end the connection, or wait for a request."""
        response, self.running = self.running, None
        if self.transport.is_closing():
            return
        if response is not None and not response.keep_alive:
            self._end()
            return
        self.flow.resume_reading()
        if self._waiting:
            self.run(self._waiting.popleft(), self.app)
        elif self._refusal:
            self._end()
            return
        self._set_deadline()

    def _refuse(self, status: int, message: str, level: int = DEBUG) -> None:
        """Answer `status` after the responses that come before it, then close. Nothing further is parsed."""
        client = (self.client or ("unix",))[0]
        log(events, level, "server.refused", status=status, message=message, client=client)
        self._reading = Reading.DEAF
        method = self.scope.get("method", "GET") if self.scope is not None else "GET"
        self._refusal = error_response(status, message, method)
        response, self._incoming = self._incoming, None
        if response:  # the app has this request already
            if response.response_complete:
                self._refusal = None
            elif response is not self.running:
                self._waiting.pop()
            elif response.response_started:
                response.break_off()
                return
            else:
                response.disconnect()
                self.running = None
        if self.running is None:
            self._end()

    def _end(self) -> None:
        """Close, once everything written has gone.

        A client that may still be sending gets time to stop first. Closing with unread bytes makes the kernel send RST,
        and the client would lose the answer over it.
        """
        if self._refusal:
            self.transport.write(self._refusal)
            self._refusal = None
        if self._reading in (Reading.IDLE, Reading.DONE) or not self.transport.can_write_eof():
            self.transport.close()
            return
        self._reading = Reading.LINGER
        try:
            self.transport.write_eof()
        except OSError:  # of asyncio's: the client has left, and what was written just now has shown it
            self.transport.abort()
            return
        self.flow.resume_reading()
        self._deadline.set(LINGER_SECONDS)

    def leave(self) -> None:
        """As shutdown, but a request that may be on its way is answered: the client cannot be told that it was not."""
        if self.running is None or (self.running.response_started and not self._waiting):
            self._is_last = True
        else:
            self.shutdown()

    def shutdown(self) -> None:
        """The server stops: finish what has been asked, and read no further request."""
        if self.running is None:
            self.transport.close()
            return
        last = self._waiting[-1] if self._waiting else self.running
        last.make_last()
        match self._reading:
            case Reading.IDLE:
                self._reading = Reading.DONE
            case Reading.HEAD:
                self._reading = Reading.DEAF

    # Time limits.

    def _set_deadline(self) -> None:
        """For what the connection waits for: a head, a body or a request. There is none while it answers."""
        if self._reading is Reading.LINGER:
            return
        if self.running is None:
            is_head = self._reading is Reading.HEAD
            self._deadline.set(self._limits.header_timeout if is_head else self._limits.idle_timeout)
        elif self._incoming is self.running:
            self._deadline.set(self._limits.idle_timeout)
        else:
            self._deadline.clear()

    def expire_idle(self) -> None:
        """Cut the connection off if what was written has not left after the idle timeout."""
        self._deadline.set(self._limits.idle_timeout)

    def _on_deadline(self) -> None:
        if self.transport.is_closing() or self._reading is Reading.LINGER:
            self.transport.abort()
        elif self.running is None:
            if self._reading is Reading.HEAD:
                self._refuse(408, f"the request's headers did not arrive within {self._limits.header_timeout:g} s")
            else:
                self.transport.close()
        elif self._incoming is self.running and not self.running.response_started:
            self._refuse(408, f"nothing of the request's body arrived for {self._limits.idle_timeout:g} s")
