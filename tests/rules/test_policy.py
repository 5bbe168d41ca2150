"""Decisions as tables; the section of the RFC is in the id. hishel decides the same questions in test_oracle.py."""

import pytest

from proxy.rules.entry import Entry, Head
from proxy.rules.mirrors import Mirror, Target
from proxy.rules.policy import (
    Ask,
    Refuse,
    Serve,
    ask_again_after,
    decide,
    may_serve_stale,
    negative_lifetime,
    patience,
    satisfies,
)
from proxy.rules.vary import passed_on, that_select

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
HOUR_LATER = "Sun, 06 Nov 1994 09:49:37 GMT"
STORED = 1000.0
MINUTE = "max-age=60"
MOVING = {"moving": ("img",), "ttl": 60.0}
IMMUTABLE = {"immutable": ("img",)}


def entry(cache_control=None, asked=(), age=0.0, **fields):
    if cache_control:
        fields["cache_control"] = cache_control
    headers = (("date", DATE), *((name.replace("_", "-"), value) for name, value in fields.items()))
    head = Head(headers, 100, "g", age, asked)
    return Entry("k", "http://a/x", "a", head, "d", stored_at=STORED, validated_at=STORED)


def target(**mirror):
    return Target(Mirror(name="a", upstreams=("http://a/",), **mirror), "x.img", "", "http")


def asks(**fields):
    return tuple((name.replace("_", "-"), value) for name, value in fields.items())


def outcome(decision):
    match decision:
        case Serve(_, None, None):
            return "serve"
        case Serve(_, ttl, None):
            return f"stale {ttl}"
        case Serve(_, ttl, _):
            return f"stale {ttl}, refresh"
        case Ask(_, why):
            return why
        case Refuse():
            return "refuse"


def case(name, said, age, expected, *, request="", mirror=None):
    """`said`: the Cache-Control stored; `request`: the one asked with."""
    return pytest.param(said, age, request, mirror or {}, expected, id=name)


@pytest.mark.parametrize(
    ("said", "age", "request_said", "mirror", "expected"),
    [
        case("rfc9111-4.2-fresh", MINUTE, 59, "serve"),
        case("rfc9111-4.2-stale-at-its-lifetime", MINUTE, 60, "stale"),
        case("rfc9111-4.2-stale", MINUTE, 61, "stale"),
        case("rfc9111-4.2.1-s-maxage-is-longer", "max-age=60, s-maxage=90", 80, "serve"),
        case("rfc9111-4.2.2-nothing-known-follows-ttl", None, 6, "stale", mirror={"ttl": 5.0}),
        case("rfc9111-4.2.2-nothing-known-within-ttl", None, 4, "serve", mirror={"ttl": 5.0}),
        case("rfc9111-5.2.2.4-no-cache", "no-cache, max-age=60", 1, "stale"),
        case("rfc9111-5.2.2.5-no-store-since-it-was-confirmed", "no-store, max-age=60", 1, "stale"),
        case("rfc9111-5.2.2.2-must-revalidate-while-fresh", "max-age=60, must-revalidate", 59, "serve"),
        # the request's directives
        case("rfc9111-5.2.1.4-no-cache", MINUTE, 1, "request", request="no-cache"),
        case("rfc9111-5.2.1.4-no-cache-of-a-stale-one", MINUTE, 61, "stale", request="no-cache"),
        case("rfc9111-5.2.1.5-no-store-takes-what-is-stored", MINUTE, 1, "serve", request="no-store"),
        case("rfc9111-5.2.1.1-max-age", MINUTE, 10, "serve", request="max-age=10"),
        case("rfc9111-5.2.1.1-max-age-passed", MINUTE, 11, "request", request="max-age=10"),
        case("rfc9111-5.2.1.1-max-age-0", MINUTE, 0.01, "request", request="max-age=0"),
        case("rfc9111-5.2.1.1-max-age-does-not-make-it-fresh", MINUTE, 70, "stale", request="max-age=90"),
        case("rfc9111-5.2.1.1-malformed", MINUTE, 1, "request", request="max-age=x"),
        case("rfc9111-4.2.1-two-max-ages", MINUTE, 1, "request", request="max-age=10, max-age=20"),
        case("rfc9111-5.2.1.2-max-stale", MINUTE, 70, "stale -10", request="max-stale=10"),
        case("rfc9111-5.2.1.2-max-stale-passed", MINUTE, 71, "stale", request="max-stale=10"),
        case("rfc9111-5.2.1.2-any-max-stale", MINUTE, 1e6, "stale -999940", request="max-stale"),
        case("rfc9111-5.2.1.2-malformed", MINUTE, 70, "stale", request="max-stale=x"),
        case("rfc9111-5.2.1.2-and-max-age", MINUTE, 70, "stale -10", request="max-age=100, max-stale"),
        case("rfc9111-5.2.1.2-and-max-age-passed", MINUTE, 70, "stale", request="max-age=65, max-stale"),
        case("rfc9111-5.2.1.2-and-no-cache", MINUTE, 70, "stale", request="max-stale, no-cache"),
        case("rfc9111-5.2.2.2-must-revalidate-over-max-stale", "max-age=60, must-revalidate", 61, "stale",
             request="max-stale"),
        case("rfc9111-5.2.2.8-proxy-revalidate-over-max-stale", "max-age=60, proxy-revalidate", 61, "stale",
             request="max-stale"),
        case("rfc9111-5.2.2.10-s-maxage-over-max-stale", "s-maxage=60", 61, "stale", request="max-stale"),
        case("rfc9111-5.2.2.4-no-cache-over-max-stale", "no-cache", 1, "stale", request="max-stale"),
        case("rfc9111-5.2.1.3-min-fresh", MINUTE, 50, "serve", request="min-fresh=10"),
        case("rfc9111-5.2.1.3-min-fresh-missed", MINUTE, 51, "request", request="min-fresh=10"),
        case("rfc9111-5.2.1.3-malformed", MINUTE, 1, "request", request="min-fresh=x"),
        case("rfc9111-5.2.1.7-only-if-cached", MINUTE, 59, "serve", request="only-if-cached"),
        case("rfc9111-5.2.1.7-only-if-cached-stale", MINUTE, 61, "refuse", request="only-if-cached"),
        case("rfc9111-5.2.1.7-only-if-cached-max-stale", MINUTE, 61, "stale -1", request="only-if-cached, max-stale"),
        case("rfc9111-5.2.1.7-only-if-cached-no-cache", MINUTE, 1, "refuse", request="only-if-cached, no-cache"),
        # stale-while-revalidate
        case("rfc5861-3-fresh", "max-age=60, stale-while-revalidate=30", 59, "serve"),
        case("rfc5861-3-within", "max-age=60, stale-while-revalidate=30", 90, "stale -30, refresh"),
        case("rfc5861-3-passed", "max-age=60, stale-while-revalidate=30", 91, "stale"),
        case("rfc5861-3-malformed", "max-age=60, stale-while-revalidate=x", 61, "stale"),
        case("rfc5861-3-zero", "max-age=60, stale-while-revalidate=0", 60, "stale"),
        case("rfc5861-3-not-where-an-age-is-asked-for", "max-age=60, stale-while-revalidate=30", 61, "stale",
             request="max-age=90"),
        case("rfc5861-3-not-where-no-cache-is-asked-for", "max-age=60, stale-while-revalidate=30", 61, "stale",
             request="no-cache"),
        case("rfc5861-3-max-stale-goes-further", "max-age=60, stale-while-revalidate=30", 95, "stale -35",
             request="max-stale=60"),
        case("rfc9111-5.2.2.2-must-revalidate-over-it", "max-age=60, must-revalidate, stale-while-revalidate=30", 61,
             "stale"),
        case("rfc9111-5.2.2.10-s-maxage-over-it", "s-maxage=60, stale-while-revalidate=30", 61, "stale"),
        # the mirror's rules
        case("mirror-immutable", None, 1e9, "serve", mirror=IMMUTABLE),
        case("mirror-immutable-over-no-cache-of-upstream", "no-cache", 1e9, "serve", mirror=IMMUTABLE),
        case("mirror-immutable-asked-no-cache", None, 1, "request", request="no-cache", mirror=IMMUTABLE),
        case("mirror-immutable-asked-max-age", None, 11, "request", request="max-age=10", mirror=IMMUTABLE),
        case("mirror-immutable-has-any-min-fresh", None, 1e9, "serve", request="min-fresh=9999", mirror=IMMUTABLE),
        case("mirror-moving-within-ttl", None, 59, "serve", mirror=MOVING),
        case("mirror-moving-after-ttl", None, 60, "stale", mirror=MOVING),
        case("mirror-moving-over-max-age", "max-age=600", 61, "stale", mirror=MOVING),
        case("mirror-moving-over-no-cache-of-upstream", "no-cache", 59, "serve", mirror=MOVING),
        case("mirror-moving-max-stale", "must-revalidate", 70, "stale -10", request="max-stale", mirror=MOVING),
        case("mirror-moving-over-stale-while-revalidate", "max-age=1, stale-while-revalidate=900", 61, "stale",
             mirror=MOVING),
        case("mirror-moving-over-immutable", None, 61, "stale", mirror=MOVING | IMMUTABLE),
    ],
)  # fmt: skip
def test_decide_what_is_stored(said, age, request_said, mirror, expected):
    headers = asks(cache_control=request_said) if request_said else ()
    assert outcome(decide(headers, target(**mirror), entry(said), now=STORED + age)) == expected


def test_ttl_counts_from_our_own_question_not_from_the_age_of_a_cache_on_the_way():
    old = entry(age=3600.0)
    assert outcome(decide((), target(**MOVING), old, now=STORED + 59)) == "serve"
    assert outcome(decide((), target(), entry(MINUTE, age=3600.0), now=STORED + 1)) == "stale"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param(asks(pragma="no-cache"), "request", id="rfc9111-5.4-pragma"),
        pytest.param(asks(pragma="no-cache", cache_control="max-age=9"), "serve", id="rfc9111-5.4-pragma-is-second"),
        pytest.param(asks(pragma="x"), "serve", id="rfc9111-5.4-another-pragma"),
        pytest.param(asks(authorization="Basic x"), "serve", id="rfc9111-3.5-credentials-go-no-further"),
    ],
)
def test_other_fields_of_the_request(headers, expected):
    assert outcome(decide(headers, target(), entry(MINUTE), now=STORED + 1)) == expected


@pytest.mark.parametrize(
    ("fields", "condition"),
    [
        pytest.param({}, (), id="rfc9111-4.3.1-nothing-to-ask-with"),
        pytest.param({"etag": '"e"'}, asks(if_none_match='"e"'), id="rfc9111-4.3.1-etag"),
        pytest.param({"last_modified": DATE}, asks(if_modified_since=DATE), id="rfc9111-4.3.1-last-modified"),
        pytest.param({"etag": 'W/"e"', "last_modified": DATE},
                     asks(if_none_match='W/"e"', if_modified_since=DATE), id="rfc9111-4.3.1-both"),
    ],
)  # fmt: skip
def test_what_upstream_is_asked_with(fields, condition):
    assert decide((), target(), entry(MINUTE, **fields), now=STORED + 61) == Ask(condition, "stale")


def test_directives_what_negotiates_and_credentials_go_upstream_and_nothing_else_of_a_client():
    """RFC 9111 §5.2: directives are for every cache on the way."""
    headers = asks(
        accept="application/json", accept_encoding="gzip", authorization="Basic x", cookie="c", user_agent="u",
        cache_control="no-cache", range="bytes=0-1", if_none_match='"c"', x_more="1",
    )  # fmt: skip
    sent = asks(accept="application/json", cache_control="no-cache", authorization="Basic x")
    assert decide(headers, target(), None, now=0) == Ask(sent)
    assert that_select(sent) == asks(accept="application/json", authorization="Basic x")


@pytest.mark.parametrize(
    ("vary", "first", "second", "is_same"),
    [
        pytest.param("Accept", {}, {}, True, id="rfc9111-4.1-both-without"),
        pytest.param("Accept", {"accept": "a/b"}, {"accept": "a/b"}, True, id="rfc9111-4.1-equal"),
        pytest.param("Accept", {"accept": "a/b"}, {"accept": "c/d"}, False, id="rfc9111-4.1-different"),
        pytest.param("ACCEPT , x", {"accept": "a/b"}, {"accept": "c/d"}, False, id="rfc9110-12.5.5-names-in-any-case"),
        pytest.param("Accept", {"accept": "a/b,c/d"}, {"accept": "a/b , c/d"}, True, id="rfc9111-4.1-whitespace"),
        pytest.param("Accept", {}, {"accept": "*/*"}, True, id="rfc9110-12.5.1-nothing-is-anything"),
        pytest.param("Accept-Language", {}, {"accept-language": "de"}, False, id="rfc9111-4.1-one-without"),
        pytest.param("X-Kind", {}, {"x-kind": "1"}, False, id="rfc9111-4.1-any-field"),
        pytest.param("Accept-Language", {"accept": "a/b"}, {"accept": "c/d"}, True, id="rfc9111-4.1-not-named"),
        pytest.param("Accept-Encoding", {}, {"accept-encoding": "gzip"}, True, id="rfc9111-4.1-always-identity"),
        pytest.param("Accept", {"accept": "a/b"}, {"accept": "a/b,application/metalink4+xml"}, True, id="no-metalinks"),
        pytest.param("Authorization", {}, {"authorization": "Basic x"}, False, id="rfc9111-4.1-a-login"),
        pytest.param("User-Agent, Cookie", {"cookie": "a"}, {"user-agent": "b"}, True, id="rfc9111-4.1-never-sent"),
    ],
)  # fmt: skip
def test_vary(vary, first, second, is_same):
    stored = entry(MINUTE, vary=vary)
    stored = entry(MINUTE, that_select(passed_on(tuple(first.items()), stored.head)), vary=vary, etag='"e"')
    headers = tuple(second.items())
    decision = decide(headers, target(), stored, now=STORED + 1)
    assert outcome(decision) == ("serve" if is_same else "vary-miss")
    if isinstance(decision, Ask):  # §4.3: upstream decides whether the stored answer is for this request too
        assert decision.condition == (("if-none-match", '"e"'), *headers)
        only_cached = (*headers, ("cache-control", "only-if-cached"))
        assert decide(only_cached, target(), stored, now=STORED + 1) == Refuse()
        assert decide(headers, target(), stored, now=STORED + 1, offline=True) == Refuse()
        assert not may_serve_stale(headers, target(), stored, 503, now=STORED + 1)


@pytest.mark.parametrize("mirror", [{}, MOVING])
def test_what_was_stored_in_the_future_is_stale(mirror):
    """A clock that is set back must not make an answer fresh for as long as it was ahead."""
    stored = entry("max-age=999999999", etag='"e"')
    decision = decide((), target(**mirror), stored, now=STORED - 1)
    assert decision == Ask(asks(if_none_match='"e"'), "stale")
    assert may_serve_stale((), target(**mirror), stored, None, now=STORED - 1)


def test_decide_what_is_not_stored():
    assert decide((), target(), None, now=0) == Ask()
    assert decide(asks(cache_control="only-if-cached"), target(), None, now=0) == Refuse()


@pytest.mark.parametrize("said", [MINUTE, "no-cache", "max-age=60, must-revalidate", "s-maxage=60"])
def test_offline_serves_at_any_age_and_refuses_the_rest(said):
    decision = decide(asks(cache_control="no-cache"), target(), entry(said), now=1e9, offline=True)
    assert isinstance(decision, Serve)
    assert decision.ttl is not None
    assert decision.ttl < -900_000_000
    assert decide((), target(), entry(MINUTE), now=STORED + 1, offline=True) == Serve(entry(MINUTE))
    assert decide((), target(), None, now=0, offline=True) == Refuse()


@pytest.mark.parametrize(
    ("mirror", "changed_at", "expected"),
    [
        pytest.param(MOVING, STORED + 5, "stale", id="changed-since-it-was-confirmed"),
        pytest.param(MOVING, STORED - 5, "serve", id="changed-before"),
        pytest.param(MOVING, STORED, "serve", id="came-with-it"),
        pytest.param(IMMUTABLE, STORED + 5, "serve", id="immutable"),
        pytest.param({}, STORED + 5, "serve", id="follows-its-headers"),
    ],
)
def test_a_moving_object_is_stale_when_its_checksum_file_has_changed(mirror, changed_at, expected):
    decision = decide((), target(**mirror), entry(MINUTE), now=STORED + 10, changed_at=changed_at)
    assert outcome(decision) == expected


@pytest.mark.parametrize(
    ("said", "age", "status", "request_said", "mirror", "served"),
    [
        pytest.param(said, age, status, request, mirror, served, id=name)
        for name, said, age, status, request, mirror, served in [
            ("rfc9111-4.2.4-unreachable", MINUTE, 3600, None, "", {}, True),
            ("rfc5861-4-500", MINUTE, 3600, 500, "", {}, True),
            ("rfc5861-4-504", MINUTE, 3600, 504, "", {}, True),
            ("too-many-requests", MINUTE, 3600, 429, "", {}, True),
            ("rfc5861-4-404-is-no-error", MINUTE, 3600, 404, "", {}, False),
            ("403-is-upstreams-word", MINUTE, 3600, 403, "", {}, False),
            ("stale-if-error-30-days", MINUTE, 60 + 30 * 86400, 503, "", {}, True),
            ("stale-if-error-over", MINUTE, 61 + 30 * 86400, 503, "", {}, False),
            ("stale-if-error-set", MINUTE, 71, 503, "", {"stale_if_error": 10.0}, False),
            ("rfc9111-4.2.4-unreachable-at-any-age", MINUTE, 1e9, None, "", {}, True),
            ("stale-if-error-0", MINUTE, 61, None, "", {"stale_if_error": 0.0}, False),
            ("rfc5861-4-upstream-grants-more", "max-age=60, stale-if-error=99", 159, 503, "",
             {"stale_if_error": 10.0}, True),
            ("rfc5861-4-request-takes-less", MINUTE, 71, 503, "stale-if-error=10", {}, False),
            ("rfc5861-4-request-within", MINUTE, 70, 503, "stale-if-error=10", {}, True),
            ("rfc9111-5.2.2.2-must-revalidate", "max-age=60, must-revalidate", 61, None, "", {}, False),
            ("rfc9111-5.2.2.2-still-fresh", "max-age=60, must-revalidate", 9, None, "no-cache", {}, True),
            ("rfc9111-5.2.2.8-proxy-revalidate", "max-age=60, proxy-revalidate", 61, 503, "", {}, False),
            ("rfc9111-5.2.2.10-s-maxage", "s-maxage=60", 61, 503, "", {}, False),
            ("rfc9111-5.2.2.4-no-cache", "no-cache", 1, 503, "", {}, False),
            ("rfc9111-5.2.1.4-asked-no-cache", MINUTE, 61, 503, "no-cache", {}, True),
            ("mirror-moving-over-must-revalidate", "must-revalidate", 3600, None, "", MOVING, True),
            ("mirror-moving-over", "stale-if-error=99999999", 61 + 31 * 86400, 503, "", MOVING, False),
            ("mirror-immutable", "no-cache", 1e9, None, "no-cache", IMMUTABLE, True),
        ]
    ],
)  # fmt: skip
def test_what_a_question_that_failed_falls_back_to(said, age, status, request_said, mirror, served):
    headers = asks(cache_control=request_said) if request_said else ()
    assert may_serve_stale(headers, target(**mirror), entry(said), status, now=STORED + age) is served


def test_a_question_that_failed_has_nothing_to_fall_back_to_where_nothing_is_stored():
    assert not may_serve_stale((), target(), None, None, now=0)


@pytest.mark.parametrize(
    ("request_said", "running", "has_failed", "seconds"),
    [
        pytest.param("", 0, False, 5, id="the-first-client"),
        pytest.param("", 4, False, 1, id="who-joins-its-question"),
        pytest.param("", 9, False, 0, id="who-joins-later"),
        pytest.param("max-age=9", 4, True, 1, id="max-age"),
        pytest.param("no-cache", 9, False, None, id="rfc9111-5.2.1.4-no-cache"),
        pytest.param("max-age=0", 9, False, None, id="max-age-0"),
        pytest.param("no-cache", 9, True, 5, id="no-cache-of-what-has-just-failed"),
    ],
)
def test_how_long_a_client_waits_before_it_gets_the_stale_answer(request_said, running, has_failed, seconds):
    headers = asks(cache_control=request_said) if request_said else ()
    assert patience(headers, 5.0, running=running, has_failed=has_failed) == seconds


def test_a_question_that_keeps_failing_is_asked_ever_less_and_when_upstream_says():
    assert [ask_again_after(times, None) for times in (1, 2, 3, 4, 5, 9999)] == [30, 60, 120, 240, 300, 300]
    assert [ask_again_after(9, seconds) for seconds in (0.0, 3600.0, 1e9)] == [0, 3600, 86400]


@pytest.mark.parametrize(
    ("status", "fields", "seconds"),
    [
        pytest.param(404, {}, 10, id="404"),
        pytest.param(410, {}, 10, id="410"),
        pytest.param(403, {}, 0, id="403"),
        pytest.param(500, {"cache_control": MINUTE}, 0, id="500"),
        pytest.param(404, {"cache_control": MINUTE}, 10, id="rfc9111-4.2.1-at-most"),
        pytest.param(404, {"cache_control": "max-age=3"}, 3, id="rfc9111-4.2.1-less"),
        pytest.param(404, {"cache_control": "no-store"}, 0, id="rfc9111-5.2.2.5-no-store"),
        pytest.param(404, {"cache_control": "private"}, 0, id="rfc9111-5.2.2.7-private"),
        pytest.param(404, {"cache_control": "no-cache"}, 0, id="rfc9111-5.2.2.4-no-cache"),
        pytest.param(404, {"vary": "accept"}, 0, id="rfc9111-4.1-vary"),
        pytest.param(404, {"vary": "accept-encoding"}, 10, id="rfc9111-4.1-always-identity"),
    ],
)
def test_how_long_an_absence_is_known(status, fields, seconds):
    assert negative_lifetime(target().mirror, status, entry(**fields).head) == seconds
    assert negative_lifetime(target(negative_ttl=0.0).mirror, status, entry(**fields).head) == 0


def test_satisfies_needs_freshness_or_leave():
    assert satisfies({}, 10.0, 0.5)
    assert not satisfies({}, 10.0, 0.0)
    assert not satisfies({}, 10.0, -5.0, 4.0)
    assert satisfies({}, 10.0, -5.0, 5.0)
