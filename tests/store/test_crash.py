"""Killed at any moment, it goes on where it was. Real processes, SIGKILL, bytes compared.

At random moments, and at named ones: strace lists the calls of an undisturbed run that change the cache directory, and
kills a run before each of them in turn (`-s` prints them).
"""

import asyncio
import itertools
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import pytest

from proxy.rules.entry import Entry
from proxy.rules.segments import BIG_BYTES
from proxy.rules.splice import OVERLAP_BYTES
from proxy.store.index import Index
from tests.harness import Proxy, Truncated, sidecar, until
from tests.origin import Origin, Pattern, pattern_bytes, pattern_sha256
from tests.tracing import needs_strace

SIZE = BIG_BYTES - (1 << 20)
"""Small enough for one connection: the tests count the requests."""
SEED = 5


async def stored(proxy):
    return list((proxy.cache_dir / "blobs").glob("*/*.json")) and not (await proxy.status())["fills"]


async def test_after_sigkill_the_fill_goes_on_where_it_was(origin, proxy):
    half = SIZE // 2
    origin.pattern("/x.img", SIZE, SEED).stall_at(half, times=1)
    async with await proxy.stream("/u/x.img") as stream:
        assert await stream.read(half) == pattern_bytes(SIZE, SEED, 0, half)
        await proxy.wait_begun(half)
        proxy.kill()
    proxy.start()
    assert (await (await proxy.stream("/u/x.img")).sha256())[0] == pattern_sha256(SIZE, SEED)
    assert [request.range for request in origin.log] == [None, f"bytes={half}-"]
    assert origin.bytes_sent("/x.img") == SIZE


async def test_a_client_that_comes_back_with_its_range_completes(origin, proxy):
    half = SIZE // 2
    origin.pattern("/x.img", SIZE, SEED).stall_at(half, times=1)
    async with await proxy.stream("/u/x.img") as stream:
        got = await stream.read(half)
        etag = stream.headers["etag"]
        await proxy.wait_begun(half)
        proxy.kill()
    proxy.start()
    rest = await proxy.get("/u/x.img", {"Range": f"bytes={half}-", "If-Range": etag})
    assert rest.status == 206
    assert got + rest.body == pattern_bytes(SIZE, SEED)


async def test_after_a_power_cut_only_the_durable_page_is_believed(origin, proxy):
    half = SIZE // 2
    origin.pattern("/x.img", SIZE, SEED).stall_at(half, times=1)
    async with await proxy.stream("/u/x.img") as stream:
        await stream.read(half)
        await proxy.wait_begun(half)
        proxy.kill()
    (state,) = (proxy.cache_dir / "partial").glob("*.state")
    page = bytearray(state.read_bytes())
    page[8:44] = b"another life of the machine".ljust(36)  # the live page is older than the power cut
    state.write_bytes(page)
    (part,) = (proxy.cache_dir / "partial").glob("*.part")
    with open(part, "r+b") as file:  # what no fdatasync covered may come back as anything
        file.write(bytes(half))
    proxy.start()
    assert (await (await proxy.stream("/u/x.img")).sha256())[0] == pattern_sha256(SIZE, SEED)
    assert origin.bytes_sent("/x.img") == half + SIZE


@pytest.mark.parametrize("is_ignored", [False, True], ids=["", "conditions ignored"])
async def test_a_body_that_was_whole_and_not_stored_yet_is_stored_without_fetching_it(origin, proxy, is_ignored):
    image = origin.pattern("/x.img", SIZE, SEED).headers(cache_control="max-age=600").stall_at(SIZE - 1)
    if is_ignored:
        image.ignore_conditions()
    async with await proxy.stream("/u/x.img") as stream:
        await stream.read(SIZE - 1)
        await proxy.wait_begun(SIZE - 1)
        origin.release()
        await stream.read(1)
        proxy.kill()  # usually between the last byte and the commit; if not, the next request is a hit
    proxy.start()
    assert (await (await proxy.stream("/u/x.img")).sha256())[0] == pattern_sha256(SIZE, SEED)
    # The client may have the last byte before the live page tells of it; of a body that nobody wanted buffers are full.
    assert origin.bytes_sent("/x.img") <= SIZE + 1 + (SIZE // 2 if is_ignored else 0)


@pytest.mark.timeout(600)
async def test_fifty_random_kills(origin, proxy):
    """Bytes always right, no stuck lock, no orphan left, and little fetched twice."""
    chance = random.Random(2026)
    origin.pattern("/x.img", SIZE, SEED).throttle(24 << 20)
    got, kills, etag = b"", 0, None
    while kills < 50:
        wanted = min(SIZE, len(got) + chance.randrange(1, 2 << 20))
        fields = {"Range": f"bytes={len(got)}-", "If-Range": etag} if got else {}
        try:
            async with await proxy.stream("/u/x.img", fields) as stream:
                assert stream.status == (206 if got else 200)
                etag = stream.headers["etag"]
                got += await stream.read(wanted - len(got))
        except Truncated as broken:
            got += broken.partial
        if len(got) == SIZE:
            break
        proxy.kill()
        kills += 1
        proxy.start()
    rest = await proxy.get("/u/x.img", {"Range": f"bytes={len(got)}-", "If-Range": etag}) if len(got) < SIZE else None
    assert got + (rest.body if rest else b"") == pattern_bytes(SIZE, SEED)
    await until(lambda: stored(proxy))
    await until(lambda: not list((proxy.cache_dir / "partial").iterdir()))  # put in order behind the last start
    # Each kill costs at most what was in buffers, and what came before the first page was written.
    assert origin.bytes_sent("/x.img") <= SIZE + kills * (6 << 20)


async def test_a_kill_leaves_no_lock(origin, proxy):
    origin.pattern("/x.img", SIZE, SEED).stall_at(1 << 20, times=1)
    async with await proxy.stream("/u/x.img") as stream:
        await stream.read(1000)
        await proxy.wait_begun(1 << 20)  # before it, the next answer would be the one that stalls
        proxy.kill()
    proxy.start()
    async with asyncio.timeout(20):
        assert (await (await proxy.stream("/u/x.img")).sha256())[0] == pattern_sha256(SIZE, SEED)


# -- named points ------------------------------------------------------------------------------------------------------

MB = 1 << 20
CALLS = ("pwrite64", "fsync", "fdatasync", "rename", "unlink", "mkdir")
"""Calls that change the directory, or make a change durable. A new file shows at the next of them."""
NAMES = (
    (re.compile(r"[0-9a-f]{64}"), "HEX"),
    (re.compile(r"[0-9a-f]{16}"), "GENERATION"),
    (re.compile(r"blobs/[0-9a-f]{2}\b"), "blobs/XX"),
    (re.compile(r"json\.\w+"), "json.TEMPORARY"),
    (re.compile(r"/\.HEX\.[0-9a-f]{8}\b"), "/.HEX.TEMPORARY"),
    (re.compile(r"\.id-\w+"), ".id-RANDOM"),
    (re.compile(r"servers/[.\w]+"), "servers/PID"),
)
AT_ONCE = 3
"""Runs at once: each mostly waits for processes to start."""
SIZES = {"/a.json": 10_000, "/x.img": 6 * MB, "/y.img": 6 * MB, "/z.img": 6 * MB}


@dataclass(frozen=True, slots=True)
class Point:
    """Before the `nth` time that a thread makes `call`, counted in each; None: another thread is there earlier."""

    name: str
    call: str
    nth: int | None


class World:
    """An origin with a few objects, and a fetchonce that has room for two of the big ones."""

    def __init__(self, directory: Path) -> None:
        self.cache, self.trace = directory / "cache", directory / "trace"
        self.origin = Origin()
        self.resources = {path: self.origin.pattern(path, size, 0) for path, size in SIZES.items()}
        self.bodies = {}
        for seed, path in enumerate(SIZES):
            self.renew(path, seed)
            self.resources[path].headers(cache_control="no-cache" if path == "/x.img" else "max-age=600")
        self.strace: subprocess.Popen[str] | None = None
        self.proxy = Proxy(self.cache, "--max-size", "14MB", mirrors={"u": self.origin.url()})

    def renew(self, path: str, seed: int) -> None:
        """Another generation."""
        self.resources[path].generation(Pattern(SIZES[path], seed))
        self.bodies[path] = pattern_bytes(SIZES[path], seed)

    async def start(self, point: Point | None = None) -> None:
        """Start it under strace, which kills it at `point`."""
        # --seccomp-bpf would be faster, but injects no signals.
        options = ["-f", "-y", "-e", f"trace={','.join(CALLS)}", "-e", "signal=none"]
        if point:
            # It is killed before the call is made.
            options += ["-e", f"inject={point.call}:signal=KILL:when={point.nth}"]

        def attach(pid: int) -> None:
            command = ["strace", *options, "-o", str(self.trace), "-p", str(pid)]
            self.strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            said = self.strace.stderr.readline()
            assert "attached" in said, said

        self.proxy.before = attach
        try:
            await asyncio.to_thread(self.proxy.start)
        finally:
            self.proxy.before = None

    async def get(self, path: str) -> None:
        """Fetch it, and wait until its fill is over."""
        answer = await self.proxy.get(f"/u{path}")
        assert answer.status == 200
        assert answer.body == self.bodies[path], f"{path} is not what it should be"
        await until(self.is_idle)

    async def is_idle(self) -> bool:
        return not (await self.proxy.status())["fills"]

    def points(self) -> list[Point]:
        """A point before each call so far that changes the cache directory, locks/ left out."""
        found, counts = [], Counter()
        root = f"{self.cache}/"
        for line in self.trace.read_text(errors="replace").splitlines():
            if not (made := re.match(r"(\d+) +(\w+)\(", line)):
                continue
            thread, call = made.groups()
            ahead = max((count for (other, of), count in counts.items() if of == call and other != thread), default=0)
            counts[thread, call] += 1
            nth = counts[thread, call]
            if root in line and " = -1 " not in line and f"{root}locks" not in line:
                name = f"{call} " + " -> ".join(re.findall(re.escape(root) + r'([^">]*)', line))
                for pattern, word in NAMES:
                    name = pattern.sub(word, name)
                found.append(Point(name, call, nth if nth > ahead else None))
        return found

    def sent(self) -> dict[str, int]:
        return {path: self.origin.bytes_sent(path) for path in SIZES}

    async def check(self, paths: Iterable[str]) -> None:
        """Every URL is answered. Then the directory holds what the index says, and nothing else."""
        for path in paths:
            await self.get(path)
        await self.proxy.status()  # which counts what is stored, once it is in order
        assert self.proxy.terminate() == 0
        # Not with `fetchonce ls`, which puts the index right first.
        index = Index(self.cache / "index")
        rows = {entry.key: entry for entry, _ in index.records()}
        index.close()
        sidecars = [msgspec.json.decode(sidecar(path), type=Entry) for path in self.cache.glob("blobs/*/*.json")]
        assert rows == {entry.key: entry for entry in sidecars}
        files = {path.name for path in self.cache.glob("blobs/*/*")}
        assert files == {name for each in sidecars for name in (each.sha256, f"{each.sha256}.{each.key}.json")}
        assert [*self.cache.glob("partial/*"), *self.cache.glob("damaged/*"), *self.cache.glob("index.broken*")] == []
        await asyncio.to_thread(self.proxy.run, "verify")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.origin.stop()
        try:
            self.proxy.close()
            if self.strace:
                self.strace.communicate()
        except AssertionError:
            if error is None:
                raise


async def first_body(world):
    await world.get("/x.img")


async def small_body(world):
    await world.get("/a.json")


async def new_generation(world):
    world.renew("/x.img", 50)
    await world.get("/x.img")


async def third_body(world):
    await world.get("/y.img")


async def eviction(world):
    world.resources["/z.img"].stall_at(0)
    async with await world.proxy.stream("/u/z.img"):
        pass


STAGES = (first_body, small_body, new_generation, third_body, eviction)
COMMIT = {
    "mkdir blobs/XX",  # the body is whole and synced
    "rename partial/HEX.GENERATION.part -> blobs/XX/HEX",  # the sidecar is there
    "pwrite64 index/cache.db-wal",  # and the blob
    "unlink partial/HEX.GENERATION.state",  # and its row
}
SIDECAR = "rename blobs/XX/.HEX.HEX.json.TEMPORARY -> blobs/XX/HEX.HEX.json"
ROW = "pwrite64 index/cache.db-wal"
GONE = {"unlink blobs/XX/HEX.HEX.json", "unlink blobs/XX/HEX"}
EXPECTED = {
    first_body: COMMIT | {"fsync partial/.HEX.GENERATION.json.TEMPORARY", "unlink partial/HEX.GENERATION.json"},
    small_body: {
        ROW,  # blob and sidecar are there
        "unlink blobs/XX/.HEX.json.TEMPORARY",  # and the row
    },
    new_generation: COMMIT | {SIDECAR, *GONE},
    eviction: {"pwrite64 index/cache.db-wal", *GONE},
}
"""Points that must be among those found."""


@pytest.fixture(scope="module")
async def undisturbed(tmp_path_factory):
    """The points of each stage."""
    points = {}
    with World(tmp_path_factory.mktemp("undisturbed")) as world:
        await world.start()
        for stage in STAGES:
            done = len(world.points())
            await stage(world)
            points[stage] = thinned(world.points()[done:])
    return points


def thinned(points):
    """The first and the last of equal points in a row, and only points that their number identifies.

    A killed process leaves the same files before a sync as after it: the next call stands for both where it can.
    """
    return [
        point
        for before, point, after in zip([None, *points], points, [*points[1:], None], strict=False)
        if point.nth
        and not (before and after and before.name == point.name == after.name)
        and not (after and after.nth and "sync" in point.call)
    ]


def last_counted(world):
    """Where it was killed, and what other threads were doing; those that write a body were still running."""
    world.strace.wait(20)  # it writes of a killed process after that has ended
    return [point for point in world.points() if point.nth][-3:]


async def killed(world, point, stages):
    async def live():
        for stage in stages:
            await stage(world)

    with pytest.raises((OSError, Truncated)):
        await live()
    assert await world.proxy.exited() == -9
    assert point in last_counted(world)
    world.origin.cut()
    world.origin.release()


UNSAVED = "fsync partial"
"""Before the first durable page of a body: a kill costs what came."""


async def at_each(points, directory, run):
    """`run` for each point, in a directory of its own."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number, point):
        own = directory / str(number)
        own.mkdir()
        async with gate:
            try:
                await run(own, point)
            except Exception as error:
                error.add_note(f"killed before {point}")
                raise

    async with asyncio.TaskGroup() as group:
        for number, point in enumerate(points):
            print(f"\n  before {point.name}", end="")
            group.create_task(one(number, point))


@needs_strace
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", EXPECTED, ids=lambda stage: stage.__name__)
async def test_killed_before_any_call_it_goes_on_with_what_it_had(undisturbed, tmp_path, stage):
    async def run(directory, point):
        with World(directory) as world:
            await world.start(point)
            await killed(world, point, STAGES[: STAGES.index(stage) + 1])
            before = world.sent()
            await asyncio.to_thread(world.proxy.start)
            await world.check(SIZES if stage is eviction else [path for path in SIZES if before[path]])
            after = world.sent()
        again = {path for path in SIZES if after[path] > before[path]}
        if stage is eviction:
            # What was evicted, or had not come yet, may be fetched again; each once.
            assert all(after[path] - before[path] <= SIZES[path] for path in again)
        elif stage is small_body:
            # A body so small is stored behind its answer, and from its sidecar on.
            names = [each.name for each in undisturbed[stage]]
            assert again <= ({"/a.json"} if point in undisturbed[stage][: names.index(ROW)] else set())
        elif not point.name.startswith(UNSAVED):
            assert not again, f"fetched again: {again}"

    places = {point.name: place for place, point in enumerate(undisturbed[stage])}
    assert places.keys() >= EXPECTED[stage], "\n".join(places)
    await at_each(undisturbed[stage], tmp_path, run)


async def left_over(directory):
    """A cache directory with everything that a killed process can leave, and more."""
    with World(directory) as world:
        await asyncio.to_thread(world.proxy.start)
        await world.get("/a.json")
        assert world.proxy.terminate() == 0
        shutil.copytree(world.cache / "index", directory / "index")
        await asyncio.to_thread(world.proxy.start)
        await world.get("/x.img")
        assert world.proxy.terminate() == 0
        shutil.copytree(world.cache / "blobs", directory / "blobs")
        await asyncio.to_thread(world.proxy.start)
        await new_generation(world)
        world.resources["/y.img"].stall_at(3 * MB, times=1)
        async with await world.proxy.stream("/u/y.img") as stream:
            await stream.read(3 * MB)
            await world.proxy.wait_begun(3 * MB)
            world.proxy.kill()
        # Two generations of one URL, both without a row, the new one in the middle of its commit; a row and a blob
        # without a sidecar.
        sidecars = (msgspec.json.decode(path.read_bytes(), type=Entry) for path in world.cache.glob("blobs/*/*.json"))
        new = max(sidecars, key=lambda entry: entry.stored_at)
        part = world.cache / "partial" / f"{new.key}.{new.head.generation}.part"
        (world.cache / "blobs" / new.sha256[:2] / new.sha256).rename(part)
        shutil.copytree(directory / "blobs", world.cache / "blobs", dirs_exist_ok=True)
        shutil.rmtree(world.cache / "index")
        shutil.copytree(directory / "index", world.cache / "index")
        (small,) = (path for path in world.cache.glob("blobs/*/*") if path.stat().st_size == SIZES["/a.json"])
        next(small.parent.glob(f"{small.name}.*.json")).unlink()
        small.with_name(f".{small.name}.{'0' * 64}.json.1").write_bytes(b"{")
        for suffix in ("part", "state"):
            (world.cache / "partial" / f"{'0' * 64}.{'1' * 16}.{suffix}").write_bytes(bytes(1000))
        for socket in world.cache.glob("partial/*.sock"):  # a socket cannot be copied; a file in its place will do
            socket.unlink()
            socket.touch()
        (world.cache / "partial" / f".{'0' * 64}.{'1' * 16}.json.1").write_bytes(b"{")
    return world.cache


@needs_strace
@pytest.mark.timeout(300)
async def test_killed_while_it_puts_the_directory_right_it_does_so_the_next_time(tmp_path):
    template = await left_over(tmp_path)
    (tmp_path / "undisturbed").mkdir()

    def again(directory):
        shutil.copytree(template, directory / "cache")
        world = World(directory)
        world.renew("/x.img", 50)
        return world

    with again(tmp_path / "undisturbed") as world:
        await world.start()
        await world.proxy.status()
        # How SQLite opens its files is not tested here.
        points = list(itertools.dropwhile(lambda point: "index/" in point.name, thinned(world.points())))
    assert len(points) >= 8

    async def run(directory, point):
        with again(directory) as world:
            try:
                await world.start(point)
            except AssertionError as error:
                assert "did not start (exit code -9)" in str(error)  # noqa: PT017 - it may as well have started
            else:
                assert await world.proxy.exited() == -9
            assert point in last_counted(world)
            await asyncio.to_thread(world.proxy.start)
            await world.check(SIZES)
        sent = world.sent()
        assert sent["/x.img"] == 0
        # Its origin had another port when it was begun: of another node a little is asked for twice.
        assert sent["/y.img"] == SIZES["/y.img"] // 2 + OVERLAP_BYTES

    await at_each(points, tmp_path, run)
