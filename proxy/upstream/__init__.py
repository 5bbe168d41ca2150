"""The way out: it knows no disk, blocks in the caller's thread, and is the only place that knows httpx.

local.py alone is asynchronous: it reaches only servers of ours on this machine.
"""

import sys

if "httpx" not in sys.modules:
    # httpx does without its own command line, which imports rich and pygments: 4 MB of memory in each process.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]
    import httpx  # noqa: F401

    del sys.modules["httpx._main"]
