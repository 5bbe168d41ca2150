"""One answer of upstream, and its body as bytes into a buffer.

A large body framed by Content-Length is read from the socket itself, `recv_into` one buffer: through httpx and h11 it
comes at a quarter of the speed.
"""

import socket
import ssl
import threading
from types import TracebackType
from typing import Self

import httpx

from ..errors import UpstreamError, UpstreamTimeout
from ..rules.entry import Headers, field
from .location import node
from .wording import cause

DIRECT_BYTES = 1024**2
"""A body with less than this left is read through httpx, so that its connection can be used again."""


class Exchange:
    """One answer: its head, then its body once. A context manager; used by one thread, except for `abort`."""

    def __init__(self, response: httpx.Response, url: str, final_url: str, read_timeout: float, delay: float) -> None:
        self.url = url
        self.final_url = final_url
        self.delay = delay
        """Seconds from the request to this head."""
        self.status = response.status_code
        self.headers: Headers = tuple(
            (key.decode("latin-1").lower(), value.decode("latin-1")) for key, value in response.headers.raw
        )
        self.has_body = response.request.method != "HEAD" and self.status not in (204, 304)
        self.length = _content_length(self.headers)
        """Bytes of this answer's body; None if only its end will tell."""
        self._response = response
        self._stream = response.extensions["network_stream"]
        self._chunks = response.iter_raw()
        self._rest = memoryview(b"")
        self._socket: socket.socket | None = None
        self._received = 0
        self._read_timeout = read_timeout
        self._aborted = threading.Event()

    @property
    def node(self) -> str:
        """The server that gave this answer: scheme://host:port of `final_url`."""
        return node(self.final_url)

    def read_into(self, buffer: memoryview) -> int:
        """Bytes put at the start of `buffer`; 0 at the true end of the body. Raises UpstreamError if it ends early."""
        count, trouble = 0, None
        try:
            count = self._read_into(buffer)
        except (httpx.HTTPError, OSError) as error:
            trouble = error
        if self._aborted.is_set():
            raise UpstreamError(f"the transfer of {self.url} was stopped")
        if trouble:
            raise self._broken(trouble) from trouble
        self._received += count
        if not count and self.length is not None and self._received < self.length:
            raise self._broken(None)
        return count

    def _read_into(self, buffer: memoryview) -> int:
        if self._socket:
            wanted = len(buffer) if self.length is None else min(len(buffer), self.length - self._received)
            return self._socket.recv_into(buffer[:wanted]) if wanted else 0
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        if count and not self._rest:
            self._go_direct(self._received + count)
        return count

    def _go_direct(self, received: int) -> None:
        # h11 hands out all it has buffered with each chunk, so between two chunks every further body byte is still
        # in the socket. That holds for Content-Length framing only: chunk heads must pass through h11.
        raw = self._stream.get_extra_info("socket")
        if (
            self.length is None
            or self.length - received < DIRECT_BYTES
            or not isinstance(raw, socket.socket)
            # TLS inside a TLS proxy: the socket carries the outer layer.
            or (self._stream.get_extra_info("ssl_object") is not None and not isinstance(raw, ssl.SSLSocket))
        ):
            return
        raw.settimeout(self._read_timeout)
        self._socket = raw

    def abort(self) -> None:
        """From any thread: the reading thread gets an UpstreamError at once."""
        self._aborted.set()
        raw = self._stream.get_extra_info("socket")
        if isinstance(raw, socket.socket):
            try:
                # The plain method: SSLSocket's own would drop the TLS layer, and the reader take ciphertext for body.
                socket.socket.shutdown(raw, socket.SHUT_RDWR)
            except OSError:
                return  # already closed

    def close(self) -> None:
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _broken(self, error: Exception | None) -> UpstreamError:
        of = f"byte {self._received} of {self.length}" if self.length is not None else f"byte {self._received}"
        if isinstance(error, (httpx.TimeoutException, TimeoutError)):
            return UpstreamTimeout(f"{self.url} sent nothing for {self._read_timeout:g} s at {of}")
        return UpstreamError(f"{self.url} broke off at {of}: {cause(error) if error else 'connection closed'}")


def _content_length(headers: Headers) -> int | None:
    value = field(headers, "content-length")
    if value is None or field(headers, "transfer-encoding"):
        return None
    return int(value.split(",")[0])  # h11 has refused anything but equal decimal numbers
