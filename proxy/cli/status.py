"""fetchonce status: what the server on the cache directory is doing."""

import asyncio
import contextlib
import time
from typing import Any

import click
from rich.live import Live
from rich.text import Text

from ..config import Settings
from ..errors import ProxyError
from ..store.servers import running
from ..upstream.local import LocalServer
from .common import age_text, json_option, print_json, settings_options, size_text

WATCH_SECONDS = 0.5


@click.command()
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C.")
@json_option
@settings_options
def status(settings: Settings, watch: bool, as_json: bool) -> None:
    """Show running fills: bytes, rate, time left, readers, source."""
    if as_json and watch:
        raise click.UsageError("--watch is for people; without it --json prints one object")
    if as_json:
        print_json(read(settings))
        return
    if not watch:
        click.echo(as_text(read(settings)))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(Text(as_text(read(settings))), refresh_per_second=4) as live:
        while True:
            time.sleep(WATCH_SECONDS)
            live.update(Text(as_text(read(settings))))


def read(settings: Settings) -> dict[str, Any]:
    """The status of all servers on the cache directory in one; empty if none runs."""
    return asyncio.run(_read(settings))


async def _read(settings: Settings) -> dict[str, Any]:
    servers = running(settings.cache_dir)
    for server in servers:
        try:
            async with LocalServer(server.own, settings.access.token) as local:
                whole: dict[str, Any] = await local.get_json("/-/status")
                return whole
        except ProxyError:
            if server is servers[-1]:
                raise
    return {"fills": [], "totals": {}, "workers": []}


def as_text(whole: dict[str, Any]) -> str:
    if not whole["workers"]:
        return "no server runs on this cache directory; start one with: fetchonce serve"
    totals = whole["totals"]
    servers: dict[str, list[dict[str, Any]]] = {}
    for worker in whole["workers"]:
        servers.setdefault(" ".join(worker["listen"]), []).append(worker)
    leaving = servers.pop("", [])
    requests = ", ".join(f"{count} {word}" for word, count in sorted(totals["requests"].items())) or "no requests yet"
    lines = [
        *(
            f"server on {address}{f', {len(workers)} workers' if len(workers) > 1 else ''}"
            f", up {age_text(max(each['uptime'] for each in workers))}"
            for address, workers in servers.items()
        ),
        *(f"process {worker['pid']}, from before the upgrade, ends what it has begun" for worker in leaving),
        f"{size_text(totals['fetched_bytes'])} fetched, {size_text(totals['sent_bytes'])} served ({requests})",
    ]
    for fill in whole["fills"]:
        done, length = fill["bytes"], fill["length"]
        of = f" of {size_text(length)} ({done * 100 // length}%)" if length else ""
        left = f", {age_text(fill['eta'])} left" if fill["eta"] is not None else ""
        readers = f"{fill['readers']} reader{'s' if fill['readers'] != 1 else ''}"
        lines += [
            "",
            fill["url"] + (f" from {fill['source']}" if fill["source"] != fill["url"] else ""),
            f"  {fill['state']}: {size_text(done)}{of}, {size_text(fill['rate'])}/s{left}, {readers}",
        ]
    return "\n".join(lines if whole["fills"] else [*lines, "nothing is being fetched"])
