"""The event loop of a server: uvloop's where that is installed, which is on Linux. All works with asyncio's own too.

32 clients who ask for a small file that is repeated (replay.py) cost 11.8 us of processor time each with uvloop, and
15.1 with asyncio.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop  # type: ignore[assignment]


def run(work: Coroutine[Any, Any, None]) -> None:
    """As asyncio.run."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(work)
