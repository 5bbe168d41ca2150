"""Freshness and storability as tables of upstream's headers; the section of the RFC is in the id."""

import pytest

from proxy.rules.entry import Entry, Head, refreshed
from proxy.rules.freshness import (
    current_age,
    forbids_stale,
    heuristic_lifetime,
    initial_age,
    is_storable,
    lifetime,
    window,
)
from proxy.rules.headers import stored_headers
from proxy.rules.validators import confirms

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
AT = 784111777.0
HOUR_LATER = "Sun, 06 Nov 1994 09:49:37 GMT"
HOUR_EARLIER = "Sun, 06 Nov 1994 07:49:37 GMT"


def lines(fields):
    return tuple((name.replace("_", "-"), value) for name, value in fields.items())


def head(age=0.0, **fields):
    return Head((("date", DATE), *lines(fields)), 100, "g", age)


def case(name, expected, **fields):
    return pytest.param(fields, expected, id=name)


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        case("rfc9111-4.2.1-nothing-said", None),
        case("rfc9111-4.2.1-max-age", 60, cache_control="max-age=60"),
        case("rfc9111-4.2.1-s-maxage", 10, cache_control="max-age=60, s-maxage=10"),
        case("rfc9111-4.2.1-max-age-over-expires", 60, cache_control="max-age=60", expires=DATE),
        case("rfc9111-4.2.1-expires", 3600, expires=HOUR_LATER),
        case("rfc9111-4.2.1-expired", 0, expires=HOUR_EARLIER),
        case("rfc9111-4.2.1-two-expires", 0, expires=f"{HOUR_LATER}, {HOUR_LATER}"),
        case("rfc9111-4.2.1-two-max-ages", 0, cache_control="max-age=60, max-age=3600"),
        case("rfc9111-4.2.1-one-max-age-said-twice", 60, cache_control="max-age=60, max-age=60"),
        case("rfc9111-4.2.1-malformed-max-age", 0, cache_control="max-age=soon"),
        case("rfc9111-4.2.1-negative-max-age", 0, cache_control="max-age=-1"),
        case("rfc9111-4.2.1-fraction", 0, cache_control="max-age=1.5"),
        case("rfc9111-4.2.1-max-age-without-a-number", 0, cache_control="max-age"),
        case("rfc9111-4.2.1-malformed-s-maxage-is-not-passed-over", 0, cache_control="s-maxage=x, max-age=60"),
        case("rfc9111-1.2.2-beyond-the-greatest", 2**31, cache_control="max-age=99999999999"),
        case("rfc9111-5.2-quoted", 60, cache_control='max-age="60"'),
        case("rfc9111-5.3-zero-expires", 0, expires="0"),
        case("rfc9111-5.2.2.4-no-cache", 0, cache_control="no-cache, max-age=60"),
        case("rfc9111-5.2.2.4-no-cache-of-a-field", 60, cache_control='no-cache="set-cookie", max-age=60'),
        case("rfc9111-5.2.2.4-no-cache-of-nothing", 0, cache_control='no-cache="", max-age=60'),
        case("rfc9111-5.2.2.4-no-cache-of-no-field", 0, cache_control='no-cache="a b", max-age=60'),
        case("rfc9111-5.2.2.5-no-store-came-later", 0, cache_control="no-store, max-age=60"),
        case("rfc9213-2.2-over-cache-control", 5, cdn_cache_control="max-age=5", cache_control="s-maxage=60"),
        case("rfc9213-2.2-over-expires", None, cdn_cache_control="must-revalidate", expires=HOUR_LATER),
        case("rfc9213-2.2-no-store-is-for-others", 5, cdn_cache_control="max-age=5", cache_control="no-store"),
        case("rfc9213-2.1-empty", 60, cdn_cache_control="", cache_control="max-age=60"),
        case("rfc9213-2.1-malformed", 60, cdn_cache_control="max-age=5,", cache_control="max-age=60"),
        case("rfc9213-2.1-upper-case-is-malformed", 60, cdn_cache_control="Max-Age=5", cache_control="max-age=60"),
        case("rfc9213-2.1-string-for-a-number", None, cdn_cache_control='max-age="5"', cache_control="max-age=60"),
        case("rfc9213-2.1-decimal", None, cdn_cache_control="max-age=5.0", cache_control="max-age=60"),
        case("rfc9213-2.1-parameters-are-nothing", 5, cdn_cache_control="max-age=5;x=1"),
        case("rfc9651-4.2.2-the-last-one-counts", 7, cdn_cache_control="max-age=5, max-age=7"),
        case("rfc9213-2.1-false", 60, cdn_cache_control="no-store=?0, max-age=60"),
    ],
)
def test_lifetime(fields, seconds):
    assert lifetime(head(**fields)) == seconds


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        case("rfc9111-4.2.2-a-tenth", 360, last_modified=HOUR_EARLIER),
        case("rfc9111-4.2.2-at-most-a-day", 86400, last_modified="Sun, 06 Nov 1983 08:49:37 GMT"),
        case("rfc9111-4.2.2-changed-later-than-sent", None, last_modified=HOUR_LATER),
        case("rfc9111-4.2.2-nothing-to-guess-from", None),
    ],
)
def test_heuristic_lifetime(fields, seconds):
    assert heuristic_lifetime(head(**fields)) == seconds


@pytest.mark.parametrize(
    ("fields", "arrived", "delay", "age"),
    [
        pytest.param({"date": DATE}, AT, 0.0, 0, id="rfc9111-4.2.3-new"),
        pytest.param({"date": DATE}, AT + 30, 0.0, 30, id="rfc9111-4.2.3-apparent-age"),
        pytest.param({"date": DATE, "age": "50"}, AT + 30, 0.0, 50, id="rfc9111-4.2.3-reported-age"),
        pytest.param({"date": DATE, "age": "50"}, AT, 3.0, 53, id="rfc9111-4.2.3-response-delay"),
        pytest.param({"date": DATE}, AT, 3.0, 3, id="rfc9111-4.2.3-delay-of-a-new-one"),
        pytest.param({"date": DATE}, AT - 100, 0.0, 0, id="rfc9111-4.2.3-our-clock-is-behind"),
        pytest.param({"age": "50"}, AT, 0.0, 50, id="rfc9111-4.2.3-no-date"),
        pytest.param({"date": "yesterday", "age": "5"}, AT, 0.0, 5, id="rfc9111-4.2.3-malformed-date"),
        pytest.param({"date": DATE, "age": "old"}, AT, 0.0, 0, id="rfc9111-5.1-malformed"),
        pytest.param({"date": DATE, "age": "7, 9"}, AT, 0.0, 7, id="rfc9111-5.1-the-first-counts"),
        pytest.param({"date": DATE, "age": "99999999999"}, AT, 0.0, 2**31, id="rfc9111-1.2.2-beyond-the-greatest"),
    ],
)
def test_initial_age(fields, arrived, delay, age):
    assert initial_age(lines(fields), arrived, delay) == age


def test_age_grows_with_the_clock_and_never_shrinks_with_it():
    entry = Entry("k", "http://a/x", "a", head(30.0), "d", stored_at=1000.0, validated_at=1000.0)
    assert current_age(entry, now=1010) == 40
    assert current_age(entry, now=900) == 30


@pytest.mark.parametrize(
    ("fields", "storable"),
    [
        case("rfc9111-3-silent", True),
        case("rfc9111-5.2.2.5-no-store", False, cache_control="no-store"),
        case("rfc9111-5.2.2.5-no-store-and-max-age", False, cache_control="max-age=60, No-Store"),
        case("rfc9111-5.2.2.7-private", False, cache_control="private"),
        case("rfc9111-5.2.2.7-private-field", True, cache_control='private="x-user"'),
        case("rfc9111-5.2.2.7-private-and-private-field", False, cache_control='private="x-user", private'),
        case("rfc9111-5.2.2.9-public", True, cache_control="public, max-age=1"),
        case("rfc9111-5.2.2.3-must-understand", True, cache_control="must-understand, no-store"),
        case("rfc9111-5.2.2.3-must-understand-private", False, cache_control="must-understand, private, no-store"),
        case("rfc9111-5.2.2.4-no-cache", True, cache_control="no-cache"),
        case("rfc9111-4.1-vary-star", False, vary="*"),
        case("rfc9111-4.1-vary-star-among-others", False, vary="accept, *"),
        case("rfc9213-2.2-no-store-for-us", False, cdn_cache_control="no-store", cache_control="max-age=60"),
        case("rfc9213-2.2-not-private-for-us", True, cdn_cache_control="max-age=60", cache_control="private"),
    ],
)
def test_storable(fields, storable):
    assert is_storable(head(**fields)) is storable


@pytest.mark.parametrize(
    ("fields", "storable"),
    [
        case("rfc9111-3.5-silent", False, cache_control="max-age=60"),
        case("rfc9111-3.5-public", True, cache_control="public"),
        case("rfc9111-3.5-s-maxage", True, cache_control="s-maxage=60"),
        case("rfc9111-3.5-must-revalidate", True, cache_control="must-revalidate"),
        case("rfc9111-3.5-public-and-no-store", False, cache_control="public, no-store"),
        case("rfc9111-3.5-proxy-revalidate", False, cache_control="proxy-revalidate"),
    ],
)
def test_storable_of_an_answer_to_credentials(fields, storable):
    assert is_storable(head(**fields), (("authorization", "Basic x"),)) is storable


@pytest.mark.parametrize(
    ("fields", "forbidden"),
    [
        case("rfc9111-4.2.4-silent", False),
        case("rfc9111-5.2.2.2-must-revalidate", True, cache_control="max-age=60, must-revalidate"),
        case("rfc9111-5.2.2.8-proxy-revalidate", True, cache_control="max-age=60, proxy-revalidate"),
        case("rfc9111-5.2.2.10-s-maxage", True, cache_control="s-maxage=60"),
        case("rfc9111-5.2.2.4-no-cache", True, cache_control="no-cache"),
        case("rfc9111-5.2.2.4-no-cache-of-a-field", False, cache_control='no-cache="x"'),
        case("rfc9111-5.2.2.5-no-store", True, cache_control="no-store"),
        case("rfc9213-2.2-over-must-revalidate", False, cdn_cache_control="max-age=1", cache_control="must-revalidate"),
    ],
)
def test_what_may_not_be_used_stale(fields, forbidden):
    assert forbids_stale(head(**fields)) is forbidden


def test_windows_of_rfc5861_are_numbers_or_nothing():
    said = head(cache_control="max-age=1, stale-while-revalidate=30, stale-if-error=x")
    assert window(said, "stale-while-revalidate") == 30
    assert window(said, "stale-if-error") == 0
    assert window(head(), "stale-if-error") == 0


@pytest.mark.parametrize("directive", ["private", "no-cache"])
def test_fields_that_a_directive_lists_are_not_kept(directive):
    raw = (("Cache-Control", f'{directive}="X-User, x-other", max-age=60'), ("X-User", "me"), ("X-More", "1"))
    assert [name for name, _ in stored_headers(raw)] == ["cache-control", "x-more"]


def test_a_304_replaces_the_fields_it_brings_and_leaves_the_body_s_own():
    """RFC 9111 §3.2, §4.3.4."""
    old = head(etag='"e"', content_type="a/b", content_language="de", cache_control="max-age=1")
    entry = Entry("k", "http://a/x", "a", old, "d", stored_at=1000.0, validated_at=1000.0)
    fields = (("cache-control", "max-age=9"), ("content-type", "text/html"), ("content-language", "en"), ("x-new", "1"))
    fields += (("content-digest", "sha-256=:eA==:"), ("content-md5", "eA=="), ("repr-digest", "sha-256=:eA==:"))
    new = refreshed(entry, Head(fields, None, "other", 3.0, (("accept", "a/b"),)), now=2000.0)
    assert dict(new.head.headers) == {
        "date": DATE,
        "etag": '"e"',
        "content-type": "a/b",
        "content-language": "en",
        "cache-control": "max-age=9",
        "x-new": "1",
    }
    assert (new.head.age, new.validated_at, new.stored_at) == (3.0, 2000.0, 1000.0)
    assert (new.head.length, new.head.generation, new.head.nominated) == (100, "g", (("accept", "a/b"),))


@pytest.mark.parametrize(
    ("stored", "answered", "is_ours"),
    [
        pytest.param({"etag": '"a"'}, {"etag": '"a"'}, True, id="rfc9111-4.3.4-same-tag"),
        pytest.param({"etag": '"a"'}, {"etag": '"b"'}, False, id="rfc9111-4.3.4-another-tag"),
        pytest.param({"etag": 'W/"a"'}, {"etag": '"a"'}, True, id="rfc9110-13.1.2-compared-weakly"),
        pytest.param({"etag": '"a"', "last-modified": DATE}, {"etag": '"b"', "last-modified": DATE}, False,
                     id="rfc9111-4.3.4-the-tag-stands-above-the-date"),
        pytest.param({"last-modified": DATE}, {"etag": '"b"', "last-modified": DATE}, True,
                     id="rfc9111-4.3.4-same-date-and-a-tag-is-new"),
        pytest.param({"last-modified": DATE}, {"last-modified": HOUR_LATER}, False, id="rfc9111-4.3.4-another-date"),
        pytest.param({"etag": '"a"'}, {}, True, id="rfc9111-4.3.4-none-in-the-304"),
        pytest.param({"etag": "a"}, {"etag": "a"}, True, id="unquoted"),
        pytest.param({"etag": "a"}, {"etag": "b"}, False, id="unquoted-another"),
        pytest.param({"etag": '"a"'}, {"etag": ""}, True, id="empty-in-the-304"),
        pytest.param({"etag": '"a"'}, {"etag": '""'}, True, id="empty-tag-in-the-304"),
    ],
)  # fmt: skip
def test_whether_a_304_is_about_what_we_have(stored, answered, is_ours):
    assert confirms(tuple(stored.items()), tuple(answered.items())) is is_ours
