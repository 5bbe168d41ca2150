"""One client connection: requests in, answers out in their order, and the limits on both. For any ASGI app.

A subclass of uvicorn's protocol. Nothing here knows of a cache; file bytes leave by `http.response.zerocopysend`
(cycle.py, outlet.py). What the client gets wrong is answered in its turn, in JSON.
"""

import asyncio
import math
import socket
import urllib.parse
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from logging import DEBUG, INFO, WARNING
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from ..log import events, log
from .response import Cycle, answer
from .sendfile import CopyOutlet, KernelOutlet

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

FEED_BYTES = 16 * 1024
"""Given to the parser at once: what a head that starts within it may exceed its limit by."""
PIPELINED = 64
"""Requests waiting behind the one that is answered; then reading stops. One read may bring more: after twice as many
the rest is dropped behind a `Connection: close`, and the client sends it again (RFC 9112 §9.3.2)."""
LINGER_SECONDS = 2.0
"""How long a client that we refused may go on sending before it is cut off."""
REFUSED = 128
"""Connections above the limit that are told so; further ones are dropped."""
TLS_HANDSHAKE = b"\x16\x03"
"""How a TLS client begins (RFC 8446 §5.1); what it makes of an answer in plain text, only its log may say."""
TLS = "this port speaks plain http: write http://, or listen on https://HOST:PORT too (fetchonce tls init)"
KEEPIDLE_SECONDS = 60
"""Silence after which the kernel asks whether the peer still lives."""


class Refused(Exception):
    """Raised in a parser callback: ends the parsing, and the client gets `status` and `message`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask of us before it has said anything sensible. Bytes and seconds."""

    header_bytes: int = 65536
    """Request line and header fields together."""
    header_timeout: float = 10.0
    """From the first byte of a request, or from connecting, to the end of its headers."""
    idle_timeout: float = 75.0
    """Between two requests; also between two pieces of a request's body."""
    body_bytes: int = 1 << 20
    connections: int = 4096


def split_target(method: str, target: bytes) -> tuple[str, bytes, bytes]:
    """ASGI `path`, `raw_path` and `query_string` of a target in any of its four forms (RFC 9112 §3.2).
    An absolute-form one without a path means `/`; an authority (CONNECT) and `*` are their own path."""
    path, _, query = target.partition(b"?")
    if method != "CONNECT" and not path.startswith(b"/"):
        _, is_absolute, rest = path.partition(b"://")
        if is_absolute:
            path = b"/" + rest.partition(b"/")[2]
    return urllib.parse.unquote_to_bytes(path).decode("utf-8", "replace"), path, query


class Protocol(HttpToolsProtocol):
    """One connection: requests in, a queue of cycles, answers out in order, and one clock for all its limits.

    Reading goes on while an answer is sent: that is how a client's departure is noticed.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        threads: ThreadPoolExecutor,
    ) -> None:
        super().__init__(config, server_state, app_state, loop)
        self.limits = limits
        self._threads = threads
        self._outlet: KernelOutlet | CopyOutlet | None = None
        self.running: Cycle | None = None
        """The cycle whose answer is due; those in `pipeline` come after it."""
        self._is_deaf = False
        """Whether what still comes is dropped unparsed: the last request has been read, or the client was refused."""
        self._refusal: bytes | None = None
        """The answer with which the connection ends, until its turn comes."""
        self._is_lingering = False
        # Of the request that is being read:
        self._begun = 0
        """Requests begun so far."""
        self._in_head = self._in_message = False
        self._piece = 0
        """Bytes the parser is being given."""
        self._is_spread = False
        """Whether the head came in more than one piece."""
        self._head_bytes = self._body_bytes = self._body_wire = 0
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None

    # The transport's callbacks.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if transport.get_extra_info("sslcontext"):
            transport.set_write_buffer_limits(64 * 1024)  # sslproto pauses at `size >= high`: with 0 it never resumes
        else:
            # An empty buffer is what sendfile needs, and keeps a slow client at one piece of the app's.
            transport.set_write_buffer_limits(0)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                # asyncio sets it only on sockets made with proto=IPPROTO_TCP, which accepted ones need not be.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if hasattr(socket, "TCP_KEEPIDLE"):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPIDLE_SECONDS)
            # No send timeout and no TCP_USER_TIMEOUT: the latter would also end a client that lives and pauses.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        excess = len(self.connections) - self.limits.connections
        if excess > REFUSED:
            transport.abort()
        elif excess > 0:
            if excess == 1:
                log(events, WARNING, "server.full", connections=self.limits.connections)
            self._refuse(503, f"all {self.limits.connections} connections are taken; try again later")
        else:
            self.expire_in(self.limits.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._outlet:
            self._outlet.close()
        if self._timer:
            self._timer.cancel()
        if self.running:  # uvicorn's knows only of the last request that was read
            self.running.depart()
        self.pipeline.clear()
        super().connection_lost(exc)
        self.cycle = self.running = None  # type: ignore[assignment]  # they refer to us

    def eof_received(self) -> None:
        # A client that closes its sending side is taken to be gone: a FIN does not say more than that. Abort, because
        # close() would wait for a buffer that nobody may ever read.
        if self.running:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        begun = self._begun
        if len(data) <= FEED_BYTES:
            self._feed(data)
        else:
            view = memoryview(data)
            for start in range(0, len(data), FEED_BYTES):
                self._feed(view[start : start + FEED_BYTES])
                if self._is_deaf:
                    return
        # The first request's head has its time since connecting; a body's clock starts anew with each piece.
        if self._in_message and (1 < self._begun != begun if self._in_head else self.cycle is self.running):
            self._set_clock()

    def _feed(self, data: bytes | memoryview) -> None:
        begun = self._begun
        was_within = self._in_message
        self._piece = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._is_deaf = True  # CONNECT or Upgrade: the app answers, and no HTTP can follow
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
        if self._is_deaf:
            return
        self._is_spread = self._in_head
        # A piece counts if all of it belongs to one head, or to one body. One in which a request starts behind another
        # does not: so a head may exceed the limit by FEED_BYTES until it is complete, and is then counted exactly.
        if self._in_head and self._begun - begun == (0 if was_within else 1):
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.header_bytes:
                self._refuse(431, self._too_large())
        elif self._in_message and was_within and self._begun == begun:
            # A chunk of one byte takes six: this bounds chunk extensions and trailers.
            self._body_wire += len(data)
            if self._body_wire > self.limits.header_bytes + 8 * self.limits.body_bytes:
                self._refuse(413, "the request body is larger than its data can explain")

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        if self._is_deaf:
            raise Refused(400, "")  # ends the parsing; nobody is told
        self._begun += 1
        self._in_head = self._in_message = True
        self._is_spread = False
        self._head_bytes = self._body_bytes = self._body_wire = 0
        super().on_message_begin()
        self.scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}  # 2.4: send() raises once the client is gone
        self.scope["extensions"] = {"http.response.zerocopysend": {}}

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer field
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        parser, scope, url = self.parser, self.scope, self.url
        method = scope["method"] = parser.get_method().decode("ascii")
        version = scope["http_version"] = parser.get_http_version()
        self._check_head(version)
        self._in_head = False
        self._deadline = math.inf
        scope["raw_target"] = url  # type: ignore[typeddict-unknown-key]
        scope["path"], scope["raw_path"], scope["query_string"] = split_target(method, url)
        cycle = self.cycle = Cycle(
            self, keep_alive=version == "1.1" and parser.should_keep_alive() and not parser.should_upgrade()
        )
        if self.running is None:
            self._run(cycle)
            return
        self.pipeline.appendleft((cycle, self.app))
        if len(self.pipeline) >= PIPELINED:
            self.flow.pause_reading()
            if len(self.pipeline) >= 2 * PIPELINED:
                cycle.keep_alive = False

    def _check_head(self, version: str) -> None:
        """Raise Refused for a head that may not be answered otherwise."""
        if version not in ("1.1", "1.0"):
            raise Refused(505, f"HTTP/{version} is not spoken here: use HTTP/1.1")
        if self._is_spread or self._piece > self.limits.header_bytes:
            size = len(self.scope["method"]) + len(self.url) + len(b"  HTTP/1.1\r\n\r\n")
            size += sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)
            if size > self.limits.header_bytes:
                raise Refused(431, self._too_large())
        hosts = 0
        length = coding = None
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                length = value
            elif name == b"transfer-encoding":
                coding = value if coding is None else coding + b", " + value
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise Refused(
                400, f"a request needs exactly one Host header (RFC 9112 §3.2), this one has {hosts or 'none'}"
            )
        if coding is not None:
            if length is not None or version == "1.0":
                raise Refused(400, "Transfer-Encoding together with Content-Length or HTTP/1.0 is ambiguous")
            if coding.lower() != b"chunked":
                raise Refused(501, "the only transfer coding understood in a request is chunked")
        if length is not None and int(length) > self.limits.body_bytes:
            raise Refused(413, self._body_too_large())

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self.limits.body_bytes:
            raise Refused(413, self._body_too_large())
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        super().on_message_complete()
        if not self.cycle.keep_alive:
            self._is_deaf = True
        elif self.cycle is self.running:
            self._deadline = math.inf

    # Answers in their order.

    def _run(self, cycle: Cycle) -> None:
        self.running = cycle
        self._start_asgi_task(cycle, self.app)

    def on_response_complete(self) -> None:
        """The running answer is out: whoever is next, or the end, or the wait for the next request."""
        self.server_state.total_requests += 1
        cycle, self.running = self.running, None
        if self.transport.is_closing():
            return
        if cycle is not None and not cycle.keep_alive:
            self._end()
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._run(self.pipeline.pop()[0])  # type: ignore[arg-type]
        elif self._refusal:
            self._end()
            return
        self._set_clock()

    def _refuse(self, status: int, message: str, level: int = DEBUG) -> None:
        """Answer `status` when its turn comes, then close; nothing of what still comes is parsed."""
        client = (self.client or ("unix",))[0]
        log(events, level, "server.refused", status=status, message=message, client=client)
        self._is_deaf = True
        is_head = self.scope is not None and self.scope.get("method") == "HEAD"
        self._refusal = answer(status, message, has_body=not is_head)
        if self._in_message and not self._in_head:  # the app has this request already: it is in its body
            cycle = self.cycle
            if cycle.response_complete:
                self._refusal = None
            elif cycle is not self.running:
                self.pipeline.popleft()
            elif cycle.response_started:
                self.running.break_off()
                return
            else:
                self.running.depart()
                self.running = None
        if self.running is None:
            self._end()

    def _end(self) -> None:
        """Close, once everything written has gone.

        A client that is still sending gets time to stop first: to close with bytes unread makes the kernel send RST,
        and the client would lose the answer over it."""
        if self._refusal:
            self.transport.write(self._refusal)
            self._refusal = None
        elif not self._in_message:
            self.transport.close()
            return
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self._is_deaf = self._is_lingering = True
        self.transport.write_eof()
        self.flow.resume_reading()
        self.expire_in(LINGER_SECONDS)

    def shutdown(self) -> None:
        """The server stops: finish what has been asked, and take nothing further."""
        if self.running is None:
            self.transport.close()
            return
        last = self.pipeline[0][0] if self.pipeline else self.running
        last.keep_alive = False
        if self._in_head or not self._in_message:
            self._is_deaf = True

    def outlet(self, *, copying: bool = False) -> KernelOutlet | CopyOutlet:
        """How file bytes leave this connection. `copying`: sendfile was tried and refused."""
        sock = self.transport.get_extra_info("socket")
        if self._outlet is None and sock is not None and not self.transport.get_extra_info("sslcontext"):
            self._outlet = KernelOutlet(self.loop, self._threads, sock)
        if self._outlet is None or copying:
            if self._outlet:
                self._outlet.close()
            self._outlet = CopyOutlet(self.loop, self._threads, self.transport)
        return self._outlet

    # The clock. One timer that only moves when it would ring too late: a request costs no timer.

    def _set_clock(self) -> None:
        """The deadline of what the connection waits for: a head, a body, a request; none while it answers."""
        if self._is_lingering:
            return
        if self.running is None:
            self.expire_in(self.limits.header_timeout if self._in_head else self.limits.idle_timeout)
        elif self._in_message and not self._in_head and self.cycle is self.running:
            self.expire_in(self.limits.idle_timeout)
        else:
            self._deadline = math.inf

    def expire_idle(self) -> None:
        self.expire_in(self.limits.idle_timeout)

    def expire_in(self, seconds: float) -> None:
        self._deadline = self.loop.time() + seconds
        if self._timer is None or self._timer.when() > self._deadline:
            if self._timer:
                self._timer.cancel()
            self._timer = self.loop.call_at(self._deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._deadline == math.inf:
            return
        if (left := self._deadline - self.loop.time()) > 0:
            self.expire_in(left)
        elif self.transport.is_closing() or self._is_lingering:
            self.transport.abort()
        elif self._in_head and self.running is None:
            self._refuse(408, f"the request's headers did not arrive within {self.limits.header_timeout:g} s")
        elif self.running is None:
            self.transport.close()
        elif not self.running.response_started:
            self._refuse(408, f"nothing of the request's body arrived for {self.limits.idle_timeout:g} s")

    def _too_large(self) -> str:
        return f"request line and headers are larger than {self.limits.header_bytes} bytes"

    def _body_too_large(self) -> str:
        return f"the request body is larger than {self.limits.body_bytes} bytes"
