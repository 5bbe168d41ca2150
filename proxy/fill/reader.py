"""A fill's body, as one client reads it."""

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing

from ..errors import StoreError
from ..rules.digests import Digest, Expected
from ..rules.pieces import Piece, Slice
from .fill import Fill
from .states import Incoming, Small
from .verify import mismatch


def body_of(fill: Fill, digest: Digest | None) -> "FillBody | SmallBody":
    """What the fill brings, for a client that is attached to it; `digest` as in FillBody.

    Raises DigestMismatch where all of a wrong body is known: of an empty one the head would say all.
    """
    match fill.incoming:
        case Incoming() as incoming:
            if incoming.length == 0:
                _check(b"", digest, incoming.url)
            return FillBody(fill, incoming, digest)
        case Small() as small:
            _check(small.body, digest, small.url)
            return SmallBody(small)
    raise AssertionError(f"a fill that is {fill.state.name} has no body")


def _check(body: bytes, digest: Digest | None, url: str) -> None:
    if digest:
        got = Digest(digest.algorithm, hashlib.new(digest.algorithm, body).hexdigest())
        if got != digest:
            raise mismatch(Expected(digest), got, url)


class SmallBody:
    """A body in memory."""

    def __init__(self, small: Small) -> None:
        self.head, self.length, self.in_memory = small.head, small.length, small.body

    def close(self) -> None: ...

    async def wait_length(self) -> int:
        return self.length

    async def pieces(self, start: int, end: int | None) -> AsyncGenerator[Piece]:
        if piece := self.in_memory[start:end]:
            yield piece


class FillBody:
    """For a client that is attached to the fill.

    `digest`: the client says which digest it must have. If it is wrong nobody else must suffer, whoever began the fill:
    it alone waits with the last byte for the digest.
    """

    in_memory = None

    def __init__(self, fill: Fill, incoming: Incoming, digest: Digest | None) -> None:
        self.head = incoming.head
        self._fill, self._incoming, self._growing, self._digest = fill, incoming, incoming.growing, digest
        if digest:
            incoming.verifier.want(digest.algorithm)

    @property
    def length(self) -> int | None:
        return self._growing.length

    def close(self) -> None:
        """The fill owns the file."""

    async def wait_length(self) -> int:
        return await self._growing.wait_length()

    async def pieces(self, start: int, end: int | None) -> AsyncGenerator[Piece]:
        """All of the growing file, for the server to follow; past the disk where the rest of it cannot be stored.

        It comes in slices of what is there if its end is not known, or a digest of the client's own is waited for.
        """
        while end is None or start < end:
            try:
                stop = await self._wait_readable(start)
            except StoreError:
                # With another digest than the fill's there is no other way: nobody would look at it.
                is_looked_at = self._digest in (None, self._fill.target.digest)
                passthrough = self._fill.bypass() if is_looked_at else None
                if passthrough is None:
                    raise
                with closing(passthrough):
                    async with aclosing(passthrough.pieces(start, end)) as pieces:
                        async for piece in pieces:
                            yield piece
                return
            if stop == start:
                return
            if end is None or self._digest:
                stop = stop if end is None else min(stop, end)
                yield Slice(self._growing.partial.fd, start, stop)
            else:
                stop = end
                yield Slice(self._growing.partial.fd, start, stop, self._growing)
            start = stop

    async def _wait_readable(self, offset: int) -> int:
        stop = await self._growing.wait_readable(offset)
        if self._digest is None:
            return stop
        last = (stop if self.length is None else self.length) - 1
        if offset < last:
            return min(stop, last)
        self._fill.hurry()
        digests = await self._incoming.verifier.wait_digests()
        got = digests.get(self._digest.algorithm)
        if got != self._digest.hex:
            named = f"{self._digest.algorithm}:{got}" if got else f"sha256:{digests['sha256']}"
            raise mismatch(Expected(self._digest), named, self._incoming.url)
        return self._growing.readable(offset)
