"""One response, with the request it answers: framing, and how it ends if it cannot be completed. For any ASGI app.

A response is whole or visibly broken: where the app does not keep to the framing it announced, the connection ends, not
the body. Once the client is gone, send() raises ClientGone, also in an app that is waiting in it.
"""

import asyncio
import json
import os
import re
import socket
import struct
import time
from collections.abc import Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from ..errors import ClientGone, FileEnded
from ..log import events, quoted
from ..rules.cache_status import CacheStatus
from ..rules.headers import has_body, http_date
from ..rules.pieces import Growth
from ..rules.repeat import Repeat
from .replay import Answer
from .sendfile import SMALL_BYTES, read_now

if TYPE_CHECKING:
    from .connection import ClientConnection

INTERNAL_ERROR = "internal error; the log says more"
FIELDS = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [^\x00-\x08\x0a-\x1f\x7f]*\r\n)*")
"""Lines of a head (RFC 9110 §5.5, §5.6.2)."""


def error_response(status: int, message: str, method: str = "GET") -> bytes:
    """All bytes of a response that says `message` in JSON and announces the close."""
    body = json.dumps({"message": message}, ensure_ascii=False).encode()
    fields = {
        "content-type": "application/json",
        "content-length": len(body),
        "date": http_date(time.time()),
        "cache-status": CacheStatus(detail="refused").header(),
        "connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return STATUS_LINE[status] + head.encode() + b"\r\n" + (body if has_body(method, status) else b"")


class Framing(Enum):
    """How the client knows where the body ends (RFC 9112 §6.3)."""

    NONE = auto()  # no body: HEAD, 204, 304
    LENGTH = auto()
    CHUNKED = auto()
    CLOSE = auto()  # HTTP/1.0 and no length


class Response(RequestResponseCycle):
    """One response, with the body of its request. receive() is uvicorn's, send() is ours."""

    question = b""
    """All bytes of the request, if it came alone and without a body: the answer may be kept for the next one."""

    def __init__(self, connection: "ClientConnection", *, keep_alive: bool) -> None:
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

    @classmethod
    def of_rest(cls, connection: "ClientConnection", answer: Answer, sent: int) -> "Response":
        """The rest of an answer that is repeated: its head is written, and `sent` bytes of its body."""
        connection.scope = {"type": "http", "method": "GET", "raw_target": b""}  # type: ignore[typeddict-item]
        response = cls(connection, keep_alive=True)
        response.feed_end()
        response.response_started, response.framing = True, Framing.LENGTH
        response.expected_content_length = answer.size - sent
        return response

    async def run_asgi(self, app: Any) -> None:
        try:
            await app(self.scope, self.receive, self.send)
            if not self.response_started and not self._is_left():
                raise RuntimeError("the app returned without an answer")
        except Exception as error:
            if _is_departure(error):
                return
            target = quoted(self.scope["raw_target"].decode("latin-1"))  # type: ignore[typeddict-item]
            events.error("server.app_failed method=%s target=%s", self.scope["method"], target, exc_info=error)
            if not self.response_started and not self._is_left():
                self.response_started, self.keep_alive = True, False
                self.transport.write(error_response(500, INTERNAL_ERROR, self.scope["method"]))
                self._complete()
        finally:
            if not self.response_complete:
                self.break_off()

    def feed(self, body: bytes) -> None:
        """Take a piece of the request's body, for receive()."""
        if self.response_complete:
            return
        self.body += body
        if len(self.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()  # receive() resumes it
        self.message_event.set()

    def feed_end(self) -> None:
        """The request's body is complete."""
        self.more_body = False
        self.message_event.set()

    def make_last(self) -> None:
        """The connection ends with this response."""
        self.keep_alive = False

    def disconnect(self) -> None:
        """The client is gone or has been given another answer. receive() and send() tell the app."""
        self.disconnected = True
        self.message_event.set()

    def break_off(self) -> None:
        """End the connection in the middle of the response, so that the client sees it is not whole."""
        if self.disconnected:
            return
        self._flush()
        if self.framing is Framing.CLOSE:
            # Here closing the connection ends the body. Only a reset shows that it is not whole.
            if sock := self.transport.get_extra_info("socket"):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
            return
        # close() and not abort(): missing bytes or a missing last chunk show it already, and what was written still
        # arrives, so that the client can resume from there.
        self.transport.close()
        self._connection.expire_idle()

    async def send(self, message: Any) -> None:
        """One ASGI message; returns when the transport can take the next one. Raises ClientGone."""
        if self.response_complete and not self.disconnected:
            raise RuntimeError(f"{message['type']} after the answer is complete")
        if message.get("body") or not self._is_all_sent():
            await self._ready()
        kind = message["type"]
        if kind == "http.response.start":
            is_expecting = self.waiting_for_100_continue
            self._start(message["status"], message.get("headers", ()))
            if (repeat := message.get("repeat")) and self.question and self.keep_alive and not is_expecting:
                self._keep(repeat)
            return
        if not self.response_started:
            raise RuntimeError(f"{kind} before http.response.start")
        match kind:
            case "http.response.body":
                if body := message.get("body"):
                    self._send_body(body)
            case "http.response.zerocopysend":
                if count := message["count"]:
                    await self._send_file(message["file"], message["offset"], count, message.get("growth"))
            case _:
                raise RuntimeError(f"unknown message {kind}")
        if not message.get("more_body", False):
            if self.framing is Framing.LENGTH and self.expected_content_length:
                raise RuntimeError(f"the answer ends {self.expected_content_length} bytes before its Content-Length")
            if self.framing is Framing.CHUNKED:
                self._write(b"0\r\n\r\n")
            self._complete()

    async def _ready(self) -> None:
        """Wait until the transport's own buffer is empty. Raises ClientGone once the client is gone."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self._is_left():
            raise ClientGone("the client has closed the connection")

    def _is_all_sent(self) -> bool:
        """The client has what Content-Length promised, and may leave before the app says that this is all."""
        is_whole = self.framing is Framing.LENGTH and not self.expected_content_length
        return is_whole and self.response_started and not self.response_complete and not self.flow.write_paused

    def _is_left(self) -> bool:
        """The client is gone. The transport knows it one turn of the loop before disconnect() is called."""
        return self.disconnected or self.transport.is_closing()

    def _start(self, status: int, fields: Sequence[tuple[bytes, bytes]]) -> None:
        if self.response_started:
            raise RuntimeError("a second http.response.start")
        if self.waiting_for_100_continue:
            # The client may send the announced body or leave it out, and we could not tell it from the next request.
            self.waiting_for_100_continue = self.keep_alive = False
        lines: list[bytes] = []
        length: int | None = None
        says_close = False
        for name, value in fields:
            name = name.lower()
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                continue  # framing is ours
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive, says_close = False, True
            lines.append(b"%b: %b\r\n" % (name, value))
        text = b"".join(lines)
        if not FIELDS.fullmatch(text) or text.count(b"\n") != len(lines):  # of a name or value with a line break
            raise RuntimeError(f"not header fields: {text!r}")
        lines = [STATUS_LINE[status], text]
        if not self.keep_alive and not says_close:
            lines.append(b"connection: close\r\n")
        if not has_body(self.scope["method"], status):
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
        # Head and first bytes leave as one packet if the app has both. If it waits now, the head goes alone.
        self._connection.loop.call_soon(self._flush)

    def _keep(self, repeat: Repeat) -> None:
        if self.framing in (Framing.NONE, Framing.LENGTH):
            peer, length = self._connection.peer, self.expected_content_length
            self._connection.replays.keep(
                peer, self.question, self._head, repeat, length if self.framing is Framing.LENGTH else None
            )

    def _flush(self) -> None:
        if self._head and not self.transport.is_closing():
            self._write()

    def _write(self, *pieces: bytes | bytearray) -> None:
        if self.transport.is_closing():
            return  # the client has left: asyncio would drop it too, and uvloop raises
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

    async def _send_file(self, file: int, offset: int, count: int, growth: Growth | None) -> None:
        if self.framing is Framing.NONE:
            return
        if growth is None and count <= SMALL_BYTES and (data := read_now(file, offset, count)):
            self._send_body(data)
            return
        self._count(count)
        try:
            if self.framing is Framing.CHUNKED:
                self._write(b"%x\r\n" % count)
            self._flush()
            await self._send_slices(file, offset, count, growth)
            if self.framing is Framing.CHUNKED:
                self._write(b"\r\n")
        except FileEnded as error:
            if self.framing is not Framing.LENGTH:
                self.break_off()
            self.expected_content_length += count - error.sent
            raise
        except BaseException:
            # Also when cancelled. Nobody knows how much was sent, so nothing may follow on this connection.
            self.break_off()
            raise

    async def _send_slices(self, file: int, offset: int, count: int, growth: Growth | None) -> None:
        start, end = offset, offset + count
        while offset < end:
            await self._ready()
            if growth and growth.readable(offset) <= offset:
                raise FileEnded("the file has yet to grow", offset - start, is_growing=True)
            sent = await self._connection.sender.send(file, offset, end - offset, growth)
            if not sent:
                raise FileEnded(f"the file ends {end - offset} bytes before what was to be sent", offset - start)
            offset += sent

    def _complete(self) -> None:
        self._flush()
        self.response_complete = True
        self.message_event.set()
        self.on_response()


def send_again(connection: "ClientConnection", answer: Answer) -> bool:
    """Send an answer that is repeated. False, with nothing sent, if the disk would be waited for."""
    replay, head, start, size = answer
    transport, replays = connection.transport, connection.replays
    if not size:
        transport.write(head)
        replays.repeated(replay, len(head) - len(replay.head))
        return True
    if (sent := connection.sender.send_now(head, replay.fd, start, size)) is None:
        return False
    sent -= len(head)
    if sent == size:
        replays.repeated(replay, size)
        return True
    if sent < 0:
        transport.write(head[sent:])
        sent = 0
    try:
        rest = replays.rest(answer, sent)
    except OSError:  # no descriptor is left
        transport.write(os.pread(replay.fd, size - sent, start + sent))
        replays.repeated(replay, size)
    else:
        connection.run(Response.of_rest(connection, answer, sent), rest)
    return True


def _is_departure(error: Exception) -> bool:
    """Whether an app ended because its client left: ClientGone, or what its framework raises instead."""
    if isinstance(error, ExceptionGroup):
        return all(_is_departure(each) for each in error.exceptions)
    # Starlette raises its own on http.disconnect, and in place of an OSError out of send().
    return isinstance(error, ClientGone | ClientDisconnect)
