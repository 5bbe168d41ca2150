"""One answer of upstream, and its body as bytes into a buffer.

A large body framed by Content-Length is read from the socket itself: through httpx and h11 it comes at a quarter of the
speed.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import httpx

from ..errors import UpstreamError, UpstreamTimeout
from ..rules.entry import Headers, field
from ..rules.headers import has_body
from .bulk import Bulk
from .lane import Plain
from .location import node
from .wire import Wire
from .wording import cause

DIRECT_BYTES = 1024**2
"""A body with less than this left is read through httpx, so that its connection can be used again."""
DRAIN_BYTES = 64 * 1024
"""An answer with no more than this left is read to its end when it is closed: that is cheaper than a new connection."""
DRAIN_SECONDS = 0.02  # what has not come by then is not waited for; a connection over TLS costs more


@dataclass(frozen=True, slots=True)
class Redirect:
    """An answer that led on."""

    url: str
    """Where it came from."""
    headers: Headers


class Carrier(Protocol):
    """What a body, or a part of it, comes by: an Exchange, or a Download out of a bucket (objects.py).

    Its parts are described at Exchange.
    """

    @property
    def url(self) -> str: ...
    @property
    def final_url(self) -> str: ...
    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Headers: ...
    @property
    def length(self) -> int | None: ...
    def read_into(self, buffer: memoryview) -> int: ...
    def abort(self) -> None: ...
    def drop(self) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...


class Exchange:
    """One answer: its head, then its body once. A context manager; used by one thread, except for `abort`."""

    def __init__(
        self,
        response: httpx.Response,
        final_url: str,
        redirects: tuple[Redirect, ...],
        read_timeout: float,
        delay: float,
    ) -> None:
        self.url = redirects[0].url if redirects else final_url
        self.final_url = final_url
        self.redirects = redirects
        """The answers that led here, the first one first."""
        self.delay = delay
        """Seconds from the request to this head."""
        self.status = response.status_code
        self.headers: Headers = tuple(
            (key.decode("latin-1").lower(), value.decode("latin-1")) for key, value in response.headers.raw
        )
        self.has_body = has_body(response.request.method, self.status)
        self.length = _content_length(self.headers)
        """Bytes of this answer's body; None if only its end will tell."""
        self._response = response
        self._wire: Wire = response.extensions["network_stream"]
        self._request = self._wire.requests
        self._chunks: Iterator[bytes] = response.iter_raw()
        self._rest = memoryview(b"")
        self._bulk: Bulk | None = None
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

    def read_small(self, length: int, seconds: float) -> bytes | None:
        """The whole body, which has `length` bytes, if all of it comes within `seconds`; then the exchange is over.

        `read_into` gives from the first byte on what it gives without this call, errors too.
        """
        parts, count, deadline = [], 0, time.monotonic() + seconds
        try:
            # h11 hands out all it has with each chunk; what came with the head is there without a wait.
            while count < length and (
                count < self._wire.body_bytes or self._wire.wait_readable(deadline - time.monotonic())
            ):
                parts.append(next(self._chunks, b""))
                if not parts[-1]:
                    break
                count += len(parts[-1])
        except (httpx.HTTPError, OSError) as error:
            self._chunks = _failing(error)
        body = b"".join(parts)
        self._rest = memoryview(body)
        if count < length:
            return None
        self.close()
        return body

    def _read_into(self, buffer: memoryview) -> int:
        if self._bulk:
            wanted = len(buffer) if self.length is None else min(len(buffer), self.length - self._received)
            return self._bulk.read_into(buffer[:wanted])
        if not self._rest:
            if self._received == self.length:
                return 0  # close() deals with what may follow
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
        raw = self._wire.get_extra_info("socket")
        if (
            self.length is None
            or self.length - received < DIRECT_BYTES
            or not isinstance(raw, socket.socket)
            # TLS inside a TLS proxy: the socket carries the outer layer.
            or (self._wire.get_extra_info("ssl_object") is not None and not isinstance(raw, ssl.SSLSocket))
        ):
            return
        self._bulk = Bulk(raw, self._read_timeout)

    def abort(self) -> None:
        """From any thread: the reading thread gets an UpstreamError at once."""
        self._aborted.set()
        self._wire.abort(self._request)

    def drop(self) -> None:
        """End the connection without a wait, if nobody has closed this yet."""
        if not self._response.is_closed:
            self.abort()
            self._response.close()

    def close(self) -> None:
        """Give the connection back, or end it. May wait DRAIN_SECONDS for a small rest of the body."""
        if self._has_small_rest() and not self._response.is_closed:
            self._drain()
        self._response.close()

    def _has_small_rest(self) -> bool:
        if self._bulk or self._aborted.is_set() or "close" in (field(self.headers, "connection") or "").lower():
            return False
        length = self.length if self.has_body else 0
        if length is None:
            return field(self.headers, "transfer-encoding") is not None
        # h11 would take what came behind the body for the next answer (RFC 9112 §9.2); some servers send HEAD a body.
        return self._wire.body_bytes <= length and length - self._received - len(self._rest) <= DRAIN_BYTES

    def _drain(self) -> None:
        # httpcore uses a connection again only if its answer was read to the end, even where nothing is left to read.
        self._wire.hurry(DRAIN_SECONDS)
        left = DRAIN_BYTES
        with contextlib.suppress(httpx.HTTPError):
            for chunk in self._chunks:
                left -= len(chunk)
                if left < 0:
                    break

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _broken(self, error: Exception | None) -> UpstreamError:
        of = f"byte {self._received} of {self.length}" if self.length is not None else f"byte {self._received}"
        if isinstance(error, (httpx.TimeoutException, TimeoutError)):
            return UpstreamTimeout(f"{self.url} sent nothing for {self._read_timeout:g} s at {of}")
        return UpstreamError(f"{self.url} broke off at {of}: {cause(error) if error else 'connection closed'}")


class Ready(Exchange):
    """An answer that is whole, and in memory: nothing of it is waited for."""

    def __init__(self, plain: Plain, final_url: str, redirects: tuple[Redirect, ...], method: str) -> None:
        self.url = redirects[0].url if redirects else final_url
        self.final_url, self.redirects, self.delay = final_url, redirects, plain.delay
        self.status, self.headers = plain.status, plain.headers
        self.has_body = has_body(method, self.status)
        self.length = _content_length(self.headers)
        self._body, self._rest = plain.body, memoryview(plain.body)
        self._is_aborted = False

    def read_into(self, buffer: memoryview) -> int:
        if self._is_aborted:
            raise UpstreamError(f"the transfer of {self.url} was stopped")
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def read_small(self, length: int, seconds: float) -> bytes:
        return self._body

    def abort(self) -> None:
        self._is_aborted = True

    def drop(self) -> None: ...

    def close(self) -> None: ...


def _failing(error: Exception) -> Iterator[bytes]:
    raise error
    yield b""  # makes it a generator


def _content_length(headers: Headers) -> int | None:
    value = field(headers, "content-length")
    if value is None or field(headers, "transfer-encoding"):
        return None
    return int(value.split(",")[0])  # h11 has refused anything but equal decimal numbers
