"""Which bodies go when space is wanted: the least recently used, never a pinned one, never one that is being read.

A blob is one body under one or more URLs. It frees its bytes only with its last URL, so it goes as a whole or stays.
If it is pinned or in use under one URL, it counts as pinned or in use under all. Sizes are bytes, times Unix times.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One URL's body."""

    key: str
    url: str
    blob: str
    """Name of the bytes; candidates with the same name share them."""
    size: int
    used_at: float
    """Last use, or the time it was stored if that is later."""
    pinned: bool = False
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class Space:
    """How full the cache and its file system are."""

    stored: int
    """Bytes in the cache directory."""
    reserved: int
    """Bytes that running fills have still to bring: room is kept for them."""
    max_size: int
    """0: no limit."""
    free: int
    """Bytes free on the file system, reserved ones taken off; may be negative."""
    min_free: int

    def shortfall(self, wanted: int = 0) -> int:
        """Bytes that must go before `wanted` more fit into the cache and the file system."""
        over = self.stored + self.reserved + wanted - self.max_size if self.max_size else 0
        return max(0, over, self.min_free + wanted - self.free)


@dataclass(frozen=True, slots=True)
class Eviction:
    victims: tuple[Candidate, ...]
    freed: int
    shortfall: int = 0
    """Bytes still missing when every body that may go has gone."""


def choose(candidates: Iterable[Candidate], wanted: int) -> Eviction:
    """What to evict so that at least `wanted` bytes come free: the fewest blobs, in order of their last use."""
    victims: list[Candidate] = []
    freed = 0
    evictable = [urls for urls in _by_blob(candidates) if not any(each.pinned or each.in_use for each in urls)]
    for urls in sorted(evictable, key=lambda urls: (max(each.used_at for each in urls), urls[0].blob)):
        if freed >= wanted:
            break
        if size := urls[0].size:  # an empty body frees nothing
            victims += urls
            freed += size
    return Eviction(tuple(victims), freed, max(0, wanted - freed))


def unused_since(candidates: Iterable[Candidate], before: float) -> Eviction:
    """What was last used before that time, URL by URL; a blob that another URL keeps frees nothing."""
    victims: list[Candidate] = []
    freed = 0
    for urls in _by_blob(candidates):
        old = [each for each in urls if each.used_at < before and not each.pinned and not each.in_use]
        victims += old
        freed += urls[0].size if len(old) == len(urls) else 0
    return Eviction(tuple(sorted(victims, key=lambda each: (each.used_at, each.url))), freed)


def total(candidates: Iterable[Candidate]) -> int:
    """Bytes of all blobs, each counted once."""
    return sum(urls[0].size for urls in _by_blob(candidates))


def _by_blob(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    blobs: dict[str, list[Candidate]] = {}
    for each in candidates:
        blobs.setdefault(each.blob, []).append(each)
    return list(blobs.values())
