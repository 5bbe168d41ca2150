"""What is measured: each case asks a proxy for something, in one way, and says how well that went.

The cases of one group take place in one life of a proxy, one after the other; it begins with an empty cache. Bodies are
checked before or after what is timed. While it is timed, the client checks status and length of each answer.
"""

import contextlib
import dataclasses
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.load import Answers
from tests.bench.origins import GB, MB, Origins
from tests.bench.stage import Run, Stage, Wrong, right

KB = 1024
RANGE_BYTES = 64 * KB
STOCKING_CONNECTIONS = 16
CHECKED = 8
"""Ranges, or of many small objects."""


@dataclass(frozen=True, slots=True)
class Unit:
    name: str
    more_is_better: bool
    of: Callable[[Answers], float]
    """0 where the figure is not in the answers."""
    cpu: str
    """CPU seconds are told for each "gib" or "request", or not at all ("")."""


GB_PER_SECOND = Unit("GB/s", True, lambda answers: answers.bytes / 1e9 / answers.seconds, "gib")
PER_SECOND = Unit("/s", True, lambda answers: answers.requests / answers.seconds, "request")
LATENCY = Unit("ms", False, lambda answers: answers.p50 * 1000, "request")
SECONDS = Unit("s", False, lambda answers: answers.seconds, "gib")
MEMORY = Unit("MB", False, lambda answers: 0, "gib")
MEMORY_EACH = Unit("KB each", False, lambda answers: 0, "")
START = Unit("s", False, lambda answers: 0, "")


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    group: str
    what: str
    """With {image}, {quarter}, {sparse} for their sizes, and {count}."""
    unit: Unit
    run: Callable[["Case", Stage], Run]
    connections: int = 1
    count: int = 0
    """Of objects or readers, at the full size; less of them for a smaller image."""

    def scaled(self, stage: Stage) -> int:
        return stage.origins.scaled(self.count)

    def description(self, origins: Origins) -> str:
        return self.what.format(
            image=size_text(origins.image.size),
            quarter=size_text(origins.quarter.size),
            sparse=size_text(origins.sparse.size),
            count=f"{origins.scaled(self.count):,}",
        )


def size_text(size: int) -> str:
    return f"{size // GB} GiB" if size % GB == 0 else f"{size // MB} MiB"


def stored(case: Case, stage: Stage) -> Run:
    """Whole bodies from the cache."""
    wanted = stage.origins.for_clients(case.connections)
    path = stage.stored(wanted)
    return stage.timed(case.unit.of, case.connections, lambda: stage.load.once(path, case.connections, wanted.size))


def ranges(case: Case, stage: Stage) -> Run:
    """From the cache, at random offsets."""
    wanted, origins = stage.origins.image, stage.origins
    path = stage.stored(wanted)
    for _ in range(CHECKED):
        stage.check_range(path, wanted, random.randrange(wanted.size - RANGE_BYTES), RANGE_BYTES)
    return stage.timed(
        case.unit.of,
        case.connections,
        lambda: stage.load.ranges(path, case.connections, origins.seconds, wanted.size, RANGE_BYTES),
    )


def tiny(case: Case, stage: Stage) -> Run:
    wanted = stage.origins.tiny
    path = stage.stored(wanted)
    return stage.timed(
        case.unit.of,
        case.connections,
        lambda: stage.load.loop(path, case.connections, stage.origins.seconds, wanted.size),
    )


def many(case: Case, stage: Stage) -> Run:
    """Readers that have the head and then read nothing."""
    count, path = case.scaled(stage), stage.stored(stage.origins.image)
    before = stage.usage()
    with contextlib.ExitStack() as readers:
        run = stage.timed(case.unit.of, count, lambda: readers.enter_context(stage.load.stalled(path, count)))
        after = stage.usage()
    return dataclasses.replace(run, figure=(after.rss - before.rss) / KB / count)


def unseen(case: Case, stage: Stage) -> Run:
    """Nobody has asked before for what all ask for at once."""
    wanted = stage.origins.slow_image if case.group == "slow" else stage.origins.for_clients(case.connections)
    path = stage.unseen(wanted)
    sent = stage.times_sent(path, wanted.size)
    stage.settle()
    run = stage.timed(case.unit.of, case.connections, lambda: stage.load.once(path, case.connections, wanted.size))
    if stage.peer.command:
        stage.check(path, wanted)  # a hit, if it has kept what came
    return dataclasses.replace(run, upstream=stage.times_sent(path, wanted.size) - sent)


def small(case: Case, stage: Stage) -> Run:
    """Each object once."""
    count, wanted = case.scaled(stage), stage.origins.tiny
    path = stage.unseen(wanted).replace("-/", "-#/")
    stage.settle()
    run = stage.timed(
        case.unit.of, case.connections, lambda: stage.load.numbered(path, case.connections, count, wanted.size)
    )
    for number in random.sample(range(count), CHECKED):
        stage.check(path.replace("#", str(number)), wanted)
    return dataclasses.replace(run, upstream=stage.times_sent(path, count * wanted.size))


def big(case: Case, stage: Stage) -> Run:
    """The figure is the highest memory meanwhile."""
    wanted = stage.origins.sparse
    path = stage.unseen(wanted)
    run = stage.timed(case.unit.of, case.connections, lambda: stage.load.once(path, case.connections, wanted.size))
    return dataclasses.replace(run, figure=run.peak_rss / MB, upstream=stage.times_sent(path, wanted.size))


def restart(case: Case, stage: Stage) -> Run:
    """From the start of the process to its first answer out of a full cache. It is not running yet."""
    wanted, path = stage.origins.tiny, stock(case.scaled(stage), stage)
    sent = stage.times_sent(path, wanted.size)
    began = time.monotonic()
    with stage.up():
        stage.check(path, wanted)
        seconds = time.monotonic() - began
        used = stage.usage()
    if stage.times_sent(path, wanted.size) != sent:
        raise Wrong("it was not in the cache any more")
    return Run(seconds, seconds, 1, wanted.size, sum(used.cpu.values()), used.peak, seconds, 0)


def stock(count: int, stage: Stage) -> str:
    """The path of one of `count` objects in the cache, which this fills the first time."""
    if "stock" not in stage.paths:
        wanted, multiply = stage.origins.tiny, stage.peer.multiply
        path = stage.unseen(wanted).replace("-/", "-#/")
        with stage.up():
            right(stage.load.numbered(path, STOCKING_CONNECTIONS, 1 if multiply else count, wanted.size))
        if multiply:
            multiply(stage.site.cache, count)
        stage.paths["stock"] = path.replace("#", "0")
        with stage.up():  # a start that may have to put it in order; what ours lacks is asked for once that is done
            stage.check(path.replace("#", "1"), wanted)
            stage.check(stage.paths["stock"], wanted)
    return stage.paths["stock"]


CASES = (
    Case("hot1", "stored", "1 client reads a stored image of {image}", GB_PER_SECOND, stored),
    Case("hot8", "stored", "8 clients read it at once", GB_PER_SECOND, stored, 8),
    Case("hot64", "stored", "64 clients read one of {quarter}", GB_PER_SECOND, stored, 64),
    Case("range", "stored", "64 KB ranges of it, 32 connections", PER_SECOND, ranges, 32),
    Case("range1", "stored", "the same on one connection", LATENCY, ranges),
    Case("tiny", "stored", "a stored object of 1 KB, 32 connections", PER_SECOND, tiny, 32),
    Case("many", "stored", "{count} readers that have stopped reading", MEMORY_EACH, many, count=1000),
    Case("cold1", "unseen", "1 client asks for an unseen image of {image}", SECONDS, unseen),
    Case("cold8", "unseen", "8 clients do at once", SECONDS, unseen, 8),
    Case("cold64", "unseen", "64 clients do, for one of {quarter}", SECONDS, unseen, 64),
    Case("small", "unseen", "{count} unseen objects of 1 KB, 16 connections", PER_SECOND, small, 16, 2000),
    Case("tls8", "tls", "cold8 from an https mirror", SECONDS, unseen, 8),
    Case("slow8", "slow", "cold8 of {quarter}; the mirror gives 40 MB/s a connection", SECONDS, unseen, 8),
    Case("restart", "restart", "from the start to the first hit, {count} entries", START, restart, count=100_000),
    Case("big", "big", "highest memory while an image of {sparse} comes", MEMORY, big),
)
