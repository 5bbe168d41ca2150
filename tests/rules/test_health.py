"""The order in which mirrors are asked after failures."""

from proxy.rules.health import SHUN_SECONDS, Health

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
