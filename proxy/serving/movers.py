"""Threads that send files to clients which take much at once. Nothing here knows HTTP.

A mover serves many sockets, as a worker of nginx does: it fills each one that takes bytes and goes on with the next. A
client that pauses costs it nothing. It follows a file that grows, so that nobody has to hand it each piece. It never
waits for a disk: a file that is not in memory goes back to the loop.

A thread for each client instead makes them fight for the cores with the loop and with the clients. Eight readers of a
cached 1 GiB on two cores, median of four: 2.2 CPU seconds with eight threads, 1.7 with two movers and no less speed.
One mover is a third slower. Writes from mapped memory took 0.96 s where sendfile takes 0.83 from single pages in the
page cache, and 0.75 from large folios (medians of nine).
"""

import asyncio
import contextlib
import errno
import os
import selectors
import threading
import time
from collections import deque
from dataclasses import dataclass
from operator import attrgetter

from ..rules.pieces import Slice

STEP_BYTES = 4 * 1024**2
"""Sent at once, if the socket takes so much. 2 to 64 MiB are equally fast, 1 is a fifth slower; the first byte of the
last of eight readers comes after 8 ms with 4 and 8, 11 with 16, 12 with 64."""
MOVERS = min(os.cpu_count() or 1, 4)
"""One for each core; a few copy as fast as the memory can."""
PATIENCE_SECONDS = 0.05
"""How long a job waits for its file to grow. Then whoever put it looks why it does not."""
WARM_SECONDS = 1.0
"""What was in memory is taken to be there so long. A socket takes a part of a step, and the rest soon after."""


def in_page_cache(file: int, offset: int, count: int) -> bool:
    """Whether the slice's last byte can be read without waiting for a disk. True where the kernel cannot say."""
    if not hasattr(os, "RWF_NOWAIT"):
        return True
    try:
        os.preadv(file, [bytearray(1)], offset + count - 1, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True  # tmpfs and others answer EOPNOTSUPP
    return True


@dataclass(slots=True, eq=False)
class Job:
    """A slice on its way to one client. Its mover closes the two descriptors.

    If they were shared, somebody could close them meanwhile, and their numbers could then mean another client's socket
    or another file.
    """

    mover: "Mover"
    out: int
    piece: Slice
    done: asyncio.Future[int]
    """The bytes sent: not all if the file ends, does not grow, is not in memory further on, or the job was dropped; or
    an OSError, if none was sent."""
    sent: int = 0
    is_dropped: bool = False
    warm_end: int = 0
    """Up to this offset the file is in memory ..."""
    warm_until: float = 0.0
    """... and until then that need not be asked again."""
    is_watched: bool = False
    """Its mover's selector has the socket."""

    @property
    def at(self) -> int:
        """Offset in the file of the next byte."""
        return self.piece.start + self.sent

    @property
    def ready(self) -> int:
        """Bytes that are there to be sent."""
        end, growth = self.piece.end, self.piece.growth
        return (min(end, growth.readable(self.at)) if growth else end) - self.at

    def drop(self) -> None:
        """Send no more. For the loop's thread, also when it is done."""
        if not self.is_dropped:
            self.is_dropped = True
            self.mover.tell_dropped(self)

    def finish(self, error: OSError | None) -> None:
        """Tell whoever waits. For the loop's thread."""
        self.mover.jobs -= 1
        if self.piece.growth:
            self.piece.growth.unwatch(self.mover.wake)
        if self.done.done():
            return  # cancelled
        if error and not self.sent:
            self.done.set_exception(error)
        else:
            self.done.set_result(self.sent)  # the next job meets the error again


class Movers:
    """All of one loop. For its thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, count: int = MOVERS, *, patience: float = PATIENCE_SECONDS
    ) -> None:
        self._all = [Mover(loop, patience) for _ in range(count)]

    def put(self, out: int, piece: Slice) -> Job:
        """Begin to send; takes over both descriptors. If the piece grows, bytes are sent as they come."""
        return min(self._all, key=lambda mover: mover.jobs).put(out, piece)

    def close(self) -> None:
        """Drop all jobs. The threads end by themselves."""
        for mover in self._all:
            mover.close()


class Mover:
    """One thread, from its first job on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, patience: float) -> None:
        self.jobs = 0
        """Counted by the loop's thread."""
        self._loop, self._patience = loop, patience
        self._new: deque[Job] = deque()
        self._dropped: deque[Job] = deque()
        self._is_started = self._is_closing = self._is_woken = False
        self._wakes, self._waker = os.pipe()
        for end in (self._wakes, self._waker):
            os.set_blocking(end, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakes, selectors.EVENT_READ)
        self._ready: list[Job] = []
        self._waiting: set[Job] = set()
        """Their sockets are full."""
        self._starved: dict[Job, float] = {}
        """Their files must grow, and until when they wait for it; in the order of that."""

    # -- in the loop's thread -----------------------------------------------------------------------------------------

    def put(self, out: int, piece: Slice) -> Job:
        job = Job(self, out, piece, self._loop.create_future())
        self.jobs += 1
        if piece.growth:
            piece.growth.watch(self.wake)
        if self._is_closing:
            self._end(job, OSError(errno.ESHUTDOWN, "the server stops"))
            return job
        self._new.append(job)
        self.wake()
        if not self._is_started:
            self._is_started = True
            threading.Thread(target=self._run, name="mover", daemon=True).start()
        return job

    def tell_dropped(self, job: Job) -> None:
        self._dropped.append(job)
        self.wake()

    def close(self) -> None:
        self._is_closing = True
        os.close(self._waker)  # which wakes it
        if not self._is_started:
            self._leave()

    def wake(self) -> None:
        """Have the thread look for jobs that are new, dropped, or may go on."""
        if not (self._is_closing or self._is_woken):
            self._is_woken = True
            os.write(self._waker, b".")

    # -- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_closing:
            for key, _ in self._selector.select(self._seconds()):
                if key.data is None:
                    os.read(self._wakes, 1)
                    self._is_woken = False  # first: what comes after this line wakes again
                    self._take()
                    self._feed()
                elif key.data in self._waiting:  # else dropped in this turn
                    self._rouse(key.data)
            self._lose_patience()
            # The hindmost first: those that began together stay together, and find the file in the processor's cache.
            turn, self._ready = sorted(self._ready, key=attrgetter("at")), []
            for job in turn:
                self._step(job)
        self._leave()

    def _leave(self) -> None:
        for job in (*self._new, *self._ready, *self._waiting, *self._starved):
            self._end(job)
        self._selector.close()
        os.close(self._wakes)

    def _take(self) -> None:
        while self._new:
            self._ready.append(self._new.popleft())
        while self._dropped:
            if (job := self._dropped.popleft()) in self._waiting:
                self._rouse(job)

    def _feed(self) -> None:
        """Let the starved go on whose files have grown."""
        for job in [each for each in self._starved if each.ready > 0 or each.is_dropped]:
            del self._starved[job]
            self._ready.append(job)

    def _seconds(self) -> float | None:
        """How long to wait for an event: not at all if a job is ready, else while the first of the starved may."""
        if self._ready:
            return 0
        return next((max(0.0, until - time.monotonic()) for until in self._starved.values()), None)

    def _lose_patience(self) -> None:
        while self._starved:
            job, until = next(iter(self._starved.items()))
            if until > time.monotonic():
                return
            del self._starved[job]
            self._end(job)

    def _step(self, job: Job) -> None:
        count = min(job.ready, STEP_BYTES - job.at % STEP_BYTES)
        if count <= 0 and not job.is_dropped:
            self._unwatch(job)
            self._starved[job] = time.monotonic() + self._patience
            return
        if job.is_dropped or not self._is_warm(job, count):
            self._end(job)
            return
        try:
            sent = os.sendfile(job.out, job.piece.fd, job.at, count)
        except BlockingIOError:
            self._rest(job)
            return
        except OSError as error:
            self._end(job, error)
            return
        job.sent += sent
        if not sent or job.at == job.piece.end:
            self._end(job)
        elif sent < count:
            self._rest(job)  # the socket is full
        else:
            self._ready.append(job)

    def _is_warm(self, job: Job, count: int) -> bool:
        now, end = time.monotonic(), job.at + count
        if job.warm_end < end or job.warm_until < now:
            if not in_page_cache(job.piece.fd, job.at, count):
                return False
            job.warm_end, job.warm_until = end, now + WARM_SECONDS
        return True

    def _rest(self, job: Job) -> None:
        if not job.is_watched:
            try:
                self._selector.register(job.out, selectors.EVENT_WRITE, job)
            except OSError as error:  # the kernel has no memory for it, or watches nothing of that kind
                self._end(job, error)
                return
            job.is_watched = True
        self._waiting.add(job)

    def _rouse(self, job: Job) -> None:
        # It stays watched: the next step most likely fills the socket again, and each call costs two turns of the GIL.
        self._waiting.remove(job)
        self._ready.append(job)

    def _unwatch(self, job: Job) -> None:
        if job.is_watched:
            job.is_watched = False
            self._selector.unregister(job.out)

    def _end(self, job: Job, error: OSError | None = None) -> None:
        self._unwatch(job)  # not after its close: the socket lives on, and epoll would go on reporting
        os.close(job.out)
        os.close(job.piece.fd)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(job.finish, error)
