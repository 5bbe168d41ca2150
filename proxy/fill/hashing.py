"""The hash of a growing file, a step behind its contiguous start and off the loop.

What is left to hash when the last byte comes is what came during one step, so nobody waits long for a digest.
"""

import asyncio
import hashlib
from concurrent.futures import Executor

from ..errors import StoreError
from ..store.partial import Partial

STEP_BYTES = 8 * 1024**2
"""A step is worth a thread hop from here on."""
STEP_MAX_BYTES = 64 * 1024**2
"""... and is no longer than this, so that no thread is kept long by a file that nobody wants any more."""
READ_BYTES = 1024**2
"""In memory at once."""


class TrailingHash:
    """One algorithm over one partial. A step runs in a thread, one at a time."""

    def __init__(self, algorithm: str, partial: Partial, threads: Executor) -> None:
        self._state = hashlib.new(algorithm)
        self._partial, self._threads = partial, threads
        self._done = 0
        """Bytes hashed."""
        self._turn = asyncio.Lock()

    async def follow(self, end: int) -> None:
        """Every byte before `end` is in the file: hash on, if that is worth a step. Raises StoreError."""
        if end - self._done >= STEP_BYTES:
            await self._go_to(end)

    async def finish(self, length: int) -> str:
        """The digest in hex of the file's first `length` bytes, all of which are there. Raises StoreError."""
        await self._go_to(length)
        return self._state.hexdigest()

    async def _go_to(self, end: int) -> None:
        async with self._turn:
            while self._done < end:
                stop = min(end, self._done + STEP_MAX_BYTES)
                step = asyncio.get_running_loop().run_in_executor(self._threads, self._hash, self._done, stop)
                try:
                    await asyncio.shield(step)
                except asyncio.CancelledError:
                    await asyncio.wait([step])  # it reads a file that is closed next
                    raise
                self._done = stop

    def _hash(self, start: int, end: int) -> None:
        """In a thread: hash the bytes from `start` to `end`."""
        while start < end:
            data = self._partial.read(start, min(READ_BYTES, end - start))
            if not data:
                raise StoreError(f"{self._partial.path} lost its end")
            self._state.update(data)
            start += len(data)
