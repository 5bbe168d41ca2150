"""The negative cache, with the clock as an argument."""

import pytest

from proxy.errors import UpstreamStatus
from proxy.negative import MAX_ANSWERS, NegativeCache
from proxy.rules.mirrors import Mirror, MirrorTable

MIRRORS = MirrorTable((Mirror("u", ("https://example.org/",), negative_ttl=10.0),), ())


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def target(name="a.img"):
    return MIRRORS.resolve(f"/u/{name}".encode())


def is_known(cache, name="a.img", *headers, method="GET"):
    try:
        cache.check(target(name), headers, method)
    except UpstreamStatus:
        return True
    return False


async def test_an_answer_is_told_with_its_age_until_its_lifetime_ends():
    clock = Clock()
    cache = NegativeCache(clock)
    cache.note(target(), (), UpstreamStatus("not there", 404, retry_after="5"))
    clock.now += 4
    with pytest.raises(UpstreamStatus, match="not there") as caught:
        cache.check(target(), ())
    error = caught.value
    assert (error.status, error.headers) == (404, (("age", "4"),))
    assert error.cache_status.header() == "fetchonce; hit; ttl=6; detail=negative"
    assert not is_known(cache, "a.img", ("cache-control", "no-cache"))
    clock.now += 6
    assert not is_known(cache)


async def test_only_404_and_410_are_remembered_and_a_newer_answer_counts():
    cache = NegativeCache(Clock())
    for status, remembered in ((404, True), (503, False), (410, True), (403, False)):
        cache.note(target(), (), UpstreamStatus("x", status))
        assert is_known(cache) == remembered
    cache.note(target(), (), UpstreamStatus("x", 404))
    cache.forget(target(), ())
    assert not is_known(cache)


async def test_names_asked_at_random_make_it_forget():
    cache = NegativeCache(Clock())
    for number in range(MAX_ANSWERS + 1):
        cache.note(target(str(number)), (), UpstreamStatus("x", 404))
    assert (is_known(cache, "0"), is_known(cache, "1"), is_known(cache, str(MAX_ANSWERS))) == (False, True, True)


async def test_what_was_answered_in_the_future_is_not_known():
    clock = Clock()
    cache = NegativeCache(clock)
    cache.note(target(), (), UpstreamStatus("not there", 404))
    clock.now -= 1
    assert not is_known(cache)


async def test_credentials_are_told_nothing_and_tell_nothing():
    cache, login = NegativeCache(Clock()), ("authorization", "Basic x")
    cache.note(target(), (), UpstreamStatus("not there", 404))
    assert not is_known(cache, "a.img", login)
    cache.forget(target(), (login,))
    assert is_known(cache)
    cache.note(target("b"), (login,), UpstreamStatus("not there", 404))
    assert not is_known(cache, "b")


async def test_what_head_was_told_is_not_held_against_get():
    cache, gone = NegativeCache(Clock()), UpstreamStatus("not there", 404)
    cache.note(target(), (), gone, "HEAD")
    assert (is_known(cache), is_known(cache, method="HEAD")) == (False, True)
    cache.forget(target(), ())
    assert not is_known(cache, method="HEAD")
    cache.note(target(), (), gone)
    assert (is_known(cache), is_known(cache, method="HEAD")) == (True, True)
