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
"""... and is no longer than this, so that a thread is not lost to a file that nobody wants any more."""
READ_BYTES = 1024**2
"""In memory at once."""


class TrailingHash:
    """One algorithm over one partial. All methods are the loop's; a step runs in a thread, one at a time."""

    def __init__(self, algorithm: str, partial: Partial, threads: Executor) -> None:
        self._state = hashlib.new(algorithm)
        self._partial, self._threads = partial, threads
        self._done = 0
        """Bytes hashed; moved by the running step's end only."""
        self._step: asyncio.Future[int] | None = None

    def follow(self, end: int) -> None:
        """Every byte before `end` is in the file: hash on, if it is worth a step and none is running."""
        if end - self._done >= STEP_BYTES and (self._step is None or self._step.done()):
            self._take_step()
            self._step = self._start(end)

    async def finish(self, length: int) -> str:
        """The digest in hex of the file's first `length` bytes, all of which are there. Raises StoreError."""
        while True:
            if self._step:
                await asyncio.wait([self._step])
            self._take_step()
            if self._done >= length:
                return self._state.hexdigest()
            self._step = self._start(length)

    def _take_step(self) -> None:
        if self._step:
            self._done, self._step = self._step.result(), None

    def _start(self, end: int) -> asyncio.Future[int]:
        end = min(end, self._done + STEP_MAX_BYTES)
        step = asyncio.get_running_loop().run_in_executor(self._threads, self._hash, self._done, end)
        step.add_done_callback(_look)
        return step

    def _hash(self, start: int, end: int) -> int:
        """In a thread: hash the bytes from `start` to `end`, and return `end`."""
        while start < end:
            data = self._partial.read(start, min(READ_BYTES, end - start))
            if not data:
                raise StoreError(f"{self._partial.path} lost its end")
            self._state.update(data)
            start += len(data)
        return start


def _look(step: asyncio.Future[int]) -> None:
    # Of a fill that fails first nobody takes the result; a trouble with the file is then told by that.
    if not step.cancelled():
        step.exception()
