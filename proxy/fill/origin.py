"""Where the bytes of one object come from: its mirrors, asked until one of them answers.

Whoever needs bytes calls `open`: for the first answer, for the rest after a break, for what a killed process left, and
for a body that is passed through. Only this file decides which mirror is next, how long to wait for it, which answers
may go on with a body that is here already, and when its bytes must be compared. Another server of ours, or an object
store, would be another class with the same `open`.
"""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from logging import WARNING
from typing import Any, TypeVar

from ..errors import UpstreamChanged, UpstreamError, UpstreamRange
from ..log import events, log
from ..rules.entry import Entry, Head, Headers
from ..rules.mirrors import Target
from ..rules.splice import Held, Known
from ..stats import mirror_label
from ..upstream.client import Started, Upstream
from ..upstream.exchange import Exchange, Ready
from ..upstream.wording import first_error
from .asking import Answer, Gap, Inquiry, Rest, ask, ask_head, begin, exchange_of, head_in, understood
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

T = TypeVar("T")
Asks = Callable[[Inquiry, Upstream, Callable[[], float], Started | None], T]


@dataclass(slots=True)
class Mishaps:
    """What went wrong with one fill, and did not end it; for people."""

    resumes: int = 0
    """How often a transfer broke and was asked for again."""
    last: str | None = None


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
        self.mishaps = Mishaps()
        self._url = self.urls[0]
        """The mirror that a rest is asked of."""
        self._resolved: dict[str, str] = {}
        """Where each mirror has redirected to: parts and the rest are asked of the same node."""
        self._failures = 0
        """Tries since a byte last came: the running one is counted until then."""
        self._trouble: UpstreamError | None = None
        """What failed last, and has not been waited for yet."""
        self._takes_parts = True
        """False once a range did not give what was asked for: then all of the body is asked for, and compared."""

    async def open(self, gap: Gap | None, known: Known | None) -> Answer:
        """Ask for the bytes of `gap` of the known body, until a mirror gives them or patience ends.

        Without `known` this is the first question, on condition. With `known` but no gap it asks whether that is still
        the object. Close the exchange of the answer. Raises UpstreamError for an answer that helps nobody, and
        UpstreamChanged if clients read the known body and it cannot be completed.
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
        inquiry = Inquiry(self._url, self._condition, None, gap, known, at=self._resolved.get(self._url))
        try:
            answer = await self._asked(inquiry)
            assert isinstance(answer, Rest)
            if answer.compare:
                answer.exchange.drop()
                raise UpstreamError(f"another node of {self._url} answered, or without the part that was asked for")
        except UpstreamError as error:
            self._context.health.refused_more(self._url, self._now(), error.retry_after)
            raise
        return answer

    @property
    def threads(self) -> Executor:
        """For transfers from the mirror that has just answered."""
        return self._context.threads.of(self._url)

    @property
    def takes_more(self) -> bool:
        """Whether the mirror that has just answered may be asked over more connections at once."""
        return self._context.health.takes_more(self._url, self._now())

    def progressed(self) -> None:
        """Bytes have come."""
        self._failures = 0

    def broke(self, error: UpstreamError, *, is_awaited: bool = True) -> None:
        """The transfer that `open` began has broken: the next `open` waits, and asks the next mirror if need be.

        Where no reader waits (`is_awaited`), a transfer that brought nothing counts twice.
        """
        if self._failures:  # no byte has come
            self._failures += not is_awaited
        if self._failures or isinstance(error, UpstreamChanged):
            self._resolved.pop(self._url, None)  # the redirector may know a better node
        self._trouble = error
        self._failures = self._failures or 1
        self._takes_parts = self._takes_parts and not isinstance(error, UpstreamRange)

    def found(self, exchange: Exchange) -> None:
        """The body comes by `exchange`: its rest is asked of the same mirror, and of the node that it redirected to."""
        self._url = exchange.url
        if exchange.final_url != exchange.url:
            self._resolved[exchange.url] = exchange.final_url

    async def head(self) -> Head | None:
        """What the first mirror that has something to say answers to HEAD; None if only GET can tell."""
        errors: list[UpstreamError] = []
        for url in self.urls:
            try:
                inquiry, context = Inquiry(url, self._condition, None), self._context
                begun = await begin(inquiry, context.upstream, "HEAD")
                if isinstance(begun, Ready):
                    return head_in(inquiry, begun, context.clock)
                return await self._in_thread(ask_head, inquiry, begun)
            except UpstreamError as error:
                errors.append(error)
        raise first_error(errors)

    # -- who is asked, and when ---------------------------------------------------------------------------------------

    async def _wait_out(self, error: UpstreamError, known: Known | None) -> None:
        """Wait before the next try, and choose whom to ask then; raises `error` if there is none."""
        health = self._context.health
        delay = max(min(BACKOFF_MAX, BACKOFF_SECONDS * 2.0 ** (self._failures - 1)), error.retry_after or 0.0)
        if known and known.held is not Held.SAVED:
            is_changed = isinstance(error, UpstreamChanged)
            is_over = isinstance(error, UpstreamChanged) and error.is_final
            if is_over or self._failures > self._context.settings.retries or delay > REST_WAIT_MAX:
                raise error
            self._context.stats.resumes[mirror_label(self._target.mirror),] += 1
            self.mishaps.resumes += 1
            if self._failures > 1 or is_changed:  # the mirror that broke is asked once more
                health.failed(self._url, self._now())
                self._url = health.order(self.urls, self._now())[0]
        # With something to serve nobody is made to wait.
        elif self._stale or not error.is_transient or self._failures >= FIRST_TRIES or delay > FIRST_WAIT_MAX:
            raise error
        self._trouble, self.mishaps.last = None, error.message
        key = self._target.key[:12]
        log(events, WARNING, "fill.asks_again", key=key, error=error, retry_in=delay, next=self._url)
        await asyncio.sleep(delay)

    async def _ask(self, url: str, gap: Gap | None, known: Known | None) -> Answer:
        inquiry = Inquiry(url, self._condition, self._stale, gap, known, self._takes_parts)
        try:
            if known and (at := self._resolved.pop(url, None)):
                try:
                    return await self._answer(replace(inquiry, at=at))
                except UpstreamError:
                    pass  # a signed URL expires, and a redirector knows other nodes
            return await self._answer(inquiry)
        except UpstreamRange:
            self._takes_parts = False
            raise

    async def _answer(self, inquiry: Inquiry) -> Answer:
        answer = await self._asked(inquiry)
        if exchange := exchange_of(answer):
            self.found(exchange)
        return answer

    async def _asked(self, inquiry: Inquiry) -> Answer:
        context = self._context
        begun = await begin(inquiry, context.upstream)
        if isinstance(begun, Ready):
            if answer := understood(inquiry, begun, context.clock):
                return answer
            inquiry, begun = inquiry.anew(), None
        return await self._in_thread(ask, inquiry, begun)

    async def _in_thread(self, asks: Asks[T], inquiry: Inquiry, started: Started | None) -> T:
        context = self._context
        asking = asyncio.get_running_loop().run_in_executor(
            context.threads.of(inquiry.url), asks, inquiry, context.upstream, context.clock, started
        )
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            # The thread cannot be stopped; nobody wants what it brings.
            asking.add_done_callback(functools.partial(_drop, started))
            raise

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _drop(started: Started | None, asking: asyncio.Future[Any]) -> None:
    if asking.cancelled():
        if started:
            started.close()  # no thread has begun with it
    elif not asking.exception() and (exchange := exchange_of(asking.result())):
        exchange.drop()
