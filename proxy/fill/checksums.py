"""What a mirror's checksum files say of its objects.

They are objects like any other: fetched by fills of their own, stored, and shared with the clients who ask for them.
"""

import contextlib
from collections.abc import Awaitable, Callable
from logging import DEBUG
from typing import Protocol

from ..errors import ProxyError, UpstreamError
from ..log import events, log
from ..rules import digests, policy
from ..rules.digests import Expected
from ..rules.entry import Entry, Headers
from ..rules.mirrors import Target
from ..rules.policy import Ask
from ..rules.validators import condition
from ..store.store import Store
from .fill import Fill, FillState
from .passthrough import Passage

ANEW = (("cache-control", "no-cache"),)
"""Past our own copy, and past those of the caches between us and the mirror."""


ABSENT_SECONDS = 10.0
"""As long a checksum file that another process has brought may stay unseen."""
MAX_ABSENT = 4096


class Join(Protocol):
    def __call__(
        self, target: Target, stale: Entry | None, condition: Headers, *, keep: bool
    ) -> Awaitable[tuple[Fill, bool]]: ...


class Checksums:
    def __init__(
        self,
        store: Store,
        join: Join,
        open_passage: Callable[[Target, Headers], Awaitable[Passage]],
        clock: Callable[[], float],
    ) -> None:
        self._store, self._join, self._open_passage, self._clock = store, join, open_passage, clock
        self._absent: dict[str, float] = {}
        """By key: until when a checksum file that we do not have is not looked for again."""

    async def expected(self, target: Target, anew: bool) -> Expected | None:
        """The digest of `target` by the first of its checksum files that names it; None if none does or can be had.

        `anew`: upstream is asked even for a file that is still fresh here.
        """
        for template, sibling in zip(target.mirror.checksums, target.checksums, strict=False):
            try:
                text, fetched_at = await self._read(sibling, anew)
            except ProxyError as error:
                log(events, DEBUG, "checksums.none", key=target.key[:12], file=sibling.url, error=error)
                continue
            found = digests.find(text, target.name, path=target.path, is_sidecar="{file}" in template)
            if found:
                return Expected(found, sibling.name, fetched_at)
            log(events, DEBUG, "checksums.silent", key=target.key[:12], file=sibling.url)
        return None

    async def changed_at(self, target: Target) -> float:
        """Unix time at which the newest of the checksum files we have of a moving object became what it is; else 0."""
        newest, now = 0.0, self._clock()
        if target.mirror.is_moving(target.path):
            for sibling in target.checksums:
                # Every hit comes by here, and looking for what is not there waits for whatever is being stored.
                if self._absent.get(sibling.key, 0.0) > now:
                    continue
                if entry := await self._store.lookup(sibling.key):
                    newest = max(newest, entry.stored_at)
                else:
                    if len(self._absent) >= MAX_ABSENT:
                        self._absent.clear()
                    self._absent[sibling.key] = now + ABSENT_SECONDS
        return newest

    def landed(self, key: str) -> None:
        """A fill of `key` is over: it may be a checksum file that was not there."""
        self._absent.pop(key, None)

    async def renew(self, target: Target, fill: Fill) -> None:
        """If `fill` brings a new generation of a moving object, have the checksum files we have asked for with it."""
        with contextlib.suppress(ProxyError):
            await fill.wait_head()
            if fill.state is FillState.UNCHANGED:
                return
            for sibling in target.checksums:
                entry = await self._store.lookup(sibling.key)
                if entry and entry.validated_at < fill.answered_at:
                    await self._join(sibling, entry, condition(entry.head.headers) + ANEW, keep=True)

    async def _read(self, target: Target, anew: bool) -> tuple[bytes, float]:
        """The text, and the Unix time at which upstream last vouched for it."""
        entry = await self._store.lookup(target.key)
        decision = policy.decide(ANEW if anew else (), target, entry, now=self._clock())
        if isinstance(decision, Ask):
            fill, is_first = await self._join(target, entry, decision.condition, keep=True)
            with fill.attach():
                try:
                    await fill.wait_head()
                    if (fill.length or 0) > digests.MAX_TEXT_BYTES:
                        if fill.readers == 1:
                            fill.stop()
                        raise UpstreamError(f"{target.url} is too long for a checksum file")
                    await fill.wait_over()
                    if fill.passage:
                        passage = fill.passage if is_first else await self._open_passage(target, ())
                        return await _all(passage), fill.answered_at
                    if fill.error:
                        raise fill.error
                except UpstreamError:
                    if anew or entry is None:
                        raise
                else:
                    entry = fill.entry
                    if entry is None:  # fetched, but not to be stored
                        return fill.partial.read(0, digests.MAX_TEXT_BYTES + 1), fill.answered_at
        assert entry
        if entry.size > digests.MAX_TEXT_BYTES:
            raise UpstreamError(f"{target.url} is too long for a checksum file")
        return self._store.read(entry), entry.validated_at


async def _all(passage: Passage) -> bytes:
    """The text of a file that is not kept, or so much of it that it is too long."""
    text = b""
    try:
        async for piece in passage.pieces(0, None):
            text += piece
            if len(text) > digests.MAX_TEXT_BYTES:
                break
        return text
    finally:
        passage.close()
