"""Preconditions and If-Range, against tables from RFC 9110 and against werkzeug."""

from datetime import UTC, datetime
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug import http as werkzeug
from werkzeug.sansio.http import is_resource_modified

from proxy.rules.entry import Validator
from proxy.rules.headers import http_date
from proxy.rules.validators import STRONG_AFTER, evaluate, if_range, resume_validator, strong_match, weak_match

MODIFIED = 1_700_000_000.0
BEFORE, SAME, AFTER = http_date(MODIFIED - 1), http_date(MODIFIED), http_date(MODIFIED + 1)
SAME_RFC850 = "Tuesday, 14-Nov-23 22:13:20 GMT"

STRONG = Validator(etag='"a"', last_modified=SAME, date=http_date(MODIFIED + 3600))
WEAK = Validator(etag='W/"a"', last_modified=SAME, date=http_date(MODIFIED + 3600))
DATED = Validator(last_modified=SAME, date=http_date(MODIFIED + 3600))
TAGGED = Validator(etag='"a"')
NOTHING = Validator()


@pytest.mark.parametrize(
    ("a", "b", "strong", "weak"),
    [
        pytest.param('W/"1"', 'W/"1"', False, True, id="rfc9110-8.8.3.2-row-1"),
        pytest.param('W/"1"', 'W/"2"', False, False, id="rfc9110-8.8.3.2-row-2"),
        pytest.param('W/"1"', '"1"', False, True, id="rfc9110-8.8.3.2-row-3"),
        pytest.param('"1"', '"1"', True, True, id="rfc9110-8.8.3.2-row-4"),
        pytest.param('""', '""', True, True, id="rfc9110-8.8.3-empty-tag"),
        pytest.param('"\xe9,\\"', '"\xe9,\\"', True, True, id="rfc9110-8.8.3-etagc"),
        pytest.param('"a"', '"A"', False, False, id="rfc9110-8.8.3-case"),
        pytest.param('w/"1"', 'w/"1"', False, False, id="rfc9110-8.8.3-lower-case-w"),
        pytest.param("1", "1", False, False, id="unquoted"),
        pytest.param('W/W/"1"', 'W/W/"1"', False, False, id="twice-weak"),
        pytest.param('"1", "2"', '"1", "2"', False, False, id="two-etag-lines-joined"),
        pytest.param('"a b"', '"a b"', False, False, id="space-is-no-etagc"),
        pytest.param("", "", False, False, id="empty"),
    ],
)
def test_comparison(a: str, b: str, strong: bool, weak: bool) -> None:
    assert (strong_match(a, b), strong_match(b, a)) == (strong, strong)
    assert (weak_match(a, b), weak_match(b, a)) == (weak, weak)


@pytest.mark.parametrize(
    ("fields", "validator", "status"),
    [
        pytest.param({}, STRONG, 200, id="unconditional"),
        pytest.param({"range": "bytes=0-", "if-range": '"b"'}, STRONG, 200, id="rfc9110-13.2.2-if-range-is-not-ours"),
        # If-Match, §13.1.1
        pytest.param({"if-match": '"a"'}, STRONG, 200, id="rfc9110-13.1.1-match"),
        pytest.param({"if-match": '"b"'}, STRONG, 412, id="rfc9110-13.1.1-other"),
        pytest.param({"if-match": '"b", "a"'}, STRONG, 200, id="rfc9110-13.1.1-list"),
        pytest.param({"if-match": "*"}, STRONG, 200, id="rfc9110-13.1.1-star"),
        pytest.param({"if-match": "*"}, NOTHING, 200, id="rfc9110-13.1.1-star-without-validator"),
        pytest.param({"if-match": 'W/"a"'}, WEAK, 412, id="rfc9110-13.1.1-strong-comparison"),
        pytest.param({"if-match": '"a"'}, WEAK, 412, id="rfc9110-13.1.1-ours-is-weak"),
        pytest.param({"if-match": '"a"'}, DATED, 412, id="rfc9110-13.1.1-no-tag"),
        pytest.param({"if-match": ""}, STRONG, 412, id="rfc9110-13.1.1-empty"),
        pytest.param({"if-match": '"x" "a"'}, STRONG, 412, id="rfc9110-13.1.1-malformed"),
        # If-Unmodified-Since, §13.1.4
        pytest.param({"if-unmodified-since": SAME}, STRONG, 200, id="rfc9110-13.1.4-same"),
        pytest.param({"if-unmodified-since": AFTER}, STRONG, 200, id="rfc9110-13.1.4-after"),
        pytest.param({"if-unmodified-since": BEFORE}, STRONG, 412, id="rfc9110-13.1.4-modified"),
        pytest.param({"if-unmodified-since": "yesterday"}, STRONG, 200, id="rfc9110-13.1.4-malformed"),
        pytest.param({"if-unmodified-since": f"{BEFORE}, {BEFORE}"}, STRONG, 200, id="rfc9110-13.1.4-two-lines"),
        pytest.param({"if-unmodified-since": BEFORE}, TAGGED, 200, id="rfc9110-13.1.4-no-last-modified"),
        pytest.param({"if-match": '"a"', "if-unmodified-since": BEFORE}, STRONG, 200, id="rfc9110-13.2.2-step-2"),
        pytest.param({"if-match": '"b"', "if-unmodified-since": AFTER}, STRONG, 412, id="rfc9110-13.2.2-step-1"),
        # If-None-Match, §13.1.2
        pytest.param({"if-none-match": '"a"'}, STRONG, 304, id="rfc9110-13.1.2-match"),
        pytest.param({"if-none-match": 'W/"a"'}, STRONG, 304, id="rfc9110-13.1.2-weak-comparison"),
        pytest.param({"if-none-match": '"a"'}, WEAK, 304, id="rfc9110-13.1.2-ours-is-weak"),
        pytest.param({"if-none-match": '"b",,\tW/"a" ,'}, STRONG, 304, id="rfc9110-13.1.2-list"),
        pytest.param({"if-none-match": '"b"'}, STRONG, 200, id="rfc9110-13.1.2-other"),
        pytest.param({"if-none-match": " * "}, NOTHING, 304, id="rfc9110-13.1.2-star"),
        pytest.param({"if-none-match": '"b", *'}, STRONG, 200, id="rfc9110-13.1.2-star-is-no-member"),
        pytest.param({"if-none-match": '"*"'}, STRONG, 200, id="rfc9110-13.1.2-quoted-star"),
        pytest.param({"if-none-match": "a"}, STRONG, 200, id="rfc9110-13.1.2-unquoted"),
        pytest.param({"if-none-match": "a"}, Validator(etag="a"), 304, id="both-unquoted"),
        pytest.param({"if-match": "a"}, Validator(etag="a"), 200, id="both-unquoted-if-match"),
        pytest.param({"if-match": 'W/"a"'}, WEAK, 412, id="rfc9110-13.1.1-equal-but-weak"),
        pytest.param({"if-none-match": '"a", b'}, STRONG, 200, id="rfc9110-13.1.2-one-malformed-spoils-all"),
        pytest.param({"if-none-match": '"a'}, STRONG, 200, id="rfc9110-13.1.2-unclosed"),
        pytest.param({"if-none-match": '"x,"a"'}, STRONG, 200, id="rfc9110-13.1.2-odd-quotes"),
        pytest.param({"if-none-match": '"x, "a", y"'}, STRONG, 200, id="rfc9110-13.1.2-space-in-a-tag"),
        pytest.param({"if-none-match": '"x,"'}, Validator(etag='"x"'), 200, id="rfc9110-8.8.3-comma-in-quotes-other"),
        pytest.param({"if-none-match": '"y","x,"'}, Validator(etag='"x,"'), 304, id="rfc9110-8.8.3-comma-in-quotes"),
        # If-Modified-Since, §13.1.3
        pytest.param({"if-modified-since": SAME}, STRONG, 304, id="rfc9110-13.1.3-same"),
        pytest.param({"if-modified-since": SAME_RFC850}, STRONG, 304, id="rfc9110-13.1.3-other-form"),
        pytest.param({"if-modified-since": AFTER}, STRONG, 304, id="rfc9110-13.1.3-after"),
        pytest.param({"if-modified-since": BEFORE}, STRONG, 200, id="rfc9110-13.1.3-modified"),
        pytest.param({"if-modified-since": "0"}, STRONG, 200, id="rfc9110-13.1.3-malformed"),
        pytest.param({"if-modified-since": f"{AFTER}, {AFTER}"}, STRONG, 200, id="rfc9110-13.1.3-two-lines"),
        pytest.param({"if-modified-since": AFTER}, TAGGED, 200, id="rfc9110-13.1.3-no-date-at-all"),
        pytest.param({"if-modified-since": SAME}, Validator(date=SAME), 304, id="rfc9111-4.3.2-date-stands-in"),
        pytest.param({"if-modified-since": BEFORE}, Validator(date=SAME), 200, id="rfc9111-4.3.2-date-is-later"),
        pytest.param(
            {"if-modified-since": AFTER}, Validator(last_modified="x", date=SAME), 200, id="malformed-last-modified"
        ),
        # Together, §13.2.2
        pytest.param({"if-none-match": '"b"', "if-modified-since": AFTER}, STRONG, 200, id="rfc9110-13.2.2-step-4"),
        pytest.param({"if-none-match": '"a"', "if-modified-since": BEFORE}, STRONG, 304, id="rfc9110-13.2.2-step-3"),
        pytest.param({"if-none-match": "", "if-modified-since": AFTER}, STRONG, 200, id="rfc9110-13.2.2-present-empty"),
        pytest.param({"if-match": '"a"', "if-none-match": '"a"'}, STRONG, 304, id="rfc9110-13.2.2-step-1-then-3"),
        pytest.param({"if-match": '"b"', "if-none-match": '"a"'}, STRONG, 412, id="rfc9110-13.2.2-step-1-first"),
        pytest.param(
            {"if-unmodified-since": BEFORE, "if-none-match": '"a"'}, STRONG, 412, id="rfc9110-13.2.2-step-2-first"
        ),
        pytest.param(
            {"if-unmodified-since": SAME, "if-modified-since": SAME}, STRONG, 304, id="rfc9110-13.2.2-step-2-then-4"
        ),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_preconditions(method: str, fields: dict[str, str], validator: Validator, status: int) -> None:
    assert evaluate(method, (("host", "h"), *fields.items()), validator) == status


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        pytest.param({"if-none-match": '"a"'}, 412, id="rfc9110-13.1.2-else-412"),
        pytest.param({"if-none-match": '"b"'}, 200, id="rfc9110-13.1.2-other"),
        pytest.param({"if-modified-since": AFTER}, 200, id="rfc9110-13.1.3-only-get-and-head"),
    ],
)
def test_preconditions_of_other_methods(fields: dict[str, str], status: int) -> None:
    assert evaluate("DELETE", tuple(fields.items()), STRONG) == status


def test_a_list_may_be_spread_over_lines() -> None:
    assert evaluate("GET", (("if-none-match", '"b"'), ("if-none-match", '"a"')), STRONG) == 304


@pytest.mark.parametrize("unit", ['"', ',"', '" ', 'W/"', " ", "\t,", '"a" '])
def test_lists_of_tags_take_linear_time(unit: str) -> None:
    """Backtracking over half a megabyte would not end before the suite's time limit."""
    assert evaluate("GET", (("if-none-match", unit * (500_000 // len(unit)) + "x"),), STRONG) == 200


@pytest.mark.parametrize(
    ("value", "validator", "applies"),
    [
        pytest.param(None, NOTHING, True, id="rfc9110-13.1.5-absent"),
        pytest.param('"a"', STRONG, True, id="rfc9110-13.1.5-tag"),
        pytest.param(' "a" ', STRONG, True, id="rfc9110-5.5-space-around"),
        pytest.param('"b"', STRONG, False, id="rfc9110-13.1.5-other-tag"),
        pytest.param('W/"a"', WEAK, False, id="rfc9110-13.1.5-weak-is-not-enough"),
        pytest.param('W/"a"', STRONG, False, id="rfc9110-13.1.5-theirs-is-weak"),
        pytest.param('"a"', WEAK, False, id="rfc9110-13.1.5-ours-is-weak"),
        pytest.param('"a"', DATED, False, id="rfc9110-13.1.5-no-tag"),
        pytest.param('"a", "b"', STRONG, False, id="rfc9110-13.1.5-one-tag-only"),
        pytest.param("*", STRONG, False, id="rfc9110-13.1.5-no-star"),
        pytest.param("a", Validator(etag="a"), False, id="unquoted"),
        pytest.param("", STRONG, False, id="empty"),
        pytest.param(SAME, STRONG, True, id="rfc9110-13.1.5-date"),
        pytest.param(SAME_RFC850, DATED, True, id="rfc9110-13.1.5-same-date-in-another-form"),
        pytest.param(AFTER, STRONG, False, id="rfc9110-13.1.5-later-is-no-match"),
        pytest.param(BEFORE, STRONG, False, id="rfc9110-13.1.5-earlier-is-no-match"),
        pytest.param(SAME, TAGGED, False, id="rfc9110-13.1.5-no-last-modified"),
        pytest.param("x", Validator(last_modified="x", date=AFTER), False, id="malformed-on-both-sides"),
        pytest.param(SAME, Validator(last_modified=SAME), False, id="rfc9110-8.8.2.2-no-date"),
        pytest.param(SAME, Validator(last_modified=SAME, date="x"), False, id="rfc9110-8.8.2.2-malformed-date"),
        pytest.param(SAME, Validator(last_modified=SAME, date=SAME), False, id="rfc9110-8.8.2.2-same-second"),
        pytest.param(SAME, Validator(last_modified=SAME, date=BEFORE), False, id="rfc9110-8.8.2.2-date-is-earlier"),
        pytest.param(
            SAME,
            Validator(last_modified=SAME, date=http_date(MODIFIED + STRONG_AFTER - 1)),
            False,
            id="rfc9110-8.8.2.2-clocks-may-differ",
        ),
        pytest.param(
            SAME,
            Validator(last_modified=SAME, date=http_date(MODIFIED + STRONG_AFTER)),
            True,
            id="rfc9110-8.8.2.2-far-enough-apart",
        ),
    ],
)
def test_if_range(value: str | None, validator: Validator, applies: bool) -> None:
    assert if_range(value, validator) is applies


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param({"etag": '"a"'}, '"a"', id="rfc9110-13.1.5-strong-tag"),
        pytest.param({"etag": '"a"', "last-modified": SAME, "date": SAME}, '"a"', id="rfc9110-13.1.5-tag-first"),
        pytest.param({"last-modified": SAME, "date": STRONG.date}, SAME, id="rfc9110-13.1.5-strong-date"),
        pytest.param({"last-modified": SAME, "date": AFTER}, None, id="rfc9110-8.8.2.2-weak-date"),
        pytest.param({"last-modified": SAME}, None, id="rfc9110-8.8.2.2-no-date"),
        pytest.param(
            {"etag": 'W/"a"', "last-modified": SAME, "date": STRONG.date},
            None,
            id="rfc9110-13.1.5-no-date-beside-a-tag",
        ),
        pytest.param({"etag": "a"}, None, id="unquoted"),
        pytest.param({"etag": "a", "last-modified": SAME, "date": STRONG.date}, SAME, id="a-date-beside-no-entity-tag"),
    ],
)
def test_resume_validator(fields: dict[str, str], value: str | None) -> None:
    assert resume_validator(tuple(fields.items())) == value
    assert value is None or if_range(
        value, Validator(fields.get("etag"), fields.get("last-modified"), fields.get("date"))
    )


# werkzeug as an oracle

# Known difference, left out: werkzeug takes the empty tag, legal by RFC 9110 §8.8.3, for none.
OPAQUE = st.sampled_from(["a", "b", "a,b", ",", "*", "W/", "\xe9", "a\\"])
TAGS = st.builds(lambda weak, opaque: f'{weak}"{opaque}"', st.sampled_from(["", "W/"]), OPAQUE)
LISTS = st.lists(TAGS, min_size=1, max_size=4).flatmap(
    lambda tags: st.sampled_from([", ", ",", " ,\t", ",,"]).map(lambda comma: comma.join(tags))
)


@given(LISTS, OPAQUE)
def test_lists_of_tags_are_werkzeugs(tags: str, opaque: str) -> None:
    theirs = werkzeug.parse_etags(tags)
    ours = Validator(etag=f'"{opaque}"')
    assert (evaluate("GET", (("if-none-match", tags),), ours) == 304) is theirs.contains_weak(opaque)
    assert (evaluate("GET", (("if-match", tags),), ours) == 200) is theirs.is_strong(opaque)


@given(LISTS | st.just("*"), TAGS, st.integers(-2, 2) | st.none())
def test_reading_conditions_are_werkzeugs(tags: str, etag: str, since: int | None) -> None:
    """If-None-Match and If-Modified-Since, together or not."""
    modified_since = None if since is None else http_date(MODIFIED + since)
    validator = Validator(etag=etag, last_modified=SAME)
    for none_match, date in product((tags, None), (modified_since, None)):
        fields = [("if-none-match", none_match), ("if-modified-since", date)]
        ours = evaluate("GET", tuple((name, value) for name, value in fields if value is not None), validator)
        changed = is_resource_modified(
            http_if_none_match=none_match, http_if_modified_since=date, etag=etag, last_modified=SAME
        )
        assert ours == (200 if changed else 304)


@given(LISTS, OPAQUE)
def test_if_match_is_werkzeugs(tags: str, opaque: str) -> None:
    """Known differences, left out: to werkzeug `*` matches nothing (RFC 9110 §13.1.1: it matches what there is), and a
    weak tag of ours loses its `W/` before a comparison that has to be strong. If-Unmodified-Since it has not at all.
    """
    etag = f'"{opaque}"'
    goes_on = evaluate("GET", (("if-match", tags),), Validator(etag=etag)) == 200
    assert goes_on is is_resource_modified(http_if_match=tags, etag=etag)


@given(OPAQUE, OPAQUE)
def test_strong_tags_in_if_range_are_werkzeugs(theirs: str, ours: str) -> None:
    """Strong ones only: werkzeug drops the weakness of a tag, and would splice bodies that are merely alike."""
    applies = if_range(f'"{theirs}"', Validator(etag=f'"{ours}"'))
    assert applies is (werkzeug.parse_if_range_header(f'"{theirs}"').etag == ours)


@given(st.integers(-2, 2), st.sampled_from(["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT"]))
def test_dates_in_if_range_are_werkzeugs(offset: int, form: str) -> None:
    """Date far enough from Last-Modified: werkzeug does not ask whether the date is a strong validator."""
    value = datetime.fromtimestamp(MODIFIED + offset, UTC).strftime(form)
    assert if_range(value, DATED) is (werkzeug.parse_if_range_header(value).date == werkzeug.parse_date(SAME))


@given(
    st.dictionaries(
        st.sampled_from(["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]), st.text()
    )
)
def test_any_text_is_a_condition_or_none(fields: dict[str, str]) -> None:
    for validator in (STRONG, WEAK, DATED, TAGGED, NOTHING):
        assert evaluate("GET", tuple(fields.items()), validator) in (200, 304, 412)
        for value in fields.values():
            assert not if_range(value, validator) or value in (validator.etag, SAME, SAME_RFC850)
