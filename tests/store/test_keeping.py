"""A group of small bodies, between two of its steps: its process is killed there, or another one starts.

As in test_crash.py strace lists the calls of an undisturbed run, here of the two threads that make them, and sends a
signal before each of them in turn.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec
import pytest

from proxy.rules.entry import Entry
from proxy.store.locks import is_locked
from proxy.store.store import Store
from tests.harness import sidecar, until
from tests.tracing import needs_strace

from .keeping import BEFORE, GROUP, begin, keep, stock
from .test_crash import CALLS, NAMES, at_each
from .test_store import content, key

STEPS = (*CALLS, "write", "link")
POOL, STORE = "pool", "store"
SAME_FILES = ("write", "pwrite64", "fsync", "fdatasync")
"""Of equal ones in a row the first and the last will do."""


@dataclass(frozen=True, slots=True)
class Point:
    """Before the `nth` time that the thread makes `call`."""

    thread: str
    name: str
    call: str
    nth: int


@dataclass(frozen=True, slots=True)
class Traced:
    """A process under strace that is storing the group."""

    process: BaseProcess
    pipe: Connection
    trace: Path
    threads: dict[str, str]
    """POOL and STORE, by id."""

    async def kept(self) -> list[str]:
        """What it says at the end: the names that were kept."""
        names: list[str] = await asyncio.to_thread(self.pipe.recv)
        return names

    def is_stopped(self) -> bool:
        """Its main thread is not traced, and says what it is."""
        return "\nState:\tT" in Path(f"/proc/{self.process.pid}/status").read_text()


@contextlib.asynccontextmanager
async def started(root):
    """A store in which all is in order."""
    store = Store(root)
    await store.start()
    await store.count()
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def traced(directory, signal="none", point=None):
    """In a stocked directory. `signal` is sent to a thread as it comes to `point`; one that stops it, behind that."""
    root = directory / "cache"
    await stock(root)
    process, pipe = await asyncio.to_thread(begin, root)
    with pipe:
        threads = dict(zip(map(str, await asyncio.to_thread(pipe.recv)), (POOL, STORE), strict=True))
        made = Traced(process, pipe, directory / "trace", threads)
        command = ["strace", "-y", "-e", f"trace={','.join(STEPS)}", "-o", made.trace]
        if point:
            command += ["-e", f"inject={point.call}:signal={signal}:when={point.nth}"]
            if signal == "KILL":
                threads = {number: name for number, name in threads.items() if name == point.thread}
        strace = subprocess.Popen([*command, *(f"-p{each}" for each in threads)], stderr=subprocess.PIPE, text=True)
        try:
            for _ in threads:
                assert "attached" in strace.stderr.readline()
            pipe.send(None)
            yield made
        finally:
            process.kill()
            await asyncio.to_thread(process.join)
            strace.communicate()


@pytest.fixture(scope="module")
async def points(tmp_path_factory):
    """Those of an undisturbed run, until the group is stored."""
    directory = tmp_path_factory.mktemp("undisturbed")
    async with traced(directory) as run:
        assert await run.kept() == [*GROUP]
    root, found, counts = f"{directory}/cache/", [], {}
    for line in run.trace.read_text().splitlines():
        if not (made := re.match(r"(\d+) +(\w+)\(", line)):
            continue
        thread, call = made.groups()
        counts[thread, call] = counts.get((thread, call), 0) + 1
        if root in line and " = -1 " not in line:
            name = f"{call} " + " -> ".join(re.findall(re.escape(root) + r'([^">]*)', line))
            for pattern, word in NAMES:
                name = pattern.sub(word, name)
            found.append(Point(run.threads[thread], name, call, counts[thread, call]))
    return [
        point
        for before, point, after in zip([None, *found], found, [*found[1:], None], strict=False)
        if point.call not in SAME_FILES or not (before and after and before.name == point.name == after.name)
    ]


def described(root):
    """The newest body that a sidecar names, by the key of its URL."""
    entries = [msgspec.json.decode(sidecar(path), type=Entry) for path in root.glob("blobs/*/*.json")]
    return {entry.key: entry.sha256 for entry in sorted(entries, key=lambda entry: entry.stored_at)}


async def check(store, bodies):
    """These are served, the pin is kept, and no other file is there."""
    assert {name: await content(store, name) for name in (*BEFORE, *GROUP)} == {
        name: bodies.get(name) for name in (*BEFORE, *GROUP)
    }
    records = [record.entry for record in await store.records()]
    assert {entry.key for entry in records} == {key(name) for name in bodies}
    assert {entry.key for entry in records if entry.pinned} == {key("pinned")}
    files = {path.name for path in store.root.glob("blobs/*/*")}
    assert files == {name for each in records for name in (each.sha256, f"{each.sha256}.{each.key}.json")}
    assert [*store.root.glob("partial/*"), *store.root.glob("damaged/*"), *store.root.glob("index.broken*")] == []


EXPECTED = {
    (POOL, "mkdir blobs/XX"),
    (POOL, "write blobs/XX/.HEX.TEMPORARY"),  # it has no bytes yet
    (POOL, "write blobs/XX/.HEX.json.TEMPORARY"),
    (POOL, "rename blobs/XX/.HEX.TEMPORARY -> blobs/XX/HEX"),  # bytes are synced
    (POOL, "fsync blobs/XX"),
    (STORE, "link blobs/XX/.HEX.json.TEMPORARY -> blobs/XX/HEX.HEX.json"),  # blobs are
    (STORE, "pwrite64 index/cache.db-wal"),  # sidecars are there
    (STORE, "unlink blobs/XX/HEX.HEX.json"),  # and rows; the old generations go
    (STORE, "unlink blobs/XX/HEX"),
}


@needs_strace
@pytest.mark.timeout(300)
async def test_killed_between_any_two_steps_of_a_group_the_next_start_has_what_was_described(points, tmp_path):
    assert {(point.thread, point.name) for point in points} >= EXPECTED
    new = {key(name): hashlib.sha256(body).hexdigest() for name, body in GROUP.items()}
    counts = set()

    async def run(directory, point):
        async with traced(directory, "KILL", point) as made:
            with pytest.raises(EOFError):
                await made.kept()
        found = described(directory / "cache")
        stored = {name: body for name, body in GROUP.items() if found.get(key(name)) == new[key(name)]}
        counts.add(len(stored))
        async with started(directory / "cache") as store:
            await check(store, {**BEFORE, **stored})
            assert await keep(store) == [*GROUP]
            await check(store, {**BEFORE, **GROUP})

    await at_each(points, tmp_path, run)
    assert counts == set(range(len(GROUP) + 1))


@needs_strace
@pytest.mark.timeout(300)
async def test_another_start_between_any_two_steps_of_a_group_takes_nothing_from_it(points, tmp_path):
    """It removes what no sidecar describes yet, again and again if the group does a step in another thread."""

    async def run(directory, point):
        root = directory / "cache"
        async with traced(directory, "STOP", point) as made:
            sweeps = 0
            while await until(lambda: made.is_stopped() or made.pipe.poll()) and not made.pipe.poll():
                if not is_locked(root / "locks" / "store"):
                    async with started(root):
                        assert not [*root.glob("blobs/*/.*")]
                    sweeps += 1
                os.kill(made.process.pid, signal.SIGCONT)
            assert await made.kept() == [*GROUP]
        assert sweeps
        async with started(root) as store:
            await check(store, {**BEFORE, **GROUP})

    await at_each([point for point in points if point.thread == POOL], tmp_path, run)
