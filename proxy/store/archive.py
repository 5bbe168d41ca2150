"""Entries in a tar, out of one cache directory and into another: for a machine that reaches no network.

manifest.json     first: what the archive holds, so that there is room for all of it before anything is brought in
urls/KEY.json     an entry, as a sidecar has it, for each URL of the body that comes next
blobs/ab/HEX      the body, once, named by its SHA-256

A JSON member holds the digest of its text too. So nothing is believed unread: a body goes into the store if it has the
digest that is its name, an entry if rules/foreign.py believes it. Names are compared, and never used as paths.

Both ways go on beside servers. Export reads open files, which nobody can take away. Import holds the lock of each key,
as a fill does, and nothing of a body is seen before all of it was compared. Bodies are read and hashed in the caller's
thread: the loop of a command has nothing else to do.
"""

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from ..errors import EntryGone, StoreError
from ..rules.entry import Entry, refreshed
from ..rules.foreign import Unbelievable, attested, believed, is_newer
from .files import size_of
from .integrity import damage_of
from .janitor import Janitor
from .locks import Lock
from .partial import Partial
from .store import Store
from .tar import BrokenTar, Member, TarReader, TarWriter

T = TypeVar("T")

VERSION = 1
CHUNK_BYTES = 4 * 1024**2  # import has two in memory at once
ENTRY_BYTES = 512 * 1024  # of an entry's JSON; upstream's head has at most 100 KiB
WAITING_BYTES = 16 * 1024**2  # of the entries before one body
REPAIR = "fetchonce verify --repair has it fetched anew"
MANIFEST_BYTES = 32 * 1024**2  # 80 for each body


class Manifest(msgspec.Struct, frozen=True):
    """What was to be exported when it began. Less came if something was removed meanwhile."""

    version: int
    urls: int
    bytes: int
    bodies: dict[Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")], Annotated[int, msgspec.Meta(ge=0)]]
    """Sizes by SHA-256."""


class Page(msgspec.Struct, frozen=True):
    """A JSON member."""

    sha256: str
    """Of `content`, as it is written here."""
    content: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Carried:
    """An entry that is in the archive now, or in the store."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry that the store has already, or a newer one."""

    entry: Entry
    is_newer: bool


@dataclass(frozen=True, slots=True)
class Left:
    """What was not carried, by its URL or name, and why."""

    name: str
    why: str


Outcome = Carried | Kept | Left


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told how it goes."""

    tell: Callable[[Outcome], object]
    progress: Callable[[int, int | None], object]
    """Bytes of bodies done, and of all; None if that is not known."""


async def export(store: Store, entries: Sequence[Entry], tar: TarWriter, watch: Watch) -> None:
    """Write the entries and their bodies. Raises StoreError, and what the file raises."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.sha256, []).append(entry)
    bodies = {sha256: same[0].size for sha256, same in groups.items()}
    size, done = sum(bodies.values()), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        watch.progress(done, size)

    tar.add("manifest.json", _page(Manifest(VERSION, len(entries), size, bodies)), 0)
    waiting = list(groups.values())
    for same in waiting:
        current = []
        for entry in same:
            now = await store.lookup(entry.key)
            if now is None:
                watch.tell(Left(entry.url, "it was removed meanwhile, or its body has another size"))
            elif now.sha256 != entry.sha256:
                waiting.append([now])  # it was replaced meanwhile: the new one, in its turn
            else:
                current.append(now)
        if current:
            why = _write(store, current, tar, advance)
            for entry in current:
                watch.tell(Left(entry.url, why) if why else Carried(entry))
    tar.close()


def _write(store: Store, same: Sequence[Entry], tar: TarWriter, advance: Callable[[int], object]) -> str | None:
    """Write one body and its entries. If that is not possible, nothing is written; returns why.

    The body is hashed while it is written: if it is damaged, what was written of it is taken back. From a pipe nothing
    can be taken back, so there it is read twice.
    """
    first = same[0]
    try:
        body = store.open(first)
    except EntryGone:
        return "it was removed meanwhile"
    with body:
        if not tar.can_rewind and (damage := damage_of(body.fd, first, lambda data: None)):
            return f"{damage}. {REPAIR}"
        start = tar.offset
        for entry in same:
            tar.add(_entry_name(entry), _page(entry), entry.stored_at)
        tar.begin(_blob_name(first), first.size, first.stored_at)

        def write(data: bytes) -> None:
            tar.write(data)
            advance(len(data))

        damage = damage_of(body.fd, first, write)
        if damage is None:
            tar.end()
            return None
        if not tar.can_rewind:
            raise StoreError(f"{first.url} has changed while it was read: {damage}. the archive ends there")
        tar.rewind(start)
        return f"{damage}. {REPAIR}"


class Importer:
    """Of one archive: `run` it once. `name` is for messages."""

    def __init__(self, store: Store, janitor: Janitor, tar: TarReader, name: str, watch: Watch) -> None:
        self._store, self._janitor, self._tar, self._name, self._watch = store, janitor, tar, name, watch
        self._manifest: Manifest | None = None
        self._waiting: deque[Entry] = deque()
        """Those whose body is to come next."""
        self._body: Entry | str | None = None
        """What the body that comes now was stored as, or why it was not; None as long as it was not read."""
        self._waiting_bytes = self._urls = self._done = 0
        self._imported: list[Entry] = []
        self._buffers = [memoryview(bytearray(CHUNK_BYTES)) for _ in range(2)]

    async def run(self, now: float) -> None:
        """Bring in everything that is whole, right and not there yet. Raises OutOfSpace, with nothing brought in."""
        try:
            await self._begin()
            while (member := self._tar.next()) is not None:
                if member.name.startswith("urls/"):
                    self._meet(member, now)
                elif self._waiting and member.name == _blob_name(self._waiting[0]):
                    await self._bring(member.size, now)
            self._give_up_waiting()
        except BrokenTar as error:
            self._give_up_waiting()
            rest = "nothing was imported"
            if self._manifest:
                rest = f"{max(0, self._manifest.urls - self._urls)} URLs were still to come"
            elif self._urls:
                rest = "nothing after that was read"
            self._watch.tell(Left(self._name, f"{self._name} {error}. {rest}"))
        for entry in self._imported:
            if not self._store.blobs.has(entry):
                self._leave(entry, "it was removed or replaced again meanwhile")

    async def _begin(self) -> None:
        """Read the manifest. Raises OutOfSpace if there is no room for what is not there yet."""
        member = self._tar.next()
        if member is None or member.name != "manifest.json":
            raise BrokenTar("was not written by fetchonce export")
        try:
            manifest = self._read(member, MANIFEST_BYTES, Manifest)
        except Unbelievable as error:
            self._watch.tell(Left(member.name, f"{error}; nobody knows whether there is room for all of it"))
            return
        if manifest.version != VERSION:
            raise BrokenTar(f"was written by another fetchonce (version {manifest.version} of the archive)")
        blobs = self._store.blobs.sidecars
        missing = [size for sha256, size in manifest.bodies.items() if size_of(blobs.blob(sha256)) != size]
        await self._janitor.check_room(self._name, sum(missing), manifest.bodies.keys())
        self._manifest = manifest

    def _meet(self, member: Member, now: float) -> None:
        """An entry, whose body comes after it."""
        self._urls += 1
        try:
            entry = believed(self._read(member, ENTRY_BYTES, Entry), now)
            if member.name != _entry_name(entry):
                raise Unbelievable("it is another one's")
        except Unbelievable as error:
            self._watch.tell(Left(_printable(member.name), str(error)))
            return
        if self._waiting and self._waiting[0].sha256 != entry.sha256:
            self._give_up_waiting()
        self._waiting_bytes = member.size + (self._waiting_bytes if self._waiting else 0)
        if self._waiting_bytes > WAITING_BYTES:
            self._leave(entry, "too many URLs have its body")
            return
        self._waiting.append(entry)

    def _read(self, member: Member, limit: int, kind: type[T]) -> T:
        """What a JSON member holds. Raises Unbelievable."""
        if member.size > limit:
            raise Unbelievable(f"it has {member.size} bytes, and {limit} at most are read")
        try:
            page = msgspec.json.decode(self._tar.content(), type=Page)
            if hashlib.sha256(page.content).hexdigest() != page.sha256:
                raise Unbelievable("it is damaged: its text has another digest")
            return msgspec.json.decode(page.content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Unbelievable(f"it is damaged: {_printable(str(error))}") from None

    async def _bring(self, size: int, now: float) -> None:
        """The body of those that wait comes now. It is read if one of them is wanted and the store has none like it."""
        self._body = None
        while self._waiting:
            entry = self._waiting[0]
            try:
                # One lock at a time: thousands of URLs may have one body, and each lock is a descriptor.
                with self._locked(entry, size):
                    if not await self._is_kept(entry, now):
                        await self._bring_in(entry, now)
            except StoreError as error:
                self._leave(entry, error.message)
            self._waiting.popleft()
        self._done += size
        self._progress(0)

    async def _bring_in(self, entry: Entry, now: float) -> None:
        """Store the entry, with the body that comes now if there is none like it. Needs its lock. Raises StoreError."""
        stored = await self._store.share(attested(entry, self._body.sha512 if isinstance(self._body, Entry) else None))
        if stored is None:
            if self._body is not None:
                raise StoreError(self._body if isinstance(self._body, str) else "its body was removed again meanwhile")
            try:
                stored = self._body = await self._store_body(entry)
            except StoreError as error:
                self._body = error.message
                raise
        if entry.pinned and not stored.pinned:
            await self._store.pin(entry.key)
        # It was stored long ago, perhaps: without a use it would be the first to go.
        self._store.touch(entry.key, now, hits=0)
        await self._store.flush()
        self._imported.append(stored)
        self._watch.tell(Carried(stored))

    def _locked(self, entry: Entry, size: int) -> Lock:
        """The lock of an entry whose body has `size` bytes. Raises StoreError."""
        if entry.size != size:
            raise StoreError(f"its body has {size} bytes instead of {entry.size}")
        if lock := self._store.try_lock(entry.key):
            return lock
        raise StoreError("it is being fetched or imported right now. run the import again if that fails")

    async def _is_kept(self, entry: Entry, now: float) -> bool:
        """Whether the store's entry stays, with what is newer of this one. Needs the lock."""
        stored = await self._store.lookup(entry.key)
        is_later = stored is not None and is_newer(entry, stored, now)
        if stored is None or (is_later and stored.sha256 != entry.sha256):
            return False
        if is_later:
            await self._store.refresh(refreshed(stored, entry.head, entry.validated_at))
        if entry.pinned and not stored.pinned:
            await self._store.pin(entry.key)
        self._watch.tell(Kept(stored, is_newer=stored.sha256 != entry.sha256))
        return True

    async def _store_body(self, entry: Entry) -> Entry:
        """Store the entry with the body that comes now. Raises StoreError."""
        algorithms = ("sha256", "sha512") if any(each.sha512 for each in self._waiting) else ("sha256",)
        if unfinished := await self._store.resume(entry.key):
            with contextlib.closing(unfinished[1]) as partial:
                if partial.generation == entry.head.generation:  # ours would go into the same file
                    await self._store.discard(partial)
        partial = await self._janitor.create(entry.key, entry.url, entry.head)
        try:
            digests = await self._copy(partial, entry.size, algorithms)
            if digests["sha256"] != entry.sha256:
                raise StoreError(f"its body is damaged: it has sha256:{digests['sha256']} instead of {entry.sha256}")
            return await self._janitor.commit(partial, attested(entry, digests.get("sha512")))
        except BaseException:
            self._janitor.release(partial)
            await self._store.discard(partial)
            raise
        finally:
            partial.close()

    async def _copy(self, partial: Partial, size: int, algorithms: Sequence[str]) -> dict[str, str]:
        """Write the content of the current member into the partial; returns its digests. Raises StoreError.

        While one piece is written, in a thread, the next one is read and hashed.
        """
        digests = [hashlib.new(algorithm) for algorithm in algorithms]
        loop = asyncio.get_running_loop()
        writing: asyncio.Future[None] | None = None
        try:
            for offset in range(0, size, CHUNK_BYTES):
                self._buffers.reverse()
                data = self._buffers[0][: min(CHUNK_BYTES, size - offset)]
                self._tar.readinto(data)
                for digest in digests:
                    digest.update(data)
                if writing:
                    await asyncio.shield(writing)
                writing = loop.run_in_executor(None, partial.write, offset, data)
                self._progress(offset + len(data))
            if writing:
                await asyncio.shield(writing)
        finally:
            if writing:  # the thread has the descriptor, and the buffer
                await asyncio.gather(writing, return_exceptions=True)
        return {digest.name: digest.hexdigest() for digest in digests}

    def _progress(self, count: int) -> None:
        self._watch.progress(self._done + count, self._manifest.bytes if self._manifest else None)

    def _give_up_waiting(self) -> None:
        for entry in self._waiting:
            self._leave(entry, "its body is not in the archive")
        self._waiting.clear()

    def _leave(self, entry: Entry, why: str) -> None:
        self._watch.tell(Left(entry.url, why))


def _page(content: Manifest | Entry) -> bytes:
    text = msgspec.json.encode(content)
    return msgspec.json.encode(Page(hashlib.sha256(text).hexdigest(), msgspec.Raw(text))) + b"\n"


def _entry_name(entry: Entry) -> str:
    return f"urls/{entry.key}.json"


def _blob_name(entry: Entry) -> str:
    return f"blobs/{entry.sha256[:2]}/{entry.sha256}"


def _printable(text: str) -> str:
    """Text out of an archive, for a terminal."""
    return ascii(text)[1:-1][:200]
