"""Header fields: which of upstream's we keep, and the values whose syntax we must know.

Reading is lenient and never raises: a malformed value is None, as if the field were absent. Every parser takes time
linear in the length of the value, because anybody on the network may have written it.
"""

import functools
import re
from calendar import timegm
from collections.abc import Iterable, Mapping
from datetime import datetime
from email.utils import formatdate
from typing import Any

import http_sf

from .entry import Headers, field

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Fields of one connection or one proxy (RFC 9110 §7.6.1, RFC 9111 §3.1)."""

OURS = frozenset({"accept-ranges", "age", "content-length", "content-range"})
"""Fields that we set ourselves, about our own copy."""

OF_ITS_SITE = frozenset(
    {
        "accept-ch",
        "alt-svc",
        "attribution-reporting-register-source",
        "attribution-reporting-register-trigger",
        "clear-site-data",
        "critical-ch",
        "expect-ct",
        "nel",
        "origin-agent-cluster",
        "public-key-pins",
        "refresh",
        "report-to",
        "reporting-endpoints",
        "service-worker-allowed",
        "set-cookie",
        "set-cookie2",
        "set-login",
        "sourcemap",
        "speculation-rules",
        "strict-transport-security",
        "timing-allow-origin",
        "use-as-dictionary",
        "x-sourcemap",
    }
)
"""Fields about upstream's address, about one of its clients, or for a browser that is at its site. In an answer of ours
to everybody they are wrong."""
NOT_STORED = HOP_BY_HOP | OURS | OF_ITS_SITE
CORS = "access-control-"
"""How fields begin with which a site lets pages of others read its answers. That is not for upstream to say of us."""
_ACTING_LINK = re.compile(
    r"rel[ \t]*=[ \t]*\"?[^\";,]*\b(preload|modulepreload|prefetch|prerender|preconnect|stylesheet)\b"
    r"|rel[ \t]*=[ \t]*\"?duplicate\b|application/metalink",
    re.IGNORECASE,
)
"""A Link that a browser follows by itself, or one that sends a client to mirrors, past the cache (RFC 6249)."""

VALIDATORS = frozenset({"etag", "last-modified"})
EMPTY = frozenset({"", '""', 'W/""'})
"""Values of a validator that some servers send with everything. The last two are legal entity tags."""

OF_THE_CONTENT = frozenset({"content-digest", "content-md5"})
"""Digests of the bytes in one message. Those of the whole body do not hold for a part of it (RFC 9530 §2)."""

DELTA_MAX = 2**31  # seconds; a greater number counts as this one (RFC 9111 §1.2.2)

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def stored_headers(raw: Iterable[tuple[str, str]]) -> Headers:
    """The end-to-end fields of an upstream answer, in its order: names in lower case, values untouched.

    A line that is not safe to send on is dropped: a name that is not a token, a value with control characters. So is a
    field that `private` or `no-cache` lists (RFC 9111 §5.2.2.4, §5.2.2.7), because all clients share one fill. An empty
    validator tells no generation from another.
    """
    lines = tuple((name.lower(), value) for name, value in raw)
    dropped = NOT_STORED
    if options := field(lines, "connection"):
        dropped |= {option.strip(" \t").lower() for option in options.split(",")}
    directives = response_directives(lines)
    for directive in ("no-cache", "private"):
        if listed := listed_fields(directives.get(directive)):
            dropped |= listed
    return tuple(
        (name, value)
        for name, value in lines
        if name not in dropped
        and not name.startswith(CORS)
        and not (name == "link" and _ACTING_LINK.search(value))
        and _TOKEN.fullmatch(name)
        and _VALUE.fullmatch(value)
        and (name not in VALIDATORS or value.strip(" \t") not in EMPTY)
    )


def challenges(status: int, raw: Iterable[tuple[str, str]]) -> Headers:
    """The fields of a 401 or 407 from which a client learns which login is wanted (RFC 9110 §11.6.1, §11.7.1)."""
    name = {401: "www-authenticate", 407: "proxy-authenticate"}.get(status)
    return tuple(line for line in raw if line[0] == name and _VALUE.fullmatch(line[1]))


# HTTP dates (RFC 9110 §5.6.7)

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_DAY_NAME = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_DAY_NAME_LONG = "(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)"
_CLOCK = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_DATE_FORMS = (
    re.compile(rf"{_DAY_NAME}, (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_CLOCK} GMT", re.ASCII),  # IMF-fixdate
    re.compile(rf"{_DAY_NAME_LONG}, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_CLOCK} GMT", re.ASCII),  # RFC 850
    re.compile(rf"{_DAY_NAME} {_MONTH} (?P<day>\d\d| \d) {_CLOCK} (?P<year>\d{{4}})", re.ASCII),  # asctime
)

# RFC 850 writes two digits of the year, and a date more than 50 years ahead means the past. We have no clock here, so
# we use the window of 2026. In a later year this misreads only dates more than 40 years ahead.
_CENTURY_START = 1977


def has_body(method: str, status: int) -> bool:
    """Whether an answer has a body, whatever its fields say; it may be empty (RFC 9110 §6.4.1, RFC 9112 §6.3)."""
    return method != "HEAD" and status not in (204, 304)


def http_date(timestamp: float) -> str:
    """IMF-fixdate of a Unix time in the years 1 to 9999, without fractions (RFC 9110 §5.6.7)."""
    return formatdate(timestamp, usegmt=True)


@functools.lru_cache(maxsize=256)  # of one answer each is asked for several times, and Date changes once a second
def parse_http_date(value: str | None) -> float | None:
    """Unix time of a date in any of the three forms of RFC 9110 §5.6.7; None for anything else.

    The name of the day is not compared with the date.
    """
    text = (value or "").strip(" \t")
    for form in _DATE_FORMS:
        if found := form.fullmatch(text):
            break
    else:
        return None
    year, second = int(found["year"]), int(found["second"])
    if form is _DATE_FORMS[1]:
        year += 1900 if year >= _CENTURY_START - 1900 else 2000
    try:
        # 60 is legal, but datetime has no leap seconds: count it as the second after 59.
        moment = datetime(
            year,
            _MONTHS.index(found["month"]) + 1,
            int(found["day"]),
            int(found["hour"]),
            int(found["minute"]),
            59 if second == 60 else second,
        )
    except ValueError:
        return None
    return float(timegm(moment.timetuple()) + (second == 60))


# Cache-Control (RFC 9111 §5.2)

Directives = Mapping[str, str | None]
"""By name in lower case: the argument, unquoted; None if there is none."""

# A quote opens a string only right after "=". An unclosed one is an ordinary character: it must not swallow a no-store.
_DIRECTIVE = re.compile(
    r"""
    (?P<name>[^,=]*)
    (?: =[ \t]* (?: "(?P<quoted>(?:[^"\\]|\\.)*)" | (?P<bare>[^,]*) ) )?
    [^,]*
    (?:,|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)


@functools.lru_cache(maxsize=64)  # hits ask for the same few; values may be long
def cache_control(value: str | None) -> Directives:
    """Directives of a Cache-Control field. What is not a directive is skipped.

    Different arguments of one directive are joined by a comma. Two lists become one list; two numbers become a
    malformed number, as RFC 9111 §4.2.1 wants it. A directive without argument overrides those with one.
    """
    arguments: dict[str, list[str | None]] = {}
    for found in _DIRECTIVE.finditer(value or ""):
        name = found["name"].strip(" \t").lower()
        if not name:
            continue
        if (argument := found["quoted"]) is not None:
            argument = re.sub(r"\\(.)", r"\1", argument, flags=re.DOTALL)
        elif (argument := found["bare"]) is not None:
            argument = argument.strip(" \t")
        arguments.setdefault(name, []).append(argument)
    return {
        name: ", ".join(dict.fromkeys(text for text in given if text is not None)) if None not in given else None
        for name, given in arguments.items()
    }


def response_directives(headers: Headers) -> Directives:
    """The directives of an answer: a valid CDN-Cache-Control is meant for us; else Cache-Control (RFC 9213 §2.2)."""
    targeted = cdn_cache_control(headers)
    return cache_control(field(headers, "cache-control")) if targeted is None else targeted


def cdn_cache_control(headers: Headers) -> Directives | None:
    """Directives of CDN-Cache-Control; None if it is absent, empty or malformed (RFC 9213 §2.1).

    A member whose value has the wrong type for its directive is skipped.
    """
    value = field(headers, "cdn-cache-control")
    if value is None:
        return None
    try:
        members: Any = http_sf.parse(value.encode("latin-1"), tltype="dictionary")
    except ValueError:
        return None
    directives: dict[str, str | None] = {}
    for name, (argument, _) in members.items():
        match argument:
            case True:
                directives[name] = None
            case False:
                pass
            case int() if name in TAKE_SECONDS:
                directives[name] = str(argument)
            case str() | http_sf.Token() if name not in TAKE_SECONDS:
                directives[name] = str(argument)
    return directives if members else None


TAKE_SECONDS = frozenset({"max-age", "s-maxage", "stale-if-error", "stale-while-revalidate"})
"""Response directives whose argument is a number."""


def listed_fields(argument: str | None) -> frozenset[str] | None:
    """The field names that a no-cache or private lists; None if it lists none or is malformed."""
    if argument is None:
        return None
    names = {name.strip(" \t").lower() for name in argument.split(",")} - {""}
    return frozenset(names) if names and all(map(_TOKEN.fullmatch, names)) else None


def delta_seconds(value: str | None) -> int | None:
    """Seconds, at most DELTA_MAX; None for anything but digits (RFC 9111 §1.2.2)."""
    digits = (value or "").strip(" \t")
    if not (digits.isascii() and digits.isdigit()):
        return None
    # Compare the length first: int() refuses thousands of digits.
    digits = digits.lstrip("0")
    return DELTA_MAX if len(digits) > 10 else min(int(digits or "0"), DELTA_MAX)
