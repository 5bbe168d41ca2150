"""hishel's state machine of RFC 9111 as an oracle: where it decides the same question it must decide the same.

Two answers to one exchange: store or not, and then serve, ask or forward. What hishel leaves open or reads differently
stands in DIFFERENCES, each with the section that says who is right; everything else is generated, and must agree.
"""

import time
import uuid
from email.utils import formatdate

import hishel
import pytest
from hishel import CacheMiss, CacheOptions, FromCache, IdleClient, NeedRevalidation, StoreAndUse
from hypothesis import event, given, settings
from hypothesis import strategies as st

from proxy.rules.entry import Entry, Head
from proxy.rules.freshness import initial_age, is_storable
from proxy.rules.headers import stored_headers
from proxy.rules.mirrors import Mirror, Target
from proxy.rules.policy import Ask, Refuse, Serve, decide
from proxy.rules.vary import passed_on, that_select

NEVER_FRESH = Mirror(name="a", upstreams=("http://a/",), ttl=0.0)
"""Without a ttl as a fallback, because hishel has none."""
TARGET = Target(NEVER_FRESH, "x.img", "", "http")
OPTIONS = CacheOptions(shared=True, allow_stale=False)


def response_fields(now, since, /, cache_control, *, expires=None, last_modified=None, **more):
    """An answer made `since` seconds ago. Whole numbers are times in seconds from then."""
    made_at = now - since
    more |= {"expires": expires, "last_modified": last_modified, "cache_control": ", ".join(cache_control) or None}
    fields = [("date", formatdate(made_at, usegmt=True)), ("etag", '"e"')]
    for name, value in more.items():
        if value is not None:
            text = formatdate(made_at + value, usegmt=True) if isinstance(value, int) else value
            fields.append((name.replace("_", "-"), text))
    return fields


def ours(first, fields, second, now):
    """Our decision for a request with `second`, if one with `first` was answered with `fields`."""
    asked = that_select(passed_on(tuple(first.items()), Head(tuple(fields), 1, "g")))  # as if we had asked before
    head = Head(stored_headers(fields), 1, "g", initial_age(tuple(fields), now, 0.0), asked)
    if not is_storable(head):
        return "not stored"
    entry = Entry("k", "http://a/x.img", "a", head, "d", stored_at=now, validated_at=now)
    match decide(tuple(second.items()), TARGET, entry, now=now):
        case Serve():
            return "serve"
        case Ask(condition):
            return asking(dict(condition))
        case Refuse():
            return "refuse"


def theirs(first, fields, second):
    def request(headers):
        return hishel.Request("GET", "http://a/x.img", hishel.Headers(headers))

    given = hishel.Headers({name: value for name, value in fields})
    stored = CacheMiss(request=request(first), options=OPTIONS).next(hishel.Response(200, given))
    if not isinstance(stored, StoreAndUse):
        return "not stored"
    known = hishel.Entry(uuid.uuid4(), request(first), stored.response)
    match IdleClient(options=OPTIONS).next(request(second), [known]):
        case FromCache():
            return "serve"
        case NeedRevalidation(request=conditional):
            return asking(conditional.headers)
        case CacheMiss():
            return "forward"


def asking(fields):
    return "ask", fields.get("if-none-match"), fields.get("if-modified-since")


# Ages end in 5 and lifetimes in 0: the two read the clock one after the other, and must see the same.
lifetimes = st.sampled_from([0, 10, 60, 600, 86400])
directives = st.lists(
    st.one_of(
        st.sampled_from([
            "public", "private", 'private="x-a"', "no-cache", 'no-cache="x-a"', "no-store", "must-revalidate",
            "proxy-revalidate", "immutable", "no-transform", "x-unknown", 'x-unknown="max-age=5, no-store"',
        ]),
        lifetimes.map("max-age={}".format),
        lifetimes.map("s-maxage={}".format),
    ),
    max_size=4,
    unique_by=lambda text: text.partition("=")[0],  # several of one name: see DIFFERENCES
)  # fmt: skip
kinds = st.fixed_dictionaries({}, optional={"x-kind": st.sampled_from(["a", "b"])})


@settings(max_examples=1500)
@given(
    age=st.sampled_from([5, 25, 65, 605, 90005]),
    cache_control=directives,
    expires=st.none() | st.sampled_from([-60, 0, 10, 60, 600]) | st.just("0") | st.just("soon"),
    last_modified=st.none() | st.sampled_from([-100, -1000, -5000, -100_000]),
    vary=st.sampled_from([None, None, "x-kind", "X-Kind, x-other", "x-other"]),
    first=kinds,
    second=kinds,
    request=st.sampled_from([None, None, "no-cache", "no-transform", "NO-CACHE, x=1"]),
)
def test_we_decide_as_hishel_does(age, cache_control, expires, last_modified, vary, first, second, request):
    now = float(int(time.time()))
    fields = response_fields(now, age, cache_control, expires=expires, last_modified=last_modified, vary=vary)
    asked = second | ({"cache-control": request} if request else {})
    expected = theirs(first, fields, asked)
    event(kind_of(expected))
    decision = ours(first, fields, asked, now)
    if first != second and "x-kind" in (vary or "").lower() and decision[0] == "ask" == expected[0]:
        # hishel asks with another variant's date too. An origin that looks at that alone would confirm the wrong one.
        assert decision == (*expected[:2], None)
    else:
        assert decision == expected


def differs(name, we, they, since, /, *cache_control, first=None, second=None, **fields):
    return pytest.param(since, cache_control, fields, first or {}, second or {}, we, they, id=name)


DIFFERENCES = [
    # hishel reads no request directive but no-cache.
    differs("rfc9111-5.2.1.1-max-age", "ask", "serve", 25, "max-age=60", second={"cache-control": "max-age=10"}),
    differs("rfc9111-5.2.1.3-min-fresh", "ask", "serve", 25, "max-age=60", second={"cache-control": "min-fresh=50"}),
    differs("rfc9111-5.2.1.2-max-stale", "serve", "ask", 65, "max-age=60", second={"cache-control": "max-stale"}),
    differs("rfc9111-5.2.1.7-only-if-cached", "refuse", "ask", 65, "max-age=60",
            second={"cache-control": "only-if-cached"}),
    differs("rfc9111-5.4-pragma", "ask", "serve", 5, "max-age=60", second={"pragma": "no-cache"}),
    # must-understand with a known status cancels no-store.
    differs("rfc9111-5.2.2.3-must-understand", "serve", "not stored", 5, "max-age=60, no-store, must-understand"),
    # hishel computes the age from Date alone.
    differs("rfc9111-4.2.3-age", "ask", "serve", 5, "max-age=60", age="100"),
    # For hishel the last of several counts, and a malformed one is absent. Stale is right for both.
    differs("rfc9111-4.2.1-two-max-ages", "ask", "serve", 25, "max-age=10", "max-age=60"),
    differs("rfc9111-4.2.1-malformed", "ask", "serve", 5, "max-age=soon", expires=60),
    # Windows that upstream allows.
    differs("rfc5861-3-stale-while-revalidate", "serve", "ask", 65, "max-age=60", "stale-while-revalidate=30"),
    # What upstream says to shared caches alone.
    differs("rfc9213-2.2-cdn-cache-control", "ask", "serve", 25, "max-age=60", cdn_cache_control="max-age=10"),
    # An answer that never matches need not be stored.
    differs("rfc9111-4.1-vary-star", "not stored", "ask", 5, "max-age=60", vary="*"),
    # Values with the same meaning match, and so do fields that upstream never sees.
    differs("rfc9110-12.5.1-accept", "serve", "ask", 5, "max-age=60", vary="accept", second={"accept": "*/*"}),
    differs("rfc9111-4.1-whitespace", "serve", "ask", 5, "max-age=60", vary="accept",
            first={"accept": "a/b,c/d"}, second={"accept": "a/b, c/d"}),
    differs("rfc9111-4.1-accept-encoding", "serve", "ask", 5, "max-age=60", vary="accept-encoding",
            second={"accept-encoding": "gzip"}),
    differs("rfc9111-3.5-authorization", "serve", "not stored", 5, "max-age=60", first={"authorization": "Basic x"}),
    # We cut a range out of the stored body ourselves.
    differs("rfc9111-3.3-range", "serve", "forward", 5, "max-age=60", second={"range": "bytes=0-0"}),
    # The heuristic is free; ours ends at a day, hishel's at a week.
    differs("rfc9111-4.2.2-heuristic", "ask", "serve", 90005, last_modified=-10_000_000),
]  # fmt: skip


@pytest.mark.parametrize(("since", "cache_control", "fields", "first", "second", "we", "they"), DIFFERENCES)
def test_where_hishel_decides_differently(since, cache_control, fields, first, second, we, they):
    now = float(int(time.time()))
    answered = response_fields(now, since, cache_control, **fields)
    assert kind_of(ours(first, answered, second, now)) == we
    assert kind_of(theirs(first, answered, second)) == they


def kind_of(decision):
    return decision if isinstance(decision, str) else decision[0]
