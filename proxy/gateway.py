"""The corridor: one request through every room, in order. Read this first.

resolve    rules.mirrors   target → mirror, key, upstream URLs
lookup     store           key → entry
decide     rules.policy    request, entry, now → serve, ask or refuse
join       flights, fill   ask: one fill for all who want the same
deliver    delivery        body → status, headers, ranges, bytes
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace

from .config import Settings
from .delivery import Body, Delivery, HeadBody, Watch
from .errors import NotInCache, OutOfSpace, ProxyError, RequestError, Unconfirmed, UpstreamError, UpstreamStatus
from .fill.fill import Fill, FillState
from .fill.flights import Flights
from .fill.transfer import head_of
from .fill.verify import mismatch
from .negative import Missing
from .rules import policy, vary
from .rules.digests import Digest, Expected
from .rules.entry import Entry, Head, Headers
from .rules.freshness import current_age
from .rules.mirrors import MirrorTable, Target
from .rules.policy import Ask, Refuse, Serve
from .stats import Stats
from .store.hot import StoredBody
from .store.janitor import Janitor
from .store.store import Store


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

    def detour(self) -> None:
        return None  # by another way nobody would look at the digest


class Gateway:
    """The house: made of settings, `await start()`, `await close()`."""

    def __init__(self, settings: Settings, clock: Callable[[], float], *, offline: bool = False) -> None:
        self.settings, self.clock, self.offline = settings, clock, offline
        self.stats = Stats()
        self.started_at = clock()
        self.store = Store(settings.cache_dir)
        self.janitor = Janitor(self.store, settings.file.cache)
        self.flights = Flights(self.store, self.janitor, settings, self.stats, clock)
        self.mirrors = MirrorTable(settings.mirrors, settings.file.access.allow_hosts)
        self.missing = Missing()
        self._behind: set[asyncio.Task[None]] = set()
        """What goes on behind answers; kept so that it is not lost half way."""

    async def start(self) -> None:
        await self.store.start()
        await self.janitor.start()

    async def close(self) -> None:
        await self.flights.close()  # which ends what is behind the answers too
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
            with _closed(self._stored(request, target, found, "HIT", "hit", self.clock())) as delivery:
                yield delivery
            return
        stored = await self.store.lookup(target.key)
        # With a digest that is not in the store, what is stored of the URL answers nothing.
        entry = None if target.digest else stored
        now = self.clock()
        match await self._decide(request.headers, target, entry, now):
            case Serve(ttl, refresh):
                assert entry
                word, told = ("HIT", "hit") if ttl is None else ("STALE", f"hit; ttl={ttl}")
                with _closed(self._stored(request, target, entry, word, told, now)) as delivery:
                    if refresh is not None:
                        await self._join(target, entry, refresh, keep=True)
                    yield delivery
            case Refuse():
                self.missing.check(target, request.headers, now)
                why = "fetchonce is offline" if self.offline else "the request says only-if-cached"
                raise NotInCache(f"{target.url} is not in the cache, and {why}")
            case Ask(condition, why):
                self.missing.check(target, request.headers, now)
                async with while_connected(request.gone) as watch:
                    asks_head = request.method == "HEAD" and entry is None and not self.flights.get(target.key)
                    if asks_head and (body := await watch.wait(self._ask_head(target, condition))):
                        told, age = "fwd=uri-miss", body.head.age
                        yield Delivery(request.method, request.headers, target, body, "BYPASS", told, age)
                        return
                    keep = "no-store" not in policy.request_directives(request.headers)
                    fill, is_first = await self._join(target, stored, condition, keep=keep)
                    with fill.attach():
                        if await watch.wait(is_for(request, condition, fill)):
                            delivery = await self._from_fill(request, target, entry, why, fill, is_first, watch)
                            with _closed(delivery):
                                yield delivery
                            return
                        await watch.wait(fill.wait_over())
                # What others asked for is another variant. It is stored now, or not, and this request is as new.
                async with self.handle(request) as delivery:
                    yield delivery

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
            decision = await self._decide((), target, entry, self.clock())
        match decision:
            case Serve():
                assert entry
                yield entry
            case Refuse():
                raise NotInCache(f"{target.url} is not in the cache, and fetchonce is offline")
            case Ask(condition):
                fill, _ = await self._join(target, entry, condition, keep=True)
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

    async def _decide(self, headers: Headers, target: Target, entry: Entry | None, now: float) -> policy.Decision:
        changed_at = await self.flights.checksums.changed_at(target) if entry else 0.0
        return policy.decide(headers, target, entry, now=now, offline=self.offline, changed_at=changed_at)

    async def _join(self, target: Target, stored: Entry | None, condition: Headers, *, keep: bool) -> tuple[Fill, bool]:
        """As Flights.join; and a moving object that turns out to be another one has its checksum files renewed."""
        fill, is_first = await self.flights.join(target, stored, condition, keep=keep)
        if is_first and stored and target.mirror.is_moving(target.path):
            task = asyncio.create_task(self.flights.checksums.renew(target, fill))
            self._behind.add(task)
            task.add_done_callback(self._behind.discard)
        return fill, is_first

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
            told = f"fwd={why}; " + (f"detail={error.detail}" if status is None else f"fwd-status={status}")
            now = self.clock()
            is_head = request.method == "HEAD"
            if not policy.may_serve_stale(request.headers, target, entry, status, now=now, is_head=is_head):
                if isinstance(error, UpstreamStatus):
                    self.missing.note(target, error, now)
                elif entry and vary.is_for(request.headers, entry.head):  # RFC 9111 §5.2.2.2
                    error = Unconfirmed(
                        f"{error.message}. what is stored of it may not be used without asking: its Cache-Control, or "
                        "stale_if_error, forbids it. serve --offline gives it nevertheless"
                    )
                raise error.with_header("cache-status", f"fetchonce; {told}") from None
            assert entry
            return self._stored(request, target, entry, "STALE", told, now)
        self.missing.forget(target)
        if fill.state is FillState.PASSED:
            passage = fill.passage if is_first else None
            if passage is None and target.digest == fill.target.digest:  # else it would be held to another's wish
                passage = fill.detour()
            if passage is None:
                fields = vary.passed_on(request.headers, None)
                passage = await watch.wait(self.flights.open_passage(target, fields))
            told = f"fwd={why}; stored=?0" if entry is None else f"fwd={why}; fwd-status=200; stored=?0"
            told += "; detail=no-space" if isinstance(fill.error, OutOfSpace) else ""
            return Delivery(request.method, request.headers, target, passage, "BYPASS", told, passage.head.age, watch)
        if fill.state is FillState.UNCHANGED:
            assert fill.entry
            if target.digest and not fill.entry.has(target.digest):
                raise mismatch(Expected(target.digest), f"sha256:{fill.entry.digest}", target.url)
            if entry is None:
                return self._stored(request, target, fill.entry, "HIT", "hit", self.clock())
            told = f"fwd={why}; fwd-status=304"
            return self._stored(request, target, fill.entry, "REVALIDATED", told, self.clock())
        body: Body = fill
        if target.digest and target.digest != fill.target.digest:
            body = DemandingBody(fill, target.digest)
        if fill.is_whole and fill.is_wanted and not is_first:
            self.store.touch(target.key, self.clock())
            return Delivery(request.method, request.headers, target, body, "HIT", "hit", fill.age, watch)
        told = f"fwd={why}" if entry is None else f"fwd={why}; fwd-status=200"
        told += "; collapsed" if not is_first else "; stored" if fill.is_wanted else "; stored=?0"
        word = "MISS" if is_first else "FOLLOW"
        return Delivery(request.method, request.headers, target, body, word, told, fill.age, watch)

    def _stored(self, request: Request, target: Target, entry: Entry, word: str, told: str, now: float) -> Delivery:
        self.store.touch(entry.key, now)
        age = current_age(entry, now)
        return Delivery(request.method, request.headers, target, self.store.open(entry), word, told, age)

    async def _ask_head(self, target: Target, fields: Headers) -> Body | None:
        """What upstream answers to HEAD with `fields`; None if only GET can tell. No body is stored."""
        try:
            exchange = await self.flights.ask_head(target, fields)
        except UpstreamStatus as error:
            self.missing.note(target, error, self.clock())
            raise
        exchange.close()
        return HeadBody(head_of(exchange, self.clock(), "", fields)) if exchange.status == 200 else None


async def is_for(request: Request, condition: Headers, fill: Fill) -> bool:
    """Whether what a fill brings, which others may have begun, is for this request too (RFC 9111 §4.1).

    It is if its question was the one that we would ask, with `condition`.
    """
    try:
        await fill.wait_head()
    except ProxyError:
        return True  # whoever gets it learns it by himself
    head = fill.entry.head if fill.entry else fill.head
    return head.asked == vary.that_select(condition) or vary.is_for(request.headers, head)


@contextlib.contextmanager
def _closed(delivery: Delivery) -> Iterator[Delivery]:
    body = delivery.body
    with body if isinstance(body, StoredBody) else contextlib.nullcontext():
        yield delivery


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
