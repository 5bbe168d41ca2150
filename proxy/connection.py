"""One client connection: requests in, answers out in their order, and the limits on both. For any ASGI app.

A subclass of uvicorn's protocol. Nothing here knows of a cache; file bytes leave by `http.response.zerocopysend`
(outlet.py). What the client gets wrong is answered in its turn, in JSON. An answer is whole or visibly broken: framing
that was promised and not kept ends the connection, never the body. Once the client is gone, send() raises ClientGone;
whoever waits for the client is woken by it.
"""

import asyncio
import json
import logging
import math
import re
import socket
import struct
import time
import urllib.parse
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import httptools
import uvicorn
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from .errors import ClientGone
from .log import events, log, quoted
from .outlet import SMALL_BYTES, UNSUPPORTED, CopyOutlet, KernelOutlet, read_now
from .rules.headers import http_date

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
KEEPIDLE_SECONDS = 60
"""Silence after which the kernel asks whether the peer still lives."""

INTERNAL_ERROR = "internal error; the log says more"
BAD_NAME = re.compile(rb"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")  # RFC 9110 §5.6.2
BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # §5.5


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


def answer(status: int, message: str, *, has_body: bool = True) -> bytes:
    """A whole response that says `message` in JSON and announces the close."""
    body = json.dumps({"message": message}, ensure_ascii=False).encode()
    fields = {
        "content-type": "application/json",
        "content-length": len(body),
        "date": http_date(time.time()),
        "cache-status": "fetchonce; detail=refused",  # as every answer of ours has one (RFC 9211 §2)
        "connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return STATUS_LINE[status] + head.encode() + b"\r\n" + (body if has_body else b"")


def split_target(method: str, target: bytes) -> tuple[str, bytes, bytes]:
    """ASGI `path`, `raw_path` and `query_string` of a target in any of its four forms (RFC 9112 §3.2).
    An absolute-form one without a path means `/`; an authority (CONNECT) and `*` are their own path."""
    path, _, query = target.partition(b"?")
    if method != "CONNECT" and not path.startswith(b"/"):
        _, is_absolute, rest = path.partition(b"://")
        if is_absolute:
            path = b"/" + rest.partition(b"/")[2]
    return urllib.parse.unquote_to_bytes(path).decode("utf-8", "replace"), path, query


class Framing(Enum):
    """How the client knows where the body ends (RFC 9112 §6.3)."""

    NONE = auto()  # HEAD, 204, 304: there is no body
    LENGTH = auto()
    CHUNKED = auto()
    CLOSE = auto()  # HTTP/1.0 and no length


class Cycle(RequestResponseCycle):
    """One request and its answer; receive() is uvicorn's, send() is ours."""

    def __init__(self, protocol: "Protocol", *, keep_alive: bool) -> None:
        super().__init__(
            scope=protocol.scope,
            transport=protocol.transport,
            flow=protocol.flow,
            logger=events,
            access_logger=events,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=protocol.expect_100_continue,
            keep_alive=keep_alive,
            on_response=protocol.on_response_complete,
        )
        self.protocol = protocol
        self.framing = Framing.NONE
        self._head = b""
        """Status line and fields, until they are written."""

    async def run_asgi(self, app: Any) -> None:
        try:
            await app(self.scope, self.receive, self.send)
            if not self.response_started and not self.disconnected:
                raise RuntimeError("the app returned without an answer")
        except Exception as error:
            if _is_departure(error):
                return
            target = quoted(self.scope["raw_target"].decode("latin-1"))  # type: ignore[typeddict-item]
            events.error("server.app_failed method=%s target=%s", self.scope["method"], target, exc_info=error)
            if not self.response_started and not self.disconnected:
                self.response_started, self.keep_alive = True, False
                self.transport.write(answer(500, INTERNAL_ERROR, has_body=self.scope["method"] != "HEAD"))
                self._complete()
        finally:
            if not self.response_complete:
                self.break_off()
            self.on_response = _nothing  # it refers to the protocol, which refers to this

    def depart(self) -> None:
        """The client is gone, or has been given another answer: the app learns it from receive() and send()."""
        self.disconnected = True
        self.message_event.set()

    def break_off(self) -> None:
        """End the connection in the middle of an answer, so that the client sees it is not whole."""
        if self.disconnected:
            return
        self._flush()
        if self.framing is Framing.CLOSE:
            # Here the end of the connection is the end of the body: only a reset tells them apart.
            if sock := self.transport.get_extra_info("socket"):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
            return
        # close() and not abort(): the missing bytes or the missing last chunk say it already, and what was sent before
        # still arrives, so that the client can resume from there.
        self.transport.close()
        self.protocol.expire_in(self.protocol.limits.idle_timeout)

    async def send(self, message: Any) -> None:
        """One ASGI message; returns when the transport can take the next one. Raises ClientGone."""
        if self.response_complete and not self.disconnected:
            raise RuntimeError(f"{message['type']} after the answer is complete")
        await self._ready()
        kind = message["type"]
        if kind == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
            return
        if not self.response_started:
            raise RuntimeError(f"{kind} before http.response.start")
        match kind:
            case "http.response.body":
                if body := message.get("body"):
                    self._send_body(body)
            case "http.response.zerocopysend":
                if count := message["count"]:
                    await self._send_file(message["file"], message["offset"], count)
            case _:
                raise RuntimeError(f"unknown message {kind}")
        if not message.get("more_body", False):
            if self.framing is Framing.LENGTH and self.expected_content_length:
                raise RuntimeError(f"the answer ends {self.expected_content_length} bytes before its Content-Length")
            if self.framing is Framing.CHUNKED:
                self._write(b"0\r\n\r\n")
            self._complete()

    async def _ready(self) -> None:
        """Wait until the transport's own buffer is empty; ClientGone once nobody listens."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected or self.transport.is_closing():
            raise ClientGone("the client has closed the connection")

    def _start(self, status: int, fields: Sequence[tuple[bytes, bytes]]) -> None:
        if self.response_started:
            raise RuntimeError("a second http.response.start")
        if self.waiting_for_100_continue:
            # The client may or may not send the body it announced: what follows cannot be told from a request.
            self.waiting_for_100_continue = self.keep_alive = False
        lines = [STATUS_LINE[status]]
        length: int | None = None
        says_close = False
        for name, value in fields:
            name = name.lower()
            if BAD_NAME.search(name) or BAD_VALUE.search(value):
                raise RuntimeError(f"not a header field: {name!r}: {value!r}")
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                continue  # framing is ours
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive, says_close = False, True
            lines += (name, b": ", value, b"\r\n")
        if not self.keep_alive and not says_close:
            lines.append(b"connection: close\r\n")
        if self.scope["method"] == "HEAD" or status in (204, 304):
            self.framing = Framing.NONE
        elif length is not None:
            self.framing, self.expected_content_length = Framing.LENGTH, length
        elif self.scope["http_version"] == "1.1":
            self.framing = Framing.CHUNKED
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            self.framing = Framing.CLOSE
        lines.append(b"\r\n")
        self.response_started = True
        self._head = b"".join(lines)
        # Head and first bytes leave as one packet if the app has both, the head alone if it now waits for something.
        self.protocol.loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._head and not self.transport.is_closing():
            self._write()

    def _write(self, *pieces: bytes | bytearray) -> None:
        if self._head or len(pieces) > 1:
            pieces, self._head = (b"".join((self._head, *pieces)),), b""
        self.transport.write(pieces[0])

    def _count(self, count: int) -> None:
        """Take `count` bytes from what Content-Length promised."""
        if self.framing is Framing.LENGTH:
            if count > self.expected_content_length:
                raise RuntimeError("the answer is longer than its Content-Length")
            self.expected_content_length -= count

    def _send_body(self, body: bytes | bytearray) -> None:
        self._count(len(body))
        match self.framing:
            case Framing.NONE:
                pass
            case Framing.CHUNKED:
                self._write(b"%x\r\n" % len(body), body, b"\r\n")
            case _:
                self._write(body)

    async def _send_file(self, file: int, offset: int, count: int) -> None:
        if self.framing is Framing.NONE:
            return
        if count <= SMALL_BYTES and (data := read_now(file, offset, count)):
            self._send_body(data)
            return
        self._count(count)
        try:
            if self.framing is Framing.CHUNKED:
                self._write(b"%x\r\n" % count)
            self._flush()
            await self._send_slices(file, offset, count)
            if self.framing is Framing.CHUNKED:
                self._write(b"\r\n")
        except BaseException:
            # Also when cancelled: nobody knows how much went, so nothing may follow on this connection.
            self.break_off()
            raise

    async def _send_slices(self, file: int, offset: int, count: int) -> None:
        await self._ready()
        outlet = self.protocol.outlet()
        while count:
            try:
                sent = await outlet.send(file, offset, count)
            except OSError as error:
                if error.errno not in UNSUPPORTED or isinstance(outlet, CopyOutlet):
                    raise
                outlet = self.protocol.outlet(copying=True)
                continue
            if not sent:
                raise EOFError(f"the file ends at {offset}, {count} bytes before what was to be sent")
            offset += sent
            count -= sent
            if count:
                await self._ready()

    def _complete(self) -> None:
        self._flush()
        self.response_complete = True
        self.message_event.set()
        self.on_response()


def _nothing() -> None: ...


def _is_departure(error: Exception) -> bool:
    """Whether an app ended because its client did: by ClientGone, or by its framework's word for it."""
    if isinstance(error, ExceptionGroup):
        return all(_is_departure(each) for each in error.exceptions)
    # Starlette raises its own on http.disconnect, and in place of an OSError out of send().
    return isinstance(error, ClientGone | ClientDisconnect)


# -- one connection ----------------------------------------------------------------------------------------------------


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
                log(events, logging.WARNING, "server.full", connections=self.limits.connections)
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
                self._refuse(400, f"malformed request: {error}")
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

    def _refuse(self, status: int, message: str) -> None:
        """Answer `status` when its turn comes, then close; nothing of what still comes is parsed."""
        client = (self.client or ("unix",))[0]
        log(events, logging.DEBUG, "server.refused", status=status, message=message, client=client)
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
