"""When a store is slow, and when a mirror has turned out to be no faster."""

import pytest

from proxy.rules.pace import FLOOR_RATE, LINE_RATE, PACE_SECONDS, Meter, Pace

SLOW, FAST = int(FLOOR_RATE * 0.5), int(FLOOR_RATE * 2)


@pytest.mark.parametrize(
    ("rate", "of_all", "is_slow"),
    [(SLOW, SLOW, True), (FAST, FAST, False), (SLOW, int(LINE_RATE), False), (0, 0, True)],
    ids=["slow", "fast", "our line is full", "nothing"],
)
def test_it_is_slow_over_some_seconds_of_waiting(rate, of_all, is_slow):
    meter = Meter(since=100.0, of_all=1000)
    for second in range(1, int(PACE_SECONDS)):
        assert meter.came(rate, 1.0, 100.0 + second, 1000 + second * of_all) is None
    found = meter.came(rate, 1.0, 100.0 + PACE_SECONDS, 1000 + int(PACE_SECONDS) * of_all)
    assert found == (rate if is_slow else None)
    assert meter.came(rate, 1.0, 101.0 + PACE_SECONDS, 0) is None  # from here on anew


def test_a_client_that_takes_its_bytes_slowly_says_nothing():
    meter = Meter(since=0.0, of_all=0)
    assert all(meter.came(100_000, 0.001, 10.0 * turn, 100_000 * turn) is None for turn in range(1, 10_000))


def test_a_mirror_is_measured_once_the_store_was_slow():
    pace = Pace()
    assert not pace.compared(0, 0.0)
    pace.rate = float(SLOW)
    assert not pace.compared(10**9, 10.0)  # when it begins
    assert not pace.compared(SLOW, 10.0 + PACE_SECONDS / 2)
    assert pace.compared(SLOW, 10.0 + PACE_SECONDS)
    assert not pace.compared(0, 100.0)


def test_a_mirror_that_is_faster_is_no_reason_to_wait():
    pace = Pace()
    pace.rate = float(SLOW)
    assert not pace.compared(0, 0.0)
    assert not pace.compared(FAST * int(PACE_SECONDS), PACE_SECONDS)
    assert pace.is_slow
