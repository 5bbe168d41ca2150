"""Where the bytes of one object come from: other servers of ours, the bucket, and its mirrors, asked in this order.

Whoever needs bytes calls `open`: for the first answer, for the rest after a break, for what a killed process left, and
for a body that is passed through. Only this file decides who is next, how long to wait for it, which answers may go on
with a body that is here already, and when its bytes must be compared. Servers of ours (neighbours.py) and the bucket
(recall.py) only say whether they help.
"""

import asyncio
import contextlib
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from logging import WARNING

from ..errors import (
    PeerFailed,
    UpstreamChanged,
    UpstreamError,
    UpstreamRange,
    UpstreamStatus,
    UpstreamTimeout,
)
from ..log import events, log
from ..rules.entry import Entry, Head, Headers
from ..rules.fleet import name_of
from ..rules.mirrors import Target
from ..rules.splice import Held, Known
from ..stats import mirror_label
from ..upstream.exchange import Carrier
from ..upstream.objects import Download
from ..upstream.wording import first_error
from .asking import Answer, Gap, Inquiry, Rest, Unchanged, Whole, exchange_of
from .context import FillContext
from .inquiring import inquire, inquire_head
from .lease import Turn
from .neighbours import Neighbours
from .recall import Recall

FIRST_TRIES = 3
"""Rounds over all mirrors for the first answer."""
FIRST_WAIT_MAX = 5.0
"""Seconds upstream may ask us to wait for it: some clients give up after 10 s without a head."""
REST_WAIT_MAX = 120.0
"""Seconds upstream may ask us to wait in the middle of a body, with clients waiting for the rest."""
BACKOFF_SECONDS = 0.2
"""Before the first retry; doubled for each further one."""
BACKOFF_MAX = 10.0


@dataclass(slots=True)
class Mishaps:
    """What went wrong with one fill, and did not end it; for people."""

    resumes: int = 0
    """How often a transfer broke and was asked for again."""
    last: str | None = None


@dataclass(frozen=True, slots=True)
class Whom:
    """Whom else to ask, before the mirrors and in this order, and whom not."""

    avoid: frozenset[str] = frozenset()
    """URLs to pass over, while there are others."""
    turn: Turn | None = None
    """Of a fill that is for all servers: who has the lease of the object is asked. End it."""
    recall: Recall | None = None
    """What the bucket has."""


NOBODY = Whom()


class Origin:
    """Of one target, for one fill or one client. Remembers what failed since bytes last came."""

    def __init__(
        self,
        target: Target,
        condition: Headers,
        context: FillContext,
        *,
        stale: Entry | None = None,
        whom: Whom = NOBODY,
    ) -> None:
        """`condition`: the fields of the first question; a 304 to it confirms `stale`."""
        urls = target.urls_for(condition)
        self._mirrors = tuple(url for url in urls if url not in whom.avoid) or urls
        self.neighbours = Neighbours(target, condition, context, whom.avoid, whom.turn)
        self._target, self._condition, self._context, self._stale = target, condition, context, stale
        self._has_login = bool(target.mirror.credentials)
        self.mishaps = Mishaps()
        self._url = self._mirrors[0]
        """The mirror, or server of ours, that a rest is asked of."""
        self._resolved: dict[str, str] = {}
        """Where each mirror has redirected to: parts and the rest are asked of the same node."""
        self._failures = 0
        """Tries since a byte last came: the running one is counted until then."""
        self._trouble: UpstreamError | None = None
        """What failed last, and has not been waited for yet."""
        self._recall = whom.recall
        self._is_recalled = False
        """Whether what has answered last is the bucket."""
        self._takes_parts = True
        """False once a range did not give what was asked for: then all of the body is asked for, and compared."""

    async def open(self, gap: Gap | None, known: Known | None) -> Answer:
        """Ask for the bytes of `gap` of the known body, until a mirror gives them or patience ends.

        Without `known` this is the first question, on condition. With `known` but no gap it asks whether that is still
        the object. Close the exchange of the answer. Raises UpstreamError for an answer that helps nobody, and
        UpstreamChanged if clients read the known body and it cannot be completed.
        """
        recall = self._recall
        while True:
            if self._trouble:
                try:
                    await self._wait_out(self._trouble, known)
                except UpstreamError as error:
                    if known or self._stale or error.status < 500 or not (answered := await self._ask_for_stale()):
                        raise
                    return answered
            self._failures += 1  # taken back by the first byte
            if answered := await self._ask_neighbours(gap, known):
                if recall:
                    recall.begun_elsewhere()
                return answered
            if recall and (recalled := await recall.answer(gap, known)):
                self._is_recalled = True
                return recalled
            errors: list[UpstreamError] = []
            is_first = known is None or known.held is Held.SAVED
            # In the middle of a body one mirror is asked before the next wait.
            for url in self._context.health.order(self._mirrors, self._now()) if is_first else (self._url,):
                try:
                    answer = await self._ask(url, gap, known)
                except UpstreamError as error:
                    errors.append(error)
                    if error.status >= 500 and is_first:
                        self._context.health.failed(url, self._now())
                else:
                    self._url, self._is_recalled = url, isinstance(answer, Whole) and answer.recalled is not None
                    self._context.health.answered(url)
                    return answer
            self._trouble = self._first(errors)
            if recall and (recalled := await recall.instead(self._trouble) or await recall.after_all(gap)):
                self._is_recalled = True
                return recalled

    async def open_beside(self, gap: Gap, known: Known) -> Rest:
        """A part of the known body over one more connection: asked once, of the mirror that has just answered.

        Raises UpstreamError if it is not given; what runs already goes on.
        """
        if self._recall and self._is_recalled:
            return await self._recall.part(gap)
        at = self._resolved.get(self._url)
        inquiry = Inquiry(self._url, self._condition, None, gap, known, at=at, peer=self.asks_neighbour)
        try:
            answer = await inquire(inquiry, self._context)
            assert isinstance(answer, Rest)
            if answer.compare:
                answer.exchange.drop()
                raise UpstreamError(f"another node of {self._url} answered, or without the part that was asked for")
        except UpstreamError as error:
            self._context.health.refused_more(self._url, self._now(), error.retry_after)
            raise
        return answer

    @property
    def urls(self) -> tuple[str, ...]:
        """Of all who may be asked."""
        return (*self.neighbours.urls, *self._mirrors)

    @property
    def asks_neighbour(self) -> bool:
        """Whether a server of ours has just answered, which has its own connections to upstream."""
        return self._url in self.neighbours

    @property
    def threads(self) -> Executor:
        """For transfers from the mirror that has just answered."""
        return self._context.threads.of(self._url)

    @property
    def takes_more(self) -> bool:
        """Whether the mirror that has just answered may be asked over more connections at once."""
        return self._context.health.takes_more(self._url, self._now())

    def fetched(self, count: int, exchange: Carrier) -> None:
        """So many bytes have come by it, be they new or not."""
        stats = self._context.stats
        if isinstance(exchange, Download):
            stats.bucket_bytes["read",] += count
        else:
            stats.fetched_bytes[mirror_label(self._target.mirror),] += count
            self.neighbours.count(exchange.url, count)
            if self._recall:
                self._recall.came_elsewhere(count, self._now())

    def progressed(self) -> None:
        """Bytes have come that were missing."""
        self._failures = 0

    def broke(self, error: UpstreamError, *, is_awaited: bool = True) -> None:
        """The transfer that `open` began has broken: the next `open` waits, and asks the next mirror if need be.

        Where no reader waits (`is_awaited`), a transfer that brought nothing counts twice.
        """
        if self._url in self.neighbours:
            trouble = self.neighbours.broke(self._url, error, self._now(), has_flowed=not self._failures)
            self._trouble, self._failures = trouble, 0
            return
        if self._recall and self._is_recalled:
            self._recall.broke(error)
            self._trouble, self._failures = error, 0  # it is no mirror's failure
            return
        if self._failures:  # no byte has come
            self._failures += not is_awaited
        if self._failures or isinstance(error, UpstreamChanged):
            self._resolved.pop(self._url, None)  # the redirector may know a better node
        self._trouble = error
        self._failures = self._failures or 1
        self._takes_parts = self._takes_parts and not isinstance(error, UpstreamRange)

    @property
    def recalled(self) -> Entry | None:
        """What the body is, if it comes from the bucket, in whole or in part."""
        return self._recall.entry if self._recall else None

    async def discard_recalled(self) -> None:
        """What came had not the digest that it must have."""
        if self._recall:
            await self._recall.discard()

    def found(self, exchange: Carrier) -> None:
        """The body comes by `exchange`: its rest is asked of the same mirror, and of the node that it redirected to."""
        self._url, self._is_recalled = exchange.url, False
        if self._recall:
            self._recall.begun_elsewhere()
        if exchange.final_url != exchange.url:
            self._resolved[exchange.url] = exchange.final_url

    async def head(self) -> Head | None:
        """What the first that has something to say answers to HEAD; None if only GET can tell."""
        errors: list[UpstreamError] = []
        since = self._now()
        # With a login of ours, what they say may be what anybody gets.
        while not self._has_login and (peer := self.neighbours.ready(since, self._now())):
            try:
                inquiry = Inquiry(peer, self._condition, None, peer=True)
                async with self.neighbours.asking(peer, self._now):
                    return await self.neighbours.told(inquire_head(inquiry, self._context), is_first=True)
            except PeerFailed as error:
                self.neighbours.leave(peer, error, self._now())
        if self._recall and (head := await self._recall.head()):
            return head
        for url in self._mirrors:
            try:
                return await inquire_head(Inquiry(url, self._condition, None), self._context)
            except UpstreamError as error:
                errors.append(error)
        raise self._first(errors)

    # -- who is asked, and when ---------------------------------------------------------------------------------------

    async def _wait_out(self, error: UpstreamError, known: Known | None) -> None:
        """Wait before the next try, and choose whom to ask then; raises `error` if there is none."""
        health = self._context.health
        if isinstance(error, PeerFailed):
            # It is not waited for: whoever is next gives the rest.
            self._trouble, self.mishaps.last = None, error.message
            self.mishaps.resumes += 1
            return
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
                self._url = health.order(self._mirrors, self._now())[0]
        # With something to serve nobody is made to wait.
        elif self._stale or not error.is_transient or self._failures >= FIRST_TRIES or delay > FIRST_WAIT_MAX:
            raise error
        self._trouble, self.mishaps.last = None, error.message
        key = self._target.key[:12]
        log(events, WARNING, "fill.asks_again", key=key, error=error, retry_in=delay, next=self._url)
        await asyncio.sleep(delay)

    async def _ask_neighbours(
        self, gap: Gap | None, known: Known | None, *, takes_stale: bool = False
    ) -> Answer | None:
        """The answer of a server of ours; None if none helps, and mirrors are next.

        In the middle of a body one that has given it is asked for the rest, and the next ones if it is of no help.
        Raises UpstreamStatus for what upstream has told one of them.
        """
        is_first = known is None or known.held is Held.SAVED
        if not is_first and self._url in self._mirrors:
            return None
        since = self._now()
        while True:
            is_giver = not is_first and self.asks_neighbour
            url = self._url if is_giver else await self.neighbours.next(since, self._now())
            if url is None:
                break
            inquiry = Inquiry(
                url,
                self._condition,
                self._stale,
                gap,
                known,
                peer=True,
                takes_stale=takes_stale,
                by_login=self._has_login,
            )
            try:
                async with self.neighbours.asking(url, self._now):
                    answer = await self._answer_of_neighbour(inquiry)
            except PeerFailed as error:
                self.neighbours.leave(url, error, self._now())
            else:
                self._url = url
                return answer
        if not is_first:
            self._url = self._context.health.order(self._mirrors, self._now())[0]
        return None

    async def _answer_of_neighbour(self, inquiry: Inquiry) -> Answer:
        answer = await self.neighbours.told(inquire(inquiry, self._context), is_first=inquiry.known is None)
        if exchange := exchange_of(answer):
            self.found(exchange)
        return answer

    async def _ask_for_stale(self) -> Answer | None:
        """What a server of ours has, be it stale: upstream is down for us too, and nothing of it is here."""
        self.neighbours.again()
        with contextlib.suppress(UpstreamError):
            return await self._ask_neighbours(None, None, takes_stale=True)
        return None

    async def _ask(self, url: str, gap: Gap | None, known: Known | None) -> Answer:
        if known is None and self._recall and (whole := await self._confirm(self._recall, url)):
            return whole
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

    async def _confirm(self, recall: Recall, url: str) -> Answer | None:
        """Ask the mirror whether what the bucket has is still the object: then the body comes from there, if it can.

        None: there is nothing to confirm, or what is there cannot be had. Then the mirror is asked as without a bucket.
        """
        if recall.unconfirmed is None:
            return None
        try:
            async with asyncio.timeout(recall.patience()):
                answer = await self._answer(Inquiry(url, recall.condition, recall.unconfirmed))
        except TimeoutError:
            return await recall.instead(UpstreamTimeout(f"{url} was not confirmed in time"))
        return await recall.confirmed(answer.head) if isinstance(answer, Unchanged) else answer

    async def _answer(self, inquiry: Inquiry) -> Answer:
        answer = await inquire(inquiry, self._context)
        if exchange := exchange_of(answer):
            self.found(exchange)
        return answer

    def _first(self, errors: list[UpstreamError]) -> UpstreamError:
        """As first_error; what is said of the object with the name of those that were asked."""
        error = first_error(errors)
        if isinstance(error, UpstreamStatus):
            error.cache_status = replace(error.cache_status, asked=name_of(self._target.mirror))
        return error

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
