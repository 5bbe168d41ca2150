"""Reading along with another process's fill: woken by it, and heard by it.

The kernel frees the lock of a key when its process ends, however it ends, and tells nobody. So the leader, which holds
the lock, listens on partial/KEY.GENERATION.sock, and followers connect: a byte means that the live page says more, the
end of the connection that the leader is gone. Followers send where their readers wait. Nothing depends on it: where
there is no socket (a small body, a name too long for one) a follower polls page and lock.
"""

import asyncio
import contextlib
import os
import random
import socket
import struct
import sys
from collections.abc import Iterator
from logging import DEBUG
from pathlib import Path
from typing import cast

from ..log import events, log
from ..store.locks import Lock
from ..store.partial import Partial, PartialRecord
from ..store.store import Store
from .growing import Growing

LOOK_SECONDS = 0.02
"""How often a follower without a connection looks: bytes of a fill are late for it by as much."""
SOON_SECONDS = 0.001
"""The first time, and after a connection: the kernel ends that of a dead process before it frees the lock."""
ASK_SECONDS = 0.01
"""A reader that waits at one offset for so long is told of: one that moves with the fill would cost many messages."""
ASKED = struct.Struct("<16Q")
"""The offsets where a follower's readers wait, in order; NOWHERE fills it up. More than a fill has connections for."""
ASKED_MAX = ASKED.size // 8
NOWHERE = 2**64 - 1
WAKE = b"."
UNREAD_BYTES = 4096
"""What the kernel holds for a follower that is stopped: a few wakes, of which one is as good as all."""


class Leader:
    """The leader's end: keeps the live page true, wakes followers, and takes their readers in among ours."""

    def __init__(self, growing: Growing) -> None:
        self.growing = growing
        self.followers: set[_Connected] = set()
        self._path = socket_path(growing.partial)
        self._server: asyncio.Server | None = None
        self._telling = asyncio.create_task(self._tell(), name=f"live page {growing.partial.key[:12]}")

    @classmethod
    async def listen(cls, growing: Growing) -> "Leader":
        """Needs the lock of the key. Where the system has no such socket nobody is woken, and nobody asks."""
        leader = cls(growing)
        sock = socket.socket(socket.AF_UNIX)
        try:
            with address(leader._path) as name:
                sock.bind(name)
            leader._server = await asyncio.get_running_loop().create_server(lambda: _Connected(leader), sock=sock)
        except OSError as error:
            sock.close()
            log(events, DEBUG, "fill.wakes_nobody", key=growing.partial.key[:12], error=error)
        except BaseException:
            sock.close()
            leader.close()
            raise
        return leader

    async def _tell(self) -> None:
        """Write the live page whenever readers are woken."""
        partial = self.growing.partial
        while not self.growing.error:
            partial.tell(partial.extents)
            for each in self.followers:
                each.wake()
            await self.growing.wait_change()

    def close(self) -> None:
        """Write the last page. Release the lock in the same turn of the loop: then followers get it."""
        self._telling.cancel()
        self.growing.partial.tell(self.growing.partial.extents)
        if self._server:
            self._server.close()
            with contextlib.suppress(OSError):  # else the next leader removes it
                self._path.unlink()
        for each in self.followers:
            each.transport.abort()


class _Connected(asyncio.Protocol):
    """One follower, as the leader has it."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._received = b""
        self._waiting = contextlib.ExitStack()
        """Where its readers wait, in the leader's `growing`."""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        self._leader.followers.add(self)
        self.wake()  # for what was told between its look and now

    def data_received(self, data: bytes) -> None:
        data = self._received + data
        end = len(data) - len(data) % ASKED.size
        self._received = data[end:]
        if end:
            waiting = contextlib.ExitStack()
            for offset in set(ASKED.unpack_from(data, end - ASKED.size)) - {NOWHERE}:
                waiting.enter_context(self._leader.growing.waits_at(offset))
            self._waiting.close()
            self._waiting = waiting

    def connection_lost(self, error: Exception | None) -> None:
        self._waiting.close()
        self._leader.followers.discard(self)

    def wake(self) -> None:
        if not self.transport.get_write_buffer_size():
            self.transport.write(WAKE)


class Follower(asyncio.Protocol):
    """The follower's end: of one fill, and of one leader after the other."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._growing: Growing | None = None
        self._transport: asyncio.Transport | None = None
        self._ended = asyncio.Event()
        """The connection to the leader has ended."""
        self._pause = SOON_SECONDS

    async def find(self) -> Lock | tuple[PartialRecord, Partial]:
        """Wait for the lock of the key, or for the body that the process which holds it fetches. Close the result."""
        while True:
            if lock := self._store.try_lock(self._key):
                return lock
            if found := await self._store.peek(self._key):
                return found
            await self._look_again()

    async def follow(self, growing: Growing) -> Lock:
        """Read along into `growing` until the lock is free. Close the result."""
        self._growing = growing
        asking = asyncio.create_task(self._ask(growing), name=f"asks the leader {self._key[:12]}")
        try:
            while not (lock := self._store.try_lock(self._key)):
                growing.catch_up()
                if await self._connect(growing.partial):
                    await self._ended.wait()
                    self._pause = SOON_SECONDS
                else:
                    await self._look_again()
            growing.catch_up()  # what the leader told last
            return lock
        finally:
            asking.cancel()
            if self._transport:
                self._transport.abort()

    async def _look_again(self) -> None:
        # Not all followers at the same time: one would have the lock, and the others wait for their next look.
        await asyncio.sleep(self._pause * random.uniform(0.5, 1.5))
        self._pause = min(LOOK_SECONDS, 2 * self._pause)

    async def _ask(self, growing: Growing) -> None:
        """Tell the leader of readers that stay where they are."""
        told: list[int] = []
        while True:
            await growing.demand.wait()
            growing.demand.clear()
            seen = set(growing.wanted)
            while True:
                await asyncio.sleep(ASK_SECONDS)
                waiting = sorted(seen & growing.wanted.keys())[:ASKED_MAX]
                if self._transport is None:
                    told = []
                    break
                if waiting != told and not self._transport.get_write_buffer_size():
                    self._transport.write(ASKED.pack(*waiting, *[NOWHERE] * (ASKED_MAX - len(waiting))))
                    told = waiting
                if waiting == told and seen == growing.wanted.keys():
                    break
                seen = set(growing.wanted)

    async def _connect(self, partial: Partial) -> bool:
        """Whether the leader can be listened to."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        self._ended.clear()
        try:
            with address(socket_path(partial)) as name:
                sock.connect(name)
            await asyncio.get_running_loop().create_connection(lambda: self, sock=sock)
        except OSError:
            sock.close()  # nobody listens, or not yet
            return False
        return True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._growing:
            self._growing.demand.set()  # the new leader knows of no reader

    def data_received(self, data: bytes) -> None:
        if self._growing:
            self._growing.catch_up()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._ended.set()


def socket_path(partial: Partial) -> Path:
    return partial.path.with_suffix(".sock")


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """The path as a name for bind and connect, which take about a hundred bytes: on Linux, by way of its directory."""
    if sys.platform != "linux":
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
