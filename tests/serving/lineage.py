"""A server through its upgrades: each of its processes starts the next one."""

import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from proxy.store.servers import running
from tests.harness import Proxy, until

START_SECONDS = 30


class Lineage:
    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.pids = [proxy.pid]
        """Of the main processes, the current one last."""

    @property
    def pid(self) -> int:
        return self.pids[-1]

    def said(self, event: str) -> list[str]:
        return [line for line in self.proxy.log if f" {event}" in line]

    async def upgrade(self) -> None:
        """Until the new process serves and the old one knows it."""
        os.kill(self.pid, signal.SIGUSR2)
        await self.upgraded()

    async def upgraded(self) -> None:
        (line,) = await until(lambda: self.said("upgrade.done")[len(self.pids) - 1 :], START_SECONDS)
        found = re.search(r"pid=(\d+)", line)
        assert found
        self.pids.append(int(found[1]))

    async def ended(self, number: int, timeout: float = 20) -> None:  # noqa: ASYNC109 - as until
        """Wait until so many processes have ended well."""
        await until(lambda: len(self.said("server.stopped")) == number, timeout)

    async def stop(self) -> None:
        """Stop what serves now, and wait until none is left."""
        os.kill(self.pid, signal.SIGTERM)
        await until(lambda: running(self.proxy.cache_dir) == [], START_SECONDS)
        await self.ended(len(self.pids))


async def lineages(proxy_factory: Any) -> AsyncIterator[Any]:
    """A fixture: starts servers, and stops their last processes at the end."""
    made: list[Lineage] = []

    def make(*args: str, **options: Any) -> Lineage:
        made.append(Lineage(proxy_factory(*args, **options)))
        return made[-1]

    yield make
    for each in made:
        if Path(f"/proc/{each.pid}").exists() and running(each.proxy.cache_dir):
            await each.stop()
