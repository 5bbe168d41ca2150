"""What goes on, as server-sent events (HTML Standard §9.2), for the page and for `status --watch`."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

from ..gateway import Gateway
from .monitor import Monitor
from .status import whole_status

TICK_SECONDS = 0.5
QUIET_SECONDS = 15.0
"""After so long without a change a comment is sent, so that nobody on the way takes the connection for dead."""


class Live:
    """The status of all workers, asked for once for all who watch."""

    def __init__(self, gateway: Gateway, monitor: Monitor) -> None:
        self._gateway, self._monitor = gateway, monitor
        self._turn = asyncio.Lock()
        self._at = -TICK_SECONDS
        self._text = ""

    async def events(self) -> AsyncIterator[bytes]:
        """An event "status" at once and at each change, until the server stops."""
        seen, said_at = "", time.monotonic()
        while not self._monitor.is_stopping:
            text = await self._current()
            if text != seen:
                seen, said_at = text, time.monotonic()
                yield f"event: status\ndata: {text}\n\n".encode()
            elif time.monotonic() - said_at > QUIET_SECONDS:
                said_at = time.monotonic()
                yield b": nothing new\n\n"
            await asyncio.sleep(TICK_SECONDS)

    async def _current(self) -> str:
        async with self._turn:
            if time.monotonic() - self._at >= TICK_SECONDS * 0.9:
                status = await whole_status(self._gateway)
                for worker in status["workers"]:
                    del worker["uptime"]  # it always changes
                self._text, self._at = json.dumps(status, ensure_ascii=False), time.monotonic()
            return self._text
