"""How long a stored answer may be used without asking, and how old it is (RFC 9111 §4.2)."""

from .entry import Entry, Head, Headers, field
from .headers import cache_control, delta_seconds, parse_http_date

HEURISTIC_FRACTION = 0.1  # of the time since Last-Modified, the value RFC 9111 §4.2.2 names as typical
HEURISTIC_MAX = 86400.0


def lifetime(head: Head) -> float | None:
    """Seconds the answer stays fresh in a shared cache, or None if it does not say (RFC 9111 §4.2.1).

    s-maxage wins over max-age over Expires; a malformed value means already stale (§4.2.1, §5.3); no-cache is 0.
    """
    directives = cache_control(field(head.headers, "cache-control"))
    if "no-cache" in directives:
        return 0.0
    for name in ("s-maxage", "max-age"):
        if name in directives:
            return float(delta_seconds(directives[name]) or 0)
    if (expires := field(head.headers, "expires")) is not None:
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


def current_age(entry: Entry, now: float) -> float:
    """Seconds since the origin made or confirmed the answer (RFC 9111 §4.2.3)."""
    return max(0.0, entry.head.age) + max(0.0, now - entry.validated_at)


def is_storable(head: Head, fields: Headers = ()) -> bool:
    """Whether a shared cache may keep the answer to a request with `fields` (RFC 9111 §3)."""
    directives = cache_control(field(head.headers, "cache-control")).keys()
    if {"no-store", "private"} & directives or field(head.headers, "vary") == "*":
        return False
    # §3.5: what came for somebody's credentials is his, unless it says that it is everybody's.
    return field(fields, "authorization") is None or bool({"public", "s-maxage", "must-revalidate"} & directives)
