"""fetchonce serve: the server, in one process or in several workers below a supervisor."""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import os
import signal
import socket
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from .. import log as logs
from ..app import Application
from ..config import HTTPS, Settings, load, misspelt
from ..errors import ConfigError, ProxyError
from ..gateway import Gateway
from ..log import events, log
from ..serving import notify
from ..serving.handshake import TlsSockets
from ..serving.loop import run
from ..serving.request import Limits
from ..serving.server import Server
from ..serving.sockets import address_of, bind, share
from ..serving.supervisor import Link, Supervisor
from ..serving.tls import CurrentCertificate, certificate
from ..serving.upgrade import Handover, Inherited
from ..store.servers import ServerRecord
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
YOUNG_OBJECTS = 20_000
"""More of them before the garbage collector looks: with Python's 700 that is a tenth of the time of a small miss."""
PRIVATE = "127.0.0.1:0"
"""Where only this process answers: our own commands, and the other processes of the server."""


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
    """Run the proxy until SIGTERM or Ctrl-C. SIGHUP reads the configuration again.

    SIGUSR2 upgrades: a new process takes over the addresses, with the program and configuration as they are by then,
    and the old one ends once its running answers and fills have.
    """
    overrides: dict[str, Any] = {"mirror": [mirror_table(text) for text in options["mirror"]]}
    if options["listen"]:
        overrides["listen"] = options["listen"]
    for option, (section, key) in SETS.items():
        if options[option]:
            overrides.setdefault(section, {})[key] = options[option]
    added: dict[str, Any] = {key: overrides[key] for key in ("access", "mirror") if key in overrides}
    leave(Serve(partial(load, config, overrides), offline, added).run())


def mirror_table(text: str) -> dict[str, Any]:
    name, found, urls = text.partition("=")
    if not found:
        raise click.UsageError(f'--mirror "{text}": expected NAME=URL[,URL...]')
    return {"name": name, "upstreams": [url.strip() for url in urls.split(",") if url.strip()]}


class Serve:
    """One run of the command. Raises ConfigError."""

    def __init__(self, read_settings: Callable[[], Settings], offline: bool, added: dict[str, Any]) -> None:
        """`added`: the hosts and mirrors of the command line, for other commands."""
        self._added = added
        self._inherited = Inherited.receive(os.environ)
        self._read_settings, self._offline = partial(self._listening, read_settings), offline
        self._settings = self._read_settings()
        self._listen: list[str] = []
        self._shares: list[tuple[socket.socket, ...]] = []
        """The sockets of each worker."""
        self._slots: Slots | None = None
        self._watchdog = notify.watchdog_seconds()
        self._set_up_log()
        for name, hint in misspelt(os.environ).items():
            log(events, logging.WARNING, "config.variable_ignored", name=name, hint=hint)
        self._tls = self._tls_context()

    def run(self) -> int:
        """Serve until a signal ends it. Returns the exit code."""
        file = self._settings.file
        for address in file.listen:
            refuse_network(address, self._settings)
        with contextlib.ExitStack() as stack:
            sockets: list[list[socket.socket]] = []
            """Of each address."""
            for address in file.listen:
                sockets.append(self._inherited.claim(address) or [bind(address)])
                for each in sockets[-1]:
                    stack.callback(each.close)
            self._inherited.close_unclaimed()
            self._listen = [
                f"{HTTPS if address.startswith(HTTPS) else ''}{address_of(first)}"
                for address, (first, *_) in zip(file.listen, sockets, strict=True)
            ]
            shares = zip(*(share(each, file.server.workers) for each in sockets), strict=True)
            self._shares = [tuple(chain.from_iterable(share)) for share in shares]
            every = dict.fromkeys(chain.from_iterable(self._shares))
            handover = Handover(tuple(every), self._listen if self._inherited.listen else ())
            if file.server.workers == 1:
                run(self._serve(self._shares[0], handover))
                log(events, logging.INFO, "server.stopped")
                return 0
            self._slots = Slots(len(self._shares))
            supervisor = Supervisor(
                self._shares, self._work, reload=self._reload_all, started=self._say_started, handover=handover
            )
            code = supervisor.run()
        log(events, logging.INFO, "server.stopped")
        return code

    def _listening(self, read_settings: Callable[[], Settings]) -> Settings:
        """The settings, with the addresses of the sockets that we were given to listen on, if we were."""
        settings = read_settings()
        given, configured = self._inherited.listen, settings.file.listen
        if not given:
            return settings
        listen = tuple(f"{HTTPS}{each}" if f"{HTTPS}{each}" in configured else each for each in given)
        return replace(settings, file=replace(settings.file, listen=listen))

    def _work(self, sockets: Sequence[socket.socket], link: Link) -> int:
        try:
            run(self._serve(sockets, link))
        except ProxyError as error:
            click.echo(f"fetchonce: {error.message}", err=True)
            return 2 if isinstance(error, ConfigError) else 1
        except BaseException:
            traceback.print_exc()
            return 1
        leave(0)

    async def _serve(self, listening: Sequence[socket.socket], above: Link | Handover) -> None:
        """Serve until a signal or the supervisor ends it. `above`: the link of a worker, or what begins an upgrade."""
        settings = self._settings
        gateway = Gateway(settings, time.time, offline=self._offline)
        await gateway.start()
        is_worker = isinstance(above, Link)
        index = next(index for index, each in enumerate(self._shares) if each is listening)  # some share all sockets
        monitor = Monitor(gateway, self._slots, index)
        secure = [sock for sock in listening if f"{HTTPS}{address_of(sock)}" in self._listen]
        sockets = [sock for sock in listening if sock not in secure]
        if is_worker or not sockets:  # our own commands speak plain http only
            sockets.append(bind(PRIVATE))
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
                self._reload(gateway.reload, is_worker=is_worker)

            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, reload)
            for number in (signal.SIGTERM, signal.SIGINT):
                # The server installs its own later, but a signal may come as soon as we have said that we started.
                loop.add_signal_handler(number, server.stop)
            own = address_of(sockets[-1] if is_worker else sockets[0])
            async with (
                gateway.store.announced(self._record(own)),
                monitor.running(server),
                in_touch(above, server, gateway, self._watchdog),
            ):
                if isinstance(above, Link):
                    above.ready()
                else:
                    self._say_started()
                gc.freeze()  # what was imported stays: a full collection looked at it for 28 ms, and nobody was served
                gc.set_threshold(YOUNG_OBJECTS)
                await server.run()
        finally:
            for each in (*sockets, *secure):
                each.close()
            await gateway.close()

    def _record(self, own: str) -> ServerRecord:
        config = Path(self._settings.sources[0]).absolute()
        named = str(config) if config.is_file() else ""  # a pipe was read once; /dev/stdin is another's in each process
        return ServerRecord(os.getpid(), tuple(self._listen), own, named, self._added)

    def _say_started(self) -> None:
        urls = ",".join(map(base_url, self._listen))
        file, cache_dir = self._settings.file, self._settings.cache_dir
        log(events, logging.INFO, "server.started", listen=urls, cache_dir=cache_dir, workers=file.server.workers)
        notify.ready(self._status())
        self._inherited.ready()

    def _status(self) -> str:
        return f"serving {', '.join(map(base_url, self._listen))}"

    def _reload_all(self) -> bool:
        """In the supervisor: workers that start later start with these settings."""
        return self._reload(Settings.mirror_table)

    def _reload(self, take: Callable[[Settings], object], *, is_worker: bool = False) -> bool:
        """Read the settings again and give them to `take`. False if one of the two finds them wrong."""
        if is_worker:
            return self._take(take, is_worker=True)
        notify.reloading("reading the configuration again")
        is_taken = self._take(take, is_worker=False)
        notify.ready(self._status() if is_taken else f"{self._status()}; the new configuration is wrong")
        return is_taken

    def _take(self, take: Callable[[Settings], object], *, is_worker: bool) -> bool:
        try:
            fresh, unchanged = as_running(self._read_settings(), self._settings)
            fresh_certificate = certificate(fresh)
            take(fresh)
        except ConfigError as error:
            log(events, logging.ERROR, "config.refused", error=error, hint="the old settings stay in force")
            return False
        if not is_worker and not unchanged:
            keys, hint = "listen, cache.dir, lease, server.workers", "SIGUSR2, or a restart"
            log(events, logging.WARNING, "config.needs_restart", keys=keys, hint=hint)
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
        lease=now.file.lease,
        server=replace(fresh.file.server, workers=now.file.server.workers),
    )
    return replace(fresh, file=file), file == fresh.file


@contextlib.asynccontextmanager
async def in_touch(
    above: Link | Handover, server: Server, gateway: Gateway, watchdog: float | None
) -> AsyncIterator[None]:
    """While the block runs: obey and inform the supervisor (a worker), or upgrade at SIGUSR2 (where there is none).

    `watchdog`: seconds between two signs that the loop turns.
    """
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []

    def leave() -> None:
        private = bind(PRIVATE)
        server.leave(private, lambda: any(not fill.is_following for fill in gateway.flights.running()))
        tasks.append(loop.create_task(gateway.store.announce_leaving(address_of(private))))

    def on_word(link: Link) -> None:
        if link.is_to_leave():
            leave()
        else:
            loop.remove_reader(link)
            server.interrupt()

    def on_news(handover: Handover) -> None:
        loop.remove_reader(handover)
        if handover.end():
            leave()

    def upgrade(handover: Handover) -> None:
        if not server.stopping and handover.begin():
            loop.add_reader(handover, on_news, handover)

    async def inform() -> None:
        while True:
            if watchdog:
                above.alive() if isinstance(above, Link) else notify.notify(WATCHDOG=1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(watchdog):
                    is_stop = await server.wait_stop()
                    break
        if is_stop and isinstance(above, Handover):
            notify.notify(STOPPING=1)
            if above.is_under_way:
                loop.remove_reader(above)
                above.cancel()

    if isinstance(above, Link):
        loop.add_reader(above, on_word, above)
    else:
        loop.add_signal_handler(signal.SIGUSR2, upgrade, above)
    tasks.append(loop.create_task(inform()))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        if isinstance(above, Link):
            loop.remove_reader(above)


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
