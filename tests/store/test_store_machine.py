"""The store against a model: whatever happens, in any order, what it gives is whole and what the model holds.

Two Store objects on one directory (as two processes have it), of which either may vanish at any time without a word,
between two steps or in the middle of one.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from proxy.rules.entry import Entry, Head
from proxy.store.hot import StoredBody
from proxy.store.partial import PartialRecord
from proxy.store.partials import is_unfinished
from proxy.store.store import Store

NAMES = "abc"
BODIES = [b"", b"x", b"one body" * 100, b"another" * 5000]

names = st.sampled_from(NAMES)
numbers = st.integers(0, 1)


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


@dataclass(slots=True)
class Known:
    """What the model knows of one name."""

    entry: Entry
    body: bytes


class StoreMachine(RuleBasedStateMachine):
    readers = Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.runner = asyncio.Runner()
        self.stores: list[Store] = []
        self.known: dict[str, Known] = {}
        self.begun: dict[str, bytes] = {}
        """The bytes of each saved partial."""
        self.now = 1.0
        self.generation = 0

    def run(self, waiting):
        return self.runner.run(waiting)

    def opened(self) -> Store:
        async def start():
            store = Store(self.root / "cache")
            await store.start()
            await store.count()  # once what a kill has left is in order
            return store

        return self.run(start())

    def abandon(self, store: Store) -> None:
        """As SIGKILL ends it: nothing is flushed or put away. Only thread, database and descriptors are closed."""

        async def gone():
            store._flusher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await store._flusher
            await store._thread.do(store.blobs.ground.index._rows.close)
            store._thread.shutdown()
            if glances := store.blobs.ground.index._glances:
                glances.close()
            store._hot.clear()
            if store._ring._file:
                os.close(store._ring._file[0])

        self.run(gone())

    @initialize()
    def start(self):
        self.stores = [self.opened(), self.opened()]
        for number, name in enumerate(NAMES):
            self.commit(number % 2, name, BODIES[number + 1])

    def teardown(self):
        for store in self.stores:
            self.run(store.close())
        self.runner.close()
        shutil.rmtree(self.root)

    # -- steps --------------------------------------------------------------------------------------------------------

    def made(self, name: str, body: bytes) -> Entry:
        self.now += 1
        self.generation += 1
        head = Head((("etag", f'"{self.generation}"'),), len(body), f"g{self.generation}")
        digest = hashlib.sha256(body).hexdigest()
        return Entry(key_of(name), f"http://a/{name}", "a", head, digest, stored_at=self.now, validated_at=self.now)

    @rule(number=numbers, name=names, body=st.sampled_from(BODIES))
    def commit(self, number, name, body):
        async def commit():
            store = self.stores[number]
            with store.try_lock(key_of(name)):
                saved = await store.resume(key_of(name))
                if saved:
                    await store.discard(saved[1])
                    saved[1].close()
                with contextlib.closing(await store.create(key_of(name), entry.head.generation)) as partial:
                    partial.write(0, memoryview(body))
                    return await store.commit(partial, entry)

        entry = self.made(name, body)
        stored = self.run(commit())
        before = self.known.get(name)
        assert stored == replace(entry, pinned=bool(before and before.entry.pinned))
        self.known[name] = Known(stored, body)
        self.begun.pop(name, None)

    @rule(number=numbers, name=names, count=st.integers(1, 3000))
    def begin(self, number, name, count):
        """A fill that is stopped and saved. One that was saved before is checked and thrown away."""

        async def begin():
            store = self.stores[number]
            with store.try_lock(key_of(name)):
                saved = await store.resume(key_of(name))
                assert (saved is not None) == (name in self.begun)
                if saved:
                    record, partial = saved
                    assert record.url == f"http://a/{name}"
                    written = self.begun[name]
                    assert partial.read(0, 10_000) == written
                    assert list(partial.extents) == [(0, len(written))]
                    await store.discard(partial)
                    partial.close()
                with contextlib.closing(await store.create(key_of(name), f"p{self.generation}")) as partial:
                    partial.write(0, memoryview(b"p" * count))
                    partial.extents.add(0, count)
                    head = Head((), 10_000, f"p{self.generation}")
                    url = f"http://a/{name}"
                    page = PartialRecord(key_of(name), url, "a", url, head, list(partial.extents))
                    await store.save(partial, page)

        self.generation += 1
        self.run(begin())
        self.begun[name] = b"p" * count

    @rule(number=numbers, name=names)
    def refresh(self, number, name):
        """Refresh an entry that is there, or one that was removed long ago."""
        known = self.known.get(name)
        self.now += 1
        # Its pin is out of date; the store keeps its own.
        entry = replace(known.entry if known else self.made(name, b"never stored"), validated_at=self.now, pinned=False)
        self.run(self.stores[number].refresh(entry))
        if known:
            known.entry = replace(entry, pinned=known.entry.pinned)

    @rule(number=numbers, name=names, pinned=st.booleans())
    def pin(self, number, name, pinned):
        entry = self.run(self.stores[number].pin(key_of(name), pinned))
        known = self.known.get(name)
        assert (entry is None) == (known is None)
        if known:
            known.entry = replace(known.entry, pinned=pinned)
            assert entry == known.entry

    @rule(number=numbers, name=names)
    def remove(self, number, name):
        entry = self.run(self.stores[number].remove(key_of(name)))
        known = self.known.pop(name, None)
        assert entry == (known and known.entry)

    @rule(looking=numbers, evicting=numbers, between=st.none() | names)
    def evict(self, looking, evicting, between):
        """Evict all that a survey allows; the survey may be out of date by then."""
        survey = self.run(self.stores[looking].survey())
        assert {each.url[-1] for each in survey if not is_unfinished(each)} == set(self.known)
        assert {each.url[-1] for each in survey if is_unfinished(each)} == set(self.begun)
        if between in self.known:
            self.pin(looking, between, True)
        for each in self.run(self.stores[evicting].evict(survey)):
            if is_unfinished(each):
                del self.begun[each.url[-1]]
            else:
                assert not self.known.pop(each.url[-1]).entry.pinned
        assert not self.begun
        assert all(known.entry.pinned for known in self.known.values())

    @rule(target=readers, number=numbers, name=names)
    def read(self, number, name):
        entry = self.run(self.stores[number].lookup(key_of(name)))
        known = self.known.get(name)
        assert entry == (known and known.entry)
        if entry is None:
            return multiple()
        body = self.stores[number].open(entry)
        assert entry.sha256 in self.stores[number].in_use()
        return body, known.body

    @rule(reader=consumes(readers))
    def read_to_the_end(self, reader):
        body, expected = reader
        assert isinstance(body, StoredBody)
        with body:
            assert os.pread(body.fd, len(expected) + 1, 0) == expected

    @rule(number=numbers, name=names)
    def use(self, number, name):
        self.stores[number].touch(key_of(name), self.now)

    @rule(number=numbers)
    def restart(self, number):
        self.run(self.stores[number].close())
        self.stores[number] = self.opened()

    @rule(number=numbers)
    def crash(self, number):
        self.abandon(self.stores[number])
        self.stores[number] = self.opened()

    @rule(number=numbers, name=names, body=st.sampled_from(BODIES), step=st.integers(0, 5))
    def crash_in_a_commit(self, number, name, body, step):
        """The files that a commit leaves if it is killed after `step` of its steps."""
        entry = self.made(name, body)
        before = self.known.get(name)
        entry = replace(entry, pinned=bool(before and before.entry.pinned))
        store = self.stores[number]
        blob, sidecar = store.blobs.path(entry), store.blobs.sidecars.path(entry)
        part = store.partials.directory / f"{entry.key}.{entry.head.generation}.part"
        part.write_bytes(body if step else body[: len(body) // 2])
        if step >= 2:
            blob.parent.mkdir(mode=0o700, exist_ok=True)
            sidecar.with_name(f".{sidecar.name}.{os.getpid()}").write_bytes(b'{"key": "half')
        if step >= 3:
            sidecar.write_bytes(msgspec.json.encode(entry))
            self.known[name] = Known(entry, body)
        if step >= 4:
            os.rename(part, blob)
        if step >= 5:
            self.run(store._do(store.blobs.ground.index.set, entry))
        self.abandon(store)
        if step in (3, 4):
            # Until a start reconciles them, the other process may see the old entry or the new one.
            self.run(self.stores[1 - number].close())
        self.stores[number] = self.opened()
        if step in (3, 4):
            self.stores[1 - number] = self.opened()

    @rule(number=numbers, name=names)
    def crash_in_a_removal(self, number, name):
        """The row is removed and the files are not: the next start brings the entry back."""
        store = self.stores[number]
        self.run(store._do(store.blobs.ground.index.remove, key_of(name)))
        self.abandon(store)
        self.stores[number] = self.opened()

    @rule(number=numbers)
    def rebuild(self, number):
        """The index is lost while nobody runs."""
        for store in self.stores:
            self.run(store.close())
        shutil.rmtree(self.root / "cache" / "index")
        self.stores = [self.opened(), self.opened()]

    @precondition(lambda self: any(known.body for known in self.known.values()))
    @rule(number=numbers, data=st.data())
    def damage(self, number, data):
        """A blob is cut short: it is a miss under all its URLs, and what is read of it is never short."""
        name = data.draw(st.sampled_from([name for name in NAMES if name in self.known and self.known[name].body]))
        known = self.known[name]
        cut = data.draw(st.sampled_from([0, len(known.body) // 2, len(known.body) - 1]))
        store = self.stores[number]
        blob = store.blobs.path(known.entry)
        # A new file, so that a reader of the old one still has all of it.
        blob.unlink()
        blob.write_bytes(known.body[:cut])
        for each in self.stores:
            each._hot.clear()
        assert self.run(store.lookup(key_of(name))) is None
        for other in [other for other in self.known if self.known[other].body == known.body]:
            del self.known[other]

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def both_say_what_the_model_says(self):
        for store in self.stores:
            for name in NAMES:
                known = self.known.get(name)
                entry = self.run(store.lookup(key_of(name)))
                assert entry == (known and known.entry), name
                if entry and known:
                    with store.open(entry) as body:
                        assert os.pread(body.fd, len(known.body) + 1, 0) == known.body
        if self.stores:
            records = self.run(self.stores[0].records())
            assert {record.entry.url[-1] for record in records} == set(self.known)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
