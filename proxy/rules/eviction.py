"""Which bodies go when space is wanted: the least recently used, never a pinned one, never one that is being read.

A blob is one body under one or more URLs and frees its bytes only with its last URL: it goes as a whole or stays. What
is pinned or in use under one URL is so under all. Sizes are bytes, times Unix times.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One URL's body."""

    key: str
    url: str
    blob: str
    """Name of the bytes; candidates with the same one share them."""
    size: int
    used_at: float
    """Last use; the time it was stored if that is later."""
    pinned: bool = False
    in_use: bool = False


@dataclass(frozen=True, slots=True)
class Space:
    """How full it is. Promised is what running fills will still write."""

    stored: int
    """In the cache, with what is promised."""
    max_size: int
    """0: no limit."""
    free: int
    """Of the file system, without what is promised; may be negative."""
    min_free: int

    def lacking(self, wanted: int = 0) -> int:
        """Bytes that must go before `wanted` more fit into the cache and the file system."""
        over = self.stored + wanted - self.max_size if self.max_size else 0
        return max(0, over, self.min_free + wanted - self.free)


@dataclass(frozen=True, slots=True)
class Eviction:
    going: tuple[Candidate, ...]
    freed: int
    lacking: int = 0
    """Bytes that stay lacking though everything that may go is going."""


def choose(candidates: Iterable[Candidate], lacking: int) -> Eviction:
    """What to evict so that at least `lacking` bytes come free, and no more blobs than that takes in their order."""
    going: list[Candidate] = []
    freed = 0
    evictable = [urls for urls in _by_blob(candidates) if not any(each.pinned or each.in_use for each in urls)]
    for urls in sorted(evictable, key=lambda urls: (max(each.used_at for each in urls), urls[0].blob)):
        if freed >= lacking:
            break
        if size := urls[0].size:  # an empty body frees nothing
            going += urls
            freed += size
    return Eviction(tuple(going), freed, max(0, lacking - freed))


def unused_since(candidates: Iterable[Candidate], before: float) -> Eviction:
    """What was last used before that time, URL by URL; a blob that another URL keeps frees nothing."""
    going: list[Candidate] = []
    freed = 0
    for urls in _by_blob(candidates):
        old = [each for each in urls if each.used_at < before and not each.pinned and not each.in_use]
        going += old
        freed += urls[0].size if len(old) == len(urls) else 0
    return Eviction(tuple(sorted(going, key=lambda each: (each.used_at, each.url))), freed)


def total(candidates: Iterable[Candidate]) -> int:
    """Bytes of all blobs, each counted once."""
    return sum(urls[0].size for urls in _by_blob(candidates))


def _by_blob(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    blobs: dict[str, list[Candidate]] = {}
    for each in candidates:
        blobs.setdefault(each.blob, []).append(each)
    return list(blobs.values())
