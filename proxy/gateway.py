"""The corridor: one request through every room, in order. Read this first.

resolve    rules.mirrors   target → mirror, key, upstream URLs
lookup     store           key → entry
decide     rules.policy    request, entry, now → serve, ask or refuse
join       flights, fill   ask: one fill for all who want the same
deliver    delivery        body → status, headers, ranges, bytes
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

from .config import Settings
from .delivery import Body, Delivery, HeadBody, Watch
from .errors import NotInCache, RequestError, UpstreamError, UpstreamStatus
from .fill import Fill, FillState
from .flights import Flights
from .janitor import Janitor
from .rules import policy
from .rules.digests import Digest, Expected
from .rules.entry import Entry, Head, Headers
from .rules.freshness import current_age
from .rules.mirrors import MirrorTable, Target
from .rules.policy import Ask, Refuse, Serve
from .stats import Stats
from .store import Store
from .transfer import head_of
from .upstream import first_error, status_error
from .verify import mismatch

REFUSES_HEAD = frozenset({400, 403, 405, 501})
"""Answers to HEAD that say nothing of GET: not allowed, not implemented, or a URL signed for GET alone."""


@dataclass(frozen=True, slots=True)
class Request:
    """One GET or HEAD as the corridor sees it."""

    method: str
    target: bytes
    """Request target as received, own address stripped."""
    headers: Headers
    gone: Callable[[], Awaitable[None]]
    """Waits until the client has left."""


class DemandingBody:
    """A fill that others began, for a client who says which digest it must have.

    Were the client wrong, that would be no reason to break off the others: it alone waits with the last byte for it.
    """

    def __init__(self, fill: Fill, digest: Digest) -> None:
        self._fill, self._digest = fill, digest
        fill.verifier.want(digest.algorithm)

    @property
    def head(self) -> Head:
        return self._fill.head

    @property
    def length(self) -> int | None:
        return self._fill.length

    @property
    def fd(self) -> int:
        return self._fill.fd

    async def wait_readable(self, offset: int) -> int:
        stop = await self._fill.wait_readable(offset)
        last = (stop if self.length is None else self.length) - 1
        if offset < last:
            return min(stop, last)
        digests = await self._fill.wait_verified()
        got = digests.get(self._digest.algorithm)
        if got != self._digest.hex:
            told = f"{self._digest.algorithm}:{got}" if got else f"sha256:{digests['sha256']}"
            raise mismatch(Expected(self._digest), told, self._fill.began_at)
        return self._fill.readable(offset)

    async def wait_length(self) -> int:
        return await self._fill.wait_length()

    def attach(self) -> contextlib.AbstractContextManager[None]:
        return self._fill.attach()


class Gateway:
    """The house: made of settings, `await start()`, `await close()`."""

    def __init__(self, settings: Settings, clock: Callable[[], float], *, offline: bool = False) -> None:
        self.settings, self.clock, self.offline = settings, clock, offline
        self.stats = Stats()
        self.store = Store(settings.cache_dir)
        self.janitor = Janitor(self.store, settings.file.cache)
        self.flights = Flights(self.store, self.janitor, settings, self.stats, clock)
        self.mirrors = MirrorTable(settings.mirrors, settings.file.access.allow_hosts)

    async def start(self) -> None:
        await self.store.start()
        await self.janitor.start()

    async def close(self) -> None:
        await self.flights.close()
        await self.janitor.close()
        await self.store.close()

    def reload(self, settings: Settings) -> None:
        """Take new settings for requests from now on; running ones keep theirs."""
        mirrors = MirrorTable(settings.mirrors, settings.file.access.allow_hosts)
        self.flights.reload(settings)  # may raise ConfigError too; nothing is swapped before
        self.settings, self.mirrors, self.janitor.limits = settings, mirrors, settings.file.cache

    @contextlib.asynccontextmanager
    async def handle(self, request: Request) -> AsyncIterator[Delivery]:
        """A GET or HEAD, ready to be sent within the context. Raises ProxyError; app.py turns it into a response."""
        target = self.mirrors.resolve(request.target)
        if target.digest and (found := await self.store.find(target.digest, target.key)):
            # Whatever its URL and age, and whatever the request's Cache-Control: no answer could be another.
            yield self._stored(request, target, found, "HIT", "hit", self.clock())
            return
        stored = await self.store.lookup(target.key)
        # With a digest that is not in the store, what is stored of the URL answers nothing.
        entry = None if target.digest else stored
        now = self.clock()
        match policy.decide(request.headers, target, entry, now=now, offline=self.offline):
            case Serve():
                assert entry
                yield self._stored(request, target, entry, "HIT", "hit", now)
            case Refuse():
                why = "fetchonce is offline" if self.offline else "the request says only-if-cached"
                raise NotInCache(f"{target.url} is not in the cache, and {why}")
            case Ask(condition, why):
                async with while_connected(request.gone) as watch:
                    is_new = entry is None and not self.flights.get(target.key)
                    if request.method == "HEAD" and is_new and (body := await watch.wait(self._ask_head(target))):
                        told, age = "fwd=uri-miss", body.head.age
                        yield Delivery(request.method, request.headers, target, body, "BYPASS", told, age)
                        return
                    keep = "no-store" not in policy.request_directives(request.headers)
                    fill, is_first = await self.flights.join(target, stored, condition, keep=keep)
                    with fill.attach():
                        yield await self._from_fill(request, target, entry, why, fill, is_first, watch)

    @contextlib.asynccontextmanager
    async def fetch(self, url: str, digest: Digest | None = None) -> AsyncIterator[Fill | Entry]:
        """Bring `url` (any spelling) into the cache for nobody in particular: the stored entry, or the fill on its way.

        The fill has its head. With a digest, here or in the URL, only a body that has it will do, and whoever gets a
        fill asks `check` at its end. Raises ProxyError.
        """
        target = self._wanted(url, digest)
        entry = await self.store.lookup(target.key)
        if target.digest:
            found = await self.store.find(target.digest, target.key)
            # The same body under another URL answers requests with its digest, but this URL is what is to be in.
            decision = Serve() if found and found.key == target.key else Refuse() if self.offline else Ask()
            entry = found if isinstance(decision, Serve) else entry
        else:
            decision = policy.decide((), target, entry, now=self.clock(), offline=self.offline)
        match decision:
            case Serve():
                assert entry
                yield entry
            case Refuse():
                raise NotInCache(f"{target.url} is not in the cache, and fetchonce is offline")
            case Ask(condition):
                fill, _ = await self.flights.join(target, entry, condition, keep=True)
                with fill.attach():
                    await fill.wait_head()
                    yield fill

    async def check(self, url: str, digest: Digest | None, entry: Entry) -> None:
        """Raises DigestMismatch if `entry`, which a fill of `url` has brought, is not what `fetch` was asked for."""
        target = self._wanted(url, digest)
        if target.digest and not entry.has(target.digest):
            found = await self.store.find(target.digest, target.key)
            if not found or found.key != target.key:
                raise mismatch(Expected(target.digest), f"sha256:{entry.digest}", target.url)

    def _wanted(self, url: str, digest: Digest | None) -> Target:
        target = self.mirrors.resolve(url)
        if digest and target.digest and digest != target.digest:
            raise RequestError(f"two digests for {target.url}: {target.digest} in the URL, and {digest}")
        return replace(target, digest=digest or target.digest)

    async def _from_fill(
        self,
        request: Request,
        target: Target,
        entry: Entry | None,
        why: str,
        fill: Fill,
        is_first: bool,
        watch: Watch,
    ) -> Delivery:
        try:
            await watch.wait(fill.wait_head())
        except UpstreamError as error:
            status = error.upstream_status if isinstance(error, UpstreamStatus) else None
            told = f"fwd={why}; " + ("detail=unreachable" if status is None else f"fwd-status={status}")
            if not policy.may_serve_stale(entry, status):
                raise error.with_header("cache-status", f"fetchonce; {told}") from None
            assert entry
            return self._stored(request, target, entry, "STALE", told, self.clock())
        if fill.state is FillState.UNCHANGED:
            assert fill.entry
            if target.digest and not fill.entry.has(target.digest):
                raise mismatch(Expected(target.digest), f"sha256:{fill.entry.digest}", target.url)
            if entry is None:
                return self._stored(request, target, fill.entry, "HIT", "hit", self.clock())
            told = f"fwd={why}; fwd-status=304"
            return self._stored(request, target, fill.entry, "REVALIDATED", told, self.clock())
        body: Body = fill
        if target.digest and (fill.verifier.expected is None or fill.verifier.expected.digest != target.digest):
            body = DemandingBody(fill, target.digest)
        if fill.is_whole and fill.keep and not is_first:
            self.store.touch(target.key, self.clock())
            return Delivery(request.method, request.headers, target, body, "HIT", "hit", fill.age, watch)
        told = f"fwd={why}" if entry is None else f"fwd={why}; fwd-status=200"
        told += "; collapsed" if not is_first else "; stored" if fill.keep else "; stored=?0"
        word = "MISS" if is_first else "FOLLOW"
        return Delivery(request.method, request.headers, target, body, word, told, fill.age, watch)

    def _stored(self, request: Request, target: Target, entry: Entry, word: str, told: str, now: float) -> Delivery:
        self.store.touch(entry.key, now)
        age = current_age(entry, now)
        return Delivery(request.method, request.headers, target, self.store.body(entry), word, told, age)

    async def _ask_head(self, target: Target) -> Body | None:
        """What upstream answers to HEAD; None if only GET can tell. Nothing is stored."""
        errors: list[UpstreamError] = []
        for url in target.urls:
            try:
                exchange = await self.flights.ask(url, "HEAD")
            except UpstreamError as error:
                errors.append(error)
                continue
            exchange.close()
            if exchange.status == 200:
                return HeadBody(head_of(exchange, self.clock(), ""))
            if exchange.status in REFUSES_HEAD:
                return None
            errors.append(status_error(exchange))
        raise first_error(errors)


@contextlib.asynccontextmanager
async def while_connected(gone: Callable[[], Awaitable[None]]) -> AsyncIterator[Watch]:
    """For the block, watch whether the client is there; what waits by the Watch gets ClientGone once it is not."""
    watch = Watch()
    watcher = asyncio.ensure_future(gone())
    watcher.add_done_callback(watch.leave)
    try:
        yield watch
    finally:
        watcher.remove_done_callback(watch.leave)
        watcher.cancel()
