"""The memory of failed questions, with the clock as an argument."""

from proxy.errors import UpstreamError, UpstreamStatus
from proxy.fill.failures import MAX_FAILURES, Failures


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def busy(retry_after=None):
    error = UpstreamStatus("busy", 503)
    error.retry_after = retry_after
    return error


def counts(failures, clock, key="k"):
    """For how many seconds the last failure counts."""
    failure = failures.last(key)
    return failure.until - clock.now if failure else 0


async def test_it_counts_longer_each_time_until_upstream_answers():
    clock = Clock()
    failures = Failures(clock)
    for seconds in (30, 60, 120, 240, 300, 300):
        failures.note("k", UpstreamError("gone"))
        assert counts(failures, clock) == seconds
        clock.now += seconds
        assert failures.last("k") is None
    failures.forget("k")
    failures.note("k", busy())
    assert counts(failures, clock) == 30


async def test_who_insists_meanwhile_does_not_make_it_longer():
    clock = Clock()
    failures = Failures(clock)
    for _ in range(5):
        failures.note("k", busy())
        clock.now += 10
        assert counts(failures, clock) == 20


async def test_upstream_says_when():
    clock = Clock()
    failures = Failures(clock)
    failures.note("k", busy(3600.0))
    assert counts(failures, clock) == 3600
    failures.note("k", busy(0.0))
    assert failures.last("k") is None


async def test_after_a_while_without_a_question_it_begins_anew():
    clock = Clock()
    failures = Failures(clock)
    for _ in range(4):
        failures.note("k", busy())
        clock.now += 400
    assert counts(failures, clock) == 0
    failures.note("k", busy())
    assert counts(failures, clock) == 30


async def test_an_answer_is_no_failure():
    failures = Failures(Clock())
    failures.note("k", busy())
    failures.note("k", UpstreamStatus("not there", 404))
    assert failures.last("k") is None


async def test_keys_asked_at_random_make_it_forget():
    failures = Failures(Clock())
    for number in range(MAX_FAILURES + 1):
        failures.note(str(number), busy())
    assert (failures.last("0"), failures.last("1") is None) == (None, False)
