"""One request against what is stored: serve it, ask upstream, or refuse.

Pure: the clock is `now`. RFC 9111 as a shared cache, and the mirror's rules over it: an immutable object is never asked
for again, a moving one after the mirror's ttl, whatever upstream says of their freshness; all else follows its headers.
What upstream forbids to store (no-store, private) and what the client wishes (no-cache, max-age ...) holds for all.
Only 200 is stored (and made whole by 206); of 404 and 410 only that they were said is known, for `negative_ttl`.

A moving object is stale as well once one of its checksum files has become another since it was last confirmed: image
and checksum file are to be of one time. The other way round a new image has its checksum files asked for with it.

An answer to somebody's credentials is stored only where it says that it is everybody's (§3.5); then, and where it
came without them, it is served with and without them alike.

When upstream fails, what is stored is served for `stale_if_error` past its freshness, unless upstream forbade that
(must-revalidate and the like, §4.2.4); of what a mirror's rules cover they decide, and upstream is not asked. Offline
everything is served at any age: that is what its user has asked for.
"""

import math
from dataclasses import dataclass

from . import vary
from .entry import Entry, Head, Headers, field
from .freshness import (
    current_age,
    forbids_stale,
    heuristic_lifetime,
    is_storable,
    lifetime,
    window,
)
from .headers import Directives, cache_control, delta_seconds
from .mirrors import Mirror, Target
from .validators import condition

NEVER = float("inf")
GONE = frozenset({404, 410})


@dataclass(frozen=True, slots=True)
class Serve:
    """Answer from the store."""

    entry: Entry
    ttl: int | None = None
    """Where it is stale: seconds of freshness left, negative (RFC 9211 §2.3)."""
    refresh: Headers | None = None
    """Fields to ask upstream with behind the answer (stale-while-revalidate, RFC 5861 §3)."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask upstream, on condition that it differs from what we have if we have something."""

    condition: Headers = ()
    """The fields that say so, and those of the client that go with them."""
    why: str = "uri-miss"
    """The reason by RFC 9211 §2.2: uri-miss, vary-miss, stale, or request where only the client's wish made it so."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The client forbade asking (`only-if-cached`), or we are offline, and there is nothing to serve."""


Decision = Serve | Ask | Refuse


def decide(
    headers: Headers,
    target: Target,
    entry: Entry | None,
    *,
    now: float,
    offline: bool = False,
    changed_at: float = 0.0,
) -> Decision:
    """What to do with a GET or HEAD that carries `headers`, `entry` being what is stored of `target`.

    `changed_at`: when the newest of its checksum files became another one.
    """
    directives = request_directives(headers)
    is_selected = entry is not None and vary.is_for(headers, entry.head)
    left = 0.0
    if entry and is_selected:
        left = freshness_left(target, entry, now, changed_at)
        ttl = None if left > 0 else math.floor(left)
        if offline:
            return Serve(entry, ttl)
        age = current_age(entry, now)
        if satisfies(directives, age, left):
            return Serve(entry)
        granted = stale_while_revalidate(directives, target, entry)
        if satisfies(directives, age, left, max(granted, max_stale(directives, target, entry))):
            is_granted = 0 < granted >= -left
            return Serve(entry, ttl, _question(headers, entry) if is_granted else None)
    if offline or "only-if-cached" in directives:
        return Refuse()
    if entry is None:
        return Ask(vary.passed_on(headers, None))
    why = "vary-miss" if not is_selected else "request" if left > 0 else "stale"
    return Ask(_question(headers, entry), why)


def _question(headers: Headers, entry: Entry) -> Headers:
    """What to ask upstream with, for a client's request with `headers`, where `entry` is stored."""
    return condition(entry.head.headers) + vary.passed_on(headers, entry.head)


def request_directives(headers: Headers) -> Directives:
    """The request's Cache-Control; `Pragma: no-cache` where there is none (RFC 9111 §5.4)."""
    value = field(headers, "cache-control")
    if value is None and "no-cache" in cache_control(field(headers, "pragma")):
        return {"no-cache": None}
    return cache_control(value)


def satisfies(directives: Directives, age: float, left: float, allowed: float = 0.0) -> bool:
    """Whether a stored answer will do for a request with these directives, without asking upstream (RFC 9111 §5.2.1).

    It has `left` seconds of freshness, and may be used for `allowed` seconds after them.
    """
    if "no-cache" in directives:
        return False
    for name in ("max-age", "min-fresh"):
        seconds = delta_seconds(directives.get(name))
        if name in directives and (seconds is None or (age > seconds if name == "max-age" else left < seconds)):
            return False
    return left > 0 or 0 < allowed >= -left


def freshness_left(target: Target, entry: Entry, now: float, changed_at: float = 0.0) -> float:
    """Seconds until the entry must be confirmed; negative since when it should have been; infinite if never."""
    mirror = target.mirror
    if mirror.is_immutable(target.path):
        return NEVER
    if mirror.is_moving(target.path):
        # Counted from our own question: what a cache on the way has answered does not get younger by asking again.
        left = mirror.ttl - max(0.0, now - entry.validated_at)
        return left if changed_at <= max(entry.stored_at, entry.validated_at) else min(left, 0.0)
    stated = lifetime(entry.head)
    if stated is None:
        stated = heuristic_lifetime(entry.head)
    return (mirror.ttl if stated is None else stated) - current_age(entry, now)


def max_stale(directives: Directives, target: Target, entry: Entry) -> float:
    """Seconds past its freshness that the client still takes the entry (RFC 9111 §5.2.1.2)."""
    if "max-stale" not in directives or not may_be_stale(target, entry):
        return 0.0
    given = directives["max-stale"]
    return NEVER if given is None else float(delta_seconds(given) or 0)


def stale_while_revalidate(directives: Directives, target: Target, entry: Entry) -> float:
    """Seconds past its freshness that upstream lets the entry be served while it is asked (RFC 5861 §3).

    Not to a client that says what age it takes; and where the mirror's rules stand, they alone say when to ask.
    """
    if "max-age" in directives or is_ruled(target) or not may_be_stale(target, entry):
        return 0.0
    return window(entry.head, "stale-while-revalidate")


def is_ruled(target: Target) -> bool:
    """Whether the mirror's rules, not the answer's headers, say how long the object is fresh."""
    return target.mirror.is_immutable(target.path) or target.mirror.is_moving(target.path)


def may_be_stale(target: Target, entry: Entry) -> bool:
    return is_ruled(target) or not forbids_stale(entry.head)


def may_serve_stale(
    headers: Headers,
    target: Target,
    entry: Entry | None,
    upstream_status: int | None,
    *,
    now: float,
    is_head: bool = False,
) -> bool:
    """Whether a question that failed falls back to what is stored (RFC 9111 §4.2.4, RFC 5861 §4).

    `upstream_status` is None where upstream was not reached or gave no answer. A 4xx is upstream's word: it stands.
    HEAD always does: tools ask it to learn whether their own copy will do, and give up where it fails.
    """
    if entry is None or not vary.is_for(headers, entry.head):
        return False
    if upstream_status is not None and upstream_status < 500 and upstream_status != 429:
        return False
    left = freshness_left(target, entry, now)
    if is_head or left > 0:  # fresh: asked only because the client would have liked it so
        return True
    wished = request_directives(headers).get("stale-if-error")
    allowed = max(target.mirror.stale_if_error, 0.0 if is_ruled(target) else window(entry.head, "stale-if-error"))
    if allowed and upstream_status is None:
        allowed = NEVER  # disconnected (§4.2.4): nobody knows when there will be an answer again
    return may_be_stale(target, entry) and -left <= (allowed if wished is None else delta_seconds(wished) or 0)


def negative_lifetime(mirror: Mirror, status: int, head: Head) -> float:
    """Seconds for which upstream's "there is no such object" need not be heard again; 0: not at all."""
    if status not in GONE or not is_storable(head) or vary.nominated(head):
        return 0.0
    stated = lifetime(head)
    return mirror.negative_ttl if stated is None else min(mirror.negative_ttl, stated - head.age)
