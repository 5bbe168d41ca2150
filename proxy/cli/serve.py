"""fetchonce serve"""

import asyncio
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from .. import log as logs
from ..app import App
from ..config import Settings, load
from ..connection import Limits
from ..errors import ConfigError
from ..gateway import Gateway
from ..log import events, log
from ..server import Server, bind
from .common import announced, leave


@click.command(short_help="Run the proxy (the default command).")
@click.option("--config", metavar="FILE", help="The configuration file [env: FETCHONCE_CONFIG].")
@click.option("--listen", multiple=True, metavar="HOST:PORT|unix:PATH", help="Where to listen [127.0.0.1:8642].")
@click.option("--cache-dir", metavar="DIR", help="Where to keep what was fetched [the user's cache directory].")
@click.option("--max-size", metavar="SIZE", help="How much to keep, such as 50GB; 0: no limit [50GB].")
@click.option("--allow", multiple=True, metavar="HOST", help="Fetch from this host too; *.HOST for its subdomains.")
@click.option("--mirror", multiple=True, metavar="NAME=URL[,URL...]", help="Add a mirror; its URLs are tried in order.")
@click.option("--offline", is_flag=True, help="Never ask upstream; serve what is stored, at any age.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[info]")
def serve(
    config: str | None,
    listen: tuple[str, ...],
    cache_dir: str | None,
    max_size: str | None,
    allow: tuple[str, ...],
    mirror: tuple[str, ...],
    offline: bool,
    log_level: str | None,
) -> None:
    """Run the proxy until SIGTERM or Ctrl-C. SIGHUP reads the configuration again."""
    overrides: dict[str, Any] = {}
    if listen:
        overrides["listen"] = list(listen)
    if cache := {key: value for key, value in (("dir", cache_dir), ("max_size", max_size)) if value}:
        overrides["cache"] = cache
    if log_level:
        overrides["log"] = {"level": log_level}
    if allow:
        overrides["access"] = {"allow_hosts": list(allow)}
    overrides["mirror"] = [mirror_table(text) for text in mirror]
    asyncio.run(run(partial(load, config, overrides), offline))
    leave(0)


def mirror_table(text: str) -> dict[str, Any]:
    name, found, urls = text.partition("=")
    if not found:
        raise click.UsageError(f'--mirror "{text}": expected NAME=URL[,URL...]')
    return {"name": name, "upstreams": [url.strip() for url in urls.split(",") if url.strip()]}


async def run(read_settings: Callable[[], Settings], offline: bool) -> None:
    settings = read_settings()
    logs.set_up(settings.file.log.level)
    logs.access.disabled = not settings.file.log.access
    for address in settings.file.listen:
        refuse_network(address, settings)
    gateway = Gateway(settings, time.time, offline=offline)
    await gateway.start()
    sockets: list[socket.socket] = []
    try:
        sockets = [bind(address) for address in settings.file.listen]
        section = settings.file.server
        server = Server(
            App(gateway),
            sockets,
            limits=Limits(
                header_bytes=section.header_size,
                header_timeout=section.header_timeout,
                idle_timeout=section.idle_timeout,
                connections=section.connections,
            ),
            stop_timeout=section.stop_timeout,
        )

        def reload() -> None:
            try:
                fresh = read_settings()
                gateway.reload(fresh)
            except ConfigError as error:
                log(events, logging.ERROR, "config.refused", error=error, hint="the old settings stay in force")
                return
            if (fresh.file.listen, fresh.cache_dir) != (settings.file.listen, settings.cache_dir):
                log(events, logging.WARNING, "config.needs_restart", keys="listen, cache.dir")
            logs.set_up(fresh.file.log.level)
            logs.access.disabled = not fresh.file.log.access
            log(events, logging.INFO, "config.reloaded", mirrors=len(fresh.mirrors))

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, reload)
        for number in (signal.SIGTERM, signal.SIGINT):
            # The server's own handlers come with it; whoever reads that we started may send one before.
            loop.add_signal_handler(number, server.stop)
        listening = [address_of(each) for each in sockets]
        with announced(settings.cache_dir, listening):
            urls = ",".join(each if each.startswith("unix:") else f"http://{each}" for each in listening)
            log(events, logging.INFO, "server.started", listen=urls, cache_dir=settings.cache_dir)
            await server.run()
    finally:
        for each in sockets:
            each.close()
        await gateway.close()
    log(events, logging.INFO, "server.stopped")


def address_of(listener: socket.socket) -> str:
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if listener.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def refuse_network(address: str, settings: Settings) -> None:
    """Raise ConfigError for an address that others can reach, as long as nobody of them may ask."""
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:") or not host or host == "localhost" or settings.access.is_open:
        return  # of an address without a host, bind says what is wrong
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        pass  # a name; whatever it means today, tomorrow it may be another address
    raise ConfigError(
        f"{address} is reachable from the network, and nobody there may ask. say who, by a line below [access]: "
        'clients = ["127.0.0.0/8", "::1", "192.168.0.0/16"] for networks, or token = "..." for whoever shows that. '
        "or listen on 127.0.0.1, [::1] or unix:PATH"
    )


COMMANDS = [serve]
