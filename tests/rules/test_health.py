"""The order in which mirrors are asked after failures."""

from proxy.rules.health import SHUN_SECONDS, Circuits, Health

A, B, C = "http://a/x", "http://b/x", "http://c/x"


def test_the_configured_order_holds_while_nothing_fails():
    assert Health().order([A, B, C], 0) == [A, B, C]


def test_a_server_that_failed_comes_last_for_a_while():
    health = Health()
    health.failed(A, 100)
    assert health.order([A, B, C], 100) == [B, C, A]
    assert health.order([A, B, C], 99 + SHUN_SECONDS) == [B, C, A]
    assert health.order([A, B, C], 100 + SHUN_SECONDS) == [A, B, C]


def test_of_several_that_failed_the_longest_ago_comes_first():
    health = Health()
    health.failed(B, 100)
    health.failed(A, 101)
    assert health.order([A, B, C], 102) == [C, B, A]


def test_an_answer_forgives():
    health = Health()
    health.failed(A, 100)
    health.answered("http://a/other")
    assert health.order([A, B], 101) == [A, B]


def test_a_failure_is_of_the_server_not_of_the_object():
    health = Health()
    health.failed("http://a/other", 100)
    assert health.order([A, B], 101) == [B, A]


def test_a_circuit_lets_one_through_when_its_time_is_over():
    circuits = Circuits()
    assert not circuits.is_open("a", 0.0)
    assert circuits.failed("a", 0.0)
    assert not circuits.failed("a", 1.0)
    assert [circuits.is_open(name, 30.9) for name in "ab"] == [True, False]
    assert [circuits.is_open("a", 31.0), circuits.is_open("a", 31.0)] == [False, True]
    assert circuits.open == {"a"}
    assert circuits.answered("a")
    assert not circuits.answered("a")
    assert not circuits.is_open("a", 31.0)
