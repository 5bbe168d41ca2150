"""Which bodies go: tables of what is stored, and laws over all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.eviction import Candidate, Space, choose, total, unused_since


def stored(name, size=10, used_at=0.0, *, blob=None, **flags):
    return Candidate(name, f"http://a/{name}", blob or f"blob-{name}", size, used_at, **flags)


def keys(eviction):
    return "".join(each.key for each in eviction.victims)


A, B, C = stored("a", used_at=1), stored("b", used_at=2), stored("c", used_at=3)


@pytest.mark.parametrize(
    ("candidates", "wanted", "expected", "freed", "still"),
    [
        pytest.param([A, B, C], 0, "", 0, 0, id="nothing lacks"),
        pytest.param([C, A, B], 1, "a", 10, 0, id="least recently used first"),
        pytest.param([A, B, C], 10, "a", 10, 0, id="exactly one"),
        pytest.param([A, B, C], 11, "ab", 20, 0, id="one byte more takes another"),
        pytest.param([A, B, C], 31, "abc", 30, 1, id="all of them do not suffice"),
        pytest.param([], 5, "", 0, 5, id="nothing there"),
        pytest.param([stored("a", pinned=True), B], 15, "b", 10, 5, id="never pinned"),
        pytest.param([stored("a", in_use=True), B], 15, "b", 10, 5, id="never in use"),
        pytest.param([stored("a", 0), B], 5, "b", 10, 0, id="an empty body frees nothing"),
        pytest.param(
            [stored("a", blob="x"), stored("b", blob="x"), C],
            15,
            "abc",
            20,
            0,
            id="equal bodies count once and go together",
        ),
        pytest.param(
            [stored("a", blob="x"), stored("b", used_at=9, blob="x"), C], 5, "c", 10, 0, id="used under another url"
        ),
        pytest.param(
            [stored("a", blob="x"), stored("b", blob="x", pinned=True), C], 5, "c", 10, 0, id="pinned under another url"
        ),
    ],
)
def test_choose(candidates, wanted, expected, freed, still):
    eviction = choose(candidates, wanted)
    assert (keys(eviction), eviction.freed, eviction.shortfall) == (expected, freed, still)


@pytest.mark.parametrize(
    ("space", "wanted", "shortfall"),
    [
        pytest.param(Space(stored=90, reserved=0, max_size=100, free=1000, min_free=0), 10, 0, id="just fits"),
        pytest.param(Space(stored=90, reserved=0, max_size=100, free=1000, min_free=0), 11, 1, id="one too many"),
        pytest.param(Space(stored=40, reserved=50, max_size=100, free=1000, min_free=0), 11, 1, id="what is coming"),
        pytest.param(Space(stored=90, reserved=0, max_size=0, free=1000, min_free=0), 1000, 0, id="no limit"),
        pytest.param(Space(stored=0, reserved=0, max_size=0, free=100, min_free=60), 41, 1, id="min_free"),
        pytest.param(Space(stored=0, reserved=0, max_size=100, free=-5, min_free=0), 0, 5, id="too much promised"),
        pytest.param(Space(stored=110, reserved=0, max_size=100, free=100, min_free=130), 0, 30, id="the larger lack"),
        pytest.param(Space(stored=200, reserved=0, max_size=100, free=100, min_free=0), 0, 100, id="a lowered limit"),
    ],
)
def test_shortfall(space, wanted, shortfall):
    assert space.shortfall(wanted) == shortfall


def test_unused_since_goes_by_url_and_counts_what_comes_free():
    shared = [stored("d", 5, 1, blob="x"), stored("e", 5, 9, blob="x")]
    eviction = unused_since([C, B, A, *shared, stored("f", 7, 0, pinned=True), stored("g", 7, 0, in_use=True)], 3)
    assert (keys(eviction), eviction.freed) == ("adb", 20)


BLOBS = {"v": 0, "w": 1, "x": 5, "y": 7, "z": 100}
candidates = st.lists(
    st.builds(
        lambda key, blob, used_at, pinned, in_use: Candidate(key, key, blob, BLOBS[blob], used_at, pinned, in_use),
        st.uuids().map(str),
        st.sampled_from(sorted(BLOBS)),
        st.integers(0, 9).map(float),
        st.booleans(),
        st.integers(0, 3).map(lambda number: number == 0),
    ),
    max_size=12,
)


@given(candidates, st.integers(0, 150))
def test_laws_of_choose(candidates, wanted):
    eviction = choose(candidates, wanted)
    victims = set(eviction.victims)
    rest = [each for each in candidates if each not in victims]
    assert len(victims) == len(eviction.victims)
    assert not any(each.pinned or each.in_use for each in victims)
    assert not {each.blob for each in victims} & {each.blob for each in rest}
    # What is said to come free does come free.
    assert total(candidates) - total(rest) == eviction.freed
    assert eviction.shortfall == max(0, wanted - eviction.freed)
    kept = {each.blob for each in rest if each.pinned or each.in_use}
    free_to_go = [each for each in rest if each.blob not in kept]
    if eviction.shortfall:
        assert total(free_to_go) == 0
    last = {
        blob: max(each.used_at for each in candidates if each.blob == blob)
        for blob in BLOBS
        if total(candidates) and any(each.blob == blob for each in candidates)
    }
    if victims:
        youngest = max(victims, key=lambda each: (last[each.blob], each.blob))
        # None is older than one that went, and without the youngest it would not have sufficed.
        assert all(
            (last[each.blob], each.blob) > (last[youngest.blob], youngest.blob) for each in free_to_go if each.size
        )
        assert eviction.freed - youngest.size < wanted


@given(candidates, st.integers(0, 10))
def test_laws_of_unused_since(candidates, before):
    eviction = unused_since(candidates, before)
    rest = [each for each in candidates if each not in set(eviction.victims)]
    assert all(each.used_at < before and not each.pinned and not each.in_use for each in eviction.victims)
    assert all(each.used_at >= before or each.pinned or each.in_use for each in rest)
    assert total(candidates) - total(rest) == eviction.freed
