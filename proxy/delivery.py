"""One answer: body → status, headers, ranges, bytes (RFC 9110 §13, §14).

A stored file and a running fill are delivered by the same code: a Body says what it is, how long, and how far a reader
at an offset may read now. Bytes leave by zero-copy sends of the body's descriptor; nothing is read into memory here.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from .errors import ClientGone, FileEnded, OutOfSpace, PreconditionFailed, RangeNotSatisfiable, StoreError
from .fill.passthrough import Passage
from .rules import ranges, validators
from .rules.entry import Head, Headers, field
from .rules.mirrors import Target

T = TypeVar("T")
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


ABOUT_THE_BODY = frozenset({"content-encoding", "content-language", "content-length", "content-type"})


class FileBody(Protocol):
    """Bytes of one generation in a file; implemented by StoredBody (whole), Fill (growing) and HeadBody (none)."""

    @property
    def head(self) -> Head: ...
    @property
    def length(self) -> int | None:
        """None while it is not known (chunked upstream, still coming)."""

    @property
    def fd(self) -> int: ...
    async def wait_readable(self, offset: int) -> int:
        """Wait until bytes from `offset` may be read, and return up to where; `offset` at the end of the body."""

    async def wait_length(self) -> int: ...
    def detour(self) -> Passage | None:
        """Another way to the bytes of a file that has no room for them; None if there is none."""


Body = FileBody | Passage


@dataclass(frozen=True, slots=True)
class HeadBody:
    """What upstream said to HEAD of a body we do not have."""

    head: Head

    @property
    def length(self) -> int | None:
        return self.head.length

    @property
    def fd(self) -> int:
        raise RuntimeError("there is no body behind an answer to HEAD")

    async def wait_readable(self, offset: int) -> int:
        raise RuntimeError("there is no body behind an answer to HEAD")

    async def wait_length(self) -> int:
        return self.head.length or 0

    def detour(self) -> Passage | None:
        return None


class Watch:
    """Whether the client is still there, for a task that waits for something else.

    Only while it waits is the task woken: a send learns of the departure by itself, and a client may well leave between
    its last byte and our knowing that it has it.
    """

    def __init__(self) -> None:
        self._has_left = False
        self._waiter: asyncio.Task[Any] | None = None

    def leave(self, _: object) -> None:
        self._has_left = True
        if self._waiter:
            self._waiter.cancel()

    async def wait(self, waiting: Coroutine[Any, Any, T]) -> T:
        """The result of `waiting`. Raises ClientGone once the client has left."""
        if self._has_left:
            waiting.close()
            raise ClientGone
        task = self._waiter = asyncio.current_task()
        assert task
        try:
            return await waiting
        except asyncio.CancelledError:
            if self._has_left and task.uncancel() == 0:
                raise ClientGone from None
            raise
        finally:
            self._waiter = None


@dataclass(slots=True)
class Delivery:
    """A body on its way to one client."""

    method: str
    headers: Headers
    """The request's."""
    target: Target
    body: Body
    word: str
    """HIT, MISS, FOLLOW, REVALIDATED, STALE or BYPASS: for the log."""
    told: str
    """The same for the client: parameters of Cache-Status (RFC 9211)."""
    age: float
    """Seconds since the origin made or confirmed it (RFC 9111 §5.1)."""
    watch: Watch | None = None
    """Where the body is still coming."""
    status: int = 0
    sent: int = 0
    """Body bytes handed to the kernel."""

    async def send(self, send: Send) -> None:
        """Answer in full. Raises the body's error if it cannot be completed: the caller then breaks the connection."""
        try:
            await self._answer(send)
        finally:
            if isinstance(self.body, Passage):
                self.body.close()

    async def _answer(self, send: Send) -> None:
        head = self.body.head
        verdict = validators.evaluate(self.method, self.headers, head.validator)
        if verdict == 304:
            # RFC 9110 §15.4.5: what would steer a cache; the representation's own fields say nothing new.
            fields = [line for line in self._fields() if line[0] not in ABOUT_THE_BODY]
            await self._start(send, 304, fields)
            await send({"type": "http.response.body"})
            return
        if verdict == 412:
            raise PreconditionFailed(
                "the precondition does not hold: the stored object is another generation", headers=self.told_fields()
            )
        asked = field(self.headers, "range") if self.method == "GET" else None
        if asked is None or not validators.if_range(field(self.headers, "if-range"), head.validator):
            await self._whole(send)
            return
        if ranges.parse(asked) is None or (isinstance(self.body, Passage) and self.body.length is None):
            await self._whole(send)
            return
        # Without a length there is no telling what a range means: it waits until upstream has said it.
        length = self.body.length
        if not isinstance(self.body, Passage):
            length = await self._wait(self.body.wait_length())
        assert length is not None
        chosen = ranges.select(asked, length)
        if chosen is None:
            await self._whole(send)
        elif not chosen:
            raise RangeNotSatisfiable(
                f"the range {asked} lies outside of the object's {length} bytes",
                headers=(("content-range", ranges.unsatisfied(length)), *self.told_fields()),
            )
        elif len(chosen) == 1:
            await self._start(
                send,
                206,
                self._fields(chosen[0].length, ("content-range", ranges.content_range(chosen[0], length))),
            )
            await self._bytes(send, chosen[0].start, chosen[0].end)
            await send({"type": "http.response.body"})
        else:
            await self._multipart(send, chosen, length)

    async def _whole(self, send: Send) -> None:
        await self._start(send, 200, self._fields(self.body.length))
        if self.method != "HEAD":
            await self._bytes(send, 0, self.body.length)
        await send({"type": "http.response.body"})

    async def _multipart(self, send: Send, chosen: tuple[ranges.Range, ...], length: int) -> None:
        kind = field(self.body.head.headers, "content-type")
        # The boundary must not occur in the body; nobody who writes bodies knows the generation.
        parts = ranges.multipart(chosen, length, kind, f"fetchonce-{self.body.head.generation}")
        fields = [line for line in self._fields(parts.length) if line[0] != "content-type"]
        await self._start(send, 206, [*fields, ("content-type", parts.content_type)])
        for preamble, part in parts.parts:
            await send({"type": "http.response.body", "body": preamble, "more_body": True})
            await self._bytes(send, part.start, part.end)
        await send({"type": "http.response.body", "body": parts.trailer})

    async def _bytes(self, send: Send, offset: int, end: int | None) -> None:
        """Bytes from `offset` to `end` (None: to wherever the body ends), as they come."""
        if not isinstance(self.body, Passage):
            before = self.sent
            try:
                await self._file_bytes(self.body, send, offset, end)
                return
            except (OutOfSpace, FileEnded) as error:
                passage = self.body.detour()
                if passage is None:
                    raise _gone(self.target, error) from error
            offset += self.sent - before
            self.body = passage
        async with aclosing(self.body.read(offset, end)) as pieces:
            while data := await self._wait(_next(pieces)):
                await send({"type": "http.response.body", "body": data, "more_body": True})
                self.sent += len(data)

    async def _file_bytes(self, body: FileBody, send: Send, offset: int, end: int | None) -> None:
        while end is None or offset < end:
            stop = await self._wait(body.wait_readable(offset))
            if stop == offset:
                return
            count = (stop if end is None else min(stop, end)) - offset
            message = {
                "type": "http.response.zerocopysend",
                "file": body.fd,
                "offset": offset,
                "count": count,
                "more_body": True,
            }
            try:
                await send(message)
            except FileEnded as error:
                self.sent += error.sent
                raise
            offset += count
            self.sent += count

    async def _wait(self, waiting: Coroutine[Any, Any, T]) -> T:
        return await (self.watch.wait(waiting) if self.watch else waiting)

    async def _start(self, send: Send, status: int, fields: list[tuple[str, str]]) -> None:
        self.status = status
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
        await send({"type": "http.response.start", "status": status, "headers": encoded})

    def _fields(self, length: int | None = None, *more: tuple[str, str]) -> list[tuple[str, str]]:
        """The same for HEAD, 200 and 206, while filling and afterwards; but for length and range."""
        head = self.body.head
        fields = [line for line in head.headers if line[0] != "via"]
        if (etag := head.validator.etag) and not field(head.headers, "etag"):
            fields.append(("etag", etag))
        if length is not None:
            fields.append(("content-length", str(length)))
        fields.append(("accept-ranges", "bytes"))
        via = field(head.headers, "via")
        fields.append(("via", f"{via}, 1.1 fetchonce" if via else "1.1 fetchonce"))
        return [*fields, *self.told_fields(), *more]

    def told_fields(self) -> tuple[tuple[str, str], ...]:
        return ("age", str(int(self.age))), ("cache-status", f"fetchonce; {self.told}")


async def _next(pieces: AsyncIterator[bytes]) -> bytes:
    return await anext(pieces, b"")


def _gone(target: Target, error: Exception) -> StoreError:
    return error if isinstance(error, StoreError) else StoreError(f"the body of {target.url} is gone: {error}")
