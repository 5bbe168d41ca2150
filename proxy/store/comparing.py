"""What a kill has left is put in order behind the start, a part at a time (bodies.py).

It takes a second for 200,000 entries. Meanwhile an entry is found where the index has it, and is as it was before a
generation whose commit was killed. Whoever needs to know all that is stored waits.
"""

import asyncio
from collections.abc import Callable
from logging import WARNING
from typing import TypeVar, TypeVarTuple

from ..errors import StoreError
from ..log import events, log
from .blobs import Blobs
from .partials import Partials
from .thread import StoreThread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Comparing:
    """`start()` it once the store's thread can work, and `await close()` it before that ends."""

    def __init__(self, blobs: Blobs, partials: Partials, thread: StoreThread) -> None:
        self._blobs, self._partials, self._thread = blobs, partials, thread
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._compare(), name="comparing")

    @property
    def is_over(self) -> bool:
        return self._task is None or self._task.done()

    async def wait(self) -> None:
        """Until the index holds all that is stored."""
        if self._task and not self._task.done():
            await asyncio.wait([self._task])

    async def do(self, work: Callable[[*Ts], T], *args: *Ts, unwanted: Callable[[T], object] | None = None) -> T:
        """As StoreThread.do, with all that is stored in the index."""
        await self.wait()
        return await self._thread.do(work, *args, unwanted=unwanted)

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _compare(self) -> None:
        start: int | None = 0
        try:
            while start is not None:
                start = await self._thread.do(self._blobs.compare, start)
            await self._thread.do(self._partials.sweep)  # last: a commit that was killed needs what it had written
        except StoreError as error:
            log(events, WARNING, "store.not_compared", error=error, hint="what the index lacks is fetched anew")
