"""A body that is not kept: one client's own transfer, from upstream past the disk (Varnish: pass).

For answers that may not be shared (RFC 9111 §3), and where there is no room. What upstream sends goes on as fast as the
client takes it, through one buffer; a transfer that breaks is resumed at its byte, as a fill's is. A body that must
have a digest is hashed on its way, and its last byte goes out only if it has it.
"""

import asyncio
import functools
import hashlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from ..errors import UpstreamError, UpstreamRange
from ..rules.digests import Algorithm, Digest
from ..rules.mirrors import Target
from ..rules.splice import Known
from ..upstream.exchange import Carrier
from .asking import Rest
from .context import FillContext
from .origin import Origin
from .verify import AskChecksums, ask_for, is_to_be_verified, judge

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

BUFFER_BYTES = 512 * 1024
"""Read, copied and written at once; as much again may wait in the client's transport."""
REACH_BYTES = 1024**2
"""Up to here bytes are read and dropped rather than asked for anew, to get to where a client's range begins."""


class Passthrough:
    """A body for one client. Its owner closes it. Upstream is read in threads, one step at a time."""

    in_memory = None

    def __init__(self, target: Target, origin: Origin, known: Known, context: FillContext, ask: AskChecksums) -> None:
        self.head, self.length = known.head, known.head.length
        self._target, self._origin, self._known, self._context, self._ask = target, origin, known, context, ask
        self._exchange: Carrier | None = None
        self._at = 0
        """Where the exchange is in the body."""
        self._step: asyncio.Future[bytes] | None = None
        self._hashes: dict[str, Hash] = {}
        if is_to_be_verified(target, self.length):
            algorithms = (target.digest.algorithm,) if target.digest else ("sha256", "sha512")
            self._hashes = {name: hashlib.new(name) for name in algorithms}
        self._hashed = 0

    def begin(self, exchange: Carrier) -> None:
        """Take the answer that brings the body from its first byte on."""
        self._exchange = exchange
        self._origin.found(exchange)

    def close(self) -> None:
        """End the transfer, if there is one; a step on its way ends soon, in its thread."""
        exchange, self._exchange = self._exchange, None
        if exchange and self._step and not self._step.done():
            exchange.abort()
            self._step.add_done_callback(functools.partial(_drop_after, exchange))
        elif exchange:
            self._origin.threads.submit(exchange.close)  # its connection may be of use to others

    async def wait_length(self) -> int | None:
        """None where upstream does not say: ranges of such a body are not given."""
        return self.length

    async def pieces(self, start: int, end: int | None) -> AsyncGenerator[bytes]:
        """The bytes from `start` to `end` (None: wherever the body ends), as they come.

        Raises UpstreamError once no mirror goes on, DigestMismatch before the last byte of a wrong body.
        """
        must_match = bool(self._hashes) and end in (None, self.length)
        held = b""
        while end is None or start < end:
            data = await self._next(start, end)
            if not data:
                break
            start += len(data)
            if must_match:
                data, held = held + data[:-1], data[-1:]
            if data:
                yield data
        if must_match:
            await self._judge()
            if held:
                yield held

    async def _next(self, offset: int, end: int | None) -> bytes:
        """The next bytes from `offset`, at least one; none at the true end of a body without a length."""
        loop = asyncio.get_running_loop()
        while True:
            exchange = await self._exchange_at(offset, end)
            try:
                self._step = loop.run_in_executor(self._origin.threads, self._read, exchange, offset, end)
                data = await asyncio.shield(self._step)
                if not data and self.length is not None and offset < self.length:
                    raise UpstreamRange(f"{exchange.url} was asked for byte {offset} and ended before it")
            except UpstreamError as error:
                self.close()
                if not self._known.can_resume:
                    raise
                self._origin.broke(error)
            else:
                self._origin.progressed()
                self._origin.fetched(len(data), exchange)
                return data

    async def _exchange_at(self, offset: int, end: int | None) -> Carrier:
        """The running transfer if it is at `offset`, or nearly; else one that is asked for."""
        if self._exchange and self._known.can_resume and not 0 <= offset - self._at <= REACH_BYTES:
            self.close()
        if self._exchange is None:
            answer = await self._origin.open((offset, self.length if end is None else end), self._known)
            assert isinstance(answer, Rest)
            self._exchange, self._at = answer.exchange, answer.start
        return self._exchange

    def _read(self, exchange: Carrier, offset: int, end: int | None) -> bytes:
        """In a thread: the bytes at `offset`; what comes before is dropped."""
        buffer = memoryview(bytearray(BUFFER_BYTES))
        while True:
            rest = (offset if self._at < offset else end or self._at + BUFFER_BYTES) - self._at
            count = exchange.read_into(buffer[:rest])
            if self._at == self._hashed:
                for each in self._hashes.values():
                    each.update(buffer[:count])
                self._hashed += count
            self._at += count
            if not count or self._at > offset:
                return bytes(buffer[:count])

    async def _judge(self) -> None:
        """Raises DigestMismatch for a wrong body, UpstreamError for one that did not pass here from its start."""
        expected = await ask_for(self._target, self._ask)
        if expected is None:
            return
        if self.length not in (None, self._hashed):
            raise UpstreamError(
                f"the last byte of {self._target.url} is not given without a look at the whole body: "
                "there is no room to keep it. ask for all of it"
            )

        async def digest(algorithm: Algorithm) -> Digest:
            return Digest(algorithm, self._hashes[algorithm].hexdigest())

        await judge(self._target, expected, digest, self._ask, self._known.url)


def _drop_after(exchange: Carrier, step: asyncio.Future[bytes]) -> None:
    if not step.cancelled():
        step.exception()  # nobody is there to be told
    exchange.drop()
