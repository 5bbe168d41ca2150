"""The other servers of ours that one fill may ask: who has the lease of its object, and its parents."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from ..errors import LoopDetected, PeerFailed, Unhelpful, UpstreamError, UpstreamStatus, UpstreamTimeout
from ..rules import vary
from ..rules.entry import Headers, field
from ..rules.fleet import SAID_OF_THE_OBJECT, callers, name_of, path_of
from ..rules.mirrors import Target
from .context import FillContext
from .lease import Turn

T = TypeVar("T")


class Neighbours:
    def __init__(
        self, target: Target, condition: Headers, context: FillContext, avoid: frozenset[str], turn: Turn | None
    ) -> None:
        """`condition` and `avoid` as in Origin.

        What a client's credentials open, and what is chosen by fields that another server may not know to be of any
        matter, is asked of upstream alone.
        """
        self._target, self._context, self._avoid, self._turn = target, context, avoid, turn
        self._peers, self._fleet, self._known = context.upstream.peers, context.upstream.peers.fleet, context.peers
        is_for_all, via = vary.is_known_to_all(condition), field(condition, "via")
        parents = self._fleet.parents_of(target, via) if is_for_all and self._fleet.parents else ()
        self._bases = {base + path_of(target): base for base in parents if base + path_of(target) not in avoid}
        """By URL of the object there, in the order to ask them; without those that were of no help."""
        self._callers = set(callers(via))
        """Base URLs of those that wait for what this brings."""
        self._asking: str | None = None
        """Base URL of the one that is to say something."""
        self._holder: str | None = None
        """Base URL of the one that had the lease when we last looked; None: nobody, or we ourselves."""
        self._is_due = is_for_all and turn is not None
        """Whether somebody may have the lease whom we do not know."""
        self._unable: dict[str, str] = {}
        """As `_bases`: where there was no fresh answer."""
        self._left: set[str] = set()
        """Base URLs of those that were of no help."""
        self._waits_since: float | None = None
        """When the search was begun anew, as one of those that read along with us had taken the lease over."""
        self._hopes_until: float | None = None
        """How long a body that stalls is waited for, while the one that gives it answers."""
        self._has_flowed = False
        """Whether bytes of it have come."""

    def __contains__(self, url: str) -> bool:
        return url in self._bases

    @property
    def urls(self) -> Iterable[str]:
        return tuple(self._bases)

    async def next(self, since: float, now: float) -> str | None:
        """The URL to ask first; None if upstream is to be asked. `since`: when the search for this answer began."""
        while self._turn and self._is_due:
            former, self._holder = self._holder, await self._turn.next(is_gone=self._holder is not None)
            self._is_due = self._holder is not None and (
                self._holder in self._left or self._known.is_absent(self._holder, now)
            )
            if self._holder is None or self._is_due:
                continue
            if (url := self._holder + path_of(self._target)) not in self._avoid:
                self._bases = {url: self._holder} | self._bases
            if former and self._waits_since is None:
                self._waits_since = now  # once: it has asked upstream only now
        return self.ready(max(since, self._waits_since or since), now)

    def ready(self, since: float, now: float) -> str | None:
        """As `next`, without a look for the lease."""
        if not self._callers.isdisjoint(self._bases.values()):
            return None  # one of them asks us: we are its parent, or have the lease
        if now - since >= self._peers.timeout:
            return None  # however many there are, a client does not wait for one after the other
        return next((url for url, base in self._bases.items() if self._known.may_ask(base, now)), None)

    def again(self) -> None:
        """Those that had no fresh answer may be asked for a stale one."""
        self._bases, self._unable = self._unable, {}

    def called_by(self, servers: Iterable[str]) -> None:
        """Others wait for what this brings, so that it may not wait for them.

        Raises LoopDetected if it does already, and the other one, which is told the same, does not refuse.
        """
        for base in filter(None, servers):
            self._callers.add(base)
            if base == self._asking and (not self._fleet.own or base < self._fleet.own):
                raise LoopDetected(f"{self._target.url} is just being asked of the fetchonce that asks for it here")

    @contextlib.asynccontextmanager
    async def asking(self, url: str, now: Callable[[], float]) -> AsyncIterator[None]:
        """While its answer is waited for. Only PeerFailed means that it is of no help."""
        base = self._asking = self._bases[url]
        try:
            # Its own timeouts count from byte to byte, and begin when there is a thread and the name is resolved.
            async with asyncio.timeout(self._peers.patience):
                yield
            self._known.answered(base, self._kind(base), now())
        except TimeoutError:
            raise PeerFailed(f"{base} did not answer in time, asked for {url}", Unhelpful.SLOW) from None
        except UpstreamStatus:
            self._known.answered(base, self._kind(base), now())
            raise
        finally:
            self._asking = None

    async def told(self, telling: Awaitable[T], *, is_first: bool) -> T:
        """What a server of ours says. Raises PeerFailed, or UpstreamStatus for what it says of the object.

        Such an error is of the mirrors as that server has them. Where we ask others, or with a login, it says nothing.
        """
        try:
            return await telling
        except PeerFailed:
            raise
        except UpstreamError as error:
            is_told = isinstance(error, UpstreamStatus) and error.upstream_status in SAID_OF_THE_OBJECT
            if is_told and is_first and name_of(self._target.mirror) in (None, error.cache_status.asked):
                raise
            raise PeerFailed(error.message, Unhelpful.UNABLE) from error

    def broke(self, url: str, error: UpstreamError, now: float, *, has_flowed: bool) -> PeerFailed:
        """What it gives has broken off or stalls; `has_flowed`: after bytes had come. What is to be told of it.

        Upstream may stall, and asked anew would only give it twice: whoever answers when asked for the rest is given as
        long as a mirror, and then some for its own question to upstream. One of whom no byte has come is asked once.
        """
        is_first, self._has_flowed = self._hopes_until is None, self._has_flowed or has_flowed
        if self._hopes_until is None or has_flowed:
            seconds = self._context.settings.read_timeout + self._peers.timeout if has_flowed else 0.0
            self._hopes_until = now + seconds
        is_stalled = isinstance(error, UpstreamTimeout)
        why = Unhelpful.SLOW if self._has_flowed else Unhelpful.GONE
        trouble = PeerFailed(error.message, why if is_stalled else Unhelpful.BROKEN)
        if not is_stalled or not (is_first or now < self._hopes_until):
            self.leave(url, trouble, now)
        return trouble

    def leave(self, url: str, error: PeerFailed, now: float) -> None:
        """The one at `url` is of no help with this object."""
        base = self._bases.pop(url)
        self._left.add(base)
        self._hopes_until, self._has_flowed = None, False
        self._known.failed(base, self._kind(base), error.why, error, now)
        match error.why:
            case Unhelpful.UNABLE:
                self._unable[url] = base
            case Unhelpful.CIRCLE:
                self._bases.clear()  # one of all who ask each other must ask upstream
            case _ if base == self._holder:
                self._is_due = True  # one of all who read along with it takes its place

    def count(self, url: str, count: int) -> None:
        """So many bytes have come from there."""
        if base := self._bases.get(url):
            self._context.stats.peer_bytes[self._kind(base),] += count

    def _kind(self, base: str) -> str:
        return "holder" if base == self._holder else "parent"
