"""One request against what is stored: serve it, ask upstream, or refuse.

Pure: the clock is `now`. The mirror's rules stand over RFC 9111: an immutable object is never asked for again, a
moving one after the mirror's ttl; all else follows its headers.
"""

from dataclasses import dataclass

from .entry import Entry, Headers, field
from .freshness import current_age, heuristic_lifetime, lifetime
from .headers import cache_control, delta_seconds
from .mirrors import Target


@dataclass(frozen=True, slots=True)
class Serve:
    """Answer from the store."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask upstream, on condition that it differs from what we have if we have something."""

    condition: Headers = ()
    why: str = "uri-miss"
    """The reason by RFC 9211 §2.2: uri-miss, stale, or request where only the client's wish made it so."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The client forbade asking (`only-if-cached`), or we are offline, and there is nothing to serve."""


Decision = Serve | Ask | Refuse


def decide(headers: Headers, target: Target, entry: Entry | None, *, now: float, offline: bool = False) -> Decision:
    """What to do with a GET or HEAD that carries `headers`, `entry` being what is stored of `target`."""
    directives = request_directives(headers)
    if offline or "only-if-cached" in directives:
        return Serve() if entry and (offline or is_usable(directives, target, entry, now)) else Refuse()
    if entry is None:
        return Ask()
    if is_usable(directives, target, entry, now):
        return Serve()
    return Ask(condition(entry), "request" if is_usable({}, target, entry, now) else "stale")


def request_directives(headers: Headers) -> dict[str, str | None]:
    """The request's Cache-Control; `Pragma: no-cache` where there is none (RFC 9111 §5.4)."""
    value = field(headers, "cache-control")
    if value is None and "no-cache" in cache_control(field(headers, "pragma")):
        return {"no-cache": None}
    return cache_control(value)


def is_usable(directives: dict[str, str | None], target: Target, entry: Entry, now: float) -> bool:
    """Whether the entry answers the request without asking upstream (RFC 9111 §4.2, §5.2.1)."""
    if "no-cache" in directives:
        return False
    age = current_age(entry, now)
    limit = delta_seconds(directives.get("max-age"))
    if "max-age" in directives and (limit is None or age > limit):
        return False
    return age <= freshness_lifetime(target, entry)


def freshness_lifetime(target: Target, entry: Entry) -> float:
    """Seconds after which the entry must be confirmed; infinite for an immutable object."""
    mirror = target.mirror
    if mirror.is_immutable(target.path):
        return float("inf")
    if mirror.is_moving(target.path):
        return mirror.ttl
    stated = lifetime(entry.head)
    if stated is not None:
        return stated
    guessed = heuristic_lifetime(entry.head)
    return mirror.ttl if guessed is None else guessed


def condition(entry: Entry) -> Headers:
    """The fields that ask "only if it changed" (RFC 9111 §4.3.1); upstream's own validators, never ours."""
    etag, changed = field(entry.head.headers, "etag"), field(entry.head.headers, "last-modified")
    return (*((("if-none-match", etag),) if etag else ()), *((("if-modified-since", changed),) if changed else ()))


def may_serve_stale(entry: Entry | None, upstream_status: int | None) -> bool:
    """Whether a failed revalidation falls back to what is stored (RFC 9111 §4.2.4).

    `upstream_status` is None where upstream was not reached or gave no answer. A 4xx is upstream's word: it stands.
    """
    return entry is not None and (upstream_status is None or upstream_status >= 500 or upstream_status == 429)
