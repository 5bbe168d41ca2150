"""Counters of one process. Everybody adds to them; only web/ reads them.

The values of labels are bounded: mirrors of the configuration, and words of ours. What only `allow_hosts` allows counts
as the mirror "other".
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Self

import msgspec

from .rules.mirrors import Mirror

FIRST_BYTE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
FILL_SECONDS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
RECENT, RECENT_CHARS = 100, 100_000
"""How many failures are remembered, and how long they may be together: slots and events hold them all."""

Labels = tuple[str, ...]


@dataclass(slots=True)
class Histogram:
    """How often a value fell at or below each of `bounds` and above the one before; one more count above them all."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def add(self, other: Self) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum


@dataclass(frozen=True, slots=True)
class Failure:
    """A fill that failed."""

    at: float
    """Unix time."""
    url: str
    mirror: str
    cause: str
    message: str


@dataclass(slots=True)
class Stats:
    requests: Counter[Labels] = field(default_factory=Counter)
    """Answers by mirror, method, status and result (HIT, MISS, FOLLOW, REVALIDATED, STALE, BYPASS, ERROR)."""
    repeated: Counter[Labels] = field(default_factory=Counter)
    """Those of `requests` that the server repeated without asking, by mirror."""
    sent_bytes: Counter[Labels] = field(default_factory=Counter)
    """Body bytes sent to clients, by mirror."""
    fetched_bytes: Counter[Labels] = field(default_factory=Counter)
    """Body bytes received from upstream, or by way of another server of ours, by mirror."""
    peers: Counter[Labels] = field(default_factory=Counter)
    """Questions to other servers of ours, by kind (parent, holder) and outcome (answered, failed)."""
    peer_bytes: Counter[Labels] = field(default_factory=Counter)
    """Those of `fetched_bytes` that came from them, by kind."""
    leases: Counter[Labels] = field(default_factory=Counter)
    """Looks for the lease of an object, by outcome (held, elsewhere, unknown)."""
    bucket_bytes: Counter[Labels] = field(default_factory=Counter)
    """Body bytes moved from and to the object store, by direction (read, written)."""
    bucket_lookups: Counter[Labels] = field(default_factory=Counter)
    """Objects looked for in the object store, by result (hit, stale, miss, wrong, failed, absent)."""
    bucket_uploads: Counter[Labels] = field(default_factory=Counter)
    """Bodies that were to be put into the object store, by outcome (stored, present, failed, late)."""
    fills: Counter[Labels] = field(default_factory=Counter)
    """Fills that ended, by mirror and outcome (complete, unchanged, passed, failed)."""
    failures: Counter[Labels] = field(default_factory=Counter)
    """Fills that failed, by mirror and cause (ProxyError.cause)."""
    resumes: Counter[Labels] = field(default_factory=Counter)
    """Transfers that broke and went on, by mirror."""
    evictions: Counter[Labels] = field(default_factory=Counter)
    evicted_bytes: Counter[Labels] = field(default_factory=Counter)
    first_byte: Histogram = field(default_factory=lambda: Histogram(FIRST_BYTE_SECONDS))
    """Seconds from a request to the head of its answer."""
    fill_duration: Histogram = field(default_factory=lambda: Histogram(FILL_SECONDS))
    """Seconds from the first byte of a fill to its end, of complete ones."""

    recent: list[Failure] = field(default_factory=list)
    """The last RECENT failures, the oldest first."""

    def failed(self, failure: Failure) -> None:
        self.failures[failure.mirror, failure.cause] += 1
        self.noted(failure)

    def noted(self, failure: Failure) -> None:
        """Show it among the failures, uncounted: its clients got the body, which was not stored for want of room."""
        self.recent = _latest([*self.recent, failure])

    def evicted(self, size: int) -> None:
        self.evictions[()] += 1
        self.evicted_bytes[()] += size

    def add(self, other: Self) -> None:
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            match mine:
                case Histogram():
                    mine.add(theirs)
                case Counter():
                    mine.update(theirs)
                case _:
                    self.recent = _latest(sorted((*mine, *theirs), key=lambda failure: failure.at))

    def encoded(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decoded(cls, data: bytes) -> Self:
        """The opposite of `encoded`. Raises msgspec.ValidationError."""
        return msgspec.msgpack.decode(data, type=cls, dec_hook=lambda _, value: Counter(value))


def _latest(failures: list[Failure]) -> list[Failure]:
    sizes = accumulate(len(each.url) + len(each.message) for each in reversed(failures[-RECENT:]))
    count = sum(size <= RECENT_CHARS for size in sizes)
    return failures[len(failures) - count :]


def total(counter: Counter[Labels], place: int) -> dict[str, int]:
    """The sums by the label at `place`."""
    sums: Counter[str] = Counter()
    for labels, count in counter.items():
        sums[labels[place]] += count
    return dict(sums)


def mirror_label(mirror: Mirror | None) -> str:
    if mirror is None:
        return "none"
    return "other" if mirror.any_scheme else mirror.name
