"""fetchonce serve: the server, in one process or in several workers below a supervisor."""

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click
from msgspec.structs import replace

from .. import log as logs
from ..app import Application
from ..config import HTTPS, Settings, load
from ..errors import ConfigError, ProxyError
from ..gateway import Gateway
from ..log import events, log
from ..rules.mirrors import MirrorTable
from ..serving.handshake import TlsSockets
from ..serving.request import Limits
from ..serving.server import Server
from ..serving.sockets import bind, share
from ..serving.supervisor import Link, Supervisor
from ..serving.tls import CurrentCertificate, certificate
from ..web.monitor import Monitor
from ..web.slots import Slots
from .common import base_url, leave

SETS = {
    "cache_dir": ("cache", "dir"),
    "max_size": ("cache", "max_size"),
    "allow": ("access", "allow_hosts"),
    "workers": ("server", "workers"),
    "log_level": ("log", "level"),
}
"""Section and key that an option sets."""


@click.command()
@click.option("--config", metavar="FILE", help="The configuration file [env: FETCHONCE_CONFIG].")
@click.option(
    "--listen", multiple=True, metavar="[https://]HOST:PORT|unix:PATH", help="Where to listen [127.0.0.1:8642]."
)
@click.option("--cache-dir", metavar="DIR", help="Where to keep what was fetched [the user's cache directory].")
@click.option("--max-size", metavar="SIZE", help="How much to keep, such as 50GB; 0: no limit [50GB].")
@click.option("--allow", multiple=True, metavar="HOST", help="Fetch from this host too; *.HOST for its subdomains.")
@click.option("--mirror", multiple=True, metavar="NAME=URL[,URL...]", help="Add a mirror; its URLs are tried in order.")
@click.option("--workers", type=click.IntRange(1, 256), metavar="N", help="How many processes serve [1].")
@click.option("--offline", is_flag=True, help="Never ask upstream; serve what is stored, at any age.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[info]")
def serve(config: str | None, offline: bool, **options: Any) -> None:
    """Run the proxy until SIGTERM or Ctrl-C. SIGHUP reads the configuration again."""
    overrides: dict[str, Any] = {"mirror": [mirror_table(text) for text in options["mirror"]]}
    if options["listen"]:
        overrides["listen"] = options["listen"]
    for option, (section, key) in SETS.items():
        if options[option]:
            overrides.setdefault(section, {})[key] = options[option]
    leave(Serve(partial(load, config, overrides), offline).run())


def mirror_table(text: str) -> dict[str, Any]:
    name, found, urls = text.partition("=")
    if not found:
        raise click.UsageError(f'--mirror "{text}": expected NAME=URL[,URL...]')
    return {"name": name, "upstreams": [url.strip() for url in urls.split(",") if url.strip()]}


class Serve:
    """One run of the command. Raises ConfigError."""

    def __init__(self, read_settings: Callable[[], Settings], offline: bool) -> None:
        self._read_settings, self._offline = read_settings, offline
        self._settings = read_settings()
        self._listen: list[str] = []
        self._shares: list[tuple[socket.socket, ...]] = []
        """The sockets of each worker; none where there is one process."""
        self._slots: Slots | None = None
        self._set_up_log()
        self._tls = self._tls_context()

    def run(self) -> int:
        """Serve until a signal ends it. Returns the exit code."""
        file = self._settings.file
        for address in file.listen:
            refuse_network(address, self._settings)
        with contextlib.ExitStack() as stack:
            sockets = []
            for address in file.listen:
                sockets.append(bind(address))
                stack.callback(sockets[-1].close)
            self._listen = [
                f"{HTTPS if address.startswith(HTTPS) else ''}{address_of(each)}"
                for address, each in zip(file.listen, sockets, strict=True)
            ]
            if file.server.workers == 1:
                asyncio.run(self._serve(sockets))
                log(events, logging.INFO, "server.stopped")
                return 0
            shares = [share(each, file.server.workers) for each in sockets]
            self._shares = list(zip(*shares, strict=True))
            self._slots = Slots(len(self._shares))
            supervisor = Supervisor(self._shares, self._work, reload=self._reload_all, started=self._say_started)
            code = supervisor.run()
        log(events, logging.INFO, "server.stopped")
        return code

    def _work(self, sockets: Sequence[socket.socket], link: Link) -> int:
        try:
            asyncio.run(self._serve(sockets, link))
        except ProxyError as error:
            click.echo(f"fetchonce: {error.message}", err=True)
            return 2 if isinstance(error, ConfigError) else 1
        except BaseException:
            traceback.print_exc()
            return 1
        leave(0)

    async def _serve(self, listening: Sequence[socket.socket], link: Link | None = None) -> None:
        settings = self._settings
        gateway = Gateway(settings, time.time, offline=self._offline)
        await gateway.start()
        index = next((index for index, each in enumerate(self._shares) if each is listening), 0)
        monitor = Monitor(gateway, self._slots, index)
        secure = [sock for sock, address in zip(listening, self._listen, strict=True) if address.startswith(HTTPS)]
        sockets = [sock for sock in listening if sock not in secure]
        if link or not sockets:  # our own commands speak plain http only
            sockets.append(bind("127.0.0.1:0"))
        try:
            section = settings.file.server
            server = Server(
                Application(gateway, monitor),
                sockets,
                limits=Limits(
                    header_bytes=section.header_size,
                    header_timeout=section.header_timeout,
                    idle_timeout=section.idle_timeout,
                    connections=section.connections,
                ),
                stop_timeout=section.stop_timeout,
                tls=TlsSockets(secure, self._tls.context) if self._tls else None,
            )

            def reload() -> None:
                self._reload(gateway.reload, is_worker=bool(link))

            def on_end(link: Link) -> None:
                loop.remove_reader(link)
                server.interrupt()

            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, reload)
            for number in (signal.SIGTERM, signal.SIGINT):
                # The server installs its own later, but a signal may come as soon as we have said that we started.
                loop.add_signal_handler(number, server.stop)
            async with gateway.store.announced(self._listen, address_of(sockets[-1] if link else sockets[0])):
                if link:
                    loop.add_reader(link, on_end, link)
                    link.ready()
                else:
                    self._say_started()
                async with monitor.running(server):
                    await server.run()
        finally:
            for each in (*sockets, *secure):
                each.close()
            await gateway.close()

    def _say_started(self) -> None:
        urls = ",".join(map(base_url, self._listen))
        file, cache_dir = self._settings.file, self._settings.cache_dir
        log(events, logging.INFO, "server.started", listen=urls, cache_dir=cache_dir, workers=file.server.workers)

    def _reload_all(self) -> bool:
        """In the supervisor: workers that start later start with these settings."""
        return self._reload(lambda fresh: MirrorTable(fresh.mirrors, fresh.file.access.allow_hosts))

    def _reload(self, take: Callable[[Settings], object], *, is_worker: bool = False) -> bool:
        """Read the settings again and give them to `take`. False if one of the two finds them wrong."""
        try:
            fresh, unchanged = as_running(self._read_settings(), self._settings)
            fresh_certificate = certificate(fresh)
            take(fresh)
        except ConfigError as error:
            log(events, logging.ERROR, "config.refused", error=error, hint="the old settings stay in force")
            return False
        if not is_worker and not unchanged:
            log(events, logging.WARNING, "config.needs_restart", keys="listen, cache.dir, server.workers")
        self._settings = fresh
        self._set_up_log()
        if fresh_certificate and self._tls:
            self._tls.use(fresh_certificate)
            if not is_worker:
                fresh_certificate.report(time.time())
        log(events, logging.INFO, "config.reloaded", mirrors=len(fresh.mirrors))
        return True

    def _tls_context(self) -> CurrentCertificate | None:
        """The context of all https listeners. Made before the workers start, because they share it."""
        first = certificate(self._settings)
        if first is None:
            return None
        first.report(time.time())
        return CurrentCertificate(first)

    def _set_up_log(self) -> None:
        logs.set_up(self._settings.file.log.level)
        logs.access.disabled = not self._settings.file.log.access


def as_running(fresh: Settings, now: Settings) -> tuple[Settings, bool]:
    """`fresh` with the running values of the keys that take a restart, and whether `fresh` had these values already.

    A worker that starts later must have the cache directory of the others.
    """
    file = replace(
        fresh.file,
        listen=now.file.listen,
        cache=replace(fresh.file.cache, dir=now.file.cache.dir),
        server=replace(fresh.file.server, workers=now.file.server.workers),
    )
    return replace(fresh, file=file), file == fresh.file


def address_of(listener: socket.socket) -> str:
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if listener.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def refuse_network(address: str, settings: Settings) -> None:
    """Raise ConfigError for an address that other machines can reach, if none of them may ask."""
    host = address.removeprefix(HTTPS).rpartition(":")[0].strip("[]")
    if address.startswith("unix:") or not host or host == "localhost" or settings.access.is_open:
        return  # bind reports an address without a host
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        pass  # a name may lead to another address tomorrow
    raise ConfigError(
        f"{address} is reachable from the network, and nobody there may ask. say who, by a line below [access]: "
        'clients = ["127.0.0.0/8", "::1", "192.168.0.0/16"] for networks, or token = "..." for whoever shows that. '
        "or listen on 127.0.0.1, [::1] or unix:PATH"
    )
