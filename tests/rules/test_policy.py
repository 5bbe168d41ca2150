"""Freshness and decisions as tables; the section of RFC 9111 is in the id."""

import pytest

from proxy.rules.entry import Entry, Head, refreshed
from proxy.rules.freshness import current_age, heuristic_lifetime, is_storable, lifetime
from proxy.rules.mirrors import Mirror, Target
from proxy.rules.policy import Ask, Refuse, Serve, decide, may_serve_stale

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
HOUR_LATER = "Sun, 06 Nov 1994 09:49:37 GMT"
HOUR_EARLIER = "Sun, 06 Nov 1994 07:49:37 GMT"


def head(age=0.0, **fields):
    headers = (("date", DATE), *((name.replace("_", "-"), value) for name, value in fields.items()))
    return Head(headers, 100, "g", age)


def entry(age=0.0, validated_at=1000.0, **fields):
    return Entry("k", "http://a/x", "a", head(age, **fields), "d", stored_at=validated_at, validated_at=validated_at)


def target(path="x.img", **mirror):
    return Target(Mirror(name="a", upstreams=("http://a/",), **mirror), path, "", "http")


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        pytest.param({}, None, id="4.2.1-nothing-said"),
        pytest.param({"cache_control": "max-age=60"}, 60, id="4.2.1-max-age"),
        pytest.param({"cache_control": "max-age=60, s-maxage=10"}, 10, id="4.2.1-s-maxage-wins"),
        pytest.param({"cache_control": "max-age=60", "expires": DATE}, 60, id="4.2.1-max-age-over-expires"),
        pytest.param({"expires": HOUR_LATER}, 3600, id="4.2.1-expires"),
        pytest.param({"expires": HOUR_EARLIER}, 0, id="4.2.1-expired"),
        pytest.param({"expires": "0"}, 0, id="5.3-malformed-expires"),
        pytest.param({"cache_control": "max-age=soon"}, 0, id="4.2.1-malformed-max-age"),
        pytest.param({"cache_control": "no-cache, max-age=60"}, 0, id="5.2.2.4-no-cache"),
    ],
)
def test_lifetime(fields, seconds):
    assert lifetime(head(**fields)) == seconds


def test_heuristic_lifetime_is_a_tenth_of_the_time_since_the_last_change_and_at_most_a_day():
    assert heuristic_lifetime(head(last_modified=HOUR_EARLIER)) == 360
    assert heuristic_lifetime(head(last_modified="Sun, 06 Nov 1983 08:49:37 GMT")) == 86400
    assert heuristic_lifetime(head(last_modified=HOUR_LATER)) is None
    assert heuristic_lifetime(head()) is None


def test_age_counts_from_the_origin():
    assert current_age(entry(age=30), now=1010) == 40
    assert current_age(entry(), now=900) == 0  # the clock was set back


@pytest.mark.parametrize(
    ("fields", "storable"),
    [
        pytest.param({}, True, id="3-silent"),
        pytest.param({"cache_control": "no-store"}, False, id="5.2.2.5-no-store"),
        pytest.param({"cache_control": "private"}, False, id="5.2.2.7-private"),
        pytest.param({"cache_control": "public, max-age=1"}, True, id="5.2.2.9-public"),
        pytest.param({"vary": "*"}, False, id="4.1-vary-star"),
    ],
)
def test_storable(fields, storable):
    assert is_storable(head(**fields)) is storable


FRESH = {"cache_control": "max-age=60"}


@pytest.mark.parametrize(
    ("request_headers", "mirror", "fields", "age", "decision"),
    [
        pytest.param((), {}, FRESH, 60, Serve(), id="4.2-fresh"),
        pytest.param((), {}, FRESH, 61, Ask(why="stale"), id="4.2-stale"),
        pytest.param((), {}, FRESH | {"etag": '"e"'}, 61, Ask((("if-none-match", '"e"'),), "stale"), id="4.3.1-etag"),
        pytest.param(
            (),
            {},
            FRESH | {"last_modified": DATE},
            61,
            Ask((("if-modified-since", DATE),), "stale"),
            id="4.3.1-last-modified",
        ),
        pytest.param((("cache-control", "no-cache"),), {}, FRESH, 1, Ask(why="request"), id="5.2.1.4-no-cache"),
        pytest.param((("pragma", "no-cache"),), {}, FRESH, 1, Ask(why="request"), id="5.4-pragma"),
        pytest.param(
            (("pragma", "no-cache"), ("cache-control", "max-age=9")), {}, FRESH, 1, Serve(), id="5.4-pragma-is-second"
        ),
        pytest.param((("cache-control", "max-age=10"),), {}, FRESH, 10, Serve(), id="5.2.1.1-max-age"),
        pytest.param(
            (("cache-control", "max-age=10"),), {}, FRESH, 11, Ask(why="request"), id="5.2.1.1-max-age-passed"
        ),
        pytest.param((("cache-control", "max-age=x"),), {}, FRESH, 1, Ask(why="request"), id="5.2.1.1-malformed"),
        pytest.param((("cache-control", "only-if-cached"),), {}, FRESH, 60, Serve(), id="5.2.1.7-fresh"),
        pytest.param((("cache-control", "only-if-cached"),), {}, FRESH, 61, Refuse(), id="5.2.1.7-stale"),
        pytest.param((), {"immutable": ("img",)}, {}, 1e9, Serve(), id="mirror-immutable"),
        pytest.param((), {"moving": ("img",), "ttl": 5.0}, FRESH, 5, Serve(), id="mirror-moving-within-ttl"),
        pytest.param(
            (), {"moving": ("img",), "ttl": 5.0}, FRESH, 6, Ask(why="stale"), id="mirror-moving-wins-over-max-age"
        ),
        pytest.param(
            (),
            {"moving": ("img",), "immutable": ("img",), "ttl": 5.0},
            {},
            6,
            Ask(why="stale"),
            id="mirror-moving-wins",
        ),
        pytest.param(
            (("cache-control", "no-cache"),),
            {"immutable": ("img",)},
            {},
            1,
            Ask(why="request"),
            id="no-cache-wins-over-immutable",
        ),
        pytest.param((), {"ttl": 5.0}, {}, 6, Ask(why="stale"), id="nothing-known-follows-ttl"),
        pytest.param((), {"ttl": 5.0}, {}, 5, Serve(), id="nothing-known-within-ttl"),
    ],
)
def test_decide_what_is_stored(request_headers, mirror, fields, age, decision):
    assert decide(request_headers, target(**mirror), entry(**fields), now=1000 + age) == decision


def test_decide_what_is_not_stored():
    assert decide((), target(), None, now=0) == Ask()
    assert decide((("cache-control", "only-if-cached"),), target(), None, now=0) == Refuse()


def test_offline_serves_at_any_age_and_refuses_the_rest():
    no_cache = (("cache-control", "no-cache"),)
    assert decide(no_cache, target(), entry(cache_control="max-age=1"), now=1e9, offline=True) == Serve()
    assert decide((), target(), None, now=0, offline=True) == Refuse()


@pytest.mark.parametrize(
    ("status", "stale"), [(None, True), (500, True), (503, True), (429, True), (404, False), (410, False), (403, False)]
)
def test_what_a_failed_revalidation_falls_back_to(status, stale):
    assert may_serve_stale(entry(), status) is stale
    assert may_serve_stale(None, status) is False


def test_a_304_replaces_the_fields_it_brings_and_leaves_the_body_s_own():
    old = entry(etag='"e"', content_type="a/b", cache_control="max-age=1")
    news = Head((("cache-control", "max-age=9"), ("content-type", "text/html"), ("x-new", "1")), None, "other", 3.0)
    new = refreshed(old, news, now=2000.0)
    fields = dict(new.head.headers)
    assert fields["cache-control"] == "max-age=9"
    assert fields["content-type"] == "a/b"
    assert (fields["etag"], fields["x-new"]) == ('"e"', "1")
    assert (new.head.age, new.validated_at, new.stored_at) == (3.0, 2000.0, 1000.0)
    assert (new.head.length, new.head.generation) == (100, "g")
