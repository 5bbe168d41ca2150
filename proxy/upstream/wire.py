"""The bytes of one connection to upstream, between httpcore and the socket.

httpcore offers no other place for what is done here. h11 refuses a head that RFC 9112 tells us to mend, and httpcore
sets up its parser. And only here one sees whether a connection that ended had been used before, and what came by it.
"""

import contextlib
import re
import select
import socket
import ssl
import threading
import time
from typing import Any

import httpcore

MAX_HEAD_BYTES = 128 * 1024  # h11 refuses more than 100 KiB
AT_ONCE_SECONDS = 0.001  # 0 would make the socket one that never waits, which is no timeout but an error

_END_OF_HEAD = re.compile(rb"\n\r?\n")
_INTERIM = re.compile(rb"HTTP/[0-9]\.[0-9] 1")
_SPACE_BEFORE_COLON = re.compile(rb"^([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]+:", re.MULTILINE)


class Stale(Exception):
    """A connection that had been used before ended without a byte of the next answer: upstream had closed it."""


class Wire(httpcore.NetworkStream):
    """One connection, as httpcore writes and reads it. `abort` may be called from any thread."""

    def __init__(self, stream: httpcore.NetworkStream, *, is_direct: bool = False) -> None:
        """`is_direct`: to the server itself, with no proxy on the way."""
        self._stream = stream
        self.is_direct = is_direct
        self.requests = 0
        """How many have been sent on it; each Exchange knows its own by this number."""
        self.awaits_head = False
        """Nothing has been read since the last request."""
        self.body_bytes = 0
        """Bytes that came after the head of the answer, framing and all."""
        self._last = b""
        """The last of them."""
        self._lock = threading.Lock()
        self._has_left = False
        """It was closed, or taken."""
        self._deadline: float | None = None
        raw = stream.get_extra_info("socket")
        if isinstance(raw, ssl.SSLSocket):
            # By default a connection that is cut reads as one that ended, and half a body as a whole one
            # (RFC 8446 §6.1, RFC 9112 §9.8). httpcore does not let wrap_socket be told otherwise.
            raw.suppress_ragged_eofs = False  # type: ignore[attr-defined]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """The next bytes; the first ones after a request are the whole head of the answer, and may be more than asked.

        Nothing is kept back: an Exchange reads a large body from the socket itself. Raises Stale.
        """
        if not self.awaits_head:
            if self._deadline is not None:
                timeout = max(0.0, self._deadline - time.monotonic())
            received = self._stream.read(max_bytes, timeout)
            self.body_bytes += len(received)
            self._last = (self._last + received[-5:])[-5:]
            return received
        self.awaits_head = False
        heads, received = b"", self._read_first(max_bytes, timeout)
        while True:
            if end := _END_OF_HEAD.search(received):
                head, received = received[: end.end()], received[end.end() :]
                heads += _SPACE_BEFORE_COLON.sub(rb"\1:", head)  # RFC 9112 §5.1
                if not _INTERIM.match(head):
                    self.body_bytes, self._last = len(received), received[-5:]
                    return heads + received
            elif len(heads) + len(received) > MAX_HEAD_BYTES or not (data := self._stream.read(max_bytes, timeout)):
                return heads + received
            else:
                received += data

    def _read_first(self, max_bytes: int, timeout: float | None) -> bytes:
        try:
            received = self._stream.read(max_bytes, timeout)
        except httpcore.ReadError as error:
            if self.requests > 1:
                raise Stale from error
            raise
        if not received and self.requests > 1:
            raise Stale
        return received

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer[:1].isalpha():  # a request: one write, as none of ours has a body; SOCKS begins with other bytes
            if self.requests and self._stream.get_extra_info("is_readable"):
                raise Stale  # ended, or out of step: what is there already answers no request
            with self._lock:
                if self._has_left:
                    raise Stale
                self.requests += 1
            self.awaits_head = True
            self._deadline = None
        self._stream.write(buffer, timeout)

    def wait_readable(self, seconds: float) -> bool:
        """Whether a read need not wait for upstream, within `seconds`; of TLS it may wait for the rest of a record."""
        raw = self._stream.get_extra_info("socket")
        if isinstance(raw, ssl.SSLSocket) and raw.pending():
            return True
        poll = select.poll()
        poll.register(raw, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))

    def hurry(self, seconds: float) -> None:
        """The rest of the body may take this long; reading it times out then."""
        self._deadline = time.monotonic() + seconds

    def abort(self, request: int) -> None:
        """End the connection, which wakes its reader, if it is still at the request of that number."""
        raw = self._stream.get_extra_info("socket")
        with self._lock:
            if request == self.requests and not self._has_left and isinstance(raw, socket.socket):
                with contextlib.suppress(OSError):  # already closed
                    # Not SSLSocket's own method: it drops the TLS layer, and the reader would take ciphertext for body.
                    socket.socket.shutdown(raw, socket.SHUT_RDWR)

    def is_in_step(self, length: int | None) -> bool:
        """Whether nothing has come behind a body of that length, or in chunks (RFC 9112 §9.2).

        h11 keeps what has for the next answer, and who takes the connection does not ask h11.
        """
        return self._last == b"0\r\n\r\n" if length is None else self.body_bytes <= length

    def take(self, request: int) -> httpcore.NetworkStream | None:
        """The connection, for somebody else, if it is idle after the request of that number; httpcore finds it closed.

        To be called once the answer is closed: what cannot be used again httpcore has closed then.
        """
        with self._lock:
            if self._has_left or request != self.requests:
                return None
            self._has_left = True
        return self._stream

    def close(self) -> None:
        with self._lock:
            has_left, self._has_left = self._has_left, True
        if not has_left:
            self._stream.close()

    def start_tls(self, ssl_context: ssl.SSLContext, *args: Any, **named: Any) -> httpcore.NetworkStream:
        return Wire(self._stream.start_tls(ssl_context, *args, **named), is_direct=self.is_direct)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            # httpcore asks this of every idle connection with each request, a system call and a turn of the GIL each.
            # `write` asks it of the one that is used. One that was taken is to be dropped.
            return self._has_left
        return self._stream.get_extra_info(info)


class UsedWire(Wire):
    """A connection that was used before, TLS and all. With `heard_at` a request was sent already, `received` is what
    has come of the answer, and the last of it came at that time (time.monotonic()): no byte is waited for any longer
    than from then on."""

    def __init__(self, stream: httpcore.NetworkStream, received: bytes = b"", heard_at: float | None = None) -> None:
        super().__init__(_Ahead(stream, received, heard_at), is_direct=True)
        self.requests = 1
        self._is_sent = heard_at is not None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._is_sent:
            self._is_sent, self.awaits_head = False, True
            self.requests += 1
        else:
            super().write(buffer, timeout)

    def start_tls(self, ssl_context: ssl.SSLContext, *args: Any, **named: Any) -> httpcore.NetworkStream:
        return self

    def take(self, request: int) -> httpcore.NetworkStream | None:
        ahead = super().take(request)
        return ahead.stream if isinstance(ahead, _Ahead) else None


class _Ahead(httpcore.NetworkStream):
    """A stream of which the first bytes were read already."""

    def __init__(self, stream: httpcore.NetworkStream, received: bytes, heard_at: float | None) -> None:
        self.stream, self._received, self._heard_at = stream, received, heard_at

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        received, self._received = self._received, b""
        if received:
            return received
        if timeout is not None and self._heard_at is not None:
            timeout = max(AT_ONCE_SECONDS, timeout - (time.monotonic() - self._heard_at))
        self._heard_at = None
        return self.stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, timeout)

    def close(self) -> None:
        self.stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


class Resuming(httpcore.NetworkBackend):
    """Connects to one thing that is connected already."""

    def __init__(self, wire: UsedWire) -> None:
        self._wire = wire

    def connect_tcp(self, *args: Any, **named: Any) -> httpcore.NetworkStream:
        return self._wire


class Wires(httpcore.SyncBackend):
    """Connects as httpcore does."""

    is_direct = False

    def connect_tcp(self, host: str, port: int, *args: Any, **named: Any) -> httpcore.NetworkStream:
        return Wire(super().connect_tcp(host, port, *args, **named), is_direct=self.is_direct)
