"""How file bytes leave a connection: the kernel sends them, or we copy them where it cannot.

The event loop never waits for a disk or for a socket. It sends what is in the page cache and what the socket takes at
once. Threads send the rest: movers.py what is in memory, others what a disk must be waited for. Nothing here knows
HTTP.
"""

import asyncio
import errno
import os
import select
import socket
import sys
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from ..errors import ClientGone
from ..rules.pieces import Growth, Slice
from .movers import STEP_BYTES, Job, Movers, in_page_cache

FIRST_BYTES = 256 * 1024
"""The first piece of an answer: small, for the time to first byte. A socket that takes it whole gets a mover."""
TURN_BYTES = 4 * 1024**2
"""Sent on the loop before the other connections get their turn."""
BURST_BYTES = 64 * 1024**2
"""Sent in a thread that waits for a disk before the loop is asked again."""
JOB_BYTES = 256 * 1024**2
"""Sent by a mover before the loop is asked again: meanwhile the client falls behind those that it reads along with.
Eight readers of a cached 1 GiB took 0.98 s, and 1.05 with 64 MiB (medians of twelve)."""
PATIENCE_MS = 20
"""How long a thread that waits for a disk waits for a full socket too. A slower client goes back to the loop."""
SMALL_BYTES = 16 * 1024
"""Up to this size, one write of head and body is cheaper than a write and a sendfile."""
NEAR_BUFFER_BYTES = 512 * 1024
"""At most this waits in the kernel for a client on this machine (SO_SNDBUF, which Linux doubles). What is on its way to
eight of them stays in the processor's cache, and they stay near one another in the file: a cached 1 GiB took 0.74 s
instead of 0.83 (medians of nine); with 320 KB and with 1 MB no less."""
COPY_BYTES = 256 * 1024
"""Read and written at once where sendfile does not work. A slow client costs this much memory there."""

GONE = {errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT}
GONE |= {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""sendfile does not work with this file or this socket."""


@dataclass(frozen=True, slots=True)
class Threads:
    """What moves bytes beside the loop."""

    disk: Executor
    """For what is not in memory."""
    movers: Movers


def read_now(file: int, offset: int, count: int) -> bytearray | None:
    """The slice, or None if it is not wholly in the page cache or the kernel cannot say."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    data = bytearray(count)
    try:
        return data if os.preadv(file, [data], offset, os.RWF_NOWAIT) == count else None
    except OSError:
        return None


def send_and_close(out: int, file: int, offset: int, count: int) -> int:
    """Send what the client takes without long pauses; returns the bytes sent. It may wait for the disk: for a thread.

    The two descriptors belong to this call, as those of a Job.
    """
    try:
        if hasattr(os, "posix_fadvise"):
            # One turn further than asked, so that the disk reads while the client does too.
            os.posix_fadvise(file, offset, min(count, TURN_BYTES) + TURN_BYTES, os.POSIX_FADV_WILLNEED)
        writable = select.poll()
        writable.register(out, select.POLLOUT)
        sent = 0
        while sent < count:
            try:
                step = os.sendfile(out, file, offset + sent, count - sent)
            except BlockingIOError:
                if not writable.poll(PATIENCE_MS):
                    break
                continue
            if not step:
                break
            sent += step
        return sent
    finally:
        os.close(out)
        os.close(file)


def is_near(sock: socket.socket) -> bool:
    """Whether the peer is on this machine, so that its bytes cross no network. Measured on Linux alone."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return sock.family == socket.AF_UNIX or sock.getpeername()[0] == sock.getsockname()[0]
    except OSError:
        return False


class KernelSender:
    """os.sendfile into one connection.

    It works on a dup of the socket, because asyncio and uvloop both refuse add_writer on a descriptor that a transport
    owns, and uvloop has no loop.sendfile. The dup must be closed before the transport's socket, or the client sees no
    end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: Threads, sock: socket.socket) -> None:
        self._loop, self._threads = loop, threads
        self._sock = socket.socket(fileno=os.dup(sock.fileno()))
        self._fd = self._sock.fileno()
        if is_near(self._sock) and self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 2 * NEAR_BUFFER_BYTES:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NEAR_BUFFER_BYTES)
        self._waiter: asyncio.Future[None] | None = None
        self._job: Job | None = None
        self._is_full = False
        self._burst = self._taken = 0
        """Bytes sent since the loop had its turn, and by the last call."""

    async def send(self, file: int, offset: int, count: int, growth: Growth | None = None) -> int:
        """As FileSender's."""
        ready = min(count, growth.readable(offset) - offset) if growth else count
        while True:
            if self._is_full and self._fd >= 0:  # close() may have come while a thread was sending
                await self._writable()
            elif self._burst >= TURN_BYTES:
                self._burst = 0
                await asyncio.sleep(0)  # a client that is always ready must not starve the others
            if self._fd < 0:
                raise ClientGone("the client has closed the connection")
            # A fast client of a big file gets a mover: on the loop, eight of them get half the speed, and the others
            # wait for them. Small slices and slow clients do not: a hop costs 0.1 ms. If the file grows, slow ones do
            # too: that saves the hops for the pieces to come.
            is_cold = not in_page_cache(file, offset, min(ready, STEP_BYTES))
            try:
                if is_cold or (count >= FIRST_BYTES and self._taken >= (1 if growth else FIRST_BYTES)):
                    if is_cold:
                        sent = await self._send_cold(file, offset, min(ready, BURST_BYTES))
                    else:
                        sent = await self._send_warm(file, offset, min(count, JOB_BYTES), growth)
                    self._burst = 0
                    if not sent:  # the socket is full or the file ends: a small call will tell which
                        self._taken, self._is_full = 0, True
                        continue
                else:
                    sent = os.sendfile(self._fd, file, offset, min(ready, TURN_BYTES if self._taken else FIRST_BYTES))
            except BlockingIOError:
                self._is_full = True
                continue
            except OSError as error:
                if error.errno in GONE:
                    raise ClientGone(error.errno, error.strerror) from error
                raise
            self._burst += sent
            self._taken = sent
            return sent

    async def _send_warm(self, file: int, offset: int, count: int, growth: Growth | None) -> int:
        out, mine = self._dup(file)
        piece = Slice(mine, offset, offset + count, growth)
        job = self._job = self._threads.movers.put(out, piece)
        try:
            return await job.done
        finally:
            self._job = None
            if job.done.cancelled():
                job.drop()

    async def _send_cold(self, file: int, offset: int, count: int) -> int:
        job = partial(send_and_close, *self._dup(file), offset, count)
        sending = self._loop.run_in_executor(self._threads.disk, job)
        # Shielded, because a job cancelled before a thread takes it would never close its descriptors. If we are
        # cancelled, nobody waits for the job's exception, so the callback takes it.
        sending.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(sending)

    def _dup(self, file: int) -> tuple[int, int]:
        """The socket and the file, for somebody else to close."""
        mine = os.dup(file)
        try:
            return os.dup(self._fd), mine
        except OSError:
            os.close(mine)
            raise

    async def _writable(self) -> None:
        """Wait until the socket takes bytes again or close() is called.

        There is no time limit. A client may pause as long as it likes, and costs no memory and no thread meanwhile; TCP
        itself finds out about a dead one.
        """
        waiter = self._waiter = self._loop.create_future()
        self._loop.add_writer(self._fd, _wake, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if self._fd >= 0:  # after close() the number may be another connection's
                self._loop.remove_writer(self._fd)
        self._is_full = False

    def close(self) -> None:
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        self._loop.remove_writer(fd)
        self._sock.close()
        if self._job:
            self._job.drop()
        if self._waiter:
            _wake(self._waiter)

    def send_now(self, head: bytes, file: int, offset: int, count: int) -> int | None:
        """As FileSender's."""
        sent = 0
        try:
            if count <= SMALL_BYTES:
                body = read_now(file, offset, count)
                return None if body is None else self._sock.sendmsg((head, body))
            if not in_page_cache(file, offset, count):
                return None
            # Not MSG_MORE: in one packet with the head, 64 KiB of the file cost 40 us instead of 24.
            sent = self._sock.send(head)
            if sent == len(head):
                sent += os.sendfile(self._fd, file, offset, count)
        except OSError:
            pass  # whoever sends the rest finds the socket full, or meets the error again
        return sent


class CopySender:
    """Read and write, where sendfile does not work: with TLS, and with files or sockets that the kernel refuses."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: Threads, transport: asyncio.Transport) -> None:
        self._loop, self._threads, self._transport = loop, threads, transport

    async def send(self, file: int, offset: int, count: int, growth: Growth | None = None) -> int:
        """As FileSender's."""
        count = min(count, COPY_BYTES, growth.readable(offset) - offset if growth else count)
        data: bytes | bytearray | None = read_now(file, offset, count)
        if data is None:
            # If we are cancelled and `file` is closed, the thread may read another file. Nobody sees what it read.
            data = await self._loop.run_in_executor(self._threads.disk, os.pread, file, count, offset)
        else:
            await asyncio.sleep(0)  # a client that is always ready must not starve the others
        if self._transport.is_closing():
            raise ClientGone("the client has closed the connection")
        self._transport.write(data)
        return len(data)

    def send_now(self, head: bytes, file: int, offset: int, count: int) -> int | None:
        """As FileSender's."""
        body = read_now(file, offset, count)
        if body is None:
            return None
        self._transport.write(b"".join((head, body)))
        return len(head) + count

    def close(self) -> None: ...


class FileSender:
    """Sends slices of files on one connection: by the kernel, or by copying once the kernel has refused."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: Threads, transport: asyncio.Transport) -> None:
        self._loop, self._threads, self._transport = loop, threads, transport
        self._sender: KernelSender | CopySender | None = None
        """None until the first slice: many answers have none."""

    async def send(self, file: int, offset: int, count: int, growth: Growth | None = None) -> int:
        """Send up to `count` bytes, at least one; 0 if the file ends here. The transport's buffer must be empty.

        Of a file that grows, at least one byte must be readable now; those that come soon may be sent too.
        """
        if self._sender is None:
            self._sender = self._first_sender()
        try:
            return await self._sender.send(file, offset, count, growth)
        except OSError as error:
            if error.errno not in UNSUPPORTED or isinstance(self._sender, CopySender):
                raise
        self._sender.close()
        self._sender = CopySender(self._loop, self._threads, self._transport)
        return await self._sender.send(file, offset, count, growth)

    def send_now(self, head: bytes, file: int, offset: int, count: int) -> int | None:
        """Send what the socket takes at once: bytes of head and slice together. The transport's buffer must be empty.

        None, and nothing is sent, if the disk would be waited for.
        """
        if self._sender is None:
            try:
                self._sender = self._first_sender()
            except OSError:
                return 0  # no descriptor is left
        return self._sender.send_now(head, file, offset, count)

    def close(self) -> None:
        if self._sender:
            self._sender.close()

    def _first_sender(self) -> KernelSender | CopySender:
        sock = self._transport.get_extra_info("socket")
        if sock is None or self._transport.get_extra_info("sslcontext"):
            return CopySender(self._loop, self._threads, self._transport)
        return KernelSender(self._loop, self._threads, sock)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
