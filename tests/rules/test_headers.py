"""Header fields, against tables from the RFCs and against werkzeug."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug import http as werkzeug

from proxy.rules.headers import (
    DELTA_MAX,
    cache_control,
    delta_seconds,
    has_body,
    http_date,
    parse_http_date,
    stored_headers,
)

NOV_1994 = 784111777.0  # the moment of every example in RFC 9110 §5.6.7


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        pytest.param(
            [("ETag", '"a"'), ("Content-Type", "x/y"), ("Link", "1"), ("LINK", "2")],
            (("etag", '"a"'), ("content-type", "x/y"), ("link", "1"), ("link", "2")),
            id="rfc9110-5.3-order-and-repeated-lines",
        ),
        pytest.param(
            [(name, "x") for name in ("Connection", "Keep-Alive", "Proxy-Connection", "TE", "Transfer-Encoding")]
            + [("Upgrade", "h2c"), ("Trailer", "Expires"), ("Expires", "0")],
            (("expires", "0"),),
            id="rfc9110-7.6.1-hop-by-hop",
        ),
        pytest.param(
            [
                ("X-Before", "1"),
                ("Connection", "close, X-Before"),
                ("connection", "\tX-AFTER ,,"),
                ("X-After", "2"),
                ("X", "3"),
            ],
            (("x", "3"),),
            id="rfc9110-7.6.1-fields-listed-by-connection",
        ),
        pytest.param(
            [("Proxy-Authenticate", "Basic"), ("Proxy-Authentication-Info", "x"), ("Proxy-Authorization", "x")],
            (),
            id="rfc9111-3.1-of-a-proxy",
        ),
        pytest.param(
            [("Content-Length", "3"), ("Content-Range", "bytes 0-2/3"), ("Accept-Ranges", "none"), ("Age", "5")],
            (),
            id="ours-to-say",
        ),
        pytest.param(
            [("Set-Cookie", "a=b"), ("Alt-Svc", "h3"), ("Strict-Transport-Security", "max-age=1"), ("Date", "d")],
            (("date", "d"),),
            id="of-another-connection",
        ),
        pytest.param(
            [
                ("Clear-Site-Data", "*"),
                ("Refresh", "0; url=/"),
                ("Service-Worker-Allowed", "/"),
                ("Access-Control-Allow-Origin", "*"),
                ("ACCESS-CONTROL-EXPOSE-HEADERS", "*"),
                ("Date", "d"),
            ],
            (("date", "d"),),
            id="of-its-site",
        ),
        pytest.param(
            [
                ("Link", "</a.js>; as=script; rel=preload"),
                ("Link", '</a>; rel="next prefetch"'),
                ("Link", "<http://m/x>; rel=duplicate; pri=1"),
                ("Link", '<x>; type="application/metalink4+xml"'),
                ("Link", '</preload>; rel="next"'),
            ],
            (("link", '</preload>; rel="next"'),),
            id="rfc8288-links-that-act",
        ),
        pytest.param(
            [("A", "x\r\nSet-Cookie: y"), ("B", "\0"), ("C", "\x7f"), ("D", "a\tb"), ("E", "caf\xe9"), ("F", "\u20ac")],
            (("d", "a\tb"), ("e", "caf\xe9")),
            id="rfc9110-5.5-control-characters",
        ),
        pytest.param(
            [("", "x"), ("A B", "x"), ("A\r\nB", "x"), (":status", "200"), ("ok!", "")],
            (("ok!", ""),),
            id="rfc9110-5.1-names-are-tokens",
        ),
    ],
)
def test_stored_headers_keep_what_is_end_to_end(raw: list[tuple[str, str]], kept: tuple[tuple[str, str], ...]) -> None:
    assert stored_headers(raw) == kept


def test_stored_headers_take_any_iterable_once() -> None:
    assert stored_headers(iter([("A", "1"), ("Connection", "a"), ("B", "2")])) == (("b", "2"),)


@pytest.mark.parametrize(
    ("value", "timestamp"),
    [
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT", NOV_1994, id="rfc9110-5.6.7-imf-fixdate"),
        pytest.param("Sunday, 06-Nov-94 08:49:37 GMT", NOV_1994, id="rfc9110-5.6.7-rfc850"),
        pytest.param("Sun Nov  6 08:49:37 1994", NOV_1994, id="rfc9110-5.6.7-asctime"),
        pytest.param("Wed Nov 16 08:49:37 1994", NOV_1994 + 10 * 86400, id="rfc9110-5.6.7-asctime-two-digits"),
        pytest.param(" \tSun, 06 Nov 1994 08:49:37 GMT ", NOV_1994, id="rfc9110-5.5-space-around"),
        pytest.param("Mon, 06 Nov 1994 08:49:37 GMT", NOV_1994, id="wrong-name-of-day"),
        pytest.param("Thu, 01 Jan 1970 00:00:00 GMT", 0.0, id="epoch"),
        pytest.param("Wed, 31 Dec 1969 23:59:59 GMT", -1.0, id="before-epoch"),
        pytest.param("Sat, 31 Dec 2016 23:59:60 GMT", 1483228800.0, id="rfc9110-5.6.7-leap-second"),
        pytest.param("Thu, 29 Feb 2024 00:00:00 GMT", 1709164800.0, id="leap-day"),
        pytest.param("Saturday, 01-Jan-77 00:00:00 GMT", 220924800.0, id="rfc9110-5.6.7-rfc850-past"),
        pytest.param("Wednesday, 01-Jan-76 00:00:00 GMT", 3345062400.0, id="rfc9110-5.6.7-rfc850-within-50-years"),
        pytest.param(None, None, id="absent"),
        pytest.param("", None, id="empty"),
        pytest.param("0", None, id="rfc9111-5.3-expires-0"),
        pytest.param("-1", None, id="expires-minus-1"),
        pytest.param("sun, 06 nov 1994 08:49:37 gmt", None, id="rfc9110-5.6.7-case-counts"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 UTC", None, id="utc"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 +0000", None, id="offset"),
        pytest.param("Sun, 06 Nov 1994 08:49:37", None, id="no-zone"),
        pytest.param("Sun, 6 Nov 1994 08:49:37 GMT", None, id="one-digit-day"),
        pytest.param("Sun, 06-Nov-1994 08:49:37 GMT", None, id="rfc850-four-digit-year"),
        pytest.param("Sun Nov 6 08:49:37 1994", None, id="asctime-one-space"),
        pytest.param("Wed, 30 Feb 2022 00:00:00 GMT", None, id="no-such-day"),
        pytest.param("Sun, 06 Nov 1994 24:00:00 GMT", None, id="no-such-hour"),
        pytest.param("Sun, 06 Nov 1994 08:49:61 GMT", None, id="no-such-second"),
        pytest.param("Sun, 06 Nov 0000 08:49:37 GMT", None, id="no-such-year"),
        pytest.param("Sun, 06 Nov 1994 08:49:3\u0667 GMT", None, id="digits-are-ascii"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT", None, id="two-lines"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT\n", None, id="line-break"),
    ],
)
def test_http_dates(value: str | None, timestamp: float | None) -> None:
    assert parse_http_date(value) == timestamp


@given(st.integers(-(2**35), 2**37))
def test_http_date_is_werkzeugs_and_read_back(timestamp: int) -> None:
    assert http_date(timestamp) == werkzeug.http_date(timestamp)
    assert parse_http_date(http_date(timestamp)) == timestamp


def test_http_date_cuts_fractions_off() -> None:
    assert http_date(NOV_1994 + 0.999) == "Sun, 06 Nov 1994 08:49:37 GMT"


WHOLE_SECONDS = st.datetimes(datetime(1977, 1, 1), datetime(2068, 12, 31)).map(
    lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
)


@given(
    WHOLE_SECONDS,
    st.sampled_from(["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b {day:>2} %H:%M:%S %Y"]),
)
def test_all_forms_of_dates_are_werkzeugs(moment: datetime, form: str) -> None:
    text = moment.strftime(form.format(day=moment.day))
    assert parse_http_date(text) == moment.timestamp()
    assert werkzeug.parse_date(text) == moment


@given(
    st.tuples(
        st.sampled_from(["Sun", "Sunday", "sun", ""]),
        st.sampled_from([", ", " ", ","]),
        st.sampled_from(["06 Nov 1994", "6 Nov 1994", "06-Nov-94", "Nov  6", "31 Feb 2001", "29 Feb 2000"]),
        st.sampled_from([" 08:49:37", " 23:59:60", " 24:00:00", " 8:49", " 00:00:00"]),
        st.sampled_from([" GMT", "", " UTC", " 1994", " +0100", " EST"]),
    ).map("".join)
)
def test_what_we_call_a_date_is_one_to_werkzeug(text: str) -> None:
    """One way only: werkzeug also takes what RFC 9110 does not define (other zones, no zone, one-digit days)."""
    ours = parse_http_date(text)
    if ours is None:
        return
    # Known difference: werkzeug (datetime) has no leap seconds, RFC 9110 §5.6.7 has.
    theirs = werkzeug.parse_date(text.replace(":60", ":59"))
    assert theirs is not None
    assert ours == (theirs + timedelta(seconds=":60" in text)).timestamp()


@given(st.text())
def test_no_text_makes_a_parser_raise(text: str) -> None:
    parse_http_date(text)
    cache_control(text)
    delta_seconds(text)


@pytest.mark.parametrize(
    ("value", "directives"),
    [
        pytest.param(None, {}, id="absent"),
        pytest.param("", {}, id="empty"),
        pytest.param("no-store", {"no-store": None}, id="rfc9111-5.2-no-argument"),
        pytest.param("Max-Age=60, NO-CACHE", {"max-age": "60", "no-cache": None}, id="rfc9111-5.2-case"),
        pytest.param("max-age=60,public ,\tmust-revalidate", {"max-age": "60", "public": None, "must-revalidate": None},
                     id="rfc9110-5.6.1-space-around-commas"),
        pytest.param(",, public,,", {"public": None}, id="rfc9110-5.6.1.2-empty-members"),
        pytest.param('max-age="60"', {"max-age": "60"}, id="rfc9111-5.2-both-forms-of-an-argument"),
        pytest.param('private="set-cookie, x", max-age=1', {"private": "set-cookie, x", "max-age": "1"},
                     id="rfc9110-5.6.4-comma-within-quotes"),
        pytest.param(r'x="a\"b, \\", no-store', {"x": 'a"b, \\', "no-store": None}, id="rfc9110-5.6.4-quoted-pairs"),
        pytest.param('x=""', {"x": ""}, id="rfc9110-5.6.4-empty-string"),
        pytest.param("max-age=1, max-age=2", {"max-age": "1, 2"}, id="rfc9111-4.2.1-two-numbers-are-none"),
        pytest.param("max-age=1, max-age=1", {"max-age": "1"}, id="rfc9111-4.2.1-said-twice"),
        pytest.param('no-cache="a", no-cache="b"', {"no-cache": "a, b"}, id="rfc9111-5.2.2.4-two-lists"),
        pytest.param('private="a", private', {"private": None}, id="rfc9111-5.2.2.7-the-whole-above-a-list"),
        pytest.param("max-age = 5", {"max-age": "5"}, id="lenient-space-around-equals"),
        pytest.param("max-age=5 , public", {"max-age": "5", "public": None}, id="rfc9110-5.6.1-space-before-a-comma"),
        pytest.param("max-age=", {"max-age": ""}, id="lenient-no-argument-after-equals"),
        pytest.param("=no-store, =\"no-cache\", public", {"public": None}, id="lenient-no-name"),
        pytest.param('x="a, no-store', {"x": '"a', "no-store": None}, id="unclosed-quote-hides-nothing"),
        pytest.param('"x, no-store", y', {'"x': None, 'no-store"': None, "y": None}, id="quote-without-a-name"),
        pytest.param('x="a"b=c, no-store', {"x": "a", "no-store": None}, id="lenient-rest-after-a-string"),
        pytest.param("a=b=c", {"a": "b=c"}, id="lenient-second-equals"),
    ],
)  # fmt: skip
def test_cache_control(value: str | None, directives: dict[str, str | None]) -> None:
    assert cache_control(value) == directives


# Names in lower case and once each, none with a star: werkzeug keeps case, lets the last occurrence win, and decodes
# name*=charset'' (RFC 8187), which Cache-Control does not have.
NAMES = st.text("abcdefghijklmnopqrstuvwxyz-0123456789_", min_size=1, max_size=8)
TOKENS = st.text("abcXYZ0123456789-._~!#$%&'*+^`|", min_size=1, max_size=6)
STRINGS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)


@given(st.dictionaries(NAMES, st.none() | st.tuples(st.just(False), TOKENS) | st.tuples(st.just(True), STRINGS)))
def test_well_formed_cache_control_is_werkzeugs(wanted: dict[str, tuple[bool, str] | None]) -> None:
    members = []
    for name, argument in wanted.items():
        match argument:
            case None:
                members.append(name)
            case (False, token):
                members.append(f"{name}={token}")
            case (True, text):
                escaped = text.replace("\\", r"\\").replace('"', r"\"")
                members.append(f'{name}="{escaped}"')
    value = ", ".join(members)
    assert cache_control(value) == {name: argument and argument[1] for name, argument in wanted.items()}
    assert cache_control(value) == werkzeug.parse_dict_header(value)


@pytest.mark.parametrize(
    ("method", "status", "expected"),
    [
        ("GET", 200, True),
        ("GET", 206, True),
        ("GET", 404, True),
        ("POST", 205, True),
        ("HEAD", 200, False),
        ("HEAD", 404, False),
        ("GET", 204, False),
        ("GET", 304, False),
        ("POST", 204, False),
    ],
)
def test_what_has_a_body(method: str, status: int, expected: bool) -> None:
    assert has_body(method, status) is expected


@pytest.mark.parametrize("unit", ['="\\', '="\\",', '"', '\\"', 'a=\\"', ',"', "= ", " ", "=", ',a="\\', '="\\" '])
def test_cache_control_takes_linear_time(unit: str) -> None:
    """Backtracking over half a megabyte would not end before the suite's time limit."""
    assert "no-store" in cache_control("no-store," + unit * (500_000 // len(unit)))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        pytest.param(None, None, id="absent"),
        pytest.param("", None, id="empty"),
        pytest.param("0", 0, id="zero"),
        pytest.param(" 10\t", 10, id="rfc9110-5.5-space-around"),
        pytest.param("00000000000000000060", 60, id="leading-zeros"),
        pytest.param("2147483647", 2147483647, id="below-the-limit"),
        pytest.param("2147483648", DELTA_MAX, id="rfc9111-1.2.2-limit"),
        pytest.param("9999999999", DELTA_MAX, id="rfc9111-1.2.2-overflow"),
        pytest.param("9" * 5000, DELTA_MAX, id="rfc9111-1.2.2-more-digits-than-int-takes"),
        pytest.param("0" * 5000, 0, id="zeros"),
        pytest.param("-1", None, id="negative"),
        pytest.param("+1", None, id="plus"),
        pytest.param("1.5", None, id="fraction"),
        pytest.param("1 0", None, id="space-within"),
        pytest.param("1_0", None, id="underscore"),
        pytest.param("\u00b2", None, id="superscript"),
        pytest.param("\u0661", None, id="arabic-digit"),
    ],
)
def test_delta_seconds(value: str | None, seconds: int | None) -> None:
    assert delta_seconds(value) == seconds
