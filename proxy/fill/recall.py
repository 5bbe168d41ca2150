"""What one fill has of the bucket: the body instead of a mirror's, or what is missing of it.

Whether what the bucket says of an object may be used without asking is decided as for what is on our own disk
(policy.decide). Where upstream must confirm it, the mirrors are asked with its validators: after a 304 the body comes
from the bucket all the same.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from ..errors import StoreError, UpstreamError, UpstreamTimeout
from ..rules import policy
from ..rules.bucket import digest_in
from ..rules.digests import Digest
from ..rules.entry import Entry, Head, Headers, refreshed
from ..rules.foreign import is_newer
from ..rules.freshness import current_age
from ..rules.mirrors import Target
from ..rules.pace import Pace
from ..rules.policy import Ask, Serve
from ..rules.splice import Held, Known
from ..upstream.objects import Download
from .asking import SMALL_BYTES, Another, Answer, Gap, Rest, Unchanged, Whole
from .context import FillContext
from .failures import status_of


class Recall:
    """Of one fill. Its methods give None where the mirrors are to be asked; none of them raises."""

    def __init__(
        self,
        target: Target,
        fields: Headers,
        stale: Entry | None,
        context: FillContext,
        changed_at: Callable[[Target], Awaitable[float]],
    ) -> None:
        """`fields`, `stale`: the question for the mirrors, what our disk has. `changed_at`: for policy.decide."""
        self.entry: Entry | None = None
        """What the body is that comes from the bucket, in whole or in part: it must have this digest."""
        self.unconfirmed: Entry | None = None
        """What the bucket has, and upstream must confirm. `condition` asks for that."""
        self.condition = fields
        self._target, self._fields, self._stale, self._context = target, fields, stale, context
        self._tier, self._changed_at = context.tier, changed_at
        self._has_looked = self._has_broken = self._is_left = False
        self._pace: Pace | None = Pace()
        """None: it is waited for, however slow it is."""

    async def answer(self, gap: Gap | None, known: Known | None) -> Answer | None:
        """As Origin.open."""
        if not self._has_looked:
            return await self._first(gap, known)
        return await self._rest(self.entry, gap) if known and gap and self.entry and not self._is_left else None

    def broke(self, error: UpstreamError) -> None:
        """What it gave broke off. It is asked for the rest once more; if it is slow, or breaks again, mirrors are."""
        self._is_left = self._is_left or self._has_broken or isinstance(error, UpstreamTimeout)
        self._has_broken = True

    async def after_all(self, gap: Gap | None) -> Rest | None:
        """The rest from a bucket that was left because it is slow, as mirrors do not give it. It is waited for now."""
        if self._pace is None or not self._pace.is_slow or gap is None or self.entry is None:
            return None
        self._pace = None
        return await self._rest(self.entry, gap)

    def came_elsewhere(self, count: int, now: float) -> None:
        """A mirror has brought so many bytes."""
        if self._pace and self._pace.compared(count, now):
            self._tier.no_faster()

    def begun_elsewhere(self) -> None:
        """Somebody else gives the body: the bucket is no more asked for it, as nobody holds back what it would give."""
        self._has_looked = True

    def patience(self) -> float | None:
        """Seconds that upstream has to confirm it; None: as long as it takes."""
        if not self._may_serve_stale(None):
            return None
        return policy.patience(self._fields, self._context.settings.stale_after, running=0.0, has_failed=False)

    async def confirmed(self, head: Head) -> Whole | None:
        """The body that upstream has confirmed by a 304 with `head`. Without it there is nothing to confirm."""
        entry, self.unconfirmed = self.unconfirmed, None
        return await self._whole(refreshed(entry, head, self._context.clock()), is_stale=True) if entry else None

    async def instead(self, error: UpstreamError) -> Whole | None:
        """The body that upstream cannot confirm, if it may be served stale."""
        if not self._may_serve_stale(status_of(error)):
            return None
        # Where the body cannot be had, nothing is left to confirm, and upstream is waited for as long as it takes.
        entry, self.unconfirmed = self.unconfirmed, None
        return await self._whole(entry, is_stale=True) if entry else None

    async def part(self, gap: Gap) -> Rest:
        """As Origin.open_beside, of a body that comes from the bucket. Raises UpstreamError."""
        rest = await self._rest(self.entry, gap) if self.entry else None
        if rest is None:
            raise UpstreamError("the bucket does not give a part of it now")
        return rest

    async def head(self) -> Head | None:
        """What HEAD is answered with, without asking upstream."""
        entry = await self._find()
        if entry is None or await self._decide(entry) is not None:
            return None
        return replace(entry.head, age=current_age(entry, self._context.clock()))

    async def discard(self) -> None:
        """The body had not the digest that it must have."""
        if self.entry:
            await self._tier.discard(self.entry, "it has another digest")

    def _may_serve_stale(self, status: int | None) -> bool:
        entry, now = self.unconfirmed, self._context.clock()
        return policy.may_serve_stale(self._fields, self._target, entry, status, now=now)

    # -- how ----------------------------------------------------------------------------------------------------------

    async def _find(self) -> Entry | None:
        target = self._target
        return await (self._tier.find_apart(target) if target.is_apart else self._tier.find(target))

    async def _decide(self, entry: Entry) -> Headers | None:
        """None if what the bucket has may be used as it is; else the fields that ask upstream."""
        if self._target.digest:
            return None if entry.has(self._target.digest) else self._fields
        try:
            changed_at = await self._changed_at(self._target)
        except StoreError:  # our own disk
            changed_at = 0.0
        match policy.decide(self._fields, self._target, entry, now=self._context.clock(), changed_at=changed_at):
            case Serve():
                return None
            case Ask(condition):
                return condition
        return self._fields

    async def _first(self, gap: Gap | None, known: Known | None) -> Answer | None:
        self._has_looked = True
        found = await self._find()
        if found is None or (self._stale and not self._is_news(found, self._stale)):
            return None
        if known and known.held is not Held.SAVED:
            # Clients have some of this body already: nothing but its rest will do.
            return await self._rest(found, gap) if gap and _is_of(found, known) else None
        question = await self._decide(found)
        if question is not None:
            if known is None and not self._target.digest:
                self.unconfirmed, self.condition = found, question
            return None
        if known is None:
            return await self._whole(found)
        if not _is_of(found, known):
            whole = await self._whole(found)
            return Another(whole) if whole else None
        if gap is None:
            self.entry = found
            return Unchanged(self._tier.url_of(found.sha256), found.head)
        return await self._rest(found, gap)

    def _is_news(self, found: Entry, stale: Entry) -> bool:
        """Whether what the bucket has is another body than ours, and of a later time."""
        return found.sha256 != stale.sha256 and is_newer(found, stale, self._context.clock())

    async def _whole(self, entry: Entry, *, is_stale: bool = False) -> Whole | None:
        url, body, download = self._tier.url_of(entry.sha256), None, None
        if entry.size <= SMALL_BYTES:
            body = await self._tier.read(entry)
            download = None if body is None else Download.of(url, body)
        else:
            download = await self._tier.open(entry, 0, entry.size, self._pace)
        if download is None:
            return None
        self.entry = entry
        self._tier.recalled(is_stale=is_stale)
        return Whole(download, entry.head, url, body, recalled=entry)

    async def _rest(self, entry: Entry, gap: Gap) -> Rest | None:
        start, stop = gap[0], entry.size if gap[1] is None else gap[1]
        download = await self._tier.open(entry, start, stop, self._pace)
        if download is None:
            return None
        if self.entry is None:
            self._tier.recalled()
        self.entry = self.entry or entry
        return Rest(download, start, compare=False)


def _is_of(found: Entry, known: Known) -> bool:
    """Whether the known body was begun from the bucket, and is this one.

    One that a mirror began is not mixed with it: processes that read along would not know which digest it must have.
    """
    return digest_in(known.url) == Digest("sha256", found.sha256)
