"""When a service that fails is left alone, and when it is asked again."""

from proxy.rules.circuit import ABSENT_SECONDS, Circuit

FAILURES = 3


def test_a_few_failures_are_nothing_if_an_answer_comes_between():
    circuit = Circuit(FAILURES)
    for _ in range(5):
        assert not any(circuit.failed(0.0) for _ in range(FAILURES - 1))
        assert not circuit.is_absent(0.0)
        assert not circuit.answered()


def test_it_is_left_alone_for_a_while_and_then_the_next_question_tells():
    circuit = Circuit(FAILURES)
    assert [circuit.failed(100.0) for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    assert circuit.is_absent(100.0)
    assert circuit.left(101.0) == ABSENT_SECONDS - 1
    later = 100.0 + ABSENT_SECONDS
    assert not circuit.is_absent(later)
    assert not circuit.failed(later)  # nothing new
    assert circuit.is_absent(later + 1)
    assert circuit.answered()
    assert not circuit.is_absent(later + 1)
    assert not circuit.failed(later + 1)


def test_when_its_time_is_over_one_question_goes_out_and_the_others_wait():
    circuit = Circuit()
    assert circuit.may_ask(0.0)
    assert circuit.failed(0.0)
    assert not circuit.may_ask(ABSENT_SECONDS - 0.1)
    assert [circuit.may_ask(ABSENT_SECONDS), circuit.may_ask(ABSENT_SECONDS)] == [True, False]
    assert circuit.is_given_up
    assert circuit.answered()
    assert not circuit.answered()
    assert [circuit.may_ask(ABSENT_SECONDS), circuit.may_ask(ABSENT_SECONDS)] == [True, True]
