"""The plan of a fill: properties that hold for any state, and the cases that gave it its form."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.extents import Extents
from proxy.rules.segments import (
    FAST_RATE,
    NEAR_BYTES,
    SPLIT_BYTES,
    TURN_BYTES,
    Plan,
    Ramp,
    Segment,
    plan,
    schedule,
    split,
)

MB = 1024**2
SIZE = 100 * MB


def test_the_first_gap_is_started_when_nothing_runs():
    assert plan(Extents.from_pairs([(0, MB)]), SIZE, [], [], 4) == Plan(start=((MB, SIZE),))
    assert plan(Extents.from_pairs([(0, MB), (2 * MB, SIZE)]), SIZE, [], [], 4) == Plan(start=((MB, 2 * MB),))


def test_a_reader_close_ahead_waits():
    main = Segment(10 * MB, SIZE)
    assert plan(Extents.from_pairs([(0, 10 * MB)]), SIZE, [main], [10 * MB, 10 * MB + NEAR_BYTES], 4) == Plan()


def test_a_reader_far_ahead_gets_a_connection():
    main = Segment(10 * MB, SIZE)
    assert plan(Extents.from_pairs([(0, 10 * MB)]), SIZE, [main], [60 * MB], 4) == Plan(start=((60 * MB, SIZE),))


def test_two_readers_side_by_side_get_one():
    main = Segment(0, SIZE)
    assert plan(Extents(), SIZE, [main], [60 * MB, 61 * MB], 4) == Plan(start=((60 * MB, SIZE),))


def test_a_new_segment_ends_where_another_begins():
    running = [Segment(0, 60 * MB), Segment(62 * MB, SIZE)]
    extents = Extents.from_pairs([(60 * MB, 62 * MB)])
    assert plan(extents, SIZE, running, [40 * MB], 4) == Plan(start=((40 * MB, 60 * MB),))


def test_with_one_connection_a_reader_takes_it_from_nobody_whose_turn_it_is():
    extents = Extents.from_pairs([(0, 10 * MB)])
    unwanted, main = Segment(10 * MB, SIZE), Segment(10 * MB, SIZE, is_wanted=True)
    far = ((60 * MB, SIZE),)
    assert plan(extents, SIZE, [unwanted], [60 * MB], 1) == Plan(start=far, cancel=(unwanted,))
    assert plan(extents, SIZE, [main], [10 * MB, 60 * MB], 1) == Plan(is_short=True)
    assert plan(extents, SIZE, [main], [60 * MB], 1) == Plan(is_short=True)  # its reader is at what it has got just now
    main.begun -= TURN_BYTES
    assert plan(extents, SIZE, [main], [10 * MB, 60 * MB], 1) == Plan(start=far, cancel=(main,))


def test_connections_go_round_where_readers_are_more():
    extents, running = Extents.from_pairs([(0, 9 * MB), (50 * MB, 59 * MB)]), []
    for begun in (0, 50 * MB):
        running.append(Segment(begun + 9 * MB, SIZE, begun=begun, is_wanted=True))
    running[1].begun -= MB
    waiting = [segment.offset for segment in running] + [30 * MB]
    assert plan(extents, SIZE, running, waiting, 2) == Plan(start=((30 * MB, 50 * MB),), cancel=(running[1],))


def test_a_reader_of_what_is_there_starts_nothing():
    assert plan(Extents.from_pairs([(0, SIZE)]), SIZE, [], [5 * MB], 4) == Plan()


@st.composite
def states(draw):
    """Extents, running segments that do not overlap, waiting offsets and a limit, in megabytes."""
    cuts = sorted(draw(st.sets(st.integers(0, 100), max_size=12)))
    spans = list(pairwise(cuts))
    extents, running = Extents(), []
    for start, end in spans:
        kind = draw(st.sampled_from(["there", "running", "gap"]))
        if kind == "there":
            extents.add(start * MB, end * MB)
        elif kind == "running" and len(running) < 4:
            begun = start - draw(st.integers(0, 10))
            running.append(Segment(start * MB, end * MB, begun=max(0, begun) * MB, is_wanted=draw(st.booleans())))
    waiting = draw(st.lists(st.integers(0, 99).map(lambda n: n * MB), max_size=5))
    return extents, running, waiting, draw(st.integers(max(1, len(running)), 6))


@given(states())
def test_a_plan_keeps_to_its_limit_starts_in_gaps_only_and_never_stands_still(state):
    extents, running, waiting, limit = state
    result = plan(extents, SIZE, running, waiting, limit)
    left = [segment for segment in running if segment not in result.cancel]
    assert len(left) + len(result.start) <= limit
    for start, stop in result.start:
        assert start < stop <= SIZE
        assert extents.reach(start) == start
        assert not any(start < segment.offset < stop for segment in left)
        assert extents.next_start(start) is None or extents.next_start(start) >= stop
    if extents.gaps(SIZE):
        assert left or result.start
    for segment in result.cancel:
        assert segment.is_turn_over or not segment.is_wanted


def test_connections_are_doubled_as_long_as_that_makes_it_faster():
    ramp = Ramp(limit=8)
    seen = []
    for rate in (10e6, 20e6, 40e6, 44e6, 44e6):
        ramp.judge(rate)
        seen.append(ramp.allowed)
    assert seen == [2, 4, 8, 8, 8]


def test_that_more_connections_gain_nothing_must_be_seen_twice():
    ramp = Ramp(limit=8)
    for rate in (10e6, 11e6, 9e6, 30e6):
        ramp.judge(rate)
    assert ramp.limit == ramp.allowed == 2
    ramp = Ramp(limit=8)
    for rate in (10e6, 5e6, 20e6, 11e6, 40e6):  # busy for a moment, twice
        ramp.judge(rate)
    assert ramp.allowed == 8


def test_a_fast_mirror_keeps_its_one_connection():
    ramp = Ramp(limit=8)
    ramp.judge(FAST_RATE)
    ramp.judge(FAST_RATE / 100)
    assert ramp.allowed == 1


def ramp(allowed):
    return Ramp(limit=8, allowed=allowed)


def test_the_first_part_that_nobody_is_at_comes_next():
    extents = Extents.from_pairs([(0, 5 * MB)])
    running = [Segment(5 * MB, 15 * MB), Segment(60 * MB, 70 * MB)]
    assert split(extents, SIZE, running, ramp(4)) == (15 * MB, 60 * MB)
    assert split(extents, SIZE, running, ramp(2)) is None
    assert split(extents, SIZE, [], ramp(4)) is None
    running.append(Segment(15 * MB, 60 * MB))
    assert split(extents, SIZE, running, ramp(8)) == (70 * MB, SIZE)


def test_where_somebody_is_at_everything_the_longest_gives_its_far_half():
    main = Segment(10 * MB, SIZE)
    extents = Extents.from_pairs([(0, 10 * MB)])
    assert split(extents, SIZE, [main], ramp(2)) == (55 * MB, SIZE)
    extents = Extents.from_pairs([(0, SIZE - 2 * SPLIT_BYTES + 1)])
    assert split(extents, SIZE, [Segment(SIZE - 2 * SPLIT_BYTES + 1, SIZE)], ramp(4)) is None
    assert split(Extents(), SIZE, [Segment(0, None)], ramp(4)) is None


def test_a_segment_goes_on_where_the_one_it_was_trimmed_for_has_failed():
    main = Segment(10 * MB, 55 * MB, asked=SIZE)
    extents = Extents.from_pairs([(0, 10 * MB)])
    side = Segment(55 * MB, SIZE)
    assert schedule(extents, SIZE, [main, side], Plan(), ramp(1)).trim == ()
    assert schedule(extents, SIZE, [main], Plan(), ramp(1)).trim == ((main, SIZE),)
    extents.add(55 * MB, 60 * MB)  # what came of it stays, and the rest is asked for once the first is at its end
    assert schedule(extents, SIZE, [main], Plan(), ramp(1)).trim == ()


def test_one_schedule_starts_as_many_as_are_allowed_and_trims_what_they_take_from():
    main = Segment(0, SIZE)
    step = schedule(Extents(), SIZE, [main], Plan(), ramp(4))
    assert step.start == ((50 * MB, 75 * MB), (25 * MB, 50 * MB), (75 * MB, SIZE))
    assert step.trim == ((main, 25 * MB),)


def test_readers_that_come_at_once_get_segments_that_do_not_overlap():
    main = Segment(0, SIZE)
    needed = plan(Extents(), SIZE, [main], [30 * MB, 60 * MB, 90 * MB], 16)
    step = schedule(Extents(), SIZE, [main], needed, ramp(1))
    assert step.start == ((30 * MB, 60 * MB), (60 * MB, 90 * MB), (90 * MB, SIZE))
    assert step.trim == ((main, 30 * MB),)


@given(states())
def test_parts_are_of_what_is_missing_and_nobody_is_at(state):
    extents, running, _, limit = state
    part = split(extents, SIZE, running, ramp(limit + 1))
    if part is None:
        return
    start, stop = part
    assert start < stop <= SIZE
    assert extents.reach(start) == start
    assert extents.next_start(start) is None or extents.next_start(start) >= stop
    for segment in running:
        is_cut = segment.offset < start < segment.stop
        assert is_cut or segment.stop <= start or segment.offset >= stop
