"""One request against what is stored: serve it, ask upstream, or refuse.

Pure: the clock is `now`. RFC 9111 as a shared cache, overridden by the mirror's rules: an immutable object is never
revalidated, a moving one after the mirror's ttl, whatever upstream says about freshness. Everything else follows its
headers. What upstream forbids to store (no-store, private) and what the client asks for (no-cache, max-age ...) always
holds. Only 200 is stored (and completed by 206). Of a 404 or 410 we remember only that it was the answer, for
`negative_ttl`.

A moving object also becomes stale when one of its checksum files has changed since the object was last confirmed, so
that image and checksum file match. Conversely, a new image has its checksum files revalidated.

An answer to a request with credentials is stored only if it says that it is for everybody (§3.5). A stored answer
serves requests with and without credentials.

When upstream fails, a stored answer is served for `stale_if_error` past its freshness, unless upstream forbids that
(must-revalidate and the like, §4.2.4). For objects that the mirror's rules cover, only the rules decide. Offline,
everything is served at any age: the user asked for it.

A question that failed is not asked again for a while: what may be served stale is served at once. A slow one is waited
for `stale_after`, then it goes on behind the stale answer. Only a client that insists (`no-cache`, `max-age=0`) still
asks, and waits as long as a plain GET would: it wants what is there now. Where upstream has just failed it too waits
for `stale_after` at most.
"""

import dataclasses
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
ASK_AGAIN_MIN = 30.0
"""Seconds after a question that failed; doubled with each further one."""
ASK_AGAIN_MAX = 300.0
RETRY_AFTER_MAX = 86400.0
"""A later Retry-After is more likely a mistake than a wish."""


@dataclass(frozen=True, slots=True)
class Serve:
    """Answer from the store."""

    entry: Entry
    ttl: int | None = None
    """Seconds of freshness left, negative, if it is stale (RFC 9211 §2.3); None if it is fresh."""
    refresh: Headers | None = None
    """Fields of a question to upstream in the background (stale-while-revalidate, RFC 5861 §3)."""
    steady: float = dataclasses.field(default=0.0, compare=False)
    """Seconds for which the same request gets the same decision, if what is stored stays; 0: not known."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask upstream: with a condition if there is a stored answer."""

    condition: Headers = ()
    """The conditional fields, and those of the client's that go upstream."""
    why: str = "uri-miss"
    """The reason by RFC 9211 §2.2: uri-miss, vary-miss, stale, or request if only the client's directives demand it."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """We may not ask (`only-if-cached`, or offline), and there is nothing to serve."""


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
    """What to do with a GET or HEAD that carries `headers`. `entry` is what is stored for `target`.

    `changed_at` is the time of the last change of one of its checksum files.
    """
    directives = request_directives(headers)
    is_selected = entry is not None and vary.is_for(headers, entry.head)
    left = 0.0
    if entry and is_selected:
        left = freshness_left(target, entry, now, changed_at)
        ttl = None if left > 0 else math.floor(left)
        steady = left if left > 0 and not directives else 0.0
        if offline:
            return Serve(entry, ttl, steady=steady)
        age = current_age(entry, now)
        if satisfies(directives, age, left):
            return Serve(entry, steady=steady)
        granted = stale_while_revalidate(directives, target, entry)
        if satisfies(directives, age, left, max(granted, max_stale(directives, target, entry))):
            is_granted = 0 < granted >= -left
            return Serve(entry, ttl, _question(headers, entry) if is_granted else None)
    if offline or "only-if-cached" in directives:
        return Refuse()
    if entry is None:
        return Ask(vary.passed_on(headers, None))
    if not is_selected:
        # An entity-tag names one variant; a date may be older than all of them (§4.3.1).
        question = tuple(line for line in _question(headers, entry) if line[0] != "if-modified-since")
        return Ask(question, "vary-miss")
    return Ask(_question(headers, entry), "request" if left > 0 else "stale")


def _question(headers: Headers, entry: Entry) -> Headers:
    """The fields to ask upstream with for a client's request with `headers`, if `entry` is stored."""
    return condition(entry.head.headers) + vary.passed_on(headers, entry.head)


def request_directives(headers: Headers) -> Directives:
    """The request's Cache-Control; without one, `Pragma: no-cache` counts (RFC 9111 §5.4)."""
    value = field(headers, "cache-control")
    if value is None and "no-cache" in cache_control(field(headers, "pragma")):
        return {"no-cache": None}
    return cache_control(value)


def satisfies(directives: Directives, age: float, left: float, allowed: float = 0.0) -> bool:
    """Whether a stored answer satisfies a request with these directives, without asking upstream (RFC 9111 §5.2.1).

    It has `left` seconds of freshness, and may be used for `allowed` seconds after that.
    """
    if "no-cache" in directives:
        return False
    for name in ("max-age", "min-fresh"):
        seconds = delta_seconds(directives.get(name))
        if name in directives and (seconds is None or (age > seconds if name == "max-age" else left < seconds)):
            return False
    return left > 0 or 0 < allowed >= -left


def freshness_left(target: Target, entry: Entry, now: float, changed_at: float = 0.0) -> float:
    """Seconds until the entry must be revalidated; negative if that is overdue; infinite if never.

    What was confirmed in the future is stale: a clock was wrong, then or now, and nobody knows the age.
    """
    mirror = target.mirror
    if mirror.is_immutable(target.path):
        return NEVER
    if entry.validated_at > now:
        return now - entry.validated_at
    if mirror.is_moving(target.path):
        # Counted from our own question: asking again does not make the answer of a cache on the way younger.
        left = mirror.ttl - max(0.0, now - entry.validated_at)
        return left if changed_at <= max(entry.stored_at, entry.validated_at) else min(left, 0.0)
    stated = lifetime(entry.head)
    if stated is None:
        stated = heuristic_lifetime(entry.head)
    return (mirror.ttl if stated is None else stated) - current_age(entry, now)


def max_stale(directives: Directives, target: Target, entry: Entry) -> float:
    """Seconds past its freshness for which the client accepts the entry (RFC 9111 §5.2.1.2)."""
    if "max-stale" not in directives or not may_be_stale(target, entry):
        return 0.0
    given = directives["max-stale"]
    return NEVER if given is None else float(delta_seconds(given) or 0)


def stale_while_revalidate(directives: Directives, target: Target, entry: Entry) -> float:
    """Seconds past its freshness for which upstream allows serving the entry while we ask (RFC 5861 §3).

    Not if the client limits the age, and not for objects that the mirror's rules cover: these alone say when to ask.
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
    """Whether to serve the stored answer after a question to upstream failed (RFC 9111 §4.2.4, RFC 5861 §4).

    `upstream_status` is None if upstream was not reached or did not answer. A 4xx is an answer, so it is passed on.
    HEAD falls back at any age: tools use it to check their own copy, and give up if it fails.
    """
    if entry is None or not vary.is_for(headers, entry.head):
        return False
    if not is_failure(upstream_status):
        return False
    left = freshness_left(target, entry, now)
    if is_head or left > 0:  # fresh: we asked only because the client wanted it
        return True
    wished = request_directives(headers).get("stale-if-error")
    allowed = max(target.mirror.stale_if_error, 0.0 if is_ruled(target) else window(entry.head, "stale-if-error"))
    if allowed and upstream_status is None:
        allowed = NEVER  # disconnected (§4.2.4), and nobody knows for how long
    return may_be_stale(target, entry) and -left <= (allowed if wished is None else delta_seconds(wished) or 0)


def is_failure(upstream_status: int | None) -> bool:
    """Whether that is no answer about the object. None: upstream was not reached."""
    return upstream_status is None or upstream_status >= 500 or upstream_status == 429


def ask_again_after(times: int, retry_after: float | None) -> float:
    """Seconds for which a question is not asked again that has failed `times` times in a row."""
    if retry_after is not None:
        return min(retry_after, RETRY_AFTER_MAX)
    return min(ASK_AGAIN_MAX, ASK_AGAIN_MIN * 2.0 ** min(times - 1, 10))


def insists(headers: Headers) -> bool:
    """Whether the client wants upstream's word, whatever is stored."""
    directives = request_directives(headers)
    return "no-cache" in directives or delta_seconds(directives.get("max-age")) == 0


def patience(headers: Headers, stale_after: float, *, running: float, has_failed: bool) -> float | None:
    """Seconds that a client waits for upstream before it gets the stale answer; None: as long as upstream takes.

    `running`: how long the question has been under way. `has_failed`: the last one did, a moment ago.
    """
    if insists(headers):
        return stale_after if has_failed else None
    return max(0.0, stale_after - running)


def negative_lifetime(mirror: Mirror, status: int, head: Head) -> float:
    """Seconds for which a 404 or 410 is remembered, so that upstream is not asked again; 0: not at all."""
    if status not in GONE or not is_storable(head) or vary.nominated(head):
        return 0.0
    stated = lifetime(head)
    return mirror.negative_ttl if stated is None else min(mirror.negative_ttl, stated - head.age)
