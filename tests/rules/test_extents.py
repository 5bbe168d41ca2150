"""Extents against a set of offsets."""

import itertools
import random
import sys
import threading
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.extents import Extents

TOP = 24  # bytes of the bodies here: small, so that extents meet often
PAIRS = st.tuples(st.integers(0, TOP), st.integers(0, TOP)).map(sorted).map(tuple)
PAIR_LISTS = st.lists(PAIRS, max_size=8)


def bytes_of(pairs: Iterable[tuple[int, int]]) -> set[int]:
    return {offset for start, end in pairs for offset in range(start, end)}


def runs(offsets: set[int]) -> list[tuple[int, int]]:
    """The model's canonical form: maximal runs of neighbours."""
    grouped = itertools.groupby(sorted(offsets), key=lambda offset: offset - sum(o < offset for o in offsets))
    return [(run[0], run[-1] + 1) for run in (list(group) for _, group in grouped)]


@given(PAIR_LISTS)
def test_adding_is_the_union_of_sets(pairs: list[tuple[int, int]]) -> None:
    extents, model = Extents(), set[int]()
    for start, end in pairs:
        extents.add(start, end)
        model |= set(range(start, end))
        assert list(extents) == runs(model)
        assert extents.total == len(model)


@given(PAIR_LISTS)
def test_questions_are_answered_as_by_a_set(pairs: list[tuple[int, int]]) -> None:
    extents, model = Extents.from_pairs(pairs), bytes_of(pairs)
    starts = [start for start, _ in runs(model)]
    for offset in range(TOP + 3):
        reach = next(stop for stop in itertools.count(offset) if stop not in model)
        assert extents.reach(offset) == reach
        assert extents.next_start(offset) == next((start for start in starts if start >= offset), None)
        for other in range(TOP + 3):
            asked = set(range(offset, other))
            assert extents.gaps(other, offset) == runs(asked - model)
    assert extents.gaps(TOP) == runs(set(range(TOP)) - model)


@given(PAIR_LISTS, PAIR_LISTS)
def test_equal_when_the_bytes_are(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    assert (Extents.from_pairs(left) == Extents.from_pairs(right)) is (bytes_of(left) == bytes_of(right))
    assert Extents.from_pairs(left) == Extents.from_pairs(reversed(left))


@given(PAIR_LISTS)
def test_filling_the_gaps_makes_one_extent(pairs: list[tuple[int, int]]) -> None:
    extents = Extents.from_pairs(pairs)
    for start, end in extents.gaps(TOP):
        extents.add(start, end)
    assert list(extents) == [(0, TOP)]
    assert extents.gaps(TOP) == []


@given(PAIR_LISTS)
def test_repr_can_be_typed_in_again(pairs: list[tuple[int, int]]) -> None:
    extents = Extents.from_pairs(pairs)
    assert eval(repr(extents)) == extents


def test_not_equal_to_what_is_no_extents() -> None:
    assert Extents() != []
    assert Extents.from_pairs([(0, 1)]) != [(0, 1)]


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2), (-2, -1)])
@pytest.mark.parametrize("before", [[], [(0, 10)], [(0, 1), (5, 6)]])
def test_no_range_of_bytes_is_refused_and_changes_nothing(before: list[tuple[int, int]], start: int, end: int) -> None:
    extents = Extents.from_pairs(before)
    with pytest.raises(ValueError, match=f"{start} to {end}"):
        extents.add(start, end)
    assert list(extents) == before


def test_iteration_shows_one_moment() -> None:
    extents = Extents.from_pairs([(0, 1), (4, 5), (8, 9)])
    seen = []
    for pair in extents:
        seen.append(pair)
        extents.add(5, 6)  # one grows,
        extents.add(20, 21)  # one comes last,
    extents.add(0, 9)  # and three become one
    assert seen == [(0, 1), (4, 5), (8, 9)]
    assert list(extents) == [(0, 9), (20, 21)]


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
def test_another_thread_never_sees_bytes_go_away() -> None:
    for seed in range(20):
        extents = Extents()
        blocks = list(range(2000))
        random.Random(seed).shuffle(blocks)

        def fill(extents: Extents = extents, blocks: list[int] = blocks) -> None:
            for block in blocks:
                extents.add(block * 10, block * 10 + 10)

        writer = threading.Thread(target=fill)
        writer.start()
        seen = dict.fromkeys((5, 1005, 10_005, 19_995), 0)
        try:
            while writer.is_alive():
                for offset, before in seen.items():
                    seen[offset] = extents.reach(offset)
                    assert seen[offset] >= before
        finally:
            writer.join()
        assert list(extents) == [(0, 20_000)]


class Counted(int):
    """An offset that counts how often it is compared."""

    comparisons = 0

    def _compare(self, name: str, other: int) -> bool:
        Counted.comparisons += 1
        return bool(getattr(int, name)(self, other))

    def __lt__(self, other: int) -> bool:
        return self._compare("__lt__", other)

    def __le__(self, other: int) -> bool:
        return self._compare("__le__", other)

    def __gt__(self, other: int) -> bool:
        return self._compare("__gt__", other)

    def __ge__(self, other: int) -> bool:
        return self._compare("__ge__", other)


def comparisons_of_add(extents: Extents, start: int, end: int) -> int:
    Counted.comparisons = 0
    extents.add(Counted(start), Counted(end))
    return Counted.comparisons


def test_growing_at_the_end_costs_the_same_however_many_extents_there_are() -> None:
    few, many = Extents.from_pairs([(0, 1)]), Extents.from_pairs((2 * n, 2 * n + 1) for n in range(10_000))
    assert comparisons_of_add(few, 1, 9) == comparisons_of_add(many, 19_999, 20_007)
    assert list(many)[-1] == (19_998, 20_007)


def test_growing_in_the_middle_costs_a_search() -> None:
    many = Extents.from_pairs((3 * n, 3 * n + 1) for n in range(10_000))
    assert comparisons_of_add(many, 15_001, 15_002) < 50  # two bisections of 14 steps, and some
    assert many.reach(15_000) == 15_002
