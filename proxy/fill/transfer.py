"""One connection's share of a fill: socket to buffer to file, in a thread."""

from collections.abc import Callable

from ..errors import UpstreamChanged, UpstreamRange
from ..rules.extents import Extents
from ..rules.segments import Segment
from ..store.partial import Partial
from ..upstream.exchange import Carrier

BUFFER_BYTES = 2 * 1024**2
"""One read from the socket and one write to the file: as much as a huge page, which the kernel then maps at once. Eight
readers of a new 1 GiB took 1.47 s, and 1.59 with half of it (medians of nine); with 4 MiB no less."""


class Transfer:
    """A segment, and the answer that carries it.

    The loop owns `segment`, and cancels; the thread reads `segment.stop` before each piece. The thread owns `written`.
    `is_told` goes back and forth: the thread sets it when it tells the loop, the loop clears it when it has looked.
    """

    def __init__(self, segment: Segment, exchange: Carrier, *, compare: bool = False) -> None:
        """`compare`: what is on disk must equal what the answer brings, and only the rest of that is written."""
        self.segment, self.exchange, self._compare = segment, exchange, compare
        self.written = segment.offset
        self.is_told = False
        self.is_cancelled = False

    def run(self, partial: Partial, tell: Callable[[], object]) -> None:
        """In a thread: fetch the segment to its end. Raises UpstreamError or StoreError.

        `tell` is called when bytes have come, and not again before `is_told` is cleared.
        """
        known = Extents.from_pairs(partial.extents) if self._compare else Extents()
        with self.exchange as exchange:
            room = BUFFER_BYTES if exchange.length is None else min(BUFFER_BYTES, exchange.length)
            buffer = memoryview(bytearray(max(1, room)))
            # The loop may trim the segment at any time; an overlap would only be written twice.
            while not self.is_cancelled and ((stop := self.segment.stop) is None or self.written < stop):
                rest = len(buffer) if stop is None else stop - self.written
                count = exchange.read_into(buffer[:rest])
                if not count:
                    known_end = max((end for _, end in known), default=0)
                    if exchange.status == 200 and known_end > self.written:
                        raise UpstreamChanged(f"{exchange.url} has {self.written} bytes now, we have {known_end} of it")
                    if stop is not None:
                        raise UpstreamRange(
                            f"{exchange.url} was asked for the bytes to {stop}, and sent those to {self.written}"
                        )
                    return
                put(partial, known, self.written, buffer[:count], exchange.url)
                self.written += count
                if not self.is_told:
                    self.is_told = True
                    tell()

    def cancel(self) -> None:
        """From the loop: the thread ends soon, whatever it waits for."""
        self.is_cancelled = True
        self.exchange.abort()


def put(partial: Partial, known: Extents, start: int, data: memoryview, url: str) -> None:
    """Write `data` at `start`, but for what is `known`: that must be equal, or UpstreamChanged is raised."""
    end = start + len(data)
    for gap_start, gap_end in known.gaps(end, start):
        partial.write(gap_start, data[gap_start - start : gap_end - start])
    at = start
    while at < end:
        stop = min(known.reach(at), end)
        if stop > at and partial.read(at, stop - at) != data[at - start : stop - start]:
            raise UpstreamChanged(f"{url} differs from what came of it before, between byte {at} and {stop}")
        at = stop if stop > at else known.next_start(at) or end


def read_equal(exchange: Carrier, partial: Partial, start: int) -> int | None:
    """In a thread: read what the answer repeats of `partial` from `start` on, and compare. Raises UpstreamError.

    Returns where that ends; None if it differs, or nothing is repeated.
    """
    at, end = start, partial.extents.reach(start)
    buffer = memoryview(bytearray(max(1, min(BUFFER_BYTES, end - start))))
    while at < end:
        count = exchange.read_into(buffer[: end - at])
        if not count or partial.read(at, count) != buffer[:count]:
            return None
        at += count
    return end if end > start else None
