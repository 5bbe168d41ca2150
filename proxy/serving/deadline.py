"""One deadline, which moves with almost every event and rarely passes."""

import asyncio
import math
from collections.abc import Callable


class Deadline:
    """Calls `on_passed` when the time that was set last is over.

    Moving it to a later time costs no timer: when the running timer rings too early, it is set again. A request that is
    answered in time costs none either.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_passed: Callable[[], None]) -> None:
        self._loop, self._on_passed = loop, on_passed
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """To so many seconds from now."""
        self._due = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._due:
            self.close()
            self._timer = self._loop.call_at(self._due, self._ring)

    def clear(self) -> None:
        self._due = math.inf

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        if self._due <= self._loop.time():
            self._on_passed()
        elif self._due < math.inf:
            self._timer = self._loop.call_at(self._due, self._ring)
