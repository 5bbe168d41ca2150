"""The corridor: one request through every room, in order. Read this first.

resolve    rules.mirrors   target → mirror, key, upstream URLs
lookup     store           key → entry
decide     rules.policy    request, entry, now → serve, ask or refuse
join       flights, fill   ask: one fill for all who want the same
rewrite    rewritten       lists of files: upstream's URLs → ours
deliver    delivery        body → status, headers, ranges, bytes
repeat     repeats         what the server may give again without coming here
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace

from .config import Settings
from .delivery import Delivery, HeadBody, Request, Watch, while_connected
from .errors import (
    EntryGone,
    NotInCache,
    OutOfSpace,
    ProxyError,
    RequestError,
    StoreError,
    Unconfirmed,
    UpstreamError,
    UpstreamPage,
    UpstreamStatus,
)
from .fill.failures import status_of
from .fill.fill import Fill, Question
from .fill.flights import Flights
from .fill.reader import FillBody, SmallBody, body_of
from .fill.states import Confirmed, Passed
from .fill.verify import mismatch
from .negative import NegativeCache
from .repeats import Repeats
from .rewritten import is_rewritten, rewritten
from .rules import policy, vary
from .rules.cache_status import CacheStatus
from .rules.digests import Digest, Expected
from .rules.entry import Entry, Head, Headers
from .rules.fleet import BY_LOGIN, asks_for_others
from .rules.freshness import current_age, is_storable
from .rules.links import Links
from .rules.mirrors import Target
from .rules.policy import Ask, Refuse, Serve
from .stats import Stats
from .store.janitor import Janitor
from .store.store import Store


@dataclass(frozen=True, slots=True)
class Forward:
    """A request that upstream is asked for."""

    request: Request
    target: Target
    ask: Ask
    entry: Entry | None
    """What is stored, and may still answer it."""
    watch: Watch


class Gateway:
    """The house: made of settings, `await start()`, `await close()`."""

    def __init__(self, settings: Settings, clock: Callable[[], float], *, offline: bool = False) -> None:
        self.settings, self.clock, self.offline = settings, clock, offline
        self.stats = Stats()
        self.started_at = clock()
        self.store = Store(settings.cache_dir)
        self.janitor = Janitor(self.store, settings.file.cache, self.stats.evicted)
        self.flights = Flights(self.store, self.janitor, settings, self.stats, clock)
        self.mirrors = settings.mirror_table()
        self.negative = NegativeCache(clock)
        self._repeats = Repeats(self.store, self.flights, clock)
        self._behind: set[asyncio.Task[None]] = set()
        """What goes on behind answers; kept so that it is not lost half way."""

    async def start(self) -> None:
        await self.store.start()
        await self.janitor.start()
        self.flights.tier.start()

    async def close(self) -> None:
        await self.flights.close()  # which ends what is behind the answers too
        await self.janitor.close()
        await self.store.close()

    def reload(self, settings: Settings) -> None:
        """Take new settings for requests from now on; running ones keep theirs."""
        mirrors = settings.mirror_table()
        self.flights.reload(settings)  # may raise ConfigError too; nothing is swapped before
        self.settings, self.mirrors, self.janitor.limits = settings, mirrors, settings.file.cache
        self._repeats.forbid()

    @contextlib.asynccontextmanager
    async def handle(self, request: Request) -> AsyncIterator[Delivery]:
        """A GET or HEAD, ready to be sent within the context. Raises ProxyError; app.py turns it into a response."""
        target, settings = self.mirrors.resolve(request.target), self.settings
        if not target.mirror.forward_authorization:
            request = replace(request, headers=vary.without_login(request.headers))
        if BY_LOGIN in policy.request_directives(request.headers) and not target.mirror.credentials:
            raise NotInCache(f"only what a login opens is wanted of {target.url}, and this server has no login for it")
        with contextlib.ExitStack() as stack:
            delivery = None
            while delivery is None:
                # If what others asked for is another variant, or what was stored is gone, this request is as new.
                with contextlib.suppress(EntryGone):
                    delivery = await self._answer(request, target, stack)
            if is_rewritten(request, target) and (base := request.own_base()):
                delivery = await rewritten(delivery, Links(self.mirrors, base))
            if self.settings is not settings:
                delivery.repeat = None  # others may decide otherwise
            yield delivery

    async def _answer(self, request: Request, target: Target, stack: contextlib.ExitStack) -> Delivery | None:
        """The answer, and on `stack` what it takes; None if the request must be looked at anew."""
        of_any_url = target.digest and not asks_for_others(request.headers)  # they store it as that of this one
        found = target.digest and await self.store.find(target.digest, target.key)
        if found and (of_any_url or found.key == target.key):
            # Whatever its age, and whatever the request's Cache-Control: no answer could be another.
            hit = self._stored(request, target, found, CacheStatus(hit=True), stack)
            return self._repeats.allow(hit, found, math.inf)
        if of_any_url and not self.offline:
            target = await self.flights.tier.by_digest(target)
        if not target.digest and (fill := self.flights.get(target.key)) and (arrived := fill.arrived):
            return await self._arrived(request, target, fill, arrived, stack)
        stored = await self.store.lookup(target.key)
        # With a digest that is not in the store, what is stored of the URL answers nothing.
        entry = None if target.digest else stored
        match await self._decide(request.headers, target, entry):
            case Serve(entry, ttl, refresh, steady):
                if refresh is not None and not self.flights.failures.last(target.key):
                    await self._join(target, Question(refresh, entry))
                hit = self._stored(request, target, entry, CacheStatus(hit=True, ttl=ttl), stack)
                return self._repeats.allow(hit, entry, steady)
            case Refuse():
                self.negative.check(target, request.headers, request.method)
                why = "fetchonce is offline" if self.offline else "the request says only-if-cached"
                raise NotInCache(f"{target.url} is not in the cache, and {why}")
            case Ask() as ask:
                self.negative.check(target, request.headers, request.method)
                if delivery := self._failed_lately(request, target, entry, stack):
                    return delivery
                keep = "no-store" not in policy.request_directives(request.headers)
                question = Question(ask.condition, stored, keep)
                with contextlib.ExitStack() as own:
                    watch = own.enter_context(while_connected(request.gone))
                    delivery = await self._forward(Forward(request, target, ask, entry, watch), question, own)
                    stack.push(own.pop_all())
                    return delivery

    async def _arrived(
        self, request: Request, target: Target, fill: Fill, entry: Entry, stack: contextlib.ExitStack
    ) -> Delivery | None:
        """As `_answer`, with what is whole and is being stored: it is served where it might be once it is stored."""
        with contextlib.ExitStack() as own:
            own.enter_context(fill.attach())
            watch = own.enter_context(while_connected(request.gone))
            match await self._decide(request.headers, target, entry):
                case Serve(_, ttl):
                    self.store.touch(target.key, self.clock())
                    body, hit = body_of(fill, None), CacheStatus(hit=True, ttl=ttl)
                    stack.push(own.pop_all())
                    return Delivery(request, target, body, hit, fill.age, _unless_whole(watch, body))
            await watch.wait(fill.wait_over())
            return None

    @contextlib.asynccontextmanager
    async def fetch(self, url: str, digest: Digest | None = None) -> AsyncIterator[Fill | Entry]:
        """Bring `url` (any spelling) into the cache for nobody in particular: the stored entry, or the fill on its way.

        The fill has its head. With a digest, here or in the URL, only a body that has it will do, and whoever gets a
        fill asks `check` at its end. Raises ProxyError.
        """
        target = self._wanted(url, digest)
        stored = await self.store.lookup(target.key)
        if target.digest:
            found = await self.store.find(target.digest, target.key)
            # The same body under another URL answers requests with its digest, but this URL is what is to be in.
            is_in = found is not None and found.key == target.key
            decision = Serve(found) if found and is_in else Refuse() if self.offline else Ask()
        else:
            decision = await self._decide((), target, stored)
        match decision:
            case Serve(entry):
                yield entry
            case Refuse():
                raise NotInCache(f"{target.url} is not in the cache, and fetchonce is offline")
            case Ask(condition):
                fill, _ = await self._join(target, Question(condition, stored))
                with fill.attach():
                    await fill.wait_head()
                    yield fill

    async def check(self, url: str, digest: Digest | None, entry: Entry) -> None:
        """Raises DigestMismatch if `entry`, which a fill of `url` has brought, is not what `fetch` was asked for."""
        target = self._wanted(url, digest)
        if target.digest and not entry.has(target.digest):
            found = await self.store.find(target.digest, target.key)
            if not found or found.key != target.key:
                raise mismatch(Expected(target.digest), f"sha256:{entry.sha256}", target.url)

    async def _decide(self, headers: Headers, target: Target, entry: Entry | None) -> policy.Decision:
        changed_at = await self.flights.checksums.changed_at(target) if entry else 0.0
        now = self.clock()
        return policy.decide(headers, target, entry, now=now, offline=self.offline, changed_at=changed_at)

    async def _join(self, target: Target, question: Question) -> tuple[Fill, bool]:
        """As Flights.join; and a moving object that turns out to be another one has its checksum files renewed."""
        fill, is_first = await self.flights.join(target, question)
        if is_first and question.stale and target.mirror.is_moving(target.path):
            self._go_on_behind(self.flights.checksums.renew(target, fill))
        return fill, is_first

    def _wanted(self, url: str, digest: Digest | None) -> Target:
        target = self.mirrors.resolve(url)
        if digest and target.digest and digest != target.digest:
            raise RequestError(f"two digests for {target.url}: {target.digest} in the URL, and {digest}")
        return replace(target, digest=digest or target.digest)

    async def _forward(self, forward: Forward, question: Question, stack: contextlib.ExitStack) -> Delivery | None:
        """The answer for which upstream is asked, by a fill that all share; None if it is not for this request."""
        request, target, watch = forward.request, forward.target, forward.watch
        is_told_by_head = request.method == "HEAD" and not is_rewritten(request, target)
        if is_told_by_head and forward.entry is None and not self.flights.get(target.key):
            head = await watch.wait(self._ask_head(target, question.fields))
            if head:
                return Delivery(request, target, HeadBody(head), CacheStatus(fwd="uri-miss"), head.age)
        fill, is_first = await self._join(target, question)
        stack.enter_context(fill.attach())
        try:
            if (patience := self._patience(forward, fill)) is None:
                await watch.wait(fill.wait_head())
            else:
                async with asyncio.timeout(patience):
                    await watch.wait(fill.wait_head())
        except UpstreamError as error:
            if _is_refusal(error) and vary.login(fill.question.fields) != vary.login(question.fields):
                await watch.wait(fill.wait_over())
                return None
            return self._after_failure(forward, error, stack)
        except StoreError:
            return await self._passed(forward, fill, is_first, stack)  # nothing can be kept; a plain GET would do
        except TimeoutError:
            assert forward.entry
            if fill.readers == 1:
                self._keep_asking(fill)
            return self._stored(request, target, forward.entry, CacheStatus(fwd=forward.ask.why, detail="slow"), stack)
        if not _is_for(request, question, fill):
            await watch.wait(fill.wait_over())
            return None
        self.negative.forget(target, request.headers)
        self.flights.failures.forget(target.key)
        if isinstance(fill.state, Confirmed):
            return self._confirmed(forward, fill.state.entry, stack)
        if isinstance(fill.state, Passed):
            return await self._passed(forward, fill, is_first, stack)
        body = body_of(fill, target.digest)
        stored = fill.is_wanted if is_first else None
        cache_status = _forwarded(forward, stored, collapsed=not is_first)
        return Delivery(request, target, body, cache_status, fill.age, _unless_whole(watch, body))

    def _after_failure(self, forward: Forward, error: UpstreamError, stack: contextlib.ExitStack) -> Delivery:
        """What is stored, if it may be served although upstream failed. Raises the error if not."""
        request, target, entry = forward.request, forward.target, forward.entry
        cache_status = replace(error.cache_status, fwd=forward.ask.why)
        if entry and self._may_serve_stale(request, target, entry, status_of(error)):
            return self._stored(request, target, entry, cache_status, stack)
        if isinstance(error, UpstreamStatus):
            self.negative.note(target, request.headers, error)
        elif entry and vary.is_for(request.headers, entry.head):  # RFC 9111 §5.2.2.2
            error = Unconfirmed(
                f"{error.message}. what is stored of it may not be used without asking: its Cache-Control, or "
                "stale_if_error, forbids it. serve --offline gives it nevertheless"
            )
        raise error.with_cache_status(cache_status) from None

    def _failed_lately(
        self, request: Request, target: Target, entry: Entry | None, stack: contextlib.ExitStack
    ) -> Delivery | None:
        """What is stored, where the last question about it has failed, and it is too soon for another."""
        failure = self.flights.failures.last(target.key)
        if not failure or not entry or policy.insists(request.headers):
            return None
        if not self._may_serve_stale(request, target, entry, status_of(failure.error)):
            return None
        left = policy.freshness_left(target, entry, self.clock())
        ttl = None if left > 0 else math.floor(left)
        cache_status = CacheStatus(hit=True, ttl=ttl, detail=failure.error.cache_status.detail)
        return self._stored(request, target, entry, cache_status, stack)

    def _patience(self, forward: Forward, fill: Fill) -> float | None:
        """How many seconds to wait for upstream's word; None: as long as it takes."""
        request, target, entry = forward.request, forward.target, forward.entry
        if entry is None or not self._may_serve_stale(request, target, entry, None):
            return None
        return policy.patience(
            request.headers,
            self.settings.file.fill.stale_after,
            running=self.clock() - fill.started_at,
            has_failed=self.flights.failures.last(target.key) is not None,
        )

    def _keep_asking(self, fill: Fill) -> None:
        """Have upstream's answer waited for, now that no client does: `on_abandon` is about bodies."""
        attached = contextlib.ExitStack()
        attached.enter_context(fill.attach())

        async def wait() -> None:
            with attached, contextlib.suppress(ProxyError):
                await fill.wait_head()

        self._go_on_behind(wait())

    def _go_on_behind(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    def _may_serve_stale(self, request: Request, target: Target, entry: Entry, status: int | None) -> bool:
        is_head = request.method == "HEAD"
        return policy.may_serve_stale(request.headers, target, entry, status, now=self.clock(), is_head=is_head)

    def _confirmed(self, forward: Forward, entry: Entry, stack: contextlib.ExitStack) -> Delivery:
        """What upstream, or another process, says is still the object."""
        target = forward.target
        if target.digest and not entry.has(target.digest):
            raise mismatch(Expected(target.digest), f"sha256:{entry.sha256}", target.url)
        cache_status = CacheStatus(fwd=forward.ask.why, fwd_status=304) if forward.entry else CacheStatus(hit=True)
        return self._stored(forward.request, target, entry, cache_status, stack)

    async def _passed(self, forward: Forward, fill: Fill, is_first: bool, stack: contextlib.ExitStack) -> Delivery:
        """A body that is not kept: the transfer that the fill began, or one of the client's own."""
        target, request, watch = forward.target, forward.request, forward.watch
        passthrough = fill.take_passthrough() if is_first else None
        if passthrough is None and target.digest == fill.target.digest:  # else it would be held to another's digest
            passthrough = fill.bypass()
        if passthrough is None:
            passthrough = await watch.wait(self.flights.open_passthrough(target, vary.passed_on(request.headers, None)))
        stack.callback(passthrough.close)
        detail = "no-space" if isinstance(fill.error, OutOfSpace) else None
        cache_status = replace(_forwarded(forward, False), detail=detail)
        return Delivery(request, target, passthrough, cache_status, passthrough.head.age, watch)

    def _stored(
        self, request: Request, target: Target, entry: Entry, cache_status: CacheStatus, stack: contextlib.ExitStack
    ) -> Delivery:
        now = self.clock()
        self.store.touch(entry.key, now)
        body = stack.enter_context(self.store.open(entry))
        return Delivery(request, target, body, cache_status, current_age(entry, now))

    async def _ask_head(self, target: Target, fields: Headers) -> Head | None:
        try:
            return await self.flights.ask_head(target, fields)
        except UpstreamStatus as error:
            self.negative.note(target, fields, error, "HEAD")
            raise


def _forwarded(forward: Forward, stored: bool | None, *, collapsed: bool = False) -> CacheStatus:
    """Upstream has given a body; its 200 is told where something was stored before."""
    fwd_status = 200 if forward.entry else None
    return CacheStatus(fwd=forward.ask.why, fwd_status=fwd_status, stored=stored, collapsed=collapsed)


def _unless_whole(watch: Watch, body: FillBody | SmallBody) -> Watch | None:
    return None if isinstance(body, SmallBody) else watch


def _is_refusal(error: UpstreamError) -> bool:
    """Whether upstream has answered, and somebody with other credentials may get another answer."""
    return isinstance(error, UpstreamPage) or (isinstance(error, UpstreamStatus) and error.upstream_status < 500)


def _is_for(request: Request, question: Question, fill: Fill) -> bool:
    """Whether what a fill brings, which others may have begun, is for this request too (RFC 9111 §4.1).

    It is if its question was the one that we would ask. What is not for everybody is for no other.
    """
    head, asked = fill.head, vary.that_select(question.fields)
    if head is None or head.nominated == asked:
        return True
    if not is_storable(head, head.nominated):
        return False
    is_same = is_storable(head, asked) and head.nominated == vary.without_login(asked)
    return is_same or vary.is_for(request.headers, head)
