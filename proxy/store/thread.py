"""The store's one thread: what it is given it does in order, and it puts right what somebody removed."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from ..errors import OutOfSpace, StoreError
from .files import MAKE_ROOM, store_error
from .ground import Ground
from .index import INDEX_ERRORS, Busy, is_full

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class StoreThread:
    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._thread = ThreadPoolExecutor(1, "store")
        self.mends = False
        """Once the ground is open."""

    def shutdown(self) -> None:
        self._thread.shutdown()

    async def do(self, work: Callable[[*Ts], T], *args: *Ts, unwanted: Callable[[T], object] | None = None) -> T:
        """Run `work` in the thread. Raises StoreError for all that the disk or the index raises.

        Where the result must be closed, `unwanted` does so if the caller is cancelled before it gets it.
        """
        job = asyncio.get_running_loop().run_in_executor(self._thread, self._run, work, *args)
        try:
            if unwanted is None:
                return await job
            try:
                return await asyncio.shield(job)
            except asyncio.CancelledError:
                job.add_done_callback(lambda done: done.cancelled() or done.exception() or unwanted(done.result()))
                raise
        except OSError as error:
            raise store_error(f"the cache directory {self._ground.root} failed", error) from error
        except Busy as error:
            raise StoreError(f"another process has kept the index of {self._ground.root} locked. try again") from error
        except INDEX_ERRORS as error:
            if is_full(error):
                raise OutOfSpace(
                    f"the index of {self._ground.root} cannot grow: the disk is full. {MAKE_ROOM}"
                ) from error
            raise StoreError(f"the index of {self._ground.root} failed: {error}") from error

    def _run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """In the thread: `work`, once more if somebody had removed what it needs."""
        try:
            return work(*args)
        except (FileNotFoundError, StoreError, *INDEX_ERRORS) as error:
            if not self.mends or isinstance(error, Busy) or not self._ground.mend(error):
                raise
        return work(*args)
