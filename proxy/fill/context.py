"""What all fills of a process work with."""

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..config import FillSection
from ..rules.health import Health
from ..stats import Stats
from ..store.janitor import Janitor
from ..store.store import Store
from ..upstream.client import Upstream
from .peers import KnownPeers
from .tier import Tier

THREADS = 128
"""Transfers at once from one server of a mirror. Each blocks on its socket; more than this wait for a thread."""
MAX_SERVERS = 64
"""So many have threads. Where machines come and go, each that has had the lease of an object is another one."""
DISK_THREADS = 16


class Threads:
    """Threads for what blocks. Each upstream server has its own: those that hang keep nobody else waiting."""

    def __init__(self) -> None:
        self.disk: Executor = ThreadPoolExecutor(DISK_THREADS, "disk")
        """For hashing and syncing."""
        self._of_servers: dict[str, ThreadPoolExecutor] = {}
        """The one that was asked last is the last one."""

    def of(self, url: str) -> Executor:
        """For what is asked of the server of `url`, a mirror's or ours. To be used before the next await."""
        server = urlsplit(url).netloc
        if (threads := self._of_servers.pop(server, None)) is None:
            threads = ThreadPoolExecutor(THREADS, f"transfer {server}")
            if len(self._of_servers) >= MAX_SERVERS:
                oldest = next(iter(self._of_servers))
                self._of_servers.pop(oldest).shutdown(wait=False)  # what it has to do it does, and then they end
        self._of_servers[server] = threads
        return threads

    def close(self) -> None:
        """Drop what waits for a thread. A thread in a connect cannot be woken; it ends by its own timeout."""
        for executor in (self.disk, *self._of_servers.values()):
            executor.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class FillContext:
    store: Store
    janitor: Janitor
    upstream: Upstream
    settings: FillSection
    threads: Threads
    stats: Stats
    health: Health
    peers: KnownPeers
    tier: Tier
    clock: Callable[[], float]
