"""When a service that fails is left alone, and when it is asked again."""

from proxy.rules.circuit import ABSENT_SECONDS, FAILURES, Circuit


def test_a_few_failures_are_nothing_if_an_answer_comes_between():
    circuit = Circuit()
    for _ in range(5):
        assert not any(circuit.failed(0.0) for _ in range(FAILURES - 1))
        assert not circuit.is_absent(0.0)
        assert not circuit.answered()


def test_it_is_left_alone_for_a_while_and_then_the_next_question_tells():
    circuit = Circuit()
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
