"""What the servers do at one moment, as values that JSON can hold."""

import asyncio
import dataclasses
import os
from collections.abc import Iterable
from typing import Any

from ..errors import ProxyError
from ..fill.fill import Fill
from ..gateway import Gateway
from ..stats import total
from ..store.servers import ServerRecord, running
from ..upstream.local import LocalServer

OWN_PATH = "/-/status/own"
ANSWER_SECONDS = 1.0
"""How long to wait for the status of another server."""
FAILURES_SECONDS = 3600.0
"""How far back failures are shown."""


async def whole_status(gateway: Gateway) -> dict[str, Any]:
    """One status for all servers on the cache directory, without those that do not answer in time."""
    servers = await asyncio.to_thread(running, gateway.store.root)
    token = gateway.settings.access.token
    parts = await asyncio.gather(*(_ask(server, token) for server in servers if server.pid != os.getpid()))
    whole = merged([status(gateway), *filter(None, parts)])
    listen = {server.pid: list(server.listen) for server in servers}
    space = dataclasses.asdict(await gateway.janitor.space())
    whole["space"] = {name: space[name] for name in ("stored", "reserved", "max_size", "free")}
    whole["workers"] = [{**worker, "listen": listen.get(worker["pid"], [])} for worker in whole["workers"]]
    return whole


async def _ask(server: ServerRecord, token: str) -> dict[str, Any] | None:
    try:
        async with asyncio.timeout(ANSWER_SECONDS), LocalServer(server.own, token) as other:
            part: dict[str, Any] = await other.get_json(OWN_PATH)
            return part
    except (ProxyError, TimeoutError):
        return None  # It ends or hangs. The status of the others is worth more than an error.


def merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One status from several. Totals are summed.

    Processes that share a fill get one row: that of the process that fetches, with the readers of all.
    """
    whole: dict[str, Any] = {"fills": [], "totals": {}, "failures": [], "workers": [], "peers": {}, "lease": None}
    fills: dict[str, dict[str, Any]] = {}
    for part in parts:
        whole["workers"] += part["workers"]
        whole["failures"] += part["failures"]
        _add(whole["totals"], part["totals"])
        # A process from before an upgrade may not know of either.
        whole["lease"] = max(filter(None, (whole["lease"], part.get("lease"))), default=None)
        for base, state in part.get("peers", {}).items():
            whole["peers"][base] = max(state, whole["peers"].get(base, state))
        if "s3" in part:
            _add(whole.setdefault("s3", {}), part["s3"])
        for fill in part["fills"]:
            other = fills.get(fill["key"])
            if other:
                first = other if fill["is_following"] else fill
                fill = {**first, "readers": fill["readers"] + other["readers"]}
            fills[fill["key"]] = fill
    whole["fills"] = list(fills.values())
    whole["failures"].sort(key=lambda failure: failure["at"], reverse=True)
    return whole


def _add(sums: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, dict):
            _add(sums.setdefault(key, {}), value)
        else:
            sums[key] = sums.get(key, 0) + value


def status(gateway: Gateway) -> dict[str, Any]:
    """What this process does: `fills`, `totals` (bytes), the `failures` of the last hour and one row of `workers`.

    And of the shared bucket, if there is one, `s3`: numbers that can be added.
    """
    now = gateway.clock()
    stats = gateway.stats
    return {
        **({"s3": bucket_status(gateway)} if gateway.flights.tier.is_on else {}),
        "fills": [fill_status(fill, now) for fill in gateway.flights.running()],
        "totals": {
            "requests": total(stats.requests, 3),
            "fills": total(stats.fills, 1),
            "sent_bytes": stats.sent_bytes.total(),
            "fetched_bytes": stats.fetched_bytes.total(),
            "peer_bytes": stats.peer_bytes.total(),
        },
        "peers": gateway.flights.peers.status(),
        "lease": gateway.flights.lease,
        "failures": [dataclasses.asdict(each) for each in stats.recent if each.at > now - FAILURES_SECONDS],
        "workers": [
            {
                "pid": os.getpid(),
                "cache_dir": str(gateway.store.root),
                "offline": gateway.offline,
                "uptime": round(now - gateway.started_at, 1),
            }
        ],
    }


def bucket_status(gateway: Gateway) -> dict[str, Any]:
    """Of the bucket that servers share."""
    tier, stats = gateway.flights.tier, gateway.stats
    return {
        "absent": int(tier.is_absent),
        "waiting": tier.behind.waiting,
        "aside": tier.behind.aside,
        "lookups": total(stats.bucket_lookups, 0),
        "uploads": total(stats.bucket_uploads, 0),
        "bytes": total(stats.bucket_bytes, 0),
    }


def fill_status(fill: Fill, now: float) -> dict[str, Any]:
    """One running fill: sizes in bytes, the mean rate in bytes per second, ETA in seconds (None: unknown)."""
    elapsed = max(now - fill.started_at, 1e-3)
    rate = fill.fetched / elapsed
    rest = None if fill.length is None else fill.length - fill.received
    return {
        "url": fill.target.url,
        "key": fill.target.key,
        "mirror": fill.target.mirror.name,
        "state": fill.state.name,
        "bytes": fill.received,
        "length": fill.length,
        "rate": round(rate),
        "eta": round(rest / rate, 1) if rest is not None and rate else None,
        "readers": fill.readers,
        "source": fill.source.partition("?")[0],  # the query of a signed URL is a password
        "is_following": fill.is_following,
        "resumes": fill.mishaps.resumes,
        "trouble": fill.mishaps.last,
        "started_at": fill.started_at,
        "error": fill.error.message if fill.error else None,
    }
