"""One request and its answer: framing, and how it ends when it cannot be completed. For any ASGI app.

An answer is whole or visibly broken: framing that was promised and not kept ends the connection, never the body. Once
the client is gone, send() raises ClientGone; whoever waits for the client is woken by it.
"""

import asyncio
import json
import re
import socket
import struct
import time
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any
from typing import Protocol as Interface

from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from ..errors import ClientGone, FileEnded
from ..log import events, quoted
from ..rules.cache_status import CacheStatus
from ..rules.headers import http_date
from .sendfile import SMALL_BYTES, UNSUPPORTED, CopyOutlet, KernelOutlet, read_now

INTERNAL_ERROR = "internal error; the log says more"
BAD_NAME = re.compile(rb"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")  # RFC 9110 §5.6.2
BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # §5.5


def answer(status: int, message: str, *, has_body: bool = True) -> bytes:
    """A whole response that says `message` in JSON and announces the close."""
    body = json.dumps({"message": message}, ensure_ascii=False).encode()
    fields = {
        "content-type": "application/json",
        "content-length": len(body),
        "date": http_date(time.time()),
        "cache-status": CacheStatus(detail="refused").header(),
        "connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return STATUS_LINE[status] + head.encode() + b"\r\n" + (body if has_body else b"")


class Connection(Interface):
    """What an answer needs of its connection."""

    scope: Any
    transport: asyncio.Transport
    flow: FlowControl
    loop: asyncio.AbstractEventLoop
    expect_100_continue: bool

    def on_response_complete(self) -> None: ...
    def outlet(self, *, copying: bool = False) -> KernelOutlet | CopyOutlet: ...
    def expire_idle(self) -> None:
        """Cut it off if what was sent has not arrived after the idle timeout."""


class Framing(Enum):
    """How the client knows where the body ends (RFC 9112 §6.3)."""

    NONE = auto()  # HEAD, 204, 304: there is no body
    LENGTH = auto()
    CHUNKED = auto()
    CLOSE = auto()  # HTTP/1.0 and no length


class Cycle(RequestResponseCycle):
    """One request and its answer; receive() is uvicorn's, send() is ours."""

    def __init__(self, connection: Connection, *, keep_alive: bool) -> None:
        super().__init__(
            scope=connection.scope,
            transport=connection.transport,
            flow=connection.flow,
            logger=events,
            access_logger=events,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=connection.expect_100_continue,
            keep_alive=keep_alive,
            on_response=connection.on_response_complete,
        )
        self._connection = connection
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
        self._connection.expire_idle()

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
        self._connection.loop.call_soon(self._flush)

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
        except FileEnded as error:
            if self.framing is not Framing.LENGTH:
                self.break_off()
            self.expected_content_length += count - error.sent
            raise
        except BaseException:
            # Also when cancelled: nobody knows how much went, so nothing may follow on this connection.
            self.break_off()
            raise

    async def _send_slices(self, file: int, offset: int, count: int) -> None:
        await self._ready()
        outlet = self._connection.outlet()
        start = offset
        while count:
            try:
                sent = await outlet.send(file, offset, count)
            except OSError as error:
                if error.errno not in UNSUPPORTED or isinstance(outlet, CopyOutlet):
                    raise
                outlet = self._connection.outlet(copying=True)
                continue
            if not sent:
                raise FileEnded(f"the file ends {count} bytes before what was to be sent", offset - start)
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
