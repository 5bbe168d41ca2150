"""fetchonce status: what the server on the cache directory is doing."""

import asyncio
import contextlib
from typing import Any

import click

from ..config import Settings
from ..errors import ProxyError
from ..store.servers import running
from ..upstream.local import LocalServer
from .common import age_text, failure_texts, json_option, print_json, settings_options, size_text


@click.command()
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C.")
@json_option
@settings_options
def status(settings: Settings, watch: bool, as_json: bool) -> None:
    """Show running fills (bytes, rate, time left, readers, source), what is stored, and what failed lately."""
    if as_json and watch:
        raise click.UsageError("--watch is for people; without it --json prints one object")
    if as_json:
        print_json(read(settings))
        return
    if not watch:
        click.echo(as_text(read(settings)))
        return
    from .watch import watch as show  # rich takes longer to load than the rest of the command

    with contextlib.suppress(KeyboardInterrupt):
        show(lambda: read(settings), head)


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
    return {"fills": [], "totals": {}, "failures": [], "workers": []}


def head(whole: dict[str, Any]) -> list[str]:
    """Lines about the servers and what they have done."""
    if not whole["workers"]:
        return ["no server runs on this cache directory; start one with: fetchonce serve"]
    totals = whole["totals"]
    servers: dict[str, list[dict[str, Any]]] = {}
    for worker in whole["workers"]:
        servers.setdefault(" ".join(worker["listen"]), []).append(worker)
    leaving = servers.pop("", [])
    ended = ", ".join(f"{count} {word}" for word, count in sorted(totals["requests"].items()))
    fetched, served = size_text(totals["fetched_bytes"]), size_text(totals["sent_bytes"])
    return [
        *(
            f"server on {address}{f', {len(workers)} workers' if len(workers) > 1 else ''}"
            f", up {age_text(max(each['uptime'] for each in workers))}"
            for address, workers in servers.items()
        ),
        *(f"process {worker['pid']}, from before the upgrade, ends what it has begun" for worker in leaving),
        f"{fetched} fetched, {served} served ({ended or 'no request has ended yet'})",
        *([_space(whole["space"])] if "reserved" in whole.get("space", {}) else []),  # an earlier version does not say
        *_fleet(whole),
        *([_bucket(whole["s3"])] if "s3" in whole else []),
    ]


def _space(space: dict[str, int]) -> str:
    """A line about what is stored, what running fills have still to bring, and what room there is."""
    most = f" of at most {size_text(space['max_size'])}" if space["max_size"] else ""
    coming = f", {size_text(space['reserved'])} to come" if space["reserved"] else ""
    return f"{size_text(space['stored'])} stored{most}{coming}, {size_text(max(0, space['free']))} free on disk"


def _fleet(whole: dict[str, Any]) -> list[str]:
    """A line about other servers of the fleet, if one was asked or there is a lease."""
    peers, lease = whole.get("peers", {}), whole.get("lease")  # a server of an earlier version does not say
    if not peers and lease is None:
        return []
    silent = [name for name, state in {**peers, "Redis": lease or "answers"}.items() if state != "answers"]
    left_alone = f"; left alone for a while: {', '.join(silent)}" if silent else ""
    return [f"fleet: {size_text(whole['totals']['peer_bytes'])} from other servers{left_alone}"]


def _bucket(told: dict[str, Any]) -> str:
    """A line about the bucket that servers share."""
    read, written = (size_text(told["bytes"].get(word, 0)) for word in ("read", "written"))
    hits = told["lookups"].get("hit", 0) + told["lookups"].get("stale", 0)
    waiting = f", {told['waiting']} on their way there" if told["waiting"] else ""
    aside = f", {told['aside']} put aside (bucket.put_aside in the log says why)" if told.get("aside") else ""
    absent = ", does not answer just now" if told["absent"] else ""
    return f"bucket: {hits} hits, {read} read, {written} written{waiting}{aside}{absent}"


def as_text(whole: dict[str, Any]) -> str:
    lines = head(whole)
    for fill in whole["fills"]:
        done, length = fill["bytes"], fill["length"]
        of = f" of {size_text(length)} ({done * 100 // length}%)" if length else ""
        left = f", {age_text(fill['eta'])} left" if fill["eta"] is not None else ""
        readers = f"{fill['readers']} reader{'s' if fill['readers'] != 1 else ''}"
        lines += [
            "",
            fill["url"] + (f" from {fill['source']}" if fill["source"] != fill["url"] else ""),
            f"  {fill['state']}: {size_text(done)}{of}, {size_text(fill['rate'])}/s{left}, {readers}",
            *([f"  last trouble: {fill['trouble']}"] if fill["trouble"] else []),
        ]
    if whole["workers"] and not whole["fills"]:
        lines.append("nothing is being fetched")
    return "\n".join([*lines, *failure_texts(whole["failures"])])
