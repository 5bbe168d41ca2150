"""One connection's share of a fill: socket to buffer to file, in a thread.

A transfer knows its segment of the body, the file, and nothing of the fill but a call that says "more has come".
"""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import UpstreamChanged, UpstreamError, UpstreamPage, UpstreamRange
from ..rules.entry import Head, Headers, field
from ..rules.extents import Extents
from ..rules.freshness import initial_age
from ..rules.headers import http_date, stored_headers
from ..rules.pages import is_page
from ..rules.segments import Segment
from ..rules.validators import resume_validator
from ..rules.vary import that_select
from ..store.partial import Partial
from ..upstream.client import Upstream
from ..upstream.exchange import Exchange
from ..upstream.wording import status_error

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
    is_flowing: bool = False
    """Bytes have come by it."""
    is_cancelled: bool = False
    cut: tuple["Transfer", int | None] | None = None
    """The running transfer that was to end where this one begins, and where it would have ended otherwise."""

    def run(self, partial: Partial, open_rest: Callable[[], Exchange], tell: Callable[[], object]) -> None:
        """In a thread: fetch the segment to its end. Raises UpstreamError or StoreError.

        `open_rest` asks for the segment where no exchange is there yet; an answer from byte 0 makes it a transfer from
        byte 0, which compares what is on disk and writes what is not. `tell` is called when bytes have come, and not
        again before `is_told` is taken back.
        """
        if self.exchange is None:
            self.exchange = open_rest()
            if self.exchange.status == 200:
                self.offset, self.written, self.stop = 0, 0, self.exchange.length
        known = Extents.from_pairs(partial.extents) if self.exchange.status == 200 else Extents()
        with self.exchange as exchange:
            room = BUFFER_BYTES if exchange.length is None else min(BUFFER_BYTES, exchange.length)
            buffer = memoryview(bytearray(max(1, room)))
            # The loop may move `stop` down at any time; an overlap would only be written twice.
            while not self.is_cancelled and (self.stop is None or self.written < self.stop):
                rest = len(buffer) if self.stop is None else self.stop - self.written
                count = exchange.read_into(buffer[:rest])
                if not count:
                    if (known_end := max((end for _, end in known), default=0)) > self.written:
                        raise UpstreamChanged(f"{exchange.url} has {self.written} bytes now, we have {known_end} of it")
                    return
                put(partial, known, self.written, buffer[:count], exchange.url)
                self.written += count
                if not self.is_told:
                    self.is_told = True
                    tell()

    def cancel(self) -> None:
        """From the loop: the thread ends soon, whatever it waits for; at the latest when a connect times out."""
        self.is_cancelled = True
        if self.exchange:
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


def open_rest(
    upstream: Upstream,
    url: str,
    head: Head,
    source: str,
    segment: Segment,
    *,
    whole: bool,
    alone: bool,
    fields: Headers = (),
) -> Exchange:
    """In a thread: ask for a segment of the body that `head`, given by `source`, tells of; or for all of it (`whole`).

    The answer is exactly that segment (206) or, where no other transfer runs (`alone`), a whole body (200) that is not
    known to be another one: its bytes must be compared. Raises UpstreamChanged if it is another one for sure,
    UpstreamRange if ranges are of no use here, UpstreamError for all else.
    """
    whole = whole or resume_validator(head.headers) is None
    asked = () if whole else rest_condition(head, segment.offset, segment.stop)
    exchange = upstream.open(url, headers=(*fields, *asked))
    try:
        if is_rest(exchange, head, segment.offset) and not whole:
            return exchange
        if exchange.status == 200:
            if is_other(exchange, head, source):
                raise UpstreamChanged(f"{url} changed while it was fetched")
            if head.length is not None and exchange.length not in (None, head.length):
                raise UpstreamChanged(f"{url} has {exchange.length} bytes now instead of {head.length}")
            if alone:
                return exchange
        if exchange.status in (200, 206):
            raise UpstreamRange(f"{url} does not go on at byte {segment.offset}, as it was asked to")
        raise status_error(exchange)
    except UpstreamError:
        exchange.close()
        raise


def is_other(exchange: Exchange, head: Head, source: str) -> bool:
    """Whether the validators of an answer say for sure that it is another body: of one kind, and different.

    Only between answers of one server: another mirror may call the same bytes by another tag.
    """
    if urlsplit(exchange.url).netloc != urlsplit(source).netloc:
        return False
    for name in ("etag", "last-modified"):
        now, before = field(exchange.headers, name), field(head.headers, name)
        if now is not None and before is not None:
            return now.removeprefix("W/") != before.removeprefix("W/")
    return False


def rest_condition(head: Head, start: int, stop: int | None = None) -> Headers:
    """Fields that ask for the bytes from `start` to `stop` (None: the end) of that very body (RFC 9110 §13.1.5)."""
    last = "" if stop is None or stop == head.length else str(stop - 1)
    return ("range", f"bytes={start}-{last}"), ("if-range", resume_validator(head.headers) or "")


def is_rest(exchange: Exchange, head: Head, offset: int) -> bool:
    """Whether it is a 206 with our body's bytes from `offset` on: same validator, same length, exact Content-Range."""
    wanted = f"bytes {offset}-"
    given = field(exchange.headers, "content-range") or ""
    span, _, total = given.removeprefix(wanted).partition("/")
    return (
        exchange.status == 206
        and all(
            field(exchange.headers, name) in (None, field(head.headers, name)) for name in ("etag", "last-modified")
        )
        and given.startswith(wanted)
        and total == str(head.length)
        and span.isdecimal()
        and (exchange.length is None or exchange.length == int(span) + 1 - offset)
    )


def head_of(exchange: Exchange, now: float, generation: str, asked: Headers) -> Head:
    """What an answer to a question with the fields `asked` says, with the Date it must have (RFC 9110 §6.6.1).

    Raises UpstreamPage if it is a web page under the name of an image.
    """
    headers = stored_headers(exchange.headers)
    if exchange.status == 200 and is_page(urlsplit(exchange.url).path.rpartition("/")[2], headers, exchange.length):
        raise UpstreamPage(
            f"{exchange.url} answered with a web page (text/html) in place of the file. nothing was stored. is there a "
            "login or captive portal on the way? open the URL in a browser to see what it says"
        )
    if field(headers, "date") is None:
        headers += (("date", http_date(now)),)
    age = initial_age(exchange.headers, now, exchange.delay)
    return Head(headers, exchange.length, generation, age, that_select(asked))
