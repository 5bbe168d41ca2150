"""A body that is not kept: one client's own transfer, from upstream past the disk.

For answers that may not be shared (RFC 9111 §3), and where there is no room. What upstream sends goes on as fast as the
client takes it, through one buffer; a transfer that breaks is gone on with at its byte, as a fill's is. A body that
must have a digest is hashed on its way, and its last byte goes out only if it has.
"""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from ..errors import UpstreamChanged, UpstreamError
from ..rules.digests import Algorithm, Digest
from ..rules.entry import Head, Headers
from ..rules.mirrors import Target
from ..rules.segments import Segment
from ..rules.validators import resume_validator
from ..upstream.exchange import Exchange
from .origin import Rooms, first_answer, pause_after
from .transfer import head_of, open_rest
from .verify import AskChecksums, ask_for, is_to_be_verified, judge

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

BUFFER_BYTES = 512 * 1024
"""Read, copied and written at once; as much again may wait in the client's transport."""
REACH_BYTES = 1024**2
"""So much is read and dropped rather than asked for anew, to get on to where a client's range begins."""


class Passage:
    """Whoever has it closes it. All methods are the loop's; upstream is read in threads, one step at a time."""

    def __init__(
        self,
        target: Target,
        rooms: Rooms,
        ask_checksums: AskChecksums,
        head: Head,
        source: str,
        fields: Headers = (),
        exchange: Exchange | None = None,
    ) -> None:
        """`source` gave `head`; `exchange` is at byte 0 of the body. Without one it is asked for, with `fields`."""
        self.head = head
        self.length = head.length
        self._target, self._rooms, self._ask_checksums = target, rooms, ask_checksums
        self._source, self._url, self._fields = source, source, fields
        self._exchange, self._at = exchange, 0
        self._step: asyncio.Future[bytes] | None = None
        self._hashes: dict[str, Hash] = {}
        if is_to_be_verified(target, head.length):
            algorithms = (target.digest.algorithm,) if target.digest else ("sha256", "sha512")
            self._hashes = {name: hashlib.new(name) for name in algorithms}
        self._hashed = 0

    def close(self) -> None:
        """End the transfer, if there is one; a step on its way ends soon, in its thread."""
        exchange, step = self._exchange, self._step
        if step and not step.done():
            if exchange:
                exchange.abort()
            step.add_done_callback(self._late)
        elif exchange:
            self._exchange = None
            exchange.close()

    def _late(self, step: asyncio.Future[bytes]) -> None:
        if not step.cancelled():
            step.exception()  # whatever it ended with, nobody wants to know
        self.close()

    async def read(self, offset: int, end: int | None) -> AsyncGenerator[bytes]:
        """The bytes from `offset` to `end` (None: wherever the body ends), as they come.

        Raises UpstreamError once no mirror goes on, DigestMismatch before the last byte of a wrong body.
        """
        must_match = bool(self._hashes) and end in (None, self.length)
        held = b""
        while end is None or offset < end:
            data = await self._next(offset, end)
            if not data:
                break
            offset += len(data)
            if must_match:
                data, held = held + data[:-1], data[-1:]
            if data:
                yield data
        if must_match:
            await self._judge()
            if held:
                yield held

    @property
    def _can_go_on(self) -> bool:
        """Whether upstream can be asked for a part of that very body."""
        return self.length is not None and resume_validator(self.head.headers) is not None

    async def _next(self, offset: int, end: int | None) -> bytes:
        """The next bytes from `offset`, at least one; none at the true end of a body without a length."""
        loop, health = asyncio.get_running_loop(), self._rooms.health
        failures = 0
        while True:
            self._step = loop.run_in_executor(self._rooms.threads, self._take, offset, end)
            try:
                data = await asyncio.shield(self._step)
            except UpstreamError as error:
                self.close()
                failures += 1
                if not self._can_go_on:
                    raise
                delay = pause_after(error, failures, self._rooms.settings.retries)
                if failures > 1:  # the mirror that broke is asked once more
                    health.failed(self._url, loop.time())
                    self._url = health.order(self._target.urls_for(self._fields), loop.time())[0]
                await asyncio.sleep(delay)
            else:
                self._rooms.stats.fetched_bytes += len(data)
                return data

    def _take(self, offset: int, end: int | None) -> bytes:
        """In a thread: read the bytes at `offset`, from the running transfer if it is there, or nearly."""
        if self._exchange and self._can_go_on and not 0 <= offset - self._at <= REACH_BYTES:
            self._exchange.close()
            self._exchange = None
        if self._exchange is None:
            segment = Segment(offset, self.length if end is None else end)
            known = self.head, self._source, segment
            self._exchange = open_rest(
                self._rooms.upstream, self._url, *known, whole=False, alone=True, fields=self._fields
            )
            self._at = offset
            if self._exchange.status == 200:
                self._at = 0
                if resume_validator(self._exchange.headers) != resume_validator(self.head.headers):
                    raise UpstreamChanged(f"{self._url} has another generation than what came of it before")
        buffer = memoryview(bytearray(BUFFER_BYTES))
        while True:
            rest = (offset if self._at < offset else end or self._at + BUFFER_BYTES) - self._at
            count = self._exchange.read_into(buffer[:rest])
            if self._at == self._hashed:
                for each in self._hashes.values():
                    each.update(buffer[:count])
                self._hashed += count
            self._at += count
            if not count or self._at > offset:
                return bytes(buffer[:count])

    async def _judge(self) -> None:
        """Raises DigestMismatch for a wrong body, UpstreamError for one that did not pass here from its start."""
        expected = await ask_for(self._target, self._ask_checksums)
        if expected is None:
            return
        if self.length not in (None, self._hashed):
            raise UpstreamError(
                f"the last byte of {self._target.url} is not given without a look at the whole body: "
                "there is no room to keep it. ask for all of it"
            )

        async def digest(algorithm: Algorithm) -> Digest:
            return Digest(algorithm, self._hashes[algorithm].hexdigest())

        await judge(self._target, expected, digest, self._ask_checksums, self._source)


async def open_passage(target: Target, rooms: Rooms, ask_checksums: AskChecksums, fields: Headers) -> Passage:
    """Ask for a body of one's own, with `fields` of the client's request. Raises UpstreamError."""
    exchange = await first_answer(rooms, target.urls_for(fields), fields)
    try:
        head = head_of(exchange, rooms.clock(), secrets.token_hex(8), fields)
    except UpstreamError:
        exchange.close()
        raise
    return Passage(target, rooms, ask_checksums, head, exchange.url, fields, exchange)
