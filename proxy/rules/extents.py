"""Which bytes of a growing body are on disk.

Half-open ranges, sorted, disjoint and never touching, so two equal sets of bytes are equal lists. They only grow.
One thread adds, others may read meanwhile (a checkpoint does): they see the extents as they were before or after.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import itemgetter

_start = itemgetter(0)
_end = itemgetter(1)


class Extents:
    """A set of byte offsets."""

    __slots__ = ("_pairs",)

    def __init__(self) -> None:
        self._pairs: list[tuple[int, int]] = []

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[int, int]]) -> "Extents":
        """The union of `pairs`, in any order. Raises ValueError as `add` does."""
        extents = cls()
        for start, end in pairs:
            extents.add(start, end)
        return extents

    def add(self, start: int, end: int) -> None:
        """Add the bytes from `start` up to `end`. Raises ValueError if that is not a range of bytes."""
        if not 0 <= start <= end:
            raise ValueError(f"not a range of bytes: {start} to {end}")
        pairs = self._pairs
        if pairs and pairs[-1][0] <= start <= pairs[-1][1]:  # the usual case, one body growing at its end: no search
            if end > pairs[-1][1]:
                pairs[-1] = (pairs[-1][0], end)
            return
        if start == end:
            return
        # All that overlap or touch the new one merge with it.
        first = bisect_left(pairs, start, key=_end)
        stop = bisect_right(pairs, end, key=_start)
        if first < stop:
            start, end = min(start, pairs[first][0]), max(end, pairs[stop - 1][1])
        # Readers hold an index into the list: an extent may grow in its place or come last, but none may move or go.
        if stop - first == 1:
            pairs[first] = (start, end)
        elif first == len(pairs):
            pairs.append((start, end))
        else:
            self._pairs = [*pairs[:first], (start, end), *pairs[stop:]]

    def reach(self, offset: int) -> int:
        """End of the extent that contains `offset`; `offset` itself if none does."""
        pairs = self._pairs
        index = bisect_right(pairs, offset, key=_start) - 1
        return max(offset, pairs[index][1]) if index >= 0 else offset

    def next_start(self, offset: int) -> int | None:
        """Start of the first extent that begins at or after `offset`; None if there is none."""
        pairs = self._pairs
        index = bisect_left(pairs, offset, key=_start)
        return pairs[index][0] if index < len(pairs) else None

    def gaps(self, length: int, start: int = 0) -> list[tuple[int, int]]:
        """The ranges from `start` up to `length` that are not here yet."""
        gaps = []
        pairs = self._pairs
        for begin, end in pairs[bisect_right(pairs, start, key=_end) :]:
            if begin >= length:
                break
            if start < begin:
                gaps.append((start, begin))
            start = end
        if start < length:
            gaps.append((start, length))
        return gaps

    @property
    def total(self) -> int:
        """Bytes that are here."""
        return sum(end - start for start, end in self)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The extents as they are now, in order."""
        return iter(self._pairs.copy())

    def __eq__(self, other: object) -> bool:
        return self._pairs == other._pairs if isinstance(other, Extents) else NotImplemented

    def __repr__(self) -> str:
        return f"Extents.from_pairs({self._pairs})"
