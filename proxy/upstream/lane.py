"""Connections to upstream that are idle, and small exchanges over them on the event loop, without a thread.

An exchange through httpx costs 0.7 ms of Python in a thread, and as much again in hand-overs of the interpreter between
that thread and the loop; over an open connection a small one costs a tenth here. httpx opens each connection, with what
belongs to that, and only plain answers are read here: HTTP/1.1, framed by Content-Length, whole within moments, no
redirect. With any other one a thread goes on, from the first byte of the answer: nothing is asked twice.
"""

import asyncio
import re
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass

import httpcore

from ..rules.entry import Headers
from ..rules.headers import has_body

IDLE_MAX = 64
"""Connections kept for one server; further ones stay with httpx."""
IDLE_SECONDS = 30.0
"""As long as httpx keeps them."""
SMALL_BYTES = 64 * 1024
HEAD_SECONDS = 1.0
"""A head that is not here by then is waited for in a thread."""
BODY_SECONDS = 0.1
"""From the head to the end of the body."""
MAX_HEAD_BYTES = 16 * 1024

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TEXT = rb"[^\x00-\x08\x0a-\x1f\x7f]"
_FIELDS = rb"(?:" + _TOKEN + rb":" + _TEXT + rb"*\r\n)*"
_HEAD = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: " + _TEXT + rb"*)?\r\n(" + _FIELDS + rb")\r\n")
_REQUEST = re.compile(_TOKEN + rb" [\x21-\x7e]+ HTTP/1\.1\r\n" + _FIELDS + rb"\r\n")
_LENGTH = re.compile(r"[0-9]{1,18}")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Plain:
    """A whole answer."""

    status: int
    headers: Headers
    body: bytes
    delay: float
    """Seconds from the request to its head."""


@dataclass(frozen=True, slots=True)
class PlainHead:
    """The head of an answer, and where its body lies among the bytes that came."""

    status: int
    headers: Headers
    start: int
    end: int
    delay: float


@dataclass(frozen=True, slots=True)
class Begun:
    """A request that was sent, and what has come of the answer. A thread goes on with it, or it is closed."""

    stream: httpcore.NetworkStream
    received: bytes
    asked_at: float
    heard_at: float
    """When the last byte came, or else as `asked_at`; both are time.monotonic()."""

    def close(self) -> None:
        self.stream.close()


class Lane:
    """`ask` belongs to the event loop, all else may be called in any thread. `close` it."""

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._idle: dict[str, list[tuple[float, httpcore.NetworkStream]]] = {}
        """By server: the connections, with the time at which each became idle."""
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_swept = False

    def has_room(self, node: str) -> bool:
        """Whether a connection to `node` would be kept."""
        return not self._is_closed and len(self._idle.get(node, ())) < IDLE_MAX

    def give(self, node: str, stream: httpcore.NetworkStream) -> None:
        """An idle connection to `node`; it belongs to the lane from now on."""
        with self._lock:
            if is_kept := not self._is_closed:
                self._idle.setdefault(node, []).append((time.monotonic(), stream))
        if not is_kept:
            stream.close()

    def _sweep(self) -> None:
        """On the event loop: close what nobody has wanted for long, now and from time to time."""
        with self._lock:
            oldest = time.monotonic() - self._idle_seconds
            ended = [stream for idle in self._idle.values() for since, stream in idle if since < oldest]
            kept = {name: [each for each in idle if each[0] >= oldest] for name, idle in self._idle.items()}
            self._idle = {name: idle for name, idle in kept.items() if idle}
            self._is_swept = not self._is_closed
        for each in ended:
            each.close()
        if self._is_swept:
            asyncio.get_running_loop().call_later(self._idle_seconds / 6, self._sweep)

    def take(self, node: str) -> httpcore.NetworkStream | None:
        """An idle connection to `node`, which is the caller's from now on."""
        while True:
            with self._lock:
                idle = self._idle.get(node)
                if not idle:
                    return None
                since, stream = idle.pop()
            if since >= time.monotonic() - self._idle_seconds and not _is_readable(stream.get_extra_info("socket")):
                return stream
            stream.close()  # ended, or out of step: what is there already answers no request

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            ended = [stream for idle in self._idle.values() for _, stream in idle]
            self._idle.clear()
        for stream in ended:
            stream.close()

    async def ask(self, node: str, request: bytes, method: str, patience: float) -> Plain | Begun | None:
        """The answer to `request`, or what has come of it; None if no connection was at hand, and nothing was asked.

        `patience`: seconds without a byte that are too many; a thread says so then.
        Of a connection that upstream had closed meanwhile nothing was asked either (RFC 9112 §9.3.1).
        """
        if not self._is_swept:
            self._sweep()
        if not _REQUEST.fullmatch(request):
            return None
        while stream := self.take(node):
            sock: socket.socket = stream.get_extra_info("socket")
            try:
                if sock.gettimeout() != 0:
                    sock.setblocking(False)
                if sock.send(request) < len(request):
                    stream.close()  # half a request: nobody can answer it
                    return None
                reception = _Reception(sock, method, patience)
                await reception.run()
            except OSError:
                stream.close()
                continue
            except BaseException:
                stream.close()
                raise
            if reception.answer:
                self.give(node, stream)
                return reception.answer
            if reception.has_ended and not reception.data:
                stream.close()
                continue
            return Begun(stream, bytes(reception.data), reception.asked_at, reception.heard_at)
        return None


class _Reception:
    """Of one answer: `run` it once."""

    def __init__(self, sock: socket.socket, method: str, patience: float) -> None:
        self.data = bytearray()
        self.answer: Plain | None = None
        self.has_ended = False
        self.asked_at = self.heard_at = time.monotonic()
        self._head: PlainHead | None = None
        self._sock, self._method = sock, method
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._timer = self._loop.call_later(min(HEAD_SECONDS, patience), self._finish)

    async def run(self) -> None:
        """Until the answer is whole, or a thread's."""
        self._loop.add_reader(self._sock.fileno(), self._readable)
        try:
            await self._done
        finally:
            self._timer.cancel()
            self._loop.remove_reader(self._sock.fileno())

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _readable(self) -> None:
        try:
            while True:
                piece = self._sock.recv(SMALL_BYTES)
                if not piece:
                    self.has_ended = True
                    break
                self.data += piece
                self.heard_at = time.monotonic()
                # Of TLS more may be there than the kernel tells of. But what is so long is no plain answer, and may
                # come for hours without a pause.
                if not isinstance(self._sock, ssl.SSLSocket) or len(self.data) > MAX_HEAD_BYTES + SMALL_BYTES:
                    break
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self.has_ended = True
        if self._look() or self.has_ended:
            self._finish()

    def _look(self) -> bool:
        """Whether it is whole, or no plain one."""
        if self._head is None:
            end = self.data.find(b"\r\n\r\n") + 4
            if end < 4:
                return len(self.data) > MAX_HEAD_BYTES
            self._head = _read_head(bytes(self.data[:end]), time.monotonic() - self.asked_at, self._method)
            if self._head is None:
                return True
            if len(self.data) < self._head.end:
                self._timer.cancel()
                self._timer = self._loop.call_later(BODY_SECONDS, self._finish)
        head = self._head
        if len(self.data) == head.end and not self.has_ended:
            self.answer = Plain(head.status, head.headers, bytes(self.data[head.start :]), head.delay)
        return len(self.data) >= head.end


def _read_head(head: bytes, delay: float, method: str) -> PlainHead | None:
    """None unless it is a plain one: h11 mends or refuses what else there is."""
    match = _HEAD.fullmatch(head)
    if not match:
        return None
    status = int(match[1])
    headers: Headers = tuple(
        (name.lower(), value.strip(" \t"))
        for name, _, value in (line.partition(":") for line in match[2].decode("latin-1").split("\r\n")[:-1])
    )
    lengths = []
    for name, value in headers:
        match name:
            case "content-length":
                lengths.append(value)
            case "transfer-encoding" | "upgrade":
                return None
            case "connection" if value.lower() != "keep-alive":
                return None
    is_empty = not has_body(method, status)
    if status in _REDIRECTS:
        return None
    if len(lengths) > 1 or (not lengths and not is_empty) or not all(_LENGTH.fullmatch(each) for each in lengths):
        return None
    length = 0 if is_empty else int(lengths[0])
    return PlainHead(status, headers, len(head), len(head) + length, delay) if length <= SMALL_BYTES else None


def _is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0)) or (isinstance(sock, ssl.SSLSocket) and sock.pending() > 0)
