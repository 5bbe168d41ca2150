"""The bucket that servers share, as a fill sees it: asked after our own disk and before the mirrors.

Nothing here keeps a fill from the mirrors. What cannot be had in time, is missing or wrong counts as not there, and a
bucket that fails again and again is left alone for a while (rules/circuit.py). What is in it (rules/bucket.py) is
written by behind.py.
"""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import replace
from logging import DEBUG, INFO, WARNING
from typing import Any, TypeVar

from cachetools import TTLCache

from ..config import S3Section, Settings, UpstreamSection
from ..errors import BucketError
from ..log import events, log
from ..rules.bucket import ENTRY_BYTES, blob_path, entry_path, read_entry
from ..rules.circuit import Circuit
from ..rules.entry import Entry, Head
from ..rules.foreign import Unbelievable
from ..rules.headers import http_date
from ..rules.mirrors import Target
from ..rules.pace import PATIENT_SECONDS, Pace
from ..stats import Stats
from ..store.store import Store
from ..upstream.objects import Bucket, Download
from .behind import FAILURES, Behind

T = TypeVar("T")

OPENING = 2.0
"""So many times s3.timeout has the first answer about a body that the bucket says it has: large objects begin later."""
ABSENT_SECONDS = 10.0
"""What was not there is not looked for again for so long."""
MAX_ABSENT = 4096


class Tier:
    """Of one process, with or without a bucket. `use` settings, `start` and `await close()`."""

    def __init__(self, store: Store, stats: Stats, clock: Callable[[], float]) -> None:
        self._stats, self._clock = stats, clock
        self._bucket: Bucket | None = None
        self._section, self._upstream = S3Section(), UpstreamSection()
        self._circuit, self._bodies = Circuit(FAILURES), Circuit(FAILURES)
        """Of questions for bodies the second: a bucket that says what it has, and does not give it, is no help."""
        self._patient_until = 0.0
        """By the loop's clock: when a slow bucket may be left for a mirror again."""
        self._absent: TTLCache[str, bool] = TTLCache(MAX_ABSENT, ABSENT_SECONDS, clock)
        """Keys, and digests of blobs, that were not there a moment ago."""
        self._wrong: TTLCache[str, bool] = TTLCache(MAX_ABSENT, 86400.0, clock)
        """Blobs that were not what their name says: they are to be written anew, though they be there."""
        self.behind = Behind(store, stats, clock, self._wrong)

    def use(self, settings: Settings) -> None:
        """Settings for what is asked from now on. Raises ConfigError."""
        section, upstream = settings.file.s3, settings.file.upstream
        if (section, upstream) != (self._section, self._upstream):
            self._bucket = Bucket(section, upstream) if section.url else None
            self._section, self._upstream = section, upstream
            self._circuit, self._bodies = Circuit(FAILURES), Circuit(FAILURES)
            self._absent.clear()
        self.behind.use(self._bucket, {mirror.name for mirror in settings.mirrors if mirror.credentials})

    def start(self) -> None:
        self.behind.start()

    async def close(self) -> None:
        await self.behind.close()

    @property
    def is_on(self) -> bool:
        """Whether there is a bucket."""
        return self._bucket is not None

    @property
    def is_absent(self) -> bool:
        """Whether there is one that is left alone for a while, by those who read or those who write."""
        return any(each.is_absent(_now()) for each in (self._circuit, self._bodies)) or self.behind.is_absent

    def url_of(self, sha256: str) -> str:
        """Where a body is, for people."""
        return self._bucket.url(blob_path(sha256)) if self._bucket else ""

    # -- what it has --------------------------------------------------------------------------------------------------

    async def find(self, target: Target) -> Entry | None:
        """What the bucket has of `target`, believed as an archive is. Nothing of what takes a login is there."""
        bucket, key = self._bucket, target.key
        if bucket is None or target.mirror.credentials or key in self._absent:
            return None
        try:
            found = await self._ask(self._circuit, bucket.read(entry_path(key), ENTRY_BYTES))
            entry = read_entry(found[1], key, self._clock()) if found else None
        except BucketError:
            return None
        except Unbelievable as error:
            log(events, WARNING, "bucket.unbelievable", url=bucket.url(entry_path(key)), error=error)
            entry = None
        if entry is None or entry.sha256 in self._absent or entry.sha256 in self._wrong:
            self._count("miss")
            self._absent[key] = True
            return None
        return entry

    async def by_digest(self, target: Target) -> Target:
        """The target; or the body with its digest (`is_apart`), if the bucket has it, but not as that of this URL."""
        if self._bucket is None or target.digest is None:
            return target
        entry = await self.find(target)
        if entry and entry.has(target.digest):
            return target
        apart = replace(target, is_apart=True)
        return apart if await self.find_apart(apart) else target

    async def find_apart(self, target: Target) -> Entry | None:
        """As `find`, of the body with the digest of `target`: nobody knows what upstream has said of it."""
        bucket, digest = self._bucket, target.digest
        if bucket is None or digest is None or digest.algorithm != "sha256" or digest.hex in self._absent:
            return None
        try:
            seen = await self._ask(self._circuit, bucket.look(blob_path(digest.hex)))
        except BucketError:
            return None
        if seen is None:
            self._absent[digest.hex] = True
            return None
        now = self._clock()
        headers = (("content-type", "application/octet-stream"), ("date", http_date(now)))
        head = Head(headers, seen.size, digest.hex[:16])
        return Entry(target.key, target.url, target.mirror.name, head, digest.hex, stored_at=now, validated_at=now)

    def no_faster(self) -> None:
        """A mirror has turned out to be no faster than the bucket, slow as it is: it is waited for."""
        self._patient_until = _now() + PATIENT_SECONDS

    async def open(self, entry: Entry, start: int, stop: int, pace: Pace | None) -> Download | None:
        """The bytes from `start` to `stop` of its body, which are some; None if they cannot be had. Close it.

        `pace`: it breaks off once that is slow, if mirrors may be faster.
        """
        bucket, pace = self._bucket, None if _now() < self._patient_until else pace
        if bucket is None:
            return None
        try:
            opened = await self._ask(self._bodies, bucket.open(blob_path(entry.sha256), start, stop, pace), OPENING)
        except BucketError:
            return None
        if opened is None:
            self._is_missing(entry)
            return None
        seen, download = opened
        if seen.size != entry.size:
            download.drop()
            await self.discard(entry, f"it has {seen.size} bytes instead of {entry.size}")
            return None
        return download

    async def read(self, entry: Entry) -> bytes | None:
        """The whole of a small body, verified; None if it cannot be had."""
        bucket = self._bucket
        if bucket is None:
            return None
        try:
            found = await self._ask(self._bodies, bucket.read(blob_path(entry.sha256), entry.size), OPENING)
        except BucketError:
            return None
        if found is None:
            self._is_missing(entry)
            return None
        if hashlib.sha256(found[1]).hexdigest() != entry.sha256:
            await self.discard(entry, "it has another digest")
            return None
        return found[1]

    async def discard(self, entry: Entry, why: str) -> None:
        """The body there is not the one that its name says: remove it. Whoever brings the right one puts it back."""
        log(events, WARNING, "bucket.wrong", url=self.url_of(entry.sha256), reason=why)
        self._count("wrong")
        self._wrong[entry.sha256] = self._absent[entry.sha256] = True
        if self._bucket:
            try:
                await self._ask(self._circuit, self._bucket.delete(blob_path(entry.sha256)), OPENING)
            except BucketError as error:
                log(events, WARNING, "bucket.not_removed", url=self.url_of(entry.sha256), error=error)

    def push(self, entry: Entry) -> None:
        """It was stored just now: the bucket is to have it, behind everything else."""
        self._absent.pop(entry.key, None)
        self.behind.push(entry)

    def recalled(self, *, is_stale: bool = False) -> None:
        """A body is taken from the bucket; `is_stale`: once upstream had confirmed it, or could not be asked."""
        self._count("stale" if is_stale else "hit")

    def _is_missing(self, entry: Entry) -> None:
        log(events, INFO, "bucket.missing", url=self.url_of(entry.sha256), key=entry.key[:12])
        self._absent[entry.sha256] = True
        self._count("miss")

    async def _ask(self, circuit: Circuit, question: Coroutine[Any, Any, T], times: float = 1.0) -> T:
        """The answer to `question`, within so many times s3.timeout. Raises BucketError, also without asking."""
        if self._bodies.is_absent(_now()) or not circuit.may_ask(_now()):
            question.close()
            self._count("absent")
            raise BucketError("the bucket is left alone for a while")
        seconds = times * self._section.timeout
        try:
            async with asyncio.timeout(seconds):
                answer = await question
        except (BucketError, TimeoutError) as error:
            self._count("failed")
            said = error if isinstance(error, BucketError) else f"no answer within {seconds} s"
            log(events, DEBUG, "bucket.failed", error=said)
            if circuit.failed(_now()):
                log(events, WARNING, "bucket.absent", error=said, hint="fills go to the mirrors; asked again in 30 s")
            raise BucketError(str(error)) from error
        if circuit.answered():
            log(events, INFO, "bucket.back", url=self._section.url)
        return answer

    def _count(self, result: str) -> None:
        self._stats.bucket_lookups[result,] += 1


def _now() -> float:
    return asyncio.get_running_loop().time()
