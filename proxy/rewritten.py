"""A body in which upstream's URLs are ours, made anew for each request from the one that upstream sent.

What is stored, hashed, verified and revalidated stays upstream's. The answer begins once the body is whole.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from .delivery import Body, Delivery, Request
from .errors import FileEnded
from .rules.entry import Head
from .rules.links import Links
from .rules.mirrors import Target
from .rules.pieces import Piece
from .rules.policy import request_directives
from .rules.rewriting import MAX_BYTES, head_of, may_be_json, rewrite


def is_rewritten(request: Request, target: Target) -> bool:
    """Whether upstream's URLs in the body become ours.

    Not where the client has not named us, wants a certain digest, or asks for upstream's bytes (RFC 9111 §5.2.1.6).
    """
    if target.digest or not target.mirror.is_rewritten(target.path) or request.own_base() is None:
        return False
    return "no-transform" not in request_directives(request.headers)


class _Enough(Exception):
    """No more bytes need to be read."""


@dataclass(frozen=True, slots=True)
class ReadBody:
    """A body of which the first bytes, or all, are in memory. Whoever opened `rest` closes it."""

    head: Head
    data: bytes
    rest: Body | None
    """Where the bytes behind `data` are; None if there are no more. It is not asked for those in `data` again."""
    in_memory = None

    @property
    def length(self) -> int | None:
        return self.rest.length if self.rest else len(self.data)

    async def wait_length(self) -> int | None:
        return await self.rest.wait_length() if self.rest else len(self.data)

    async def pieces(self, start: int, end: int | None) -> AsyncGenerator[Piece]:
        if data := self.data[start:end]:
            yield data
        start += len(data)
        if self.rest and (end is None or start < end):
            async with aclosing(self.rest.pieces(start, end)) as pieces:
                async for piece in pieces:
                    yield piece

    def close(self) -> None: ...


async def rewritten(delivery: Delivery, links: Links) -> Delivery:
    """`delivery` with its body rewritten; as it is where that is no JSON, or too long. Raises the body's error."""
    body = delivery.body
    if body.length is not None and body.length > MAX_BYTES:
        return delivery
    read = await _read(delivery)
    data = read.data if read.rest else await asyncio.to_thread(rewrite, read.data, links)
    if data == read.data:
        return replace(delivery, body=read, repeat=None)
    head = head_of(body.head, data, is_secret="@" in links.base)
    return replace(delivery, body=ReadBody(head, data, None), takes_ranges=False, repeat=None)


async def _read(delivery: Delivery) -> ReadBody:
    """The body, whole if it may be JSON of at most MAX_BYTES."""
    data = bytearray()

    async def collect(message: MutableMapping[str, Any]) -> None:
        if "file" in message:
            place = message["file"], min(message["count"], MAX_BYTES + 1 - len(data)), message["offset"]
            piece = await asyncio.to_thread(os.pread, *place)
            data.extend(piece)
            if len(piece) < place[1]:
                raise FileEnded(f"the file ends {place[1] - len(piece)} bytes before what was to be read", len(piece))
        else:
            data.extend(message["body"])
        if len(data) > MAX_BYTES or not may_be_json(data):
            raise _Enough

    try:
        await delivery.send_bytes(collect, 0, None)
    except _Enough:
        return ReadBody(delivery.body.head, bytes(data), delivery.body)
    return ReadBody(delivery.body.head, bytes(data), None)
