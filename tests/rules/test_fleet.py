"""Which other server of ours is asked for what, and what its answers mean."""

from collections import Counter

import pytest

from proxy.errors import ConfigError
from proxy.rules.fleet import (
    Fleet,
    callers,
    confirmed_ago,
    is_of_upstream,
    is_ours,
    path_of,
    remembered,
    without_status,
)
from proxy.rules.mirrors import Mirror, MirrorTable

TABLE = MirrorTable([Mirror("m", ("https://m.example/pub/",))], ["a.example", "a.example:8443", "plain"])
SERVERS = [f"http://10.0.0.{number}:8642" for number in range(1, 6)]
TARGETS = [TABLE.resolve(f"/m/{number}.img") for number in range(1000)]


def order(parents, target=TARGETS[0], own="", via=None):
    return Fleet.of(own, parents, "").parents_of(target, via)


def test_every_server_is_first_for_its_share():
    first = Counter(order(SERVERS, target)[0] for target in TARGETS)
    assert set(first) == set(SERVERS)
    assert max(first.values()) < 1.3 * 200


def test_the_order_is_that_of_all_servers_whatever_the_order_of_their_lists():
    for target in TARGETS[:20]:
        assert order(SERVERS, target) == order(SERVERS[::-1], target) == order([*SERVERS, *SERVERS], target)


def test_a_server_that_goes_moves_its_own_urls_alone():
    for target in TARGETS:
        left = order(SERVERS[1:], target)
        assert left == tuple(each for each in order(SERVERS, target) if each != SERVERS[0])


def test_a_server_in_the_list_asks_those_before_it_alone():
    for target in TARGETS[:50]:
        ranked = order(SERVERS, target)
        for place, own in enumerate(ranked):
            assert order(SERVERS, target, own=own) == ranked[:place]


@pytest.mark.parametrize(
    ("via", "asks"),
    [
        (None, True),
        ("1.1 fetchonce", True),
        ("1.1 fetchonce-01ab", True),
        ("1.1 squid (http://10.0.0.2:8642)", True),
        ("1.1 fetchonce-01ab (http://10.0.0.9:8642)", True),
        ("1.1 fetchonce-01ab (http://10.0.0.2:8642)", False),
        ("1.1 x, 1.1 fetchonce-01ab (http://10.0.0.2:8642), 1.1 fetchonce-22", False),
        ("1.1 fetchonce-01, 1.1 fetchonce-02", True),
        ("1.1 fetchonce-01, 1.1 fetchonce-02, 1.1 fetchonce-03", False),
    ],
)
def test_by_whom_a_request_came_says_whether_parents_are_asked(via, asks):
    assert bool(order(SERVERS, via=via)) == asks


def test_callers():
    assert list(callers("1.1 fetchonce-0a (http://a:1), 1.0 b (c), 1.1 fetchonce-0b")) == ["http://a:1", ""]
    assert list(callers(None)) == []


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/m/x/y.img?q=%20", "/m.example/pub/x/y.img?q=%20"),
        ("/a.example/x", "/a.example/x"),
        ("/http/a.example/x", "/http/a.example/x"),
        ("/a.example:8443/x", "/a.example:8443/x"),
        ("/https/plain/x", "/https/plain/x"),
        (f"/sha256:{'0' * 64}/m/x", f"/sha256:{'0' * 64}/m.example/pub/x"),
    ],
)
def test_the_path_at_another_server(target, path):
    assert path_of(TABLE.resolve(target)) == path
    assert TABLE.resolve(path) == TABLE.resolve(target)


@pytest.mark.parametrize(
    ("value", "ours", "upstreams"),
    [
        (None, False, False),
        ("fetchonce", True, False),
        ("fetchonce; hit; ttl=4; detail=negative", True, True),
        ("fetchonce; fwd=uri-miss; fwd-status=404", True, True),
        ("fetchonce; fwd=uri-miss; fwd-status=410", True, False),
        ("cdn; hit, fetchonce; fwd=uri-miss; fwd-status=404", True, True),
        ("fetchonce; fwd=uri-miss; fwd-status=404, cdn; hit", False, False),
        ("fetchonce; detail=refused", True, False),
        ("other; fwd=uri-miss", False, False),
    ],
)
def test_whose_answer_a_404_is(value, ours, upstreams):
    headers = (("cache-status", value),) if value else ()
    assert is_ours(headers) == ours
    assert (is_ours(headers) and is_of_upstream(404, headers)) == upstreams
    assert not is_of_upstream(403, headers)


def test_what_another_server_says_of_its_cache():
    said = (("cache-status", "cdn; hit"), ("cache-status", "fetchonce; hit; confirmed=17"), ("age", "3"))
    assert confirmed_ago(said) == 17
    assert confirmed_ago(said[:1]) == confirmed_ago(()) == 0
    assert without_status(said) == (said[0], said[2])
    negative = (("cache-status", "fetchonce; hit; ttl=4; detail=negative"), ("age", "3"), ("cache-control", "x"))
    assert remembered(negative) == (*negative[:2], ("cache-control", "max-age=7"))
    assert remembered(said) == said


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://A.example", "http://a.example"),
        ("http://a.example:80/", "http://a.example"),
        ("https://[2001:db8::1]:8643", "https://[2001:db8::1]:8643"),
    ],
)
def test_the_url_of_a_server_has_one_form(given, base):
    assert Fleet.of(given, [given, base], "t").parents == (base,)
    fleet = Fleet.of(given, [], "")
    assert (fleet.own, fleet.names) == (base, ("2001:db8::1" if "[" in base else "a.example",))
    assert Fleet().names == ()


@pytest.mark.parametrize(
    "url", ["a.example:80", "ftp://a.example", "http://a.example/x", "http://u:p@a.example", "http://a b", "http://a:x"]
)
def test_what_is_no_url_of_a_server(url):
    with pytest.raises(ConfigError, match="fleet.advertise: .*expected http"):
        Fleet.of(url, [], "")
    with pytest.raises(ConfigError, match="fleet.parents: .*expected http"):
        Fleet.of("", [url], "")


def test_a_token_with_a_space():
    with pytest.raises(ConfigError, match="fleet.token"):
        Fleet.of("", [], "a b")
