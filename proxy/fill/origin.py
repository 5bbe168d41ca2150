"""What is to be fetched: the mirrors asked in turn, for the rest of what an earlier fill left, or on condition.

The first answer that is a body, or says that nothing changed, ends it. Of everything else it depends on whether it is
about the object (404) or about the mirror (503), and whether there is something else to serve.
"""

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable, Container, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from logging import INFO, WARNING
from urllib.parse import urlsplit

from ..config import FillSection
from ..errors import OutOfSpace, ProxyError, StoreError, UpstreamChanged, UpstreamError
from ..log import events, log
from ..rules import vary
from ..rules.entry import Entry, Head, Headers
from ..rules.freshness import is_storable
from ..rules.health import Health
from ..rules.mirrors import Target
from ..rules.validators import condition, confirms, resume_validator
from ..stats import Stats
from ..store.janitor import Janitor
from ..store.partial import Partial
from ..store.store import Store
from ..upstream.client import Upstream
from ..upstream.exchange import Exchange
from ..upstream.wording import first_error, status_error
from .transfer import Transfer, head_of, is_rest, rest_condition

TRIES = 3
PATIENCE = 5.0
"""Seconds upstream may ask us to wait before the next one: some clients give up after 10 s without a head."""
BACKOFF_SECONDS = 0.2
"""Before the first retry; doubled for each further one."""
BACKOFF_MAX = 10.0
RETRY_AFTER_MAX = 120.0
"""Seconds upstream may ask us to wait in the middle of a body, with clients waiting for the rest."""
SAYS_NOTHING = frozenset({401, 403, 429})
"""Answers, beside 5xx, that say nothing of the object: what we have of it may still be of use."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """What all fills work with."""

    store: Store
    janitor: Janitor
    upstream: Upstream
    settings: FillSection
    threads: Executor
    """Where what blocks on upstream runs."""
    stats: Stats
    health: Health
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Begun:
    """There is a body to stream into `partial`, which may hold some of it already."""

    head: Head
    source: str
    """The URL that gave the head."""
    partial: Partial
    exchange: Exchange
    first: Transfer | None
    """What the answer carries; None if `partial` is whole."""


@dataclass(frozen=True, slots=True)
class Passing:
    """There is a body, and it is not to be kept: it may not be shared, or there is no room for it."""

    head: Head
    exchange: Exchange
    error: OutOfSpace | None


@dataclass(frozen=True, slots=True)
class NotModified:
    """What we have is still the object (RFC 9110 §15.4.5)."""

    url: str
    head: Head


class Asking:
    def __init__(
        self,
        target: Target,
        urls: tuple[str, ...],
        stale: Entry | None,
        condition: Headers,
        rooms: Rooms,
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        """`stale` is what `condition` is about. `pause` waits for some seconds, and raises once the fill is stopped."""
        self._target, self._urls, self._stale, self._condition = target, urls, stale, condition
        self._rooms, self._pause = rooms, pause
        self._loop = asyncio.get_running_loop()
        self._saved: tuple[str, Head, Partial] | None = None
        """What an earlier fill left, and where it came from."""
        self._is_followed = False

    async def ask(self, followed: Head | None) -> Begun | Passing | NotModified:
        """Raises UpstreamError for any answer that is neither a body nor "not modified"; StoreError.

        `followed`: there are readers of this very body already, and no other one is for them.
        """
        self._saved, self._is_followed = await self._load_saved(), followed is not None
        if followed:
            if self._saved is None or self._saved[1].generation != followed.generation:
                raise UpstreamError(f"the process that fetched {self._target.url} gave up. ask again")
            have = self._saved[2].extents.total
            log(events, INFO, "fill.taken_over", key=self._target.key[:12], have=have)
        for tries in itertools.count(1):
            errors: list[UpstreamError] = []
            for url in self._rooms.health.order(self._urls, self._loop.time()):
                try:
                    return await self._ask_one(url)
                except UpstreamChanged:
                    raise  # another mirror's new body is not for those who read the old one
                except UpstreamError as error:
                    errors.append(error)
                    if error.status >= 500:
                        self._rooms.health.failed(url, self._loop.time())
            told = first_error(errors)
            delay = max(BACKOFF_SECONDS * 2**tries, told.retry_after or 0.0)
            # With something to serve nobody is made to wait.
            if tries == TRIES or self._stale or not told.may_pass or delay > PATIENCE:
                raise told
            log(events, WARNING, "fill.asks_again", key=self._target.key[:12], error=told, retry_in=delay)
            await self._pause(delay)
        raise AssertionError("unreachable")

    async def _ask_one(self, url: str) -> Begun | Passing | NotModified:
        answer = await self._ask_rest(url, *self._saved) if self._saved else None
        if isinstance(answer, Begun):
            return answer
        exchange = answer or await open_exchange(self._rooms, url, self._condition)
        if exchange.status == 304 and self._stale:
            exchange.close()
            if confirms(self._stale.head.headers, exchange.headers):
                return NotModified(url, head_of(exchange, self._rooms.clock(), "", self._condition))
            # It is about something we do not have.
            exchange = await open_exchange(self._rooms, url, vary.with_each(self._condition))
        if exchange.status != 200:
            exchange.close()
            raise status_error(exchange)
        try:
            head = head_of(exchange, self._rooms.clock(), secrets.token_hex(8), self._condition)
            if not is_storable(head, self._condition):
                return Passing(head, exchange, None)
            growing = await self._rooms.janitor.create(self._target.key, self._target.url, head)
        except OutOfSpace as error:
            return Passing(head, exchange, error)
        except ProxyError:
            exchange.close()
            raise
        return Begun(head, url, growing, exchange, Transfer(0, head.length, exchange=exchange))

    async def _ask_rest(self, url: str, source: str, head: Head, saved: Partial) -> Begun | Exchange | None:
        """Ask for what is missing of `saved`; where upstream has another body now `saved` goes, and is answered by that
        one's exchange, or None if it has yet to be asked for."""
        gaps = saved.extents.gaps(head.length or 0)
        if gaps:
            fields = rest_condition(head, gaps[0][0])
        else:  # a process that died had every byte, and had not stored it yet
            fields = condition(head.headers) if urlsplit(url).netloc == urlsplit(source).netloc else ()
        exchange = await open_exchange(self._rooms, url, (*fields, *vary.with_each(self._condition)))
        if is_rest(exchange, head, gaps[0][0]) if gaps else exchange.status == 304:
            try:
                await self._rooms.janitor.take_up(saved, self._target.url, head.length or 0)
            except StoreError:
                exchange.close()
                if self._is_followed:
                    raise
                await self._forget(saved)  # its own bytes may be what is missing
                return None
            first = None
            if gaps:
                first = Transfer(*gaps[0], written=gaps[0][0], exchange=exchange)
            else:
                exchange.close()
            return Begun(head, source, saved, exchange, first)
        if exchange.status >= 500 or exchange.status in SAYS_NOTHING:
            exchange.close()
            raise status_error(exchange)
        await self._forget(saved)
        if exchange.status == 200 and not self._is_followed:
            return exchange
        exchange.close()
        if self._is_followed:
            raise UpstreamChanged(f"{url} changed while it was fetched")
        return None

    async def _forget(self, saved: Partial) -> None:
        await self._rooms.store.discard(saved)
        self._saved = None

    async def _load_saved(self) -> tuple[str, Head, Partial] | None:
        """What an earlier fill left, if upstream can tell whether it is still the same."""
        saved = await self._rooms.store.resume(self._target.key)
        if saved is None:
            return None
        record, partial = saved
        if record.head.length is not None and resume_validator(record.head.headers):
            return record.source, record.head, partial
        await self._rooms.store.discard(partial)
        return None


def pause_after(error: UpstreamError, failures: int, retries: int) -> float:
    """Seconds until the next try in the middle of a body, after so many without a byte; raises `error` if none is."""
    delay = max(min(BACKOFF_MAX, BACKOFF_SECONDS * 2.0 ** (failures - 1)), error.retry_after or 0.0)
    if failures > retries or delay > RETRY_AFTER_MAX:
        raise error
    return delay


async def open_exchange(rooms: Rooms, url: str, fields: Headers, method: str = "GET") -> Exchange:
    """As Upstream.open, in a thread."""

    def forget(opening: asyncio.Future[Exchange]) -> None:
        if not opening.exception():
            opening.result().close()

    job = partial(rooms.upstream.open, url, method=method, headers=fields)
    opening = asyncio.get_running_loop().run_in_executor(rooms.threads, job)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(forget)  # the thread cannot be stopped; what it brings is not wanted
        raise


async def first_answer(
    rooms: Rooms, urls: Sequence[str], fields: Headers, *, method: str = "GET", wanted: Container[int] = (200,)
) -> Exchange:
    """The first mirror's answer with a status that is wanted. Close the result. Raises UpstreamError."""
    errors: list[UpstreamError] = []
    for url in urls:
        try:
            exchange = await open_exchange(rooms, url, fields, method)
        except UpstreamError as error:
            errors.append(error)
            continue
        if exchange.status in wanted:
            return exchange
        exchange.close()
        errors.append(status_error(exchange))
    raise first_error(errors)
