"""What a mirror's checksum files say of its objects.

They are objects like any other: fetched by fills of their own, stored, and shared with the clients who ask for them.
"""

import contextlib
from collections.abc import Callable
from contextlib import aclosing, closing
from logging import DEBUG, WARNING
from typing import Protocol

from cachetools import TTLCache

from ..errors import EntryGone, ProxyError, StoreError, UnreadableChecksums, UpstreamError
from ..log import events, log
from ..rules import digests, policy
from ..rules.digests import Expected, Unreadable
from ..rules.entry import Entry, Head, Headers, field
from ..rules.mirrors import Target
from ..rules.policy import Ask
from ..rules.validators import condition
from ..store.store import Store
from .fill import Fill, Question
from .passthrough import Passthrough
from .states import Confirmed, Failed, Passed

ANEW = (("cache-control", "no-cache"),)
"""Past our own copy, and past those of the caches between us and the mirror."""
ABSENT_SECONDS = 10.0
"""A checksum file that another process has brought may stay unseen for so long."""
MAX_ABSENT = 4096


class Fetches(Protocol):
    """What is needed of Flights, which has a Checksums of its own."""

    def get(self, key: str) -> Fill | None: ...
    async def join(self, target: Target, question: Question) -> tuple[Fill, bool]: ...
    async def open_passthrough(self, target: Target, fields: Headers) -> Passthrough: ...


class Checksums:
    def __init__(self, store: Store, flights: Fetches, clock: Callable[[], float]) -> None:
        self._store, self._flights, self._clock = store, flights, clock
        self._absent: TTLCache[str, bool] = TTLCache(MAX_ABSENT, ABSENT_SECONDS, clock)
        """Keys of checksum files that we do not have, and do not look for again for a while."""

    async def expected(self, target: Target, anew: bool) -> Expected | None:
        """The digest of `target` by the first of its checksum files that names it; None if none does or can be had.

        `anew`: upstream is asked even for a file that is still fresh here. Raises UnreadableChecksums where there is
        one that cannot be read, unless the mirror's `verify` lets a body pass without.
        """
        unreadable = None
        for template, sibling in zip(target.mirror.checksums, target.checksums, strict=False):
            try:
                try:
                    text, fetched_at = await self._read(sibling, anew)
                except EntryGone:
                    text, fetched_at = await self._read(sibling, anew)
            except Unreadable as error:
                unreadable = unreadable or f"{sibling.url}, its checksum file, cannot be read: {error}"
                log(events, WARNING, "checksums.unreadable", key=target.key[:12], file=sibling.url, error=error)
                continue
            except ProxyError as error:
                log(events, DEBUG, "checksums.none", key=target.key[:12], file=sibling.url, error=error)
                continue
            found = digests.find(text, target.name, path=target.path, is_sidecar="{file}" in template)
            if found:
                return Expected(found, sibling.name, fetched_at)
            log(events, DEBUG, "checksums.silent", key=target.key[:12], file=sibling.url)
        if unreadable and target.mirror.verify == "strict":
            raise UnreadableChecksums(
                f"{target.url} cannot be verified: {unreadable}. the body is not given whole. "
                f'ask the people behind the mirror; verify = "warn" for mirror {target.mirror.name} does without'
            )
        return None

    async def changed_at(self, target: Target) -> float:
        """Unix time at which the newest of the checksum files we have of a moving object became what it is; else 0."""
        newest = 0.0
        if target.mirror.is_moving(target.path):
            for sibling in target.checksums:
                # Every hit comes by here, and looking for what is not there waits for whatever is being stored.
                if sibling.key in self._absent:
                    continue
                if entry := await self._store.lookup(sibling.key):
                    newest = max(newest, entry.stored_at)
                else:
                    self._absent[sibling.key] = True
        return newest

    def is_absent(self, key: str) -> bool:
        """Whether `changed_at` would not look for the checksum file `key`, because it was not there a moment ago."""
        return key in self._absent

    def landed(self, key: str) -> None:
        """A fill of `key` is over: it may be a checksum file that was not there."""
        if key in self._absent:
            self._absent.pop(key, None)

    async def renew(self, target: Target, fill: Fill) -> None:
        """If `fill` brings a new generation of a moving object, have the checksum files we have asked for with it."""
        with contextlib.suppress(ProxyError):
            await fill.wait_head()
            if isinstance(fill.state, Confirmed):
                return
            for sibling in target.checksums:
                entry = await self._store.lookup(sibling.key)
                if entry and entry.validated_at < fill.answered_at:
                    await self._flights.join(sibling, Question(condition(entry.head.headers) + ANEW, entry))

    async def _read(self, target: Target, anew: bool) -> tuple[bytes, float]:
        """The text, and the Unix time at which upstream last vouched for it. Raises ProxyError, Unreadable."""
        if (fill := self._flights.get(target.key)) and fill.arrived:
            await fill.wait_over()  # clients have it already
        entry = await self._store.lookup(target.key)
        decision = policy.decide(ANEW if anew else (), target, entry, now=self._clock())
        if isinstance(decision, Ask):
            try:
                return await self._fetch(target, Question(decision.condition, entry))
            except UpstreamError:
                if anew or entry is None:
                    raise
        assert entry
        return self._stored(entry), entry.validated_at

    async def _fetch(self, target: Target, question: Question) -> tuple[bytes, float]:
        fill, is_first = await self._flights.join(target, question)
        with fill.attach():
            await fill.wait_head()
            if (fill.length or 0) > digests.MAX_TEXT_BYTES:
                if fill.readers == 1:
                    fill.stop()
                raise TOO_LONG
            await fill.wait_over()
            match fill.state:
                case Passed():
                    passthrough = fill.take_passthrough() if is_first else None
                    passthrough = passthrough or await self._flights.open_passthrough(target, ())
                    return _text(await _all(passthrough), passthrough.head), fill.answered_at
                case Failed(error, incoming) if not (isinstance(error, StoreError) and incoming and fill.is_whole):
                    raise error
            if fill.entry:
                return self._stored(fill.entry), fill.entry.validated_at
            assert fill.incoming  # fetched, but not to be stored, or it could not be
            text = fill.incoming.read(digests.MAX_TEXT_BYTES + 1)
            return _text(text, fill.incoming.head), fill.answered_at

    def _stored(self, entry: Entry) -> bytes:
        if entry.size > digests.MAX_TEXT_BYTES:
            raise TOO_LONG
        return _text(self._store.read(entry), entry.head)


TOO_LONG = Unreadable(f"it is longer than {digests.MAX_TEXT_BYTES} bytes")


def _text(body: bytes, head: Head) -> bytes:
    return digests.decoded(body, field(head.headers, "content-encoding"))


async def _all(passthrough: Passthrough) -> bytes:
    """The text of a file that is not kept, or so much of it that it is too long."""
    text = b""
    with closing(passthrough):
        async with aclosing(passthrough.pieces(0, None)) as pieces:
            async for piece in pieces:
                text += piece
                if len(text) > digests.MAX_TEXT_BYTES:
                    break
    return text
