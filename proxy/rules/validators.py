"""Whether a client's copy is the same as ours: preconditions and If-Range (RFC 9110 §8.8, §13).

RFC 9111 §4.3.2 lets a cache ignore If-Match and If-Unmodified-Since. We evaluate them, because to our clients we are
the origin: a resume that they guard must never get bytes of another generation.
"""

import re
from collections.abc import Callable

from .entry import Headers, Validator, field
from .headers import EMPTY, parse_http_date

# If Last-Modified is this many seconds older than Date, two bodies cannot share it. RFC 9110 §8.8.2.2 asks for one
# second if both come from one clock, else for "enough". A mirror copies Last-Modified from another machine, so the
# clocks differ; RFC 7232 §2.2.2 considered 60 to be enough.
STRONG_AFTER = 60.0

_ENTITY_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAG = re.compile(_ENTITY_TAG)
# One member of a list and its comma. A member may be empty (§5.6.1.2). A comma within quotes belongs to the tag.
_MEMBER = re.compile(rf"[ \t]*(?:(?P<tag>{_ENTITY_TAG})[ \t]*)?(?:,|\Z)")


def strong_match(a: str, b: str) -> bool:
    """Whether both are strong and equal (RFC 9110 §8.8.3.2). A malformed tag matches nothing."""
    return a == b and not a.startswith("W/") and _TAG.fullmatch(a) is not None


def weak_match(a: str, b: str) -> bool:
    """Whether they are equal apart from `W/` (RFC 9110 §8.8.3.2). A malformed tag matches nothing."""
    return a.removeprefix("W/") == b.removeprefix("W/") and _TAG.fullmatch(a) is not None


def confirms(stored: Headers, headers: Headers) -> bool:
    """Whether a 304 with `headers` confirms the answer with the fields `stored` (RFC 9111 §4.3.4).

    The first kind of validator that both have decides. Equal bytes are equal, even where they are no entity tag: many
    servers leave the quotes out. A 304 without any validator can only mean the answer we asked about.
    """
    for name in ("etag", "last-modified"):
        before, now = field(stored, name), field(headers, name)
        if before and now and now not in EMPTY:
            return before == now or (name == "etag" and weak_match(before, now))
    return True


def evaluate(method: str, headers: Headers, validator: Validator) -> int:
    """The status for a request with `headers`: 304, 412, or 200 to go on. In the order of RFC 9110 §13.2.2."""
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
        # A cache uses Date if there is no Last-Modified (RFC 9111 §4.3.2).
        modified = parse_http_date(validator.last_modified or validator.date)
        if modified is not None and modified <= since:
            return 304
    return 200


def if_range(value: str | None, validator: Validator) -> bool:
    """Whether the Range field of a request with this If-Range counts (RFC 9110 §13.1.5).

    A tag is compared strongly. A date must equal our Last-Modified, and that must be a strong validator. In all other
    cases the answer is no, because the whole body is never wrong.
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
    """Whether a list of entity tags contains `etag`. The list `*` contains everything.

    An `etag` that is no entity tag is compared with the whole field.
    """
    if tags.strip(" \t") in ("*", None if etag is None or _TAG.fullmatch(etag) else etag):
        return True
    return etag is not None and any(match(tag, etag) for tag in _entity_tags(tags))


def _entity_tags(value: str) -> list[str]:
    """The members of a list of entity tags; [] if any part is malformed."""
    tags: list[str] = []
    position = 0
    while position < len(value):
        if (member := _MEMBER.match(value, position)) is None:
            # Guessing where the next tag begins could find one inside the quotes of another. Matching nothing is safe
            # for both fields: If-None-Match gets the whole body, If-Match gets 412.
            return []
        if tag := member["tag"]:
            tags.append(tag)
        position = member.end()
    return tags


def condition(headers: Headers) -> Headers:
    """The fields that ask upstream for the body only if it is no longer the one with `headers` (RFC 9111 §4.3.1).

    They carry upstream's own validators, never ours.
    """
    etag, changed = field(headers, "etag"), field(headers, "last-modified")
    return (*((("if-none-match", etag),) if etag else ()), *((("if-modified-since", changed),) if changed else ()))


def resume_validator(headers: Headers) -> str | None:
    """The If-Range value for resuming the body with `headers`; None if no validator identifies its generation.

    Upstream's strong entity tag, else a strong Last-Modified (RFC 9110 §13.1.5). An ETag that is no entity tag cannot
    be sent in If-Range.
    """
    etag = field(headers, "etag")
    if etag is not None and _TAG.fullmatch(etag):
        return etag if strong_match(etag, etag) else None
    changed = field(headers, "last-modified")
    return changed if _is_dated_strongly(Validator(None, changed, field(headers, "date"))) else None
