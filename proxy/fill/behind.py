"""What is stored here goes into the bucket too, behind everything else: no client and no fill waits for it.

A queue holds the keys of what was stored last. It is short, and lost with the process: what is to be in the bucket and
is not, the index tells (store/abroad.py). It is read through at the start, now and then, and when the queue was full.
So a stop or a kill loses nothing, and a body that is there is never sent again. What is damaged here, or what the
bucket will not take though it takes other things, is put aside for a day: no upload is tried for ever.
"""

import asyncio
import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Container, MutableMapping
from logging import ERROR, INFO, WARNING
from typing import TYPE_CHECKING

from cachetools import TTLCache

from ..errors import BucketError, ProxyError, StoreError
from ..log import events, log
from ..rules.bucket import ENTRY_BYTES, TRIAL_PATH, blob_path, entry_path, read_entry, text_of
from ..rules.circuit import Circuit
from ..rules.entry import Entry
from ..rules.foreign import Unbelievable, base, is_newer
from ..rules.freshness import is_storable
from ..stats import Stats
from ..store.hot import OpenEntry
from ..store.store import Store
from ..upstream.objects import SINGLE_BYTES, Bucket

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

MAX_WAITING = 1024
"""Keys in the queue."""
FAILURES = 3
"""In a row, after which a bucket is left alone: one slow answer of a thousand is nothing, three are trouble."""
TRIES = 3
"""Of one body, until it is put aside: its upload may take hours, and fail at its end."""
ASIDE_SECONDS = 86400.0
MAX_ASIDE = 4096
UPLOADS = 2
"""At once: a big body must not keep all small ones waiting, and each holds 10 MiB or twice that."""
LOOK_SECONDS = 600.0
"""Between two readings of the index."""
RENEW_SECONDS = 86400.0
"""A body that is used counts as written now, once a day: a rule by which old objects go takes the unused ones."""
COPY_BYTES = 5 * 1024**3
"""S3 copies nothing longer by itself."""
STOP_SECONDS = 3.0
LOCK = "bucket"
"""Of several processes on a cache directory one reads the index."""


class _Damaged(StoreError):
    """A stored body is not the one that its name says."""


class Behind:
    """`use` a bucket, `start`, and `await close()`."""

    def __init__(
        self,
        store: Store,
        stats: Stats,
        clock: Callable[[], float],
        wrong: MutableMapping[str, bool],
        room: int = MAX_WAITING,
    ) -> None:
        """`wrong`: digests of bodies that are to be written anew though they be there, until they are.

        `room`: keys in the queue, at most.
        """
        self._room = room
        self._store, self._stats, self._clock, self._wrong = store, stats, clock, wrong
        self._bucket: Bucket | None = None
        self._private: Container[str] = ()
        self._circuit = Circuit(FAILURES)
        self._waiting: dict[str, None] = {}
        """Keys, the oldest first."""
        self._under_way: set[str] = set()
        self._tries: Counter[str] = Counter()
        """By key: how often it has failed, since it last went well."""
        self._aside: TTLCache[str, bool] = TTLCache(MAX_ASIDE, ASIDE_SECONDS, clock)
        """Keys."""
        self._changed = asyncio.Event()
        self._is_to_look = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_started = False

    def use(self, bucket: Bucket | None, private: Container[str]) -> None:
        """Where to put what is stored from now on, and all else. Nothing of the mirrors `private`."""
        is_other, self._private = bucket is not self._bucket, private
        if is_other:
            self._bucket, self._circuit = bucket, Circuit(FAILURES)
        if is_other or self._aside:  # somebody may have put right what was wrong
            self._tries.clear()
            self._aside.clear()
            self._is_to_look.set()
        if self._is_started:
            self.start()

    def start(self) -> None:
        """Begin, once the store has started. Without a bucket nothing runs."""
        self._is_started = True
        if self._bucket and not self._tasks:
            works = (self._look_regularly, *[self._work] * UPLOADS)
            self._tasks = [asyncio.create_task(work(), name="bucket") for work in works]

    async def close(self) -> None:
        """Leave it where it is: the next start goes on. What was begun in parts is taken back, if that is soon done."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_SECONDS)

    @property
    def waiting(self) -> int:
        """Bodies that are under way into the bucket, or wait for that."""
        return len(self._waiting) + len(self._under_way)

    @property
    def aside(self) -> int:
        """Bodies that are not tried again for a while."""
        return len(self._aside)

    @property
    def is_absent(self) -> bool:
        return self._circuit.is_absent(_now())

    def push(self, entry: Entry) -> None:
        """It was stored just now."""
        if self._bucket is None:
            return
        self._tries.pop(entry.key, None)  # of another body
        self._aside.pop(entry.key, None)
        if len(self._waiting) >= self._room:
            self._stats.bucket_uploads["late",] += 1
            self._is_to_look.set()
            return
        self._waiting[entry.key] = None
        self._wake()

    # -- what is to be put there --------------------------------------------------------------------------------------

    async def _look_regularly(self) -> None:
        while True:
            self._is_to_look.clear()
            try:
                if lock := self._store.try_lock(LOCK):
                    with lock:
                        await self._look()
            except StoreError as error:
                log(events, WARNING, "bucket.index_unread", error=error)
            except Exception as error:  # a bug: the next time may do better
                _log_bug(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._is_to_look.wait()

    async def _look(self) -> None:
        """Read the index through, as fast as the queue empties."""
        after: str | None = ""
        while after is not None and (bucket := self._bucket):
            due, after = await self._store.abroad.page(after, bucket.name, RENEW_SECONDS)
            for key in due:
                while len(self._waiting) >= self._room // 2:  # the rest is for what is stored meanwhile
                    await self._changed.wait()
                if key not in self._under_way and key not in self._aside:
                    self._waiting[key] = None
                    self._wake()

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                await self._changed.wait()
            if (seconds := self._circuit.left(_now())) > 0:
                await asyncio.sleep(seconds)
                continue
            key = next(iter(self._waiting))
            del self._waiting[key]
            self._under_way.add(key)
            try:
                await self._try(key)
            except Exception as error:  # a bug: the next one may do better
                _log_bug(error)
            finally:
                self._under_way.discard(key)
                self._wake()

    async def _try(self, key: str) -> None:
        try:
            await self._share(key)
            self._tries.pop(key, None)
        except BucketError as error:
            await self._failed(key, error)
        except _Damaged as error:
            self._put_aside(key, error)
        except ProxyError as error:  # of our own disk; the index tells of it again
            log(events, WARNING, "bucket.not_written", key=key[:12], error=error)

    async def _failed(self, key: str, error: BucketError) -> None:
        """Again, behind the others: one that always fails must not hold them up, and is put aside."""
        self._stats.bucket_uploads["failed",] += 1
        self._tries[key] += 1
        if self._tries[key] >= TRIES and await self._takes_others():
            self._put_aside(key, error)
            return
        if len(self._waiting) < self._room:
            self._waiting[key] = None
        if self._circuit.failed(_now()):
            log(events, WARNING, "bucket.not_written", error=error, hint="it waits, and goes on by itself")

    def _put_aside(self, key: str, error: ProxyError) -> None:
        self._tries.pop(key, None)
        self._aside[key] = True
        hint = "tried again in a day, and once the configuration is read again (SIGHUP)"
        log(events, WARNING, "bucket.put_aside", key=key[:12], error=error, hint=hint)

    async def _takes_others(self) -> bool:
        """Whether the bucket takes a small object now, so that the body it has refused is what is the matter."""
        if (bucket := self._bucket) is None:
            return False
        try:
            await bucket.write(TRIAL_PATH, b"fetchonce\n")
        except BucketError:
            return False
        with contextlib.suppress(BucketError):
            await bucket.delete(TRIAL_PATH)
        self._circuit.answered()
        return True

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # -- how ----------------------------------------------------------------------------------------------------------

    async def _share(self, key: str) -> None:
        """Have the bucket hold what is stored of `key`, if others may have it. Raises BucketError, StoreError."""
        bucket = self._bucket
        found = await self._store.abroad.open(key)
        if found is None or bucket is None:
            return
        with contextlib.closing(found):
            entry = found.entry
            if self._is_for_others(entry):
                is_written = await self._share_body(bucket, found)
                await self._share_entry(bucket, entry, is_renewed=is_written)
                if self._circuit.answered():
                    log(events, INFO, "bucket.written_again", url=bucket.url(""))
            await self._store.abroad.note(key, bucket.name, entry.head.generation, self._clock())

    def _is_for_others(self, entry: Entry) -> bool:
        # What a client has asked for by a digest alone has a key that no other machine can check (gateway.py).
        is_public = not entry.head.by_login and entry.mirror not in self._private and is_storable(entry.head)
        return is_public and base(entry) is not None

    async def _share_body(self, bucket: Bucket, found: OpenEntry) -> bool:
        """Whether it was written, or counts as written now. It may have been there."""
        entry = found.entry
        path = blob_path(entry.sha256)
        seen = await bucket.look(path)
        if seen and seen.size == entry.size and entry.sha256 not in self._wrong:
            self._stats.bucket_uploads["present",] += 1
            if self._clock() - seen.changed_at < RENEW_SECONDS:
                return False
            if entry.size <= COPY_BYTES:
                return await self._renew(bucket, path)

        digest = hashlib.sha256()

        async def read(offset: int, count: int) -> bytes:
            """Called in order: with the last of it the body is the right one, or the upload is broken off."""
            data = await asyncio.to_thread(_read, found.fd, offset, count, digest)
            if len(data) != count or (offset + count == entry.size and digest.hexdigest() != entry.sha256):
                raise _Damaged(f"the stored body of {entry.url} is damaged: fetchonce verify --repair")
            self._stats.bucket_bytes["written",] += count
            return data

        if entry.size > SINGLE_BYTES:
            await bucket.write_parts(path, entry.size, read)
        elif not await bucket.write(path, await read(0, entry.size), is_new=seen is None):
            # 412: somebody was faster. 409 looks the same in obstore, and means that somebody tries, perhaps in vain.
            seen = await bucket.look(path)
            if seen is None or seen.size != entry.size:
                raise BucketError(f"{bucket.url(path)} is being written by another server")
        self._wrong.pop(entry.sha256, None)
        self._stats.bucket_uploads["stored",] += 1
        log(events, INFO, "bucket.written", url=bucket.url(path), key=entry.key[:12], bytes=entry.size)
        return True

    async def _renew(self, bucket: Bucket, path: str) -> bool:
        """Whether it counts as written now. A bucket that does not copy is of use all the same."""
        try:
            await bucket.renew(path)
        except BucketError as error:
            log(events, INFO, "bucket.not_renewed", error=error)
            return False
        return True

    async def _share_entry(self, bucket: Bucket, entry: Entry, *, is_renewed: bool) -> None:
        path, now = entry_path(entry.key), self._clock()
        if found := await bucket.read(path, ENTRY_BYTES):
            seen, text = found
            # Two URLs may have one body, so that it counts as new without its entry.
            is_young = not is_renewed and now - seen.changed_at < RENEW_SECONDS
            with contextlib.suppress(Unbelievable):
                there = read_entry(text, entry.key, now)
                is_same = there.head.generation == entry.head.generation
                if (is_same and is_young) or (not is_same and is_newer(there, entry, now)):
                    return
        await bucket.write(path, text_of(entry))


def _read(fd: int, offset: int, count: int, digest: "Hash") -> bytes:
    data = os.pread(fd, count, offset)
    digest.update(data)
    return data


def _log_bug(error: Exception) -> None:
    log(events, ERROR, "bucket.bug", error=repr(error))
    events.error("", exc_info=error)


def _now() -> float:
    return asyncio.get_running_loop().time()
