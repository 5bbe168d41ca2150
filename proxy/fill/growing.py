"""A body of which some ranges are on disk: readers read from it, and whoever brings bytes writes into it.

It knows nothing of where bytes come from (Varnish calls it a boc). Ingest adds what it fetches, sharing adds what
another process has written, and the verifier withholds the last byte until the digest is right.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

from ..errors import ProxyError
from ..store.partial import Partial

WAKE_BYTES = 4 * 1024**2
"""Readers are woken for this much at once: each wake costs every reader a call. 1 MiB made eight readers 8 % slower."""
WAKE_SECONDS = 0.005
"""... or after this long, so that bytes of a slow upstream do not wait."""


class Growing:
    """All methods but `readable` belong to the event loop."""

    def __init__(self, partial: Partial, length: int | None) -> None:
        """Takes over `partial`, and closes it."""
        self.partial, self.length = partial, length
        self._files = contextlib.ExitStack()
        self._files.callback(partial.close)
        self.error: ProxyError | None = None
        """Why no more bytes come; those that are there can still be read."""
        self.wanted: Counter[int] = Counter()
        """Where readers wait, also those of other processes: how many at each offset."""
        self.demand = asyncio.Event()
        """Set when a reader begins to wait. Only the one that brings bytes waits for it; it may set it itself."""
        self._is_withheld = self._is_lost = False
        self._changed = asyncio.Event()
        self._watchers: list[Callable[[], object]] = []
        self._woken_at = partial.extents.total
        self._timer: asyncio.TimerHandle | None = None

    # -- for readers --------------------------------------------------------------------------------------------------

    @property
    def received(self) -> int:
        """Bytes on disk."""
        return self.partial.extents.total

    @property
    def is_whole(self) -> bool:
        """Every byte is on disk; the last one may still be withheld."""
        return self.length is not None and self.received == self.length

    @property
    def is_withheld(self) -> bool:
        """Whether the last byte is kept back from all readers."""
        return self._is_withheld

    def readable(self, offset: int) -> int:
        """Offset up to which a reader standing at `offset` may read now. From any thread."""
        if self._is_lost:
            return offset
        reach = self.partial.extents.reach(offset)
        if not self._is_withheld:
            return reach
        end = reach if self.length is None else self.length
        return min(reach, max(offset, end - 1))

    async def wait_readable(self, offset: int) -> int:
        """Wait until `readable(offset) > offset`, and return it; `offset` itself at the end of the body.

        Raises what the fill failed with if it did so first.
        """
        if (stop := self.readable(offset)) > offset:
            return stop
        with self.waits_at(offset):
            while (stop := self.readable(offset)) <= offset and (offset != self.length or self._is_withheld):
                await self.wait_change()
            return stop

    def watch(self, changed: Callable[[], object]) -> None:
        """Have `changed` called at each wake, until `unwatch` is called as often as this was."""
        self._watchers.append(changed)

    def unwatch(self, changed: Callable[[], object]) -> None:
        self._watchers.remove(changed)

    async def wait_length(self) -> int:
        """Wait until the length of the body is known; raises what the fill failed with."""
        while self.length is None:
            await self.wait_change()
        return self.length

    async def wait_change(self) -> None:
        """Wait until there is more, or something else to see. Raises what the fill has failed with already."""
        if self.error:
            raise self.error
        await self._changed.wait()

    async def reaches(self) -> AsyncIterator[int]:
        """How far the body is there from its first byte on, again whenever that is more; ends with the body."""
        reach = -1
        while reach != self.length and not self.error:
            if (now := self.partial.extents.reach(0)) > reach:
                reach = now
                yield reach
            else:
                await self._changed.wait()

    @contextlib.contextmanager
    def waits_at(self, offset: int) -> Iterator[None]:
        """For as long as a reader waits at `offset`: its bytes come first."""
        self.wanted[offset] += 1
        self.demand.set()
        try:
            yield
        finally:
            self.wanted[offset] -= 1
            if not self.wanted[offset]:
                del self.wanted[offset]
            self.demand.set()

    # -- for whoever brings bytes -------------------------------------------------------------------------------------

    def add(self, start: int, end: int) -> None:
        """The bytes from `start` to `end` are in the file. Readers are woken at once for the first, then in batches."""
        self.partial.extents.add(start, end)
        if self._woken_at == 0 or self.received - self._woken_at >= WAKE_BYTES:
            self.wake()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WAKE_SECONDS, self.wake)

    def catch_up(self) -> None:
        """Take in what another process has written."""
        if self.partial.catch_up():
            self.wake()

    def go_on_in(self, partial: Partial) -> None:
        """The same file, opened to be written too. The former descriptor stays open: a send may be at it."""
        self._files.callback(partial.close)
        self.partial = partial
        self.wake()

    def finish(self, length: int) -> None:
        """The body has ended, and this is its length."""
        self.length = length
        self.wake()

    def withhold(self) -> None:
        """Keep the last byte back from all readers."""
        self._is_withheld = True

    def release(self) -> None:
        """Let the last byte go."""
        self._is_withheld = False
        self.wake()

    def fail(self, error: ProxyError) -> None:
        """No more bytes come."""
        self.error = error
        self.wake()

    def lose(self) -> None:
        """The file is about to be emptied: nothing of it may be read any more."""
        self._is_lost = True

    def close(self) -> None:
        """Close the file: nobody writes or reads it any more."""
        if self._timer:
            self._timer.cancel()
        self._files.close()

    def wake(self) -> None:
        """Let everybody who waits for a change look."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._woken_at = self.received
        # A fresh Event each time: waiters need no lock, late waiters cannot miss a step.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for each in set(self._watchers):
            each()
