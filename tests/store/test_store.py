"""The cache directory: commit, read, remove, restart, damage; and locks between processes."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.errors import ConfigError, StoreError
from proxy.rules.digests import Digest
from proxy.rules.entry import Entry, Head
from proxy.rules.pieces import Slice
from proxy.store.hot import HOT_ENTRIES, HotTable, OpenEntry
from proxy.store.index import Index
from proxy.store.partial import PartialRecord
from proxy.store.store import Store

BODY = os.urandom(100_000)


def key(name):
    return hashlib.sha256(name.encode()).hexdigest()


def entry_of(name, body, generation="g1", stored_at=1.0):
    head = Head(headers=(("etag", '"x"'),), length=len(body), generation=generation)
    digest = hashlib.sha256(body).hexdigest()
    return Entry(key(name), f"http://a/{name}", "a", head, digest, stored_at=stored_at, validated_at=stored_at)


async def put(store, name, body, generation="g1", stored_at=1.0):
    with contextlib.closing(await store.create(key(name), generation)) as partial:
        partial.write(0, memoryview(body))
        return await store.commit(partial, entry_of(name, body, generation, stored_at))


@pytest.fixture
def opened(tmp_path):
    @contextlib.asynccontextmanager
    async def opened(**options):
        store = Store(tmp_path / "cache", **options)
        await store.start()
        await store.count()  # once what a kill has left is in order
        try:
            yield store
        finally:
            await store.close()

    yield opened
    assert not open_files(tmp_path / "cache")


def open_files(directory):
    """Files under it that this process has open, but for SQLite's; where the system does not tell, none."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if name.startswith(f"{directory}/") and "/index" not in name]


async def content(store, name):
    entry = await store.lookup(key(name))
    if entry is None:
        return None
    with store.open(entry) as body:
        return os.pread(body.fd, body.length + 1, 0)


def record(name, partial, head):
    url = f"http://a/{name}"
    return PartialRecord(key(name), url, "a", url, head, list(partial.extents))


def files(tmp_path):
    root = tmp_path / "cache"
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "index" not in path.parts
    )


async def test_what_is_committed_is_read_and_survives_a_restart(opened, tmp_path):
    async with opened() as store:
        await put(store, "x", BODY)
        assert await content(store, "x") == BODY
    async with opened() as store:
        assert await content(store, "x") == BODY
    digest = hashlib.sha256(BODY).hexdigest()
    assert [name for name in files(tmp_path) if not name.startswith("locks")] == [
        f"blobs/{digest[:2]}/{digest}",
        f"blobs/{digest[:2]}/{digest}.{key('x')}.json",
        "committed",
    ]


async def test_the_directory_is_for_its_owner_alone(opened, tmp_path):
    async with opened() as store:
        await put(store, "x", BODY)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "cache").rglob("*") if path.is_dir())
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


async def test_a_new_generation_takes_the_place_and_an_old_reader_reads_on(opened, tmp_path):
    async with opened() as store:
        with store.open(await put(store, "x", BODY)) as old:
            await put(store, "x", b"new", "g2", 2.0)
            assert await content(store, "x") == b"new"
            assert os.pread(old.fd, len(BODY), 0) == BODY
        assert len([name for name in files(tmp_path) if name.startswith("blobs")]) == 2


async def test_a_stored_body_is_one_slice_of_its_file_and_in_use_until_it_is_closed(opened, tmp_path):
    async with opened() as store:
        entry = await put(store, "x", BODY)
        with store.open(entry) as body:
            assert await body.wait_length() == len(BODY)
            for start, end, expected in [(0, None, (0, len(BODY))), (10, 20, (10, 20)), (10, 2**40, (10, len(BODY)))]:
                assert [piece async for piece in body.pieces(start, end)] == [Slice(body.fd, *expected)]
            assert [piece async for piece in body.pieces(len(BODY), None)] == []
            with store.open(entry) as other:
                assert other.fd != body.fd
            assert store.in_use() == {entry.sha256}
        assert store.in_use() == set()
        assert not open_files(tmp_path / "cache")
        body.close()  # a second time, to no effect


def test_the_hot_table_closes_what_leaves_it(tmp_path):
    def row(name):
        path = tmp_path / name
        path.write_bytes(b"x")
        stat = path.stat()
        fd = os.open(path, os.O_RDONLY)
        return OpenEntry(entry_of(name, b"x"), fd, str(path), (stat.st_ino, stat.st_mtime_ns))

    table = HotTable()
    for number in range(HOT_ENTRIES):
        table.put(row(f"{number}"))
    assert table.get(key("0")).is_current()
    table.put(row("another"))
    assert table.get(key("1")) is None  # the least recently used one
    table.put(row("0"))
    assert len(open_files(tmp_path)) == HOT_ENTRIES
    (tmp_path / "2").unlink()
    table.forget_stale()
    table.forget(key("3"))
    assert len(open_files(tmp_path)) == HOT_ENTRIES - 2
    table.clear()
    assert not open_files(tmp_path)


@pytest.mark.parametrize("call", ["lookup", "resume", "peek"])
async def test_a_call_that_is_cancelled_leaves_nothing_open(opened, tmp_path, call):
    async with opened() as store:
        page = store.blobs.sidecars.path(await put(store, "x", BODY))
        if call != "lookup":
            with contextlib.closing(await store.create(key("x"), "g1")) as partial:
                await store.save(partial, record("x", partial, Head((), 1000, "g1")))
                page = partial.path.with_suffix(".json")
        text = page.read_bytes()
        page.unlink()
        os.mkfifo(page)  # whoever reads it waits for us
        calling = asyncio.create_task(getattr(store, call)(key("x")))
        with await asyncio.to_thread(open, page, "wb") as file:
            calling.cancel()
            await asyncio.wait([calling])
            file.write(text)
        page.unlink()
        await store.clear_damaged()  # the thread does it after the call
        assert calling.cancelled()
        assert not open_files(tmp_path / "cache")


async def test_equal_bodies_are_one_blob_that_goes_with_its_last_url(opened, tmp_path):
    async with opened() as store:
        await put(store, "x", BODY)
        await put(store, "y", BODY)
        blobs = [name for name in files(tmp_path) if name.startswith("blobs") and not name.endswith(".json")]
        assert len(blobs) == 1
        await store.remove(key("x"))
        assert await content(store, "x") is None
        assert await content(store, "y") == BODY
        await store.remove(key("y"))
        assert not [name for name in files(tmp_path) if name.startswith("blobs")]


async def test_a_body_of_the_wrong_length_is_not_stored(opened, tmp_path):
    async with opened() as store:
        with contextlib.closing(await store.create(key("x"), "g1")) as partial:
            partial.write(0, memoryview(BODY[:-1]))
            with pytest.raises(StoreError, match="instead of 100000"):
                await store.commit(partial, entry_of("x", BODY))
        assert await content(store, "x") is None


async def test_another_process_sees_what_is_removed_and_replaced(opened):
    async with opened() as one, opened() as other:
        await put(one, "x", BODY)
        assert await content(other, "x") == BODY
        await put(one, "x", b"new", "g2", 2.0)
        assert await content(other, "x") == b"new"
        await one.remove(key("x"))
        assert await content(other, "x") is None


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_what_was_found_by_its_digest_is_open_and_can_be_read_when_it_is_gone(opened, algorithm):
    digest = Digest(algorithm, hashlib.new(algorithm, BODY).hexdigest())
    async with opened() as one, opened() as other:
        await put(one, "w", BODY)
        await put(one, "x", BODY)
        await one.find(Digest("sha512", hashlib.sha512(BODY).hexdigest()), key("x"))  # computed and kept for x alone
        found = await one.find(digest, key("y"))
        for name in "wx":
            await other.remove(key(name))
        with one.open(found) as body:
            assert os.pread(body.fd, len(BODY), 0) == BODY
        assert await one.find(digest, key("y")) is None


async def test_a_refreshed_entry_is_seen_by_all_and_a_removed_one_does_not_come_back(opened):
    async with opened() as one, opened() as other:
        entry = await put(one, "x", BODY)
        await other.lookup(key("x"))
        newer = replace(entry, validated_at=9.0)
        await one.refresh(newer)
        assert (await other.lookup(key("x"))) == newer
        await other.remove(key("x"))
        await one.refresh(replace(entry, validated_at=10.0))
        assert await one.lookup(key("x")) is None


@pytest.mark.parametrize("damage", ["lost", "garbage", "empty", "stale row"])
async def test_the_index_is_rebuilt_from_the_sidecars(opened, tmp_path, damage):
    async with opened() as store:
        await put(store, "x", BODY)
        await put(store, "y", b"y")
    index = tmp_path / "cache" / "index"
    if damage == "lost":
        shutil.rmtree(index)
    elif damage == "garbage":
        for path in index.iterdir():
            path.write_bytes(os.urandom(5000))
    elif damage == "empty":
        rows = Index(index)
        for each, _ in list(rows.records()):
            rows.remove(each.key)
        rows.close()
    else:
        rows = Index(index)
        rows.set(entry_of("z", b"never stored"))
        rows.close()
    async with opened() as store:
        assert await content(store, "x") == BODY
        assert await content(store, "y") == b"y"
        assert {record.entry.url for record in await store.records()} == {"http://a/x", "http://a/y"}


async def test_a_store_whose_index_another_process_rebuilt_goes_on_in_the_new_one(opened, tmp_path):
    script = """
import asyncio, sys
from pathlib import Path
from proxy.store.store import Store

async def main():
    store = Store(Path(sys.argv[1]))
    await store.start()
    print(sys.argv[2], len(await store.records()), flush=True)
    input()
    print(sys.argv[2], len(await store.records()))
    await store.close()

asyncio.run(main())
"""
    async with opened() as running:
        await put(running, "x", BODY)
        for path in (tmp_path / "cache" / "index").iterdir():
            path.write_bytes(os.urandom(5000))
        rebuilding = subprocess.Popen(
            [sys.executable, "-c", script, tmp_path / "cache", "rows"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert rebuilding.stdout.readline() == "rows 1\n"
            assert await content(running, "x") == BODY
            await put(running, "y", b"y")
        finally:
            told, _ = rebuilding.communicate("\n", timeout=30)
        assert told == "rows 2\n"
        assert {record.entry.url for record in await running.records()} == {"http://a/x", "http://a/y"}
    assert len(list((tmp_path / "cache").glob("index.broken.*"))) == 1


async def test_a_crash_between_two_generations_leaves_the_newer_one(opened, tmp_path):
    async with opened() as store:
        await put(store, "x", BODY)
        sidecars = {path: path.read_bytes() for path in (tmp_path / "cache" / "blobs").glob("*/*") if path.is_file()}
        await put(store, "x", b"new", "g2", 2.0)
    for path, data in sidecars.items():  # as if the old generation's files had never been removed
        path.write_bytes(data)
    async with opened() as store:
        assert await content(store, "x") == b"new"
    assert not any(path.exists() for path in sidecars)


@pytest.mark.parametrize("index", ["with its index", "without"])
@pytest.mark.parametrize("damage", ["blob cut short", "blob gone", "sidecar is no JSON", "sidecar is another one's"])
async def test_what_does_not_fit_is_moved_aside_and_harms_nobody(opened, tmp_path, caplog, damage, index):
    async with opened() as store:
        entry = await put(store, "x", BODY)
        other = await put(store, "y", b"y")
        blob, sidecar = store.blobs.path(entry), store.blobs.path(entry).with_name(f"{entry.sha256}.{entry.key}.json")
        foreign = store.blobs.path(other).with_name(f"{other.sha256}.{other.key}.json").read_bytes()
    if index == "without":
        shutil.rmtree(tmp_path / "cache" / "index")
    match damage:
        case "blob cut short":
            os.truncate(blob, 10)
        case "blob gone":
            blob.unlink()
        case "sidecar is no JSON":
            sidecar.write_text("{")
        case _:
            sidecar.write_bytes(foreign)
    async with opened() as store:
        assert await content(store, "x") is None
        assert await content(store, "y") == b"y"
        assert {path.name for path in store.blobs.damaged.iterdir()} == {sidecar.name} | (
            {blob.name} if damage != "blob gone" else set()
        )
        assert len(store.blobs.was_damaged) == 1
        assert "store.damaged" in caplog.text
        await put(store, "x", BODY, "g2", 2.0)
        assert await content(store, "x") == BODY


async def test_a_damaged_blob_is_moved_aside_under_all_its_urls(opened):
    async with opened() as store:
        entry = await put(store, "x", BODY)
        await put(store, "y", BODY)
        os.truncate(store.blobs.path(entry), 10)
        assert await content(store, "y") is None
        assert await content(store, "x") is None
        assert await store.records() == []


async def test_a_start_sweeps_bodies_without_a_sidecar_and_unfinished_sidecars(opened, tmp_path):
    async with opened() as store:
        kept = await put(store, "y", b"y")
        entry = await put(store, "x", BODY)
    blob = store.blobs.path(entry)
    blob.with_name(f"{entry.sha256}.{entry.key}.json").rename(blob.with_name(f".{entry.sha256}.{entry.key}.json.1"))
    async with opened() as store:
        assert await content(store, "x") is None
        assert await content(store, "y") == b"y"
    bodies = {path for path in (tmp_path / "cache" / "blobs").glob("*/*") if path.suffix != ".json"}
    assert bodies == {store.blobs.path(kept)}


async def killed_in_a_commit(store):
    """x has an old body, and a new one whose commit was killed between sidecar and blob. Returns the .part."""
    old = await put(store, "x", b"old")
    before = {path: path.read_bytes() for path in store.blobs.directory.glob("*/*")}
    new = await put(store, "x", BODY, "g2", 2.0)
    part = store.partials.directory / f"{key('x')}.g2.part"
    store.blobs.path(new).rename(part)
    for path, data in before.items():
        path.write_bytes(data)
    await store._do(store.blobs.ground.index.set, old)
    return part


async def test_a_start_ends_a_commit_that_was_killed_before_its_blob_was_there(opened):
    async with opened() as running:
        part = await killed_in_a_commit(running)
        assert await content(running, "x") == b"old"
        counted = running.blobs.committed_bytes()
        async with opened() as store:
            assert await content(store, "x") == await content(running, "x") == BODY
            assert not part.exists()
            assert len(list(store.blobs.directory.glob("*/*"))) == 2
            assert store.blobs.committed_bytes() == counted + len(BODY)
            assert store.blobs.was_damaged == []


async def test_a_start_leaves_a_killed_commit_to_the_process_that_has_taken_up_its_body(opened):
    async with opened() as running:
        await killed_in_a_commit(running)
        with running.try_lock(key("x")), contextlib.closing(await running.create(key("x"), "g2")) as partial:
            async with opened() as store:
                assert await content(store, "x") == b"old"
                assert partial.path.exists()
                await running.commit(partial, entry_of("x", BODY, "g2", 3.0))
                assert await content(store, "x") == BODY
                assert store.blobs.was_damaged == []


async def test_a_body_that_was_written_to_after_its_sidecar_is_not_believed(opened):
    async with opened() as store:
        part = await killed_in_a_commit(store)
        part.write_bytes(os.urandom(len(BODY)))
    async with opened() as store:
        assert await content(store, "x") == b"old"
        assert store.blobs.was_damaged == []
        assert len(list(store.blobs.directory.glob("*/*"))) == 2


async def test_a_commit_without_space_for_its_records_undoes_itself(opened, tmp_path):
    async with opened() as store:
        old = await put(store, "x", b"old")
        partial = await store.create(key("x"), "g2")
        partial.write(0, memoryview(BODY))
        entry = entry_of("x", BODY, "g2", 2.0)
        # A directory in the place of the sidecar makes its write fail, as a full disk would.
        obstacle = store.blobs.path(entry).with_name(f"{entry.sha256}.{entry.key}.json")
        obstacle.mkdir(parents=True)
        with pytest.raises(StoreError):
            await store.commit(partial, entry)
        assert await content(store, "x") == b"old"
        assert partial.path.exists()
        assert not store.blobs.path(entry).exists()
        obstacle.rmdir()
        await store.commit(partial, entry)
        partial.close()
        assert await content(store, "x") == BODY
        assert not store.blobs.path(old).exists()


async def test_an_index_that_another_process_keeps_locked_undoes_the_commit(opened, tmp_path):
    async with opened(busy_seconds=0.1) as store:
        partial = await store.create(key("x"), "g1")
        partial.write(0, memoryview(BODY))
        database = sqlite3.connect(tmp_path / "cache" / "index" / "cache.db", isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="kept the index of"):
            await store.commit(partial, entry_of("x", BODY))
        assert partial.path.exists()
        assert not list((tmp_path / "cache" / "blobs").glob("*/*"))
        database.close()
        await store.commit(partial, entry_of("x", BODY))
        partial.close()
        assert await content(store, "x") == BODY


async def test_uses_are_counted_together(opened):
    async with opened() as one, opened() as other:
        await put(one, "x", BODY)
        for store in (one, one, other):
            store.touch(key("x"), time.time())
        await other.flush()
        (record,) = await one.records()
        assert record.usage.hits == 3


async def test_a_saved_partial_is_resumed_and_what_fits_nothing_is_swept(opened, tmp_path):
    head = Head((("etag", '"x"'),), 1000, "g1")
    async with opened() as store:
        with contextlib.closing(await store.create(key("x"), "g1")) as partial:
            partial.write(100, memoryview(b"a" * 50))
            partial.extents.add(100, 150)
            await store.save(partial, record("x", partial, head))
        (await store.create(key("x"), "orphan")).close()
        saved, again = await store.resume(key("x"))
        with contextlib.closing(again):
            assert (saved.head, list(again.extents)) == (head, [(100, 150)])
            assert again.read(100, 50) == b"a" * 50
    assert [name for name in files(tmp_path) if name.startswith("partial")] == [
        f"partial/{key('x')}.g1.json",
        f"partial/{key('x')}.g1.part",
        f"partial/{key('x')}.g1.state",
    ]


async def test_a_start_sweeps_what_killed_processes_left_but_not_what_runs(opened, tmp_path):
    async with opened() as one:
        for name in ("dead", "running"):
            (await one.create(key(name), "g1")).close()
        with contextlib.closing(await one.create(key("saved"), "g1")) as saved:
            await one.save(saved, record("saved", saved, Head((), 1000, "g1")))
        with one.try_lock(key("running")):
            async with opened():
                left = {path.name for path in (tmp_path / "cache" / "partial").glob("*.part")}
    assert left == {f"{key('running')}.g1.part", f"{key('saved')}.g1.part"}


async def test_a_partial_shorter_than_it_says_is_not_trusted(opened):
    async with opened() as store:
        with contextlib.closing(await store.create(key("x"), "g1")) as partial:
            partial.write(0, memoryview(b"a" * 50))
            partial.extents.add(0, 50)
            await store.save(partial, record("x", partial, Head((), 1000, "g1")))
        os.truncate(partial.path, 49)
        assert await store.resume(key("x")) is None


async def test_a_lock_dies_with_its_process(opened, tmp_path):
    async with opened() as store:
        holder = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); input()",
                tmp_path / "cache" / "locks" / "abc",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        holder.stdout.readline()
        assert store.try_lock("abc") is None
        holder.kill()
        holder.communicate()
        lock = store.try_lock("abc")
        assert lock is not None
        lock.close()


async def test_looking_at_a_lock_keeps_nobody_from_taking_it(opened):
    async with opened() as one, opened() as other:
        assert not one.is_locked("abc")
        assert not (one.locks / "abc").exists()
        stop = threading.Event()

        def look():
            while not stop.is_set():
                other.is_locked("abc")

        looking = [asyncio.create_task(asyncio.to_thread(look)) for _ in range(2)]
        try:
            for _ in range(2000):
                lock = one.try_lock("abc")
                assert lock is not None
                assert other.is_locked("abc")
                assert other.try_lock("abc") is None
                lock.close()
        finally:
            stop.set()
            await asyncio.gather(*looking)


async def test_a_process_stopped_while_it_looks_at_a_lock_counts_as_holding_it(opened):
    async with opened() as store:
        with open(store.locks / "abc", "w") as looking:
            fcntl.flock(looking, fcntl.LOCK_SH)
            assert store.try_lock("abc") is None
        store.try_lock("abc").close()


async def test_a_read_only_directory_is_told_at_the_start(tmp_path):
    # To root, no directory of an ordinary file system is read-only.
    folder = Path("/sys/kernel") if os.geteuid() == 0 else tmp_path / "parent"
    if not folder.exists():
        folder.mkdir(mode=0o500)
    store = Store(folder / "cache")
    with pytest.raises(ConfigError, match=r"cannot be used: .*(permitted|denied).*--cache-dir"):
        await store.start()
    await store.close()


async def test_a_directory_that_is_a_file_is_told_at_the_start(tmp_path):
    (tmp_path / "cache").write_text("")
    store = Store(tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"cannot be used: .*--cache-dir"):
        await store.start()
    await store.close()


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL"],)


async def test_nothing_is_unpickled(opened, tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    async with opened() as store:
        await put(store, "x", BODY)
    database = sqlite3.connect(tmp_path / "cache" / "index" / "cache.db")
    with database:
        database.execute("UPDATE Cache SET mode = 4, value = ?", (pickle.dumps(Evil()),))
    database.close()
    async with opened() as store:
        assert await content(store, "x") == BODY
    assert not (tmp_path / "evil").exists()


def test_rows_of_a_group_are_written_without_a_look_for_each(tmp_path):
    index = Index(tmp_path / "index")
    before, after = ([entry_of(f"x{number}", body) for number in range(20)] for body in (b"old", b"newer"))
    statements = []
    try:
        index.set_all(before[:10])
        assert index.having([each.key for each in before]) == {each.key for each in before[:10]}
        index._rows._con.set_trace_callback(statements.append)
        index.set_all(after)
        assert [each for each in statements if each.startswith("SELECT")] == []
        assert sorted((entry.key, entry.size) for entry, _ in index.records()) == sorted((e.key, 5) for e in after)
        assert (index.count_entries(), index.total_bytes()) == (20, 5)
    finally:
        index.close()
