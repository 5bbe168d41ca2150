"""Whether a growing body is the one it must be.

A digest is expected because a client names it, or because a checksum file beside the object does, which may still be on
its way when the body is. The last byte is withheld until that is settled; of the wrong body it is withheld for ever.
"""

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from logging import WARNING

from ..errors import DigestMismatch, ProxyError
from ..log import events, log
from ..rules.digests import Algorithm, Digest, Expected, is_worth_a_look
from ..rules.entry import Entry
from ..rules.mirrors import Target
from .context import FillContext
from .growing import Growing
from .hashing import TrailingHash

RECHECK_SECONDS = 15.0
"""How long a body that does not match waits for the checksum file to be fetched anew."""

AskChecksums = Callable[[Target, bool], Awaitable[Expected | None]]
"""What the checksum files say of a target; True: upstream is asked even for files that are fresh here."""


class Verifier:
    """Of one growing body: `verify` or `confirm` when it is whole, `await close()` in any case."""

    def __init__(self, target: Target, growing: Growing, ask_checksums: AskChecksums, context: FillContext) -> None:
        self._target, self._growing, self._ask, self._context = target, growing, ask_checksums, context
        self.digests: dict[str, str] = {}
        """Of the whole body, by algorithm, once it is verified."""
        self._expected = Expected(target.digest) if target.digest else None
        self._hashes: dict[str, TrailingHash] = {}
        self._lookup: asyncio.Task[Expected | None] | None = None
        self._trail: asyncio.Task[None] | None = None
        if is_to_be_verified(target, growing.length):
            growing.withhold()

    def expect(self, digest: Digest) -> None:
        """The body must have this one: it was verified once, and no checksum file need be asked. Before `begin`."""
        self._expected = self._expected or Expected(digest)
        self._growing.withhold()

    def begin(self) -> None:
        """Begin to hash, and to look for the digest."""
        self._hash("sha256")
        if self._expected:
            self._hash(self._expected.digest.algorithm)
        elif has_checksums(self._target, self._growing.length):
            self._lookup = asyncio.create_task(self._look_up(), name=f"checksums {self._target.key[:12]}")
        self._trail = asyncio.create_task(self._follow(), name=f"hash {self._target.key[:12]}")

    async def _look_up(self) -> Expected | None:
        self._expected = await ask_for(self._target, self._ask)
        if self._expected:
            self._hash(self._expected.digest.algorithm)
        else:
            self._growing.release()
        return self._expected

    async def _follow(self) -> None:
        """Hash along where somebody waits for the digest. If nobody does, readers need the processor more."""
        async for reach in self._growing.reaches():
            if self._growing.is_withheld:
                with contextlib.suppress(ProxyError):  # `verify` meets it again, and tells of it
                    await asyncio.gather(*(each.follow(reach) for each in self._hashes.values()))

    def want(self, algorithm: str) -> None:
        """Let `digests` have this algorithm too, if it is not too late for that."""
        if self._hashes and not self.digests:
            self._hash(algorithm)

    async def wait_digests(self) -> dict[str, str]:
        """The digests of the whole body, by algorithm, once all of it may be read. Raises what the fill failed with."""
        while not self.digests or self._growing.is_withheld:
            await self._growing.wait_change()
        return self.digests

    async def verify(self, length: int, source: str, others: Sequence[str]) -> str | None:
        """By what the whole body is the right one, for people; None if nobody tells. Then the last byte may go.

        It came from the URL `source`, and could be had from `others`. Raises DigestMismatch, StoreError.
        """
        try:
            verified = await self._judge(length, source, others)
        except DigestMismatch:
            if self._target.digest and length:  # of an empty body the head says all, and it has no last byte
                await self._give_to_others(length, source)
            raise
        await self._give(length)
        return verified

    async def _give(self, length: int) -> None:
        """Let the last byte go."""
        # All hashes before it: what a reader asks of them is there once it has that.
        digests: dict[str, str] = {}
        while missing := self._hashes.keys() - digests.keys():
            for algorithm in missing:
                digests[algorithm] = await self._hash(algorithm).finish(length)
        self.digests = digests
        self._growing.release()

    async def _give_to_others(self, length: int, source: str) -> None:
        """The client that began this named a wrong digest: for the others the checksum files alone decide."""
        plain = dataclasses.replace(self._target, digest=None)
        with contextlib.suppress(ProxyError):
            if is_to_be_verified(plain, length):
                expected = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._context.settings.checksum_timeout):
                        expected = await ask_for(plain, self._ask)
                if expected:
                    await judge(plain, expected, functools.partial(self._digest, length=length), self._ask, source)
            await self._give(length)

    async def confirm(self, entry: Entry, source: str) -> None:
        """Another process has verified the body and stored it as `entry`; only what our client asked for is left.

        Raises DigestMismatch, StoreError.
        """
        digests = {"sha256": entry.sha256} | ({"sha512": entry.sha512} if entry.sha512 else {})
        wrong = None
        if self._expected:
            digest = self._expected.digest
            if digest.algorithm not in digests:
                digests[digest.algorithm] = (await self._digest(digest.algorithm, entry.size)).hex
            if (got := Digest(digest.algorithm, digests[digest.algorithm])) != digest:
                wrong = mismatch(self._expected, got, source)
        if not wrong or entry.size:
            self.digests = digests
            self._growing.release()
        if wrong:
            raise wrong

    async def _judge(self, length: int, source: str, others: Sequence[str]) -> str | None:
        if self._lookup:
            try:
                async with asyncio.timeout(self._context.settings.checksum_timeout):
                    await self._lookup
            except TimeoutError:
                log(events, WARNING, "fill.unverified", key=self._target.key[:12], reason="no checksum file in time")
        if self._expected is None:
            return None
        digest = functools.partial(self._digest, length=length)
        return await judge(self._target, self._expected, digest, self._ask, source, others)

    async def _digest(self, algorithm: Algorithm, length: int) -> Digest:
        return Digest(algorithm, await self._hash(algorithm).finish(length))

    async def close(self) -> None:
        """End what is under way; no thread reads the file any more then."""
        tasks = [task for task in (self._lookup, self._trail) if task]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            task.cancelled() or task.exception()  # `verify` has raised it, or the fill failed before

    def _hash(self, algorithm: str) -> TrailingHash:
        if algorithm not in self._hashes:
            self._hashes[algorithm] = TrailingHash(algorithm, self._growing.partial, self._context.threads.disk)
        return self._hashes[algorithm]


def has_checksums(target: Target, length: int | None) -> bool:
    """Whether a checksum file is to be asked about a body of `length` bytes (None: not known)."""
    return bool(target.mirror.verify != "off" and target.checksum_paths and is_worth_a_look(target.name, length))


def is_to_be_verified(target: Target, length: int | None) -> bool:
    """Whether the last byte of a body must wait until its digest is known to be right."""
    return target.digest is not None or (target.mirror.verify == "strict" and has_checksums(target, length))


async def ask_for(target: Target, ask: AskChecksums) -> Expected | None:
    """What a new body of `target` must have."""
    if target.digest:
        return Expected(target.digest)
    # With a new generation of what moves its checksum files have moved too, be they fresh by the clock or not.
    return await ask(target, target.mirror.is_moving(target.path))


async def judge(
    target: Target,
    expected: Expected,
    digest: Callable[[Algorithm], Awaitable[Digest]],
    ask: AskChecksums,
    source: str,
    others: Sequence[str] = (),
) -> str | None:
    """By what the whole body is the right one, for people; None if it is not, and that is no matter here.

    `digest` computes what it has of an algorithm. Raises DigestMismatch.
    """
    if (got := await digest(expected.digest.algorithm)) == expected.digest:
        return str(expected)
    if expected.source:
        # The file may be of another time than the body: only what upstream says now counts.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECHECK_SECONDS):
                expected = await ask(target, True) or expected
        if (got := await digest(expected.digest.algorithm)) == expected.digest:
            return str(expected)
    is_tolerated = bool(expected.source) and target.mirror.verify == "warn"
    log(
        events,
        WARNING,
        "fill.mismatch",
        key=target.key[:12],
        url=source,
        expected=expected,
        got=got,
        stored="yes" if is_tolerated else "no",
    )
    if is_tolerated:
        return None
    raise mismatch(expected, got, source, others[0] if others else None)


def mismatch(expected: Expected, got: Digest | str, url: str, next_url: str | None = None) -> DigestMismatch:
    """The error for a body of `url` that is another than it must be; `next_url` is where it is fetched from next."""
    told = "as asked for"
    if expected.source:
        told = f"{expected.source} fetched {time.strftime('%H:%M:%S', time.localtime(expected.fetched_at))}"
    if next_url:
        advice = f"retry: the next request goes to {next_url}"
    elif expected.source:
        advice = "retry later; if it repeats, what is published there does not fit together"
    else:
        advice = "is it the digest of this very file? upstream may have replaced it"
    return DigestMismatch(
        f"digest mismatch for {url}\n  expected {expected.digest}  got {got}  ({told})\n  nothing was stored. {advice}",
        next_url,
    )
