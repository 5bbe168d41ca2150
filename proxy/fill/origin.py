"""Where the bytes of one object come from: its mirrors, asked until one of them answers.

Whoever needs bytes calls `open`: for the first answer, for the rest after a break, for what a killed process left, and
for a body that is passed through. Only this file decides which mirror is next, how long to wait for it, which answers
may go on with a body that is here already, and when its bytes must be compared. Another server of ours, or an object
store, would be another class with the same `open`.
"""

import asyncio
import secrets
from dataclasses import dataclass
from functools import partial
from logging import WARNING
from urllib.parse import urlsplit

from ..errors import UpstreamChanged, UpstreamError, UpstreamPage, UpstreamRange
from ..log import events, log
from ..rules import vary
from ..rules.entry import Entry, Head, Headers, field
from ..rules.freshness import initial_age
from ..rules.headers import http_date, stored_headers
from ..rules.mirrors import Target
from ..rules.pages import is_page
from ..rules.splice import Held, Known, Splice, judge, rest_condition
from ..rules.validators import condition, confirms
from ..rules.vary import that_select
from ..upstream.exchange import Exchange
from ..upstream.wording import first_error, status_error
from .context import FillContext

FIRST_TRIES = 3
"""Rounds over all mirrors for the first answer."""
FIRST_WAIT_MAX = 5.0
"""Seconds upstream may ask us to wait for it: some clients give up after 10 s without a head."""
REST_WAIT_MAX = 120.0
"""Seconds upstream may ask us to wait in the middle of a body, with clients waiting for the rest."""
BACKOFF_SECONDS = 0.2
"""Before the first retry; doubled for each further one."""
BACKOFF_MAX = 10.0
SAYS_NOTHING = frozenset({401, 403, 429})
"""Answers, beside 5xx, that say nothing about the object: what we have of it may still be of use."""
REFUSES_HEAD = frozenset({400, 403, 405, 501})
"""Answers to HEAD that say nothing about GET: not allowed, not implemented, or a URL signed for GET alone."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A body from its first byte on."""

    exchange: Exchange
    head: Head
    url: str


@dataclass(frozen=True, slots=True)
class Rest:
    """The known body, from byte `start` on. `compare`: it may be another one, and starts at 0 to be compared."""

    exchange: Exchange
    start: int
    compare: bool


@dataclass(frozen=True, slots=True)
class Unchanged:
    """What we have is still the object (RFC 9110 §15.4.5)."""

    url: str
    head: Head


@dataclass(frozen=True, slots=True)
class Another:
    """Instead of the known body there is another one, or none that this question could tell of."""

    whole: Whole | None


Gap = tuple[int, int | None]
"""(start, end) of the bytes that are asked for; None: to the end."""
Answer = Whole | Rest | Unchanged | Another


class Origin:
    """The mirrors of one target, for one fill or one client. Remembers what failed since bytes last came."""

    def __init__(
        self,
        target: Target,
        condition: Headers,
        context: FillContext,
        *,
        stale: Entry | None = None,
        avoid: frozenset[str] = frozenset(),
    ) -> None:
        """`condition`: the fields of the first question; a 304 to it confirms `stale`. `avoid`: URLs to pass over."""
        urls = target.urls_for(condition)
        self.urls = tuple(url for url in urls if url not in avoid) or urls
        """In the order to ask them."""
        self._target, self._condition, self._context, self._stale = target, condition, context, stale
        self._url = self.urls[0]
        """The mirror that a rest is asked of."""
        self._failures = 0
        """Tries since a byte last came: the running one is counted until then."""
        self._trouble: UpstreamError | None = None
        """What failed last, and has not been waited for yet."""
        self._takes_parts = True
        """False once a range did not give what was asked for: then all of the body is asked for, and compared."""

    async def open(self, gap: Gap | None, known: Known | None) -> Answer:
        """The bytes of `gap` of the known body, and other mirrors' where one fails; retried with patience.

        Without `known` it is the first question, on condition. Without a gap, with `known`: is that still the object?
        Close the exchange of the answer. Raises UpstreamError for any answer that helps neither, UpstreamChanged if
        clients read the known body and it cannot be completed.
        """
        while True:
            if self._trouble:
                await self._wait_out(self._trouble, known)
            self._failures += 1  # taken back by the first byte
            errors: list[UpstreamError] = []
            is_first = known is None or known.held is Held.SAVED
            # In the middle of a body one mirror is asked before the next wait.
            for url in self._context.health.order(self.urls, self._now()) if is_first else (self._url,):
                try:
                    answer = await self._ask(url, gap, known)
                except UpstreamError as error:
                    errors.append(error)
                    if error.status >= 500 and is_first:
                        self._context.health.failed(url, self._now())
                else:
                    self._url = url
                    self._context.health.answered(url)
                    return answer
            self._trouble = first_error(errors)

    async def open_beside(self, gap: Gap, known: Known) -> Rest:
        """A part of the known body over one more connection: asked once, of the mirror that has just answered.

        Raises UpstreamError if it is not given; what runs already goes on.
        """
        answer = await self._ask(self._url, gap, known)
        assert isinstance(answer, Rest)
        if answer.compare:
            answer.exchange.close()
            self._takes_parts = False
            raise UpstreamRange(f"{self._url} gave the whole body instead of a part")
        return answer

    def progressed(self) -> None:
        """Bytes have come."""
        self._failures = 0

    def broke(self, error: UpstreamError) -> None:
        """The transfer that `open` began has broken: the next `open` waits, and asks the next mirror if need be."""
        self._trouble = error
        self._failures = self._failures or 1

    async def head(self) -> Head | None:
        """What the first mirror that has something to say answers to HEAD; None if only GET can tell."""
        errors: list[UpstreamError] = []
        for url in self.urls:
            try:
                exchange = await self._send(url, self._condition, "HEAD")
            except UpstreamError as error:
                errors.append(error)
                continue
            with exchange:
                if exchange.status == 200:
                    return self._head_of(exchange, "")
                if exchange.status in REFUSES_HEAD:
                    return None
                errors.append(status_error(exchange))
        raise first_error(errors)

    # -- who is asked, and when ---------------------------------------------------------------------------------------

    async def _wait_out(self, error: UpstreamError, known: Known | None) -> None:
        """Wait before the next try, and choose whom to ask then; raises `error` if there is none."""
        health = self._context.health
        delay = max(min(BACKOFF_MAX, BACKOFF_SECONDS * 2.0 ** (self._failures - 1)), error.retry_after or 0.0)
        if known and known.held is not Held.SAVED:
            is_changed = isinstance(error, UpstreamChanged)
            # A mirror that has something else is passed over, but for the one that the body came from.
            is_over = is_changed and (self._url == known.url or len(self.urls) == 1)
            if is_over or self._failures > self._context.settings.retries or delay > REST_WAIT_MAX:
                raise error
            if self._failures > 1 or is_changed:  # the mirror that broke is asked once more
                health.failed(self._url, self._now())
                self._url = health.order(self.urls, self._now())[0]
        # With something to serve nobody is made to wait.
        elif self._stale or not error.is_transient or self._failures >= FIRST_TRIES or delay > FIRST_WAIT_MAX:
            raise error
        self._trouble = None
        key = self._target.key[:12]
        log(events, WARNING, "fill.asks_again", key=key, error=error, retry_in=delay, next=self._url)
        await asyncio.sleep(delay)

    # -- one question -------------------------------------------------------------------------------------------------

    async def _ask(self, url: str, gap: Gap | None, known: Known | None) -> Answer:
        exchange = await self._send(url, self._question(url, gap, known))
        try:
            if known is None:
                return await self._first(exchange)
            if gap is None:
                return self._still(exchange, known)
            return self._rest(exchange, gap, known)
        except BaseException:
            exchange.close()
            raise

    def _question(self, url: str, gap: Gap | None, known: Known | None) -> Headers:
        if known is None:
            return self._condition
        fields = vary.with_each(self._condition)
        if gap is None:
            # Another mirror's validators need not be ours.
            is_same = urlsplit(url).netloc == urlsplit(known.url).netloc
            return (*fields, *(condition(known.head.headers) if is_same else ()))
        if not self._takes_parts or not known.can_resume:
            return fields
        return (*fields, *rest_condition(known.head, *gap))

    async def _first(self, exchange: Exchange) -> Answer:
        if exchange.status == 304 and self._stale:
            exchange.close()
            if confirms(self._stale.head.headers, exchange.headers):
                return Unchanged(exchange.url, self._head_of(exchange, ""))
            # It is about something we do not have.
            exchange = await self._send(exchange.url, vary.with_each(self._condition))
        if exchange.status != 200:
            exchange.close()
            raise status_error(exchange)
        try:
            return self._whole(exchange)
        except UpstreamError:
            exchange.close()
            raise

    def _still(self, exchange: Exchange, known: Known) -> Answer:
        """The answer to "is it still this body?", of which every byte is here."""
        if exchange.status == 304:
            exchange.close()
            return Unchanged(exchange.url, self._head_of(exchange, ""))
        another = self._another(exchange)
        if known.held is Held.SAVED:
            return another
        raise changed(exchange)

    def _rest(self, exchange: Exchange, gap: Gap, known: Known) -> Answer:
        is_saved = known.held is Held.SAVED
        if exchange.status not in (200, 206):
            if is_saved:
                return self._another(exchange)
            raise status_error(exchange)
        match judge(known, gap[0], exchange):
            case Splice.PART if self._takes_parts:
                return Rest(exchange, gap[0], compare=False)
            case Splice.COMPARE if not is_saved:
                return Rest(exchange, 0, compare=True)
            case Splice.OTHER if not is_saved:
                raise changed(exchange)
        if is_saved:
            return self._another(exchange)
        self._takes_parts = False
        raise UpstreamRange(f"{exchange.url} does not go on at byte {gap[0]}, as it was asked to")

    def _another(self, exchange: Exchange) -> Another:
        """What is there in place of a saved body. Raises UpstreamError for an answer that says nothing about it."""
        if exchange.status >= 500 or exchange.status in SAYS_NOTHING:
            raise status_error(exchange)
        if exchange.status == 200:
            return Another(self._whole(exchange))
        exchange.close()
        return Another(None)

    def _whole(self, exchange: Exchange) -> Whole:
        return Whole(exchange, self._head_of(exchange, secrets.token_hex(8)), exchange.url)

    def _head_of(self, exchange: Exchange, generation: str) -> Head:
        """What an answer says, with the Date it must have (RFC 9110 §6.6.1).

        Raises UpstreamPage if it is a web page under the name of an image.
        """
        now = self._context.clock()
        headers = stored_headers(exchange.headers)
        if exchange.status == 200 and is_page(urlsplit(exchange.url).path.rpartition("/")[2], headers, exchange.length):
            raise UpstreamPage(
                f"{exchange.url} answered with a web page (text/html) in place of the file. nothing was stored. is "
                "there a login or captive portal on the way? open the URL in a browser to see what it says"
            )
        if field(headers, "date") is None:
            headers += (("date", http_date(now)),)
        age = initial_age(exchange.headers, now, exchange.delay)
        return Head(headers, exchange.length, generation, age, that_select(self._condition))

    async def _send(self, url: str, fields: Headers, method: str = "GET") -> Exchange:
        """As Upstream.open, in a thread."""
        job = partial(self._context.upstream.open, url, method=method, headers=fields)
        opening = asyncio.get_running_loop().run_in_executor(self._context.threads, job)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)  # the thread cannot be stopped; nobody wants what it brings
            raise

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def changed(exchange: Exchange) -> UpstreamChanged:
    return UpstreamChanged(f"{exchange.url} changed while it was fetched")


def _close(opening: asyncio.Future[Exchange]) -> None:
    if not opening.cancelled() and not opening.exception():
        opening.result().close()
