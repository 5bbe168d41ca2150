"""Snapshots of what is going on, as JSON-ready values."""

import os
import time
from typing import Any

from ..fill import Fill
from ..gateway import Gateway


def status(gateway: Gateway) -> dict[str, Any]:
    """The object of /-/status: `fills`, `totals` (bytes), `workers`."""
    now = gateway.clock()
    stats = gateway.stats
    return {
        "fills": [fill_status(fill, now) for fill in gateway.flights.running()],
        "totals": {
            "requests": dict(stats.requests),
            "fills": dict(stats.fills),
            "sent_bytes": stats.sent_bytes,
            "fetched_bytes": stats.fetched_bytes,
        },
        "workers": [
            {
                "pid": os.getpid(),
                "cache_dir": str(gateway.store.root),
                "offline": gateway.offline,
                "uptime": round(time.monotonic() - STARTED, 1),
            }
        ],
    }


def fill_status(fill: Fill, now: float) -> dict[str, Any]:
    """One running fill: sizes in bytes, rate in bytes a second since it began, ETA in seconds (None: not known)."""
    elapsed = max(now - fill.started_at, 1e-3)
    rate = fill.fetched / elapsed
    rest = None if fill.length is None else fill.length - fill.received
    return {
        "url": fill.target.url,
        "key": fill.target.key,
        "mirror": fill.target.mirror.name,
        "state": fill.state.value,
        "bytes": fill.received,
        "length": fill.length,
        "rate": round(rate),
        "eta": round(rest / rate, 1) if rest is not None and rate else None,
        "readers": fill.readers,
        "source": fill.source.partition("?")[0],  # the query of a redirect's target is as good as a password
        "started_at": fill.started_at,
        "error": fill.error.message if fill.error else None,
    }


STARTED = time.monotonic()
