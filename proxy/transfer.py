"""One connection's share of a fill: socket to buffer to file, in a thread.

A transfer knows its segment of the body, the file, and nothing of the fill but a call that says "more has come".
"""

from collections.abc import Callable
from dataclasses import dataclass

from .errors import UpstreamError
from .partial import Partial
from .rules.entry import Head, Headers, field
from .rules.headers import delta_seconds, http_date, stored_headers
from .rules.segments import Segment
from .rules.validators import resume_validator
from .upstream import Exchange, Upstream, status_error

BUFFER_BYTES = 1024**2
"""One read from the socket and one write to the file."""


@dataclass(slots=True, eq=False)
class Transfer(Segment):
    """A segment with its thread. `written` and `exchange` are the thread's once it runs, all else the loop's."""

    written: int = 0
    """Bytes up to here are in the file."""
    is_told: bool = False
    """The loop has been called and has not come yet."""
    exchange: Exchange | None = None
    is_cancelled: bool = False
    cut: tuple["Transfer", int | None] | None = None
    """The running transfer that was to end where this one begins, and where it would have ended otherwise."""

    def run(self, partial: Partial, open_rest: Callable[[], Exchange], tell: Callable[[], object]) -> None:
        """In a thread: fetch the segment to its end. Raises UpstreamError or StoreError.

        `open_rest` asks for the segment where no exchange is there yet; `tell` is called when bytes have come, and not
        again before `is_told` is taken back.
        """
        if self.exchange is None:
            self.exchange = open_rest()
        with self.exchange as exchange:
            room = BUFFER_BYTES if exchange.length is None else min(BUFFER_BYTES, exchange.length)
            buffer = memoryview(bytearray(max(1, room)))
            # The loop may move `stop` down at any time; an overlap would only be written twice.
            while not self.is_cancelled and (self.stop is None or self.written < self.stop):
                rest = len(buffer) if self.stop is None else self.stop - self.written
                count = exchange.read_into(buffer[:rest])
                if not count:
                    return
                partial.write(self.written, buffer[:count])
                self.written += count
                if not self.is_told:
                    self.is_told = True
                    tell()

    def cancel(self) -> None:
        """From the loop: the thread ends soon, whatever it waits for; at the latest when a connect times out."""
        self.is_cancelled = True
        if self.exchange:
            self.exchange.abort()


def open_rest(upstream: Upstream, url: str, head: Head, segment: Segment) -> Exchange:
    """In a thread: ask for a segment of the body that `head` tells of. Raises UpstreamError if it is not that."""
    exchange = upstream.open(url, headers=rest_condition(head, segment.offset, segment.stop))
    if exchange.status == 206 and is_rest(exchange, head, segment.offset):
        return exchange
    exchange.close()
    if exchange.status not in (200, 206):
        raise status_error(exchange)
    raise UpstreamError(f"{url} does not go on at byte {segment.offset}: it changed, or ignores ranges")


def rest_condition(head: Head, start: int, stop: int | None = None) -> Headers:
    """Fields that ask for the bytes from `start` to `stop` (None: the end) of that very body (RFC 9110 §13.1.5)."""
    last = "" if stop is None or stop == head.length else str(stop - 1)
    return ("range", f"bytes={start}-{last}"), ("if-range", resume_validator(head.headers) or "")


def is_rest(exchange: Exchange, head: Head, offset: int) -> bool:
    """Whether a 206 carries our body's bytes from `offset` on: same validator, same length, exact Content-Range."""
    etag, ours = field(exchange.headers, "etag"), field(head.headers, "etag")
    wanted = f"bytes {offset}-"
    given = field(exchange.headers, "content-range") or ""
    span, _, total = given.removeprefix(wanted).partition("/")
    return (
        (etag is None or etag == ours)
        and given.startswith(wanted)
        and total == str(head.length)
        and span.isdecimal()
        and (exchange.length is None or exchange.length == int(span) + 1 - offset)
    )


def head_of(exchange: Exchange, now: float, generation: str) -> Head:
    """What an answer says, with the Date it must have (RFC 9110 §6.6.1)."""
    headers = stored_headers(exchange.headers)
    if field(headers, "date") is None:
        headers += (("date", http_date(now)),)
    age = float(delta_seconds(field(exchange.headers, "age")) or 0)
    return Head(headers, exchange.length, generation, age)
