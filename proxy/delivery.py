"""One answer: body → status, headers, ranges, bytes (RFC 9110 §13, §14).

Stored, growing and passed-through bodies are delivered by the same code: a Body says what it is and how long, and
yields its bytes in pieces. A slice of a file leaves by a zero-copy send; it is never read into memory here.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, MutableMapping
from typing import Any, Protocol, TypeVar

from .errors import ClientGone, FileEnded, PreconditionFailed, RangeNotSatisfiable, StoreError
from .rules import pages, ranges, validators
from .rules.cache_status import CacheStatus
from .rules.entry import Head, Headers, field
from .rules.fleet import asks_for_others
from .rules.headers import OF_THE_CONTENT
from .rules.mirrors import Target
from .rules.pieces import Piece, Slice
from .rules.repeat import Repeat

T = TypeVar("T")
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

WATCH_SECONDS = 0.05
"""Most answers are there by then, and to watch over a client costs a task."""
ABOUT_THE_BODY = OF_THE_CONTENT | {"content-encoding", "content-language", "content-length", "content-type"}


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One GET or HEAD."""

    method: str
    target: bytes
    """The request target as received, without our own address."""
    headers: Headers
    gone: Callable[[], Awaitable[None]]
    """Waits until the client has left."""
    own_base: Callable[[], str | None] = lambda: None
    """Says the URL by which the client names us, without a slash at its end; None if it has not named us."""


class Body(Protocol):
    """The bytes of one generation. Whoever opened it closes it."""

    @property
    def head(self) -> Head: ...
    @property
    def length(self) -> int | None:
        """None while it is unknown: upstream sends chunks, and has not ended."""

    @property
    def in_memory(self) -> bytes | None:
        """All of it, where no file and no wait is needed for that."""

    async def wait_length(self) -> int | None:
        """Wait until the length is known. None: only the end of the body will tell, so ranges are ignored."""

    def pieces(self, start: int, end: int | None) -> AsyncGenerator[Piece]:
        """The bytes from `start` to `end` (None: wherever the body ends), in order, as they come.

        It may be asked again after a send has found that a file ended early: it then yields the bytes another way, if
        there is one. The descriptor in a Slice stays open until `close`. Raises the body's error.
        """

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class HeadBody:
    """What upstream said to HEAD. There are no bytes."""

    head: Head
    in_memory = None

    @property
    def length(self) -> int | None:
        return self.head.length

    async def wait_length(self) -> int | None:
        return self.head.length

    async def pieces(self, start: int, end: int | None) -> AsyncGenerator[Piece]:
        return
        yield b""  # makes it a generator

    def close(self) -> None: ...


class Watch:
    """Breaks off a wait for a body once the client has left.

    A send is never broken off: it notices by itself, and a client that has its last byte may leave before we know.
    """

    def __init__(self) -> None:
        self._has_left = False
        self._scope: asyncio.Timeout | None = None
        """Around the wait that is running. It has no deadline until the client leaves."""

    def leave(self, _: object = None) -> None:
        self._has_left = True
        if self._scope:
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def wait(self, waiting: Awaitable[T]) -> T:
        """The result of `waiting`. Raises ClientGone once the client has left."""
        if self._has_left:
            if isinstance(waiting, Coroutine):  # the awaitable of anext() is one too
                waiting.close()
            raise ClientGone
        scope = self._scope = asyncio.timeout(None)
        try:
            async with scope:
                return await waiting
        except TimeoutError:
            if scope.expired():
                raise ClientGone from None
            raise
        finally:
            self._scope = None


@contextlib.contextmanager
def while_connected(gone: Callable[[], Awaitable[None]]) -> Iterator[Watch]:
    """A Watch over a client whose departure `gone` waits for, from WATCH_SECONDS on."""
    watch = Watch()
    watcher: asyncio.Future[None] | None = None

    def begin() -> None:
        nonlocal watcher
        watcher = asyncio.ensure_future(gone())
        watcher.add_done_callback(watch.leave)

    beginning = asyncio.get_running_loop().call_later(WATCH_SECONDS, begin)
    try:
        yield watch
    finally:
        beginning.cancel()
        if watcher:
            watcher.remove_done_callback(watch.leave)
            watcher.cancel()


@dataclasses.dataclass(slots=True)
class Delivery:
    """A body on its way to one client."""

    request: Request
    target: Target
    body: Body
    cache_status: CacheStatus
    age: float
    """Seconds since the origin made or confirmed the answer (RFC 9111 §5.1)."""
    watch: Watch | None = None
    """None where the body never waits for upstream."""
    takes_ranges: bool = True
    repeat: Repeat | None = None
    """How the server may give this answer again; None: only by asking for it again."""
    status: int = dataclasses.field(default=0, init=False)
    sent: int = dataclasses.field(default=0, init=False)
    """Body bytes handed to the kernel."""

    async def send(self, send: Send) -> None:
        """Send the answer. Raises the body's error if it cannot be completed; the caller breaks the connection."""
        head, headers = self.body.head, self.request.headers
        verdict = validators.evaluate(self.request.method, headers, head.validator)
        if verdict == 304:
            # RFC 9110 §15.4.5: only what a cache is steered by. The other fields describe a body that is not sent.
            await self._start(send, 304, [line for line in self._fields() if line[0] not in ABOUT_THE_BODY])
            await send({"type": "http.response.body"})
            return
        if verdict == 412:
            message = "the precondition does not hold: the stored object is another generation"
            raise PreconditionFailed(message).with_cache_status(self.cache_status, self._age())
        asked = field(headers, "range") if self.request.method == "GET" and self.takes_ranges else None
        if asked is None or ranges.parse(asked) is None or not self._is_same_for_range():
            await self._whole(send)
            return
        # A range means nothing without a length: it waits until upstream has said it.
        length = await self._wait(self.body.wait_length())
        chosen = ranges.select(asked, length) if length is not None else None
        if chosen is None or length is None:
            await self._whole(send)
        elif not chosen:
            message = f"the range {asked} lies outside of the object's {length} bytes"
            error = RangeNotSatisfiable(message, headers=(("content-range", ranges.unsatisfied(length)),))
            raise error.with_cache_status(self.cache_status, self._age())
        elif len(chosen) == 1:
            content_range = "content-range", ranges.content_range(chosen[0], length)
            await self._start(send, 206, self._part_fields(chosen[0].length, content_range))
            await self.send_bytes(send, chosen[0].start, chosen[0].end)
            await send({"type": "http.response.body"})
        else:
            await self._multipart(send, chosen, length)

    def _is_same_for_range(self) -> bool:
        return validators.if_range(field(self.request.headers, "if-range"), self.body.head.validator)

    async def _whole(self, send: Send) -> None:
        length = self.body.length
        await self._start(send, 200, self._fields(length))
        data = b"" if self.request.method == "HEAD" else self.body.in_memory
        if data is None:
            await self.send_bytes(send, 0, length)
            data = b""
        await send({"type": "http.response.body", "body": data})
        self.sent += len(data)

    async def _multipart(self, send: Send, chosen: tuple[ranges.Range, ...], length: int) -> None:
        kind = field(self.body.head.headers, "content-type")
        # The boundary must not occur in the body. Nobody who writes bodies knows the generation.
        parts = ranges.multipart(chosen, length, kind, f"fetchonce-{self.body.head.generation}")
        fields = [line for line in self._part_fields(parts.length) if line[0] != "content-type"]
        await self._start(send, 206, [*fields, ("content-type", parts.content_type)])
        for preamble, part in parts.parts:
            await send({"type": "http.response.body", "body": preamble, "more_body": True})
            await self.send_bytes(send, part.start, part.end)
        await send({"type": "http.response.body", "body": parts.trailer})

    async def send_bytes(self, send: Send, start: int, end: int | None) -> None:
        """Send the bytes from `start` to `end` (None: wherever the body ends), as they come."""
        before = self.sent
        gone_at = -1
        while True:
            try:
                await self._pieces(send, start + self.sent - before, end)
                return
            except FileEnded as error:
                # It is still growing, or was cut short. The body is asked for the rest; it may have another way to it.
                if self.sent == gone_at:
                    raise StoreError(f"the body of {self.target.url} is gone: {error}") from error
                gone_at = -1 if error.is_growing else self.sent

    async def _pieces(self, send: Send, start: int, end: int | None) -> None:
        async with contextlib.aclosing(self.body.pieces(start, end)) as pieces:
            while (piece := await self._wait(anext(pieces, None))) is not None:
                try:
                    await send(_message(piece))
                except FileEnded as error:
                    self.sent += error.sent
                    raise
                self.sent += piece.end - piece.start if isinstance(piece, Slice) else len(piece)

    async def _wait(self, waiting: Awaitable[T]) -> T:
        return await (self.watch.wait(waiting) if self.watch else waiting)

    async def _start(self, send: Send, status: int, fields: list[tuple[str, str]]) -> None:
        self.status = status
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
        await send({"type": "http.response.start", "status": status, "headers": encoded, "repeat": self.repeat})

    def _fields(self, length: int | None = None, *more: tuple[str, str]) -> list[tuple[str, str]]:
        """The same for HEAD, 200 and 206, during the fill and after it; only length and range differ."""
        head = self.body.head
        fields = [line for line in head.headers if line[0] != "via"]
        if (etag := head.validator.etag) and not field(head.headers, "etag"):
            fields.append(("etag", etag))
        if length is not None:
            fields.append(("content-length", str(length)))
        fields.append(("accept-ranges", "bytes" if self.takes_ranges else "none"))
        via = field(head.headers, "via")
        fields.append(("via", f"{via}, 1.1 fetchonce" if via else "1.1 fetchonce"))
        fields += [line for line in pages.confined(head.headers) if line not in fields]
        said = self.cache_status.header()
        if asks_for_others(self.request.headers):
            said += f"; confirmed={max(0, int(self.age - max(0.0, head.age)))}"
            if not head.by_login and not self.target.mirror.credentials:
                said += "; open"
        return [*fields, self._age(), ("cache-status", said), *more]

    def _part_fields(self, length: int, *more: tuple[str, str]) -> list[tuple[str, str]]:
        return [line for line in self._fields(length, *more) if line[0] not in OF_THE_CONTENT]

    def _age(self) -> tuple[str, str]:
        return "age", str(int(self.age))


def _message(piece: Piece) -> MutableMapping[str, Any]:
    if isinstance(piece, Slice):
        place = {"file": piece.fd, "offset": piece.start, "count": piece.end - piece.start}
        return {"type": "http.response.zerocopysend", **place, "growth": piece.growth, "more_body": True}
    return {"type": "http.response.body", "body": piece, "more_body": True}
