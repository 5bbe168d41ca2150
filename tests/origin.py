"""A scripted HTTP/1.1 origin on a real socket: what a mirror does, and everything a mirror does wrong.

It runs in threads (one per connection, blocking sockets, keep-alive), so it serves processes, sync tests and async
tests alike. A script is a chain of calls, and may grow while requests are running:

    origin.body("/noble.img", BODY).stall_at(400_000).headers(etag=None)

Offsets count from the start of the whole body. A fault at an offset affects a response that has to send the byte
there; a range elsewhere is served. `times` is how many responses a fault affects (None: all), so
close_at(n, times=1) lets the request that resumes at n pass. Faults of one kind apply in the order of the script.
"""

import contextlib
import email.utils
import fcntl
import functools
import http
import select
import selectors
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import anyio.to_thread

from tests.script import (
    LAST_MODIFIED,
    PATTERN_BLOCK_BYTES,
    Content,
    Fault,
    Fixed,
    Pattern,
    Resource,
    Scripted,
    pattern_bytes,
    pattern_sha256,
)

# So that a test needs one import.
__all__ = [
    "LAST_MODIFIED",
    "PATTERN_BLOCK_BYTES",
    "Origin",
    "Pattern",
    "Request",
    "Resource",
    "pattern_bytes",
    "pattern_sha256",
]

PIECE_BYTES = 256 * 1024  # one send; a fault scripted into a running response may come late by this much
HEAD_LIMIT_BYTES = 64 * 1024
GONE_CHECK_SECONDS = 0.05  # how often a stalled response checks that its client is still there
TIMEOUT_SECONDS = 30.0  # for what a busy machine is to do
FLUSH_SECONDS = 1.0  # how long a reset waits for the bytes before it to arrive

NOT_FOUND = b"<!doctype html><title>404 Not Found</title><h1>Not Found</h1>\n"


@dataclass(slots=True)
class Request:
    """A request as it arrived, and what became of it. `Origin.log` returns copies."""

    method: str
    path: str
    """The target as sent, with its query."""
    headers: dict[str, str]
    """Names lower-case; several lines joined by ", "."""
    connection: int
    """Number of its connection, from 1."""
    status: int = 0
    """0: the status line is not sent yet."""
    bytes_sent: int = 0
    """Body bytes the kernel has taken, without chunk framing."""
    completed: bool = False
    """Whether the answer was sent whole, as its head promised."""
    ended: bool = False
    """Whether nothing more will be sent."""

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    def is_for(self, path: str) -> bool:
        return path == self.path or path == self.path.partition("?")[0]

    def __str__(self) -> str:
        end = "completed" if self.completed else "broken off" if self.ended else "running"
        return f"{self.method} {self.path} range={self.range} -> {self.status}, {self.bytes_sent} bytes, {end}"


class Origin:
    """The server. It listens once constructed, on a free port of 127.0.0.1 by default; `with` stops it."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0) -> None:
        self._tls = tls
        self.host = host
        self._changed = threading.Condition(threading.RLock())
        self._resources: dict[str, Resource] = {}
        self._log: list[Request] = []
        self._stalls: list[Request] = []
        self._connections: set[_Connection] = set()
        self._accepted = 0
        self.port = port
        self._accepting: tuple[threading.Thread, socket.socket] | None = None
        self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def url(self, path: str = "/") -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}{path}"

    def body(self, path: str, body: bytes) -> Resource:
        """Serve `body` at `path`; replaces what was there."""
        return self._place(path, Fixed(body))

    def pattern(self, path: str, size: int, seed: int = 0) -> Resource:
        """Serve pattern_bytes(size, seed) at `path`, without holding it in memory."""
        return self._place(path, Pattern(size, seed))

    def release(self, path: str | None = None) -> None:
        """Open every stall scripted so far at `path`, or everywhere."""
        with self._changed:
            for resource in [self._resources[path]] if path is not None else self._resources.values():
                resource.release()

    # What happened; a consistent copy at any time, from any thread.

    @property
    def log(self) -> list[Request]:
        """Every request so far, in order of arrival."""
        with self._changed:
            return [replace(request) for request in self._log]

    @property
    def requests(self) -> int:
        """Requests so far, for any path and by any method."""
        with self._changed:
            return len(self._log)

    def count(self, path: str, method: str | None = "GET") -> int:
        """Requests for `path`; any query counts if `path` has none. None: by any method."""
        with self._changed:
            return sum(request.is_for(path) and method in (None, request.method) for request in self._log)

    def bytes_sent(self, path: str) -> int:
        """Body bytes sent for `path` so far, all responses together."""
        with self._changed:
            return sum(request.bytes_sent for request in self._log if request.is_for(path))

    # Waiting. The predicate is called with the lock held, whenever something changes.

    def wait_for(
        self, predicate: Callable[[], object], timeout: float = TIMEOUT_SECONDS, *, what: str = "a condition"
    ) -> None:
        """Wait until `predicate()` is true; AssertionError with the log after `timeout` seconds."""
        with self._changed:
            if self._changed.wait_for(predicate, timeout):
                return
            requests = "".join(f"\n  {request}" for request in self._log) or "\n  (none)"
            stalls = ", ".join(request.path for request in self._stalls) or "none"
            raise AssertionError(f"origin: waited {timeout} s for {what}\nrequests:{requests}\nstalled: {stalls}")

    def wait_requests(self, n: int, path: str | None = None, timeout: float = TIMEOUT_SECONDS) -> None:
        """Wait until `n` requests have arrived, by any method, for `path` or for any."""
        self.wait_for(
            lambda: (self.requests if path is None else self.count(path, None)) >= n,
            timeout,
            what=f"{n} requests for {path or 'any path'}",
        )

    def wait_stalled(self, path: str, timeout: float = TIMEOUT_SECONDS, *, n: int = 1) -> None:
        """Wait until `n` responses for `path` have sent everything before their stall."""
        self.wait_for(
            lambda: sum(request.is_for(path) for request in self._stalls) >= n,
            timeout,
            what=f"{n} stalled responses for {path}",
        )

    async def happens(self, predicate: Callable[[], object], timeout: float = TIMEOUT_SECONDS) -> None:  # noqa: ASYNC109 - as wait_for
        await anyio.to_thread.run_sync(self.wait_for, predicate, timeout, abandon_on_cancel=True)

    async def requested(self, n: int, path: str | None = None, timeout: float = TIMEOUT_SECONDS) -> None:  # noqa: ASYNC109
        await anyio.to_thread.run_sync(self.wait_requests, n, path, timeout, abandon_on_cancel=True)

    async def stalled(self, path: str, timeout: float = TIMEOUT_SECONDS, *, n: int = 1) -> None:  # noqa: ASYNC109
        wait = functools.partial(self.wait_stalled, path, timeout, n=n)
        await anyio.to_thread.run_sync(wait, abandon_on_cancel=True)

    # Going away and coming back.

    def cut(self) -> None:
        """Break every connection; new ones are accepted."""
        with self._changed:
            connections = list(self._connections)
            for connection in connections:
                connection.cut()
            self._changed.notify_all()
        for connection in connections:
            connection.thread.join(TIMEOUT_SECONDS)
            assert not connection.thread.is_alive(), "origin: a connection did not end"

    def stop(self) -> None:
        """Break every connection and refuse new ones."""
        if self._accepting:
            (thread, wake), self._accepting = self._accepting, None
            wake.close()
            thread.join()
        self.cut()

    def restart(self) -> None:
        """Listen again, on the same port and with the same script."""
        self.stop()
        self._listen()

    def _place(self, path: str, content: Content) -> Resource:
        with self._changed:
            resource = self._resources[path] = Resource(path, content, self._changed)
        return resource

    def _find(self, path: str) -> Resource | None:
        with self._changed:
            return self._resources.get(path) or self._resources.get(path.partition("?")[0])

    def _listen(self) -> None:
        listener = socket.create_server((self.host, self.port), backlog=128)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        # Closing the listener in another thread does not wake accept() everywhere; closing a socket pair does.
        wake, woken = socket.socketpair()
        thread = threading.Thread(target=self._accept, args=(listener, woken), name="origin-accept", daemon=True)
        self._accepting = thread, wake
        thread.start()

    def _accept(self, listener: socket.socket, woken: socket.socket) -> None:
        with listener, woken, selectors.DefaultSelector() as ready:
            ready.register(listener, selectors.EVENT_READ)
            ready.register(woken, selectors.EVENT_READ)
            while all(key.fileobj is listener for key, _ in ready.select()):
                with contextlib.suppress(BlockingIOError, ConnectionError):  # the client left before accept()
                    sock, _ = listener.accept()
                    sock.setblocking(True)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    with self._changed:
                        self._accepted += 1
                        connection = _Connection(self, sock, self._accepted)
                        self._connections.add(connection)
                        connection.thread.start()  # under the lock: cut() joins every thread in the set


class _Broken(Exception):
    """This connection ends: by the script, by the client or by stop()."""


class _Connection:
    """One client connection and its thread."""

    def __init__(self, origin: Origin, sock: socket.socket, number: int) -> None:
        self._origin = origin
        self._changed = origin._changed
        self._sock = sock
        self._number = number
        self._received = b""
        self._is_cut = False
        self.thread = threading.Thread(target=self._run, name=f"origin-{number}", daemon=True)

    def cut(self) -> None:
        """Wake the connection's thread and end it. Called by another thread, with the lock held."""
        self._is_cut = True
        with contextlib.suppress(OSError):  # it has ended already
            # The plain shutdown, not TLS's: it wakes a blocked send or receive, and sends no close_notify.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            if self._origin._tls:
                with self._changed:  # cut() must see the plain socket or the wrapped one
                    self._sock = sock = self._origin._tls.wrap_socket(
                        self._sock, server_side=True, do_handshake_on_connect=False
                    )
                sock.do_handshake()
            while (request := self._receive()) and self._serve(request):
                pass
        except (_Broken, OSError):
            pass  # the log has it: the request is not completed
        finally:
            with self._changed:
                self._sock.close()
                self._origin._connections.discard(self)
                self._changed.notify_all()

    def _receive(self) -> Request | None:
        """The next request, which is in the log by then; None: the client is done."""
        while b"\r\n\r\n" not in self._received:
            data = self._sock.recv(HEAD_LIMIT_BYTES)
            if not data or len(self._received) > HEAD_LIMIT_BYTES:
                return None
            self._received += data
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        if line.count(" ") != 2:
            return None  # not HTTP: nothing to answer, nothing to log
        method, path, _version = line.split(" ")
        headers: dict[str, str] = {}
        for name, _, value in (text.partition(":") for text in fields):
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        request = Request(method, path, headers, self._number)
        with self._changed:
            self._origin._log.append(request)
            self._changed.notify_all()
        return request

    def _serve(self, request: Request) -> bool:
        """Answer. True: the connection can take another request."""
        try:
            return self._answer(request) and request.headers.get("connection", "").lower() != "close"
        finally:
            with self._changed:
                request.ended = True
                self._changed.notify_all()

    def _answer(self, request: Request) -> bool:
        resource = self._origin._find(request.path)
        if resource is None:
            return self._answer_small(request, 404, {"content-type": "text/html; charset=utf-8"}, NOT_FOUND)
        if held := resource.take(Fault.HOLD_HEADERS):
            self._stall(request, held)
        canned = resource.take(Fault.STATUS)
        if canned is None and "range" in request.headers:
            canned = resource.take(Fault.RANGE_STATUS)
        if canned:
            return self._answer_small(request, canned.value, canned.headers, canned.body)
        if request.method not in ("GET", "HEAD"):
            self._answer_small(request, 405, {"allow": "GET, HEAD"})
            return False  # a body may follow that is not read
        if request.method == "HEAD" and (refused := resource.take(Fault.REFUSE_HEAD)):
            return self._answer_small(request, refused.value, {"allow": "GET"})

        content, fields = resource.shown()
        if _is_not_modified(request.headers, fields) and not resource.take(Fault.IGNORE_CONDITIONS):
            for name in ("content-length", "content-type", "accept-ranges"):
                fields.pop(name, None)
            self._send_head(request, 304, fields, is_all=True)
            return True
        wanted = _wanted_range(request.headers, fields, content.size) if request.method == "GET" else None
        if wanted is not None and resource.take(Fault.IGNORE_RANGES):
            wanted = None
        if wanted is not None and wanted[0] >= wanted[1]:
            return self._answer_small(request, 416, {"content-range": f"bytes */{content.size}"})

        status, (start, end) = (200, (0, content.size)) if wanted is None else (206, wanted)
        is_head = request.method == "HEAD"  # shows what a GET would get, and uses up no fault
        short = resource.take(Fault.SHORT, look=is_head) if status == 200 else None
        if wanted is not None:
            moved = resource.take(Fault.RANGE_OFF)
            by = moved.value if moved else 0
            fields["content-range"] = f"bytes {start + by}-{end + by - 1}/{content.size}"
        if "content-length" in fields and not resource.is_overridden("content-length"):
            fields["content-length"] = str(end - start + (short.value if short else 0))
        is_chunked = resource.take(Fault.CHUNKED, look=is_head) is not None
        if is_chunked:
            fields.pop("content-length", None)
            fields["transfer-encoding"] = "chunked"
        if is_head:
            self._send_head(request, status, fields, is_all=True)
            return True
        is_honest = is_chunked or fields.get("content-length", str(end - start)) == str(end - start)
        self._send_head(request, status, fields, is_all=is_honest and not is_chunked and start == end)
        self._send_body(request, resource, content, start, end, is_chunked=is_chunked, is_honest=is_honest)
        return is_honest and (is_chunked or "content-length" in fields)

    def _answer_small(self, request: Request, status: int, headers: Mapping[str, str], body: bytes = b"") -> bool:
        fields = {"date": email.utils.formatdate(usegmt=True), "content-length": str(len(body))}
        if status == 304:
            del fields["content-length"]
        fields |= {name.lower(): value for name, value in headers.items()}
        has_body = bool(body) and request.method != "HEAD"
        self._send_head(request, status, fields, is_all=not has_body)
        if has_body:
            self._send(request, body, is_end=True)
        return True

    def _send_head(self, request: Request, status: int, fields: Mapping[str, str], *, is_all: bool) -> None:
        lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}"]
        lines += [f"{name.title().replace('Etag', 'ETag')}: {value}" for name, value in fields.items()]
        with self._changed:
            request.status = status
        self._send(request, "\r\n".join([*lines, "", ""]).encode("latin-1"), is_body=False, is_end=is_all)

    def _send_body(
        self,
        request: Request,
        resource: Resource,
        content: Content,
        start: int,
        end: int,
        *,
        is_chunked: bool,
        is_honest: bool,
    ) -> None:
        throttle = resource.take(Fault.THROTTLE)
        piece = max(1, min(PIECE_BYTES, throttle.value // 50)) if throttle else PIECE_BYTES
        position, began = start, time.monotonic()
        while position < end:
            if trip := resource.trip(position):
                self._break(request, trip)
                continue  # released; there may be another fault at this offset
            stop = min(resource.next_trip(position, end), position + piece)
            data = resource.corrupted(position, content.read(position, stop))
            if is_chunked:
                self._send(request, b"%x\r\n" % len(data), is_body=False)
            self._send(request, data, is_end=is_honest and not is_chunked and stop == end)
            if is_chunked:
                self._send(request, b"\r\n", is_body=False)
            position = stop
            if throttle:
                self._pause(began + (position - start) / throttle.value - time.monotonic())
        if is_chunked:
            self._send(request, b"0\r\n\r\n", is_body=False, is_end=True)

    def _send(self, request: Request, data: bytes, *, is_body: bool = True, is_end: bool = False) -> None:
        """Send and count. `is_end`: the last of these bytes completes the answer."""
        view = memoryview(data)
        self._sock.setblocking(False)
        try:
            while view:
                # Sent and counted under one lock: a client that has received a byte finds it counted, and after the
                # last byte it finds the request completed.
                with self._changed:
                    try:
                        sent = self._sock.send(view)
                    except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                        sent = 0
                    view = view[sent:]
                    request.bytes_sent += sent if is_body else 0
                    request.completed = request.ended = is_end and not view
                    self._changed.notify_all()
                if not sent:
                    room = select.poll()
                    room.register(self._sock, select.POLLOUT)
                    room.poll()  # cut() ends this wait too
        finally:
            self._sock.setblocking(True)

    def _break(self, request: Request, trip: Scripted) -> None:
        match trip.fault:
            case Fault.STALL:
                self._stall(request, trip)
            case Fault.RESET:
                self._flush()
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise _Broken
            case _:
                raise _Broken

    def _stall(self, request: Request, stall: Scripted) -> None:
        with self._changed:
            self._origin._stalls.append(request)
            self._changed.notify_all()
            try:
                while not stall.released:
                    self._changed.wait(GONE_CHECK_SECONDS)
                    if self._is_cut or self._is_client_gone():
                        raise _Broken
            finally:
                self._origin._stalls.remove(request)

    def _pause(self, seconds: float) -> None:
        with self._changed:
            if self._changed.wait_for(lambda: self._is_cut, max(0, seconds)):
                raise _Broken

    def _is_client_gone(self) -> bool:
        """Whether the client has closed. Not seen over TLS, where a close_notify comes first."""
        try:
            return socket.socket.recv(self._sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False

    def _flush(self) -> None:
        """Wait until the client's kernel has what was sent: RST discards the rest."""
        deadline = time.monotonic() + FLUSH_SECONDS
        with contextlib.suppress(OSError):  # macOS has no such call: fewer bytes may arrive before the RST
            while time.monotonic() < deadline:
                (unsent,) = struct.unpack("i", fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4)))
                if not unsent:
                    return
                self._pause(0.001)


def _is_not_modified(asked: Mapping[str, str], fields: Mapping[str, str]) -> bool:
    """RFC 9110 §13.2.2: If-None-Match by weak comparison, or else If-Modified-Since."""
    if "if-none-match" in asked:
        etags = [etag.strip().removeprefix("W/") for etag in asked["if-none-match"].split(",")]
        return "*" in etags or ("etag" in fields and fields["etag"].removeprefix("W/") in etags)
    if "if-modified-since" in asked and "last-modified" in fields:
        with contextlib.suppress(ValueError):  # not a date: the field is ignored (§13.1.3)
            since, modified = (
                email.utils.parsedate_to_datetime(text)
                for text in (asked["if-modified-since"], fields["last-modified"])
            )
            return modified <= since
    return False


def _wanted_range(asked: Mapping[str, str], fields: Mapping[str, str], size: int) -> tuple[int, int] | None:
    """The half-open range to send; empty: not satisfiable (416); None: the whole body (RFC 9110 §14.2, §13.1.5)."""
    unit, _, spec = asked.get("range", "").partition("=")
    first, dash, last = spec.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or not (first + last).isdecimal() or (last and not last.isdecimal()):
        return None
    if "if-range" in asked:
        condition = asked["if-range"]
        strong = fields.get("etag") if condition.startswith('"') else fields.get("last-modified")
        if condition != strong:
            return None
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size
