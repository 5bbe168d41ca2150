"""Reading along with another process's fill: woken by it, and heard by it.

The kernel gives the right to fill free when a process ends, however it ends, and tells nobody. So the leader, which has
the right, listens on partial/KEY.GENERATION.sock, and its followers connect: a byte means that the live page says more,
the end of the connection that the leader is no more. Followers send where their readers wait. Nothing depends on it:
where there is no socket (a small body, a name too long for one) a follower looks at page and right by the clock.
"""

import asyncio
import contextlib
import os
import random
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from logging import DEBUG
from pathlib import Path
from typing import cast

from ..log import events, log
from ..store.locks import Lock
from ..store.partial import Partial, PartialRecord
from ..store.store import Store

LOOK_SECONDS = 0.02
"""How often a follower without a connection looks: as long as the bytes of a fill are late for it."""
SOON_SECONDS = 0.001
"""The first time, and after a connection: the kernel ends that of a dead process before it gives the right free."""
ASK_SECONDS = 0.01
"""A reader that stands still for so long is told of: others move with the fill, and would cost a message each time."""
ASKED = struct.Struct("<16Q")
"""The offsets where a follower's readers wait, in order; NOWHERE fills it up. More than a fill has connections for."""
ASKED_MAX = ASKED.size // 8
NOWHERE = 2**64 - 1
WAKE = b"."
UNREAD_BYTES = 4096
"""What the kernel holds for a follower that is stopped: a few wakes, one of which is as good as all."""


class Leader:
    """The leader's end. `asked` is called when followers' readers wait elsewhere than before."""

    def __init__(self, path: Path, asked: Callable[[], None]) -> None:
        self.asked = asked
        self.followers: set[_Connected] = set()
        self._path = path
        self._server: asyncio.Server

    @classmethod
    async def listen(cls, partial: Partial, asked: Callable[[], None]) -> "Leader | None":
        """Needs the right to fill. None where the system has no such socket: then nobody is woken, and nobody asks."""
        leader = cls(socket_path(partial), asked)
        sock = socket.socket(socket.AF_UNIX)
        try:
            with address(leader._path) as name:
                sock.bind(name)
            leader._server = await asyncio.get_running_loop().create_server(lambda: _Connected(leader), sock=sock)
        except OSError as error:
            sock.close()
            log(events, DEBUG, "fill.wakes_nobody", key=partial.key[:12], error=error)
            return None
        return leader

    @property
    def waiting(self) -> set[int]:
        """The offsets where followers' readers wait."""
        return {offset for each in self.followers for offset in each.waiting}

    def wake(self) -> None:
        """The live page says more."""
        for each in self.followers:
            each.wake()

    def close(self) -> None:
        """Give back the right in the same turn of the loop: the connections end with the next one, and it is tried."""
        self._server.close()
        with contextlib.suppress(OSError):  # else the next leader removes it
            self._path.unlink()
        for each in self.followers:
            each.transport.abort()


class _Connected(asyncio.Protocol):
    """One follower, as the leader has it."""

    def __init__(self, leader: Leader) -> None:
        self.waiting: frozenset[int] = frozenset()
        self._leader = leader
        self._received = b""
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
            self.waiting = frozenset(ASKED.unpack_from(data, end - ASKED.size)) - {NOWHERE}
            self._leader.asked()

    def connection_lost(self, error: Exception | None) -> None:
        self._leader.followers.discard(self)

    def wake(self) -> None:
        if not self.transport.get_write_buffer_size():
            self.transport.write(WAKE)


class Follower(asyncio.Protocol):
    """The follower's end: of one fill, and of one leader after the other.

    `found` is called once, with the body that is read along; `grown` when there is more of it. `waiting` is the
    caller's: the offsets where readers wait.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        waiting: Mapping[int, int],
        found: Callable[[PartialRecord, Partial], None],
        grown: Callable[[], None],
    ) -> None:
        self._store, self._key, self._waiting = store, key, waiting
        self._found, self._grown = found, grown
        self._partial: Partial | None = None
        self._transport: asyncio.Transport | None = None
        self._attention = asyncio.Event()
        self._is_stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._seen: set[int] = set()
        """Where readers waited when the timer was set."""
        self._asked: list[int] = []

    async def wait_right(self) -> Lock | None:
        """Read along until the right to fill is free, and return it; None if `stop` came first."""
        pause = SOON_SECONDS
        try:
            while not self._is_stopped:
                if (right := self._store.try_lock(self._key)) is not None:
                    self._read_along()  # what the leader told last
                    return right
                if self._partial:
                    self._read_along()
                    await self._connect(self._partial)
                elif found := await self._store.peek(self._key):
                    self._partial = found[1]
                    self._found(*found)
                    await self._connect(self._partial)
                if self._transport:
                    await self._attention.wait()
                    pause = SOON_SECONDS
                else:
                    # Not all followers at the same time: one would have the right, and the others wait for their next.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause * random.uniform(0.5, 1.5)):
                            await self._attention.wait()
                    pause = min(LOOK_SECONDS, 2 * pause)
                self._attention.clear()
            return None
        finally:
            if self._transport:
                self._transport.abort()

    def stop(self) -> None:
        self._is_stopped = True
        self._attention.set()

    def look(self) -> None:
        """Readers wait elsewhere than before: have the leader know of those that stay there."""
        if self._transport and not self._timer:
            self._seen = set(self._waiting)
            self._timer = asyncio.get_running_loop().call_later(ASK_SECONDS, self._ask)

    def _ask(self) -> None:
        self._timer = None
        if not self._transport:
            return
        asked = sorted(self._seen & self._waiting.keys())[:ASKED_MAX]
        if asked != self._asked and not self._transport.get_write_buffer_size():
            self._transport.write(ASKED.pack(*asked, *[NOWHERE] * (ASKED_MAX - len(asked))))
            self._asked = asked
        if asked != self._asked or self._seen != self._waiting.keys():
            self.look()

    def _read_along(self) -> None:
        if self._partial and self._partial.catch_up():
            self._grown()

    async def _connect(self, partial: Partial) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            with address(socket_path(partial)) as name:
                sock.connect(name)
            await asyncio.get_running_loop().create_connection(lambda: self, sock=sock)
        except OSError:
            sock.close()  # nobody listens, or does not yet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._asked = []
        self.look()

    def data_received(self, data: bytes) -> None:
        self._read_along()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._attention.set()


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
