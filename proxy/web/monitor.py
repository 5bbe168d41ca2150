"""What this process counts and holds, together with the other workers of its server.

A worker tells the others what it counts once a second, through memory that they share: any of them answers a scrape for
all, and what a dead worker has counted is not lost.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from ..gateway import Gateway
from ..stats import Stats
from .slots import Slots

TICK_SECONDS = 1.0


@dataclass(slots=True)
class Gauges:
    """What is there at one moment."""

    workers: int = 1
    connections: int = 0
    """Of clients."""
    fills: int = 0
    """Running ones that fetch, and do not follow another process."""
    readers: int = 0
    """Clients attached to running fills."""
    bucket_waiting: int = 0
    """Bodies on their way into the bucket."""
    bucket_aside: int = 0
    """Bodies that it does not take, or that are damaged here."""
    bucket_absent: int = 0
    """Processes that leave the bucket alone for a while."""
    loop_lag: float = 0.0
    """The most seconds that the event loop was late in the last minute."""

    def add(self, other: "Gauges") -> None:
        self.workers += other.workers
        self.connections += other.connections
        self.fills += other.fills
        self.readers += other.readers
        self.bucket_waiting += other.bucket_waiting
        self.bucket_aside += other.bucket_aside
        self.bucket_absent += other.bucket_absent
        self.loop_lag = max(self.loop_lag, other.loop_lag)


@dataclass(slots=True)
class Snapshot:
    stats: Stats = field(default_factory=Stats)
    gauges: Gauges = field(default_factory=Gauges)


class Watched(Protocol):
    """The server of this process."""

    @property
    def connections(self) -> int: ...
    @property
    def stopping(self) -> bool: ...


class Monitor:
    """Of one process. `slots` and `index` are its place among the workers; None: it is the only one."""

    def __init__(self, gateway: Gateway, slots: Slots | None = None, index: int = 0) -> None:
        self._gateway, self._slots, self._index = gateway, slots, index
        self._server: Watched | None = None
        self._lags = [0.0] * 60
        if slots and (left := slots.read(index)):  # by the worker that was here before
            gateway.stats.add(_decoded(left).stats)

    @property
    def is_stopping(self) -> bool:
        """Whether the server wants to end: an endless answer must end now."""
        return self._server is not None and self._server.stopping

    @contextlib.asynccontextmanager
    async def running(self, server: Watched) -> AsyncIterator[None]:
        """Watch the event loop and tell the other workers, while the block runs."""
        self._server = server
        ticking = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            ticking.cancel()
            self._publish()

    def snapshot(self) -> Snapshot:
        """Of all workers. What the others count is at most a second old, but never less than they have told."""
        self._publish()
        whole = Snapshot()
        whole.stats.add(self._gateway.stats)
        whole.gauges = self._gauges()
        for index in range(self._slots.count if self._slots else 0):
            if index != self._index and self._slots and (data := self._slots.read(index)):
                other = _decoded(data)
                whole.stats.add(other.stats)
                whole.gauges.add(other.gauges)
        return whole

    def _gauges(self) -> Gauges:
        fills = self._gateway.flights.running()
        return Gauges(
            connections=self._server.connections if self._server else 0,
            fills=sum(not fill.is_following for fill in fills),
            readers=sum(fill.readers for fill in fills),
            bucket_waiting=self._gateway.flights.tier.behind.waiting,
            bucket_aside=self._gateway.flights.tier.behind.aside,
            bucket_absent=int(self._gateway.flights.tier.is_absent),
            loop_lag=max(self._lags),
        )

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        number = 0
        while True:
            due = loop.time() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            number += 1
            self._lags[number % len(self._lags)] = max(0.0, loop.time() - due)
            self._publish()

    def _publish(self) -> None:
        if self._slots:
            self._slots.write(self._index, msgspec.msgpack.encode((self._gateway.stats.encoded(), self._gauges())))


def _decoded(data: bytes) -> Snapshot:
    stats, gauges = msgspec.msgpack.decode(data, type=tuple[bytes, Gauges])
    return Snapshot(Stats.decoded(stats), gauges)
