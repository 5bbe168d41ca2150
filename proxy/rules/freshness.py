"""How long a stored answer may be used without asking, and how old it is (RFC 9111 §3, §4.2, as a shared cache).

This is only what upstream says; policy.py adds the mirror's rules and the client's directives.
"""

from . import vary
from .entry import Entry, Head, Headers, field
from .headers import (
    Directives,
    cdn_cache_control,
    delta_seconds,
    listed_fields,
    parse_http_date,
    response_directives,
)

HEURISTIC_FRACTION = 0.1  # of the time since Last-Modified, the value RFC 9111 §4.2.2 names as typical
HEURISTIC_MAX = 86400.0


def lifetime(head: Head) -> float | None:
    """Seconds the answer stays fresh in a shared cache, or None if it does not say (RFC 9111 §4.2.1).

    s-maxage wins over max-age over Expires; a malformed value means already stale (§4.2.1, §5.3). no-cache
    means 0, and so does a ban on storing that came with a later 304. A valid CDN-Cache-Control replaces all of them
    (RFC 9213 §2.2).
    """
    directives = response_directives(head.headers)
    if _is_set(directives, "no-cache") or not is_storable(head):
        return 0.0
    for name in ("s-maxage", "max-age"):
        if name in directives:
            return float(delta_seconds(directives[name]) or 0)
    if cdn_cache_control(head.headers) is None and (expires := field(head.headers, "expires")) is not None:
        until, since = parse_http_date(expires), parse_http_date(field(head.headers, "date"))
        return max(0.0, until - since) if until is not None and since is not None else 0.0
    return None


def heuristic_lifetime(head: Head) -> float | None:
    """Seconds of freshness guessed from Last-Modified, or None if there is none (RFC 9111 §4.2.2)."""
    changed = parse_http_date(field(head.headers, "last-modified"))
    since = parse_http_date(field(head.headers, "date"))
    if changed is None or since is None or changed > since:
        return None
    return min(HEURISTIC_MAX, (since - changed) * HEURISTIC_FRACTION)


def initial_age(headers: Headers, now: float, delay: float) -> float:
    """Age in seconds of an answer that arrived at `now`, `delay` after its request (RFC 9111 §4.2.3).

    The first of several Age values counts; a malformed one is ignored (§5.1).
    """
    reported = delta_seconds((field(headers, "age") or "").partition(",")[0]) or 0
    made_at = parse_http_date(field(headers, "date"))
    return max(reported + delay, now - made_at if made_at is not None else 0.0)


def current_age(entry: Entry, now: float) -> float:
    """Seconds since the origin made or confirmed the answer (RFC 9111 §4.2.3)."""
    return max(0.0, entry.head.age) + max(0.0, now - entry.validated_at)


def is_storable(head: Head, asked: Headers = ()) -> bool:
    """Whether a shared cache may keep this 200 to a request with the fields `asked` (RFC 9111 §3).

    must-understand cancels no-store for a cache that understands the status (§5.2.2.3). We understand 200.
    """
    directives = response_directives(head.headers)
    if "no-store" in directives and "must-understand" not in directives:
        return False
    if _is_set(directives, "private") or "*" in (field(head.headers, "vary") or ""):
        return False
    if vary.login(asked) is None:
        return True
    # §3.5: an answer to a request with credentials is shared only if it says so, and if they do not select it.
    is_shared = not {"public", "s-maxage", "must-revalidate"}.isdisjoint(directives)
    return is_shared and "authorization" not in vary.nominated(head)


def restrictions(head: Head) -> set[str]:
    """The directives of the answer that keep it, or something made of it, from being stored or used."""
    directives = response_directives(head.headers)
    ignored = {"no-store"} if "must-understand" in directives else set()
    names = ("no-store", "private", "no-cache", "must-revalidate", "proxy-revalidate")
    return {name for name in names if _is_set(directives, name)} - ignored


def forbids_stale(head: Head) -> bool:
    """Whether the answer may not be used once it is stale, even if upstream cannot be reached (RFC 9111 §4.2.4).

    s-maxage implies it (§5.2.2.10).
    """
    directives = response_directives(head.headers)
    forbidding = ("must-revalidate", "proxy-revalidate", "s-maxage")
    return any(name in directives for name in forbidding) or _is_set(directives, "no-cache") or not is_storable(head)


def window(head: Head, name: str) -> float:
    """Seconds past its freshness that the answer's stale-while-revalidate or stale-if-error allows (RFC 5861)."""
    return float(delta_seconds(response_directives(head.headers).get(name)) or 0)


def _is_set(directives: Directives, name: str) -> bool:
    """Whether no-cache or private holds for the whole answer. If it lists fields, we have not stored those fields."""
    return name in directives and listed_fields(directives[name]) is None
