"""Whether a client's copy is ours: preconditions and If-Range (RFC 9110 §8.8, §13).

RFC 9111 §4.3.2 excuses a cache from If-Match and If-Unmodified-Since. We evaluate them: to our clients we stand for the
origin, and a resume guarded by them must never be given bytes of another generation.
"""

import re
from collections.abc import Callable

from .entry import Headers, Validator, field
from .headers import parse_http_date

# Seconds between Last-Modified and Date from which two bodies cannot share a Last-Modified. RFC 9110 §8.8.2.2 asks for
# one second if both come from one clock, else for "enough"; a mirror has its Last-Modified from the machine it copied,
# so the clocks differ, and 60 is what RFC 7232 §2.2.2 held to be enough.
STRONG_AFTER = 60.0

_ENTITY_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAG = re.compile(_ENTITY_TAG)
# One member of a list and its comma. Members may be empty (§5.6.1.2); a comma within quotes belongs to the tag.
_MEMBER = re.compile(rf"[ \t]*(?:(?P<tag>{_ENTITY_TAG})[ \t]*)?(?:,|\Z)")


def strong_match(a: str, b: str) -> bool:
    """Both tags are strong and the same (RFC 9110 §8.8.3.2). What is no entity tag matches nothing."""
    return a == b and not a.startswith("W/") and _TAG.fullmatch(a) is not None


def weak_match(a: str, b: str) -> bool:
    """The tags are the same but for `W/` (RFC 9110 §8.8.3.2). What is no entity tag matches nothing."""
    return a.removeprefix("W/") == b.removeprefix("W/") and _TAG.fullmatch(a) is not None


def confirms(stored: Headers, headers: Headers) -> bool:
    """Whether a 304 with `headers` is about the answer stored with `stored` (RFC 9111 §4.3.4).

    By the first kind of validator that both have; a 304 without any can only mean what we asked about.
    """
    for name, same in (("etag", weak_match), ("last-modified", str.__eq__)):
        before, now = field(stored, name), field(headers, name)
        if before is not None and now is not None:
            return same(before, now)
    return True


def evaluate(method: str, headers: Headers, validator: Validator) -> int:
    """200 to go on, 304 or 412, for a request with `headers` (lower-case names), in the order of RFC 9110 §13.2.2."""
    reading = method in ("GET", "HEAD")
    if (tags := field(headers, "if-match")) is not None:
        if not _any(tags, validator.etag, strong_match):
            return 412
    elif (since := parse_http_date(field(headers, "if-unmodified-since"))) is not None:
        modified = parse_http_date(validator.last_modified)
        if modified is not None and modified > since:
            return 412

    if (tags := field(headers, "if-none-match")) is not None:
        if _any(tags, validator.etag, weak_match):
            return 304 if reading else 412
    elif reading and (since := parse_http_date(field(headers, "if-modified-since"))) is not None:
        # A cache takes Date for a Last-Modified that is not there (RFC 9111 §4.3.2).
        modified = parse_http_date(validator.last_modified or validator.date)
        if modified is not None and modified <= since:
            return 304
    return 200


def if_range(value: str | None, validator: Validator) -> bool:
    """Whether the Range field of a request with this If-Range counts (RFC 9110 §13.1.5).

    A tag is compared strongly; a date must be our Last-Modified to the second, and that one a strong validator.
    Anything else says no: the whole body is never wrong.
    """
    if value is None:
        return True
    value = value.strip(" \t")
    if value.startswith(('"', "W/")):
        return validator.etag is not None and strong_match(value, validator.etag)
    since = parse_http_date(value)
    return since is not None and since == parse_http_date(validator.last_modified) and _is_dated_strongly(validator)


def _is_dated_strongly(validator: Validator) -> bool:
    """Whether Last-Modified is a strong validator (RFC 9110 §8.8.2.2)."""
    modified, date = parse_http_date(validator.last_modified), parse_http_date(validator.date)
    return modified is not None and date is not None and date - modified >= STRONG_AFTER


def _any(tags: str, etag: str | None, match: Callable[[str, str], bool]) -> bool:
    """Whether a field value, `*` or a list of entity tags, names `etag`; `*` names whatever there is."""
    if tags.strip(" \t") == "*":
        return True
    return etag is not None and any(match(tag, etag) for tag in _entity_tags(tags))


def _entity_tags(value: str) -> list[str]:
    """The members of a list of entity tags; none if any part of it is malformed."""
    tags: list[str] = []
    position = 0
    while position < len(value):
        if (member := _MEMBER.match(value, position)) is None:
            # Guessing where the next tag begins could find one inside another's quotes. Matching nothing is safe for
            # both fields: the whole body to If-None-Match, 412 to If-Match.
            return []
        if tag := member["tag"]:
            tags.append(tag)
        position = member.end()
    return tags


def condition(headers: Headers) -> Headers:
    """The fields that ask "only if it is not this any more" of what came under `headers` (RFC 9111 §4.3.1).

    Upstream's own validators, never ours.
    """
    etag, changed = field(headers, "etag"), field(headers, "last-modified")
    return (*((("if-none-match", etag),) if etag else ()), *((("if-modified-since", changed),) if changed else ()))


def resume_validator(headers: Headers) -> str | None:
    """What to send as If-Range to go on with a body that came under `headers`; None if nothing tells its generation.

    A strong entity tag of upstream's, else a strong Last-Modified (RFC 9110 §13.1.5).
    """
    etag = field(headers, "etag")
    if etag is not None:
        return etag if strong_match(etag, etag) else None
    changed = field(headers, "last-modified")
    return changed if _is_dated_strongly(Validator(None, changed, field(headers, "date"))) else None
