"""Redirects and the answer they lead to, as the one answer that clients see and we store (RFC 9111 §3).

A cache in front of us sees one URL and one answer. What a redirect says of itself must therefore stand in that answer:
whether it may be stored, for how long, and which fields select it.
"""

from collections.abc import Sequence

from .entry import Head, Headers, field
from .freshness import heuristic_lifetime, is_storable, lifetime, restrictions
from .headers import Directives, cache_control, cdn_cache_control, delta_seconds
from .vary import members


def combined(redirects: Sequence[Headers], last: Headers, asked: Headers) -> Headers:
    """The fields of the answer `last`, with the Cache-Control and Vary of the whole chain.

    `asked`: the fields it was asked with. With credentials, every answer of the chain must be for everybody (§3.5).
    """
    if not redirects:
        return last
    heads = [Head(each, None, "") for each in redirects]
    added: set[str] = set().union(*map(restrictions, heads))
    # The last answer too, as it is: what is added below, such as must-revalidate, would allow what it does not.
    if not all(is_storable(head, asked) for head in (*heads, Head(last, None, ""))):
        added.add("private")
    seconds = _limit(heads, Head(last, None, ""))
    fields = last
    for name, directives in (
        ("cache-control", cache_control(field(last, "cache-control"))),
        ("cdn-cache-control", cdn_cache_control(last)),
    ):
        if directives is not None and (added or seconds is not None):
            fields = _with(fields, name, _limited(directives, added, seconds))
    names: set[str] = set().union(*(members(field(each, "vary")) for each in (last, *redirects)))
    if names > members(field(last, "vary")):
        fields = _with(fields, "vary", ", ".join(sorted(names)))
    return fields


def _limit(redirects: Sequence[Head], last: Head) -> int | None:
    """The max-age at which the answer becomes stale with the first redirect that does; None if it does so before."""
    left = [stated - _age(head) for head in redirects if (stated := lifetime(head)) is not None]
    stated = lifetime(last)
    own = heuristic_lifetime(last) if stated is None else stated
    if not left or own is None or min(left) + _age(last) >= own:
        return None
    return max(0, int(min(left) + _age(last)))


def _age(head: Head) -> float:
    return float(delta_seconds((field(head.headers, "age") or "").partition(",")[0]) or 0)


def _limited(directives: Directives, added: set[str], seconds: int | None) -> str:
    changed = {**directives, **dict.fromkeys(sorted(added))}
    if seconds is not None:
        changed |= {name: str(seconds) for name in ("s-maxage", "max-age") if name == "max-age" or name in changed}
    return ", ".join(name if value is None else f"{name}={_quoted(value)}" for name, value in changed.items())


def _quoted(argument: str) -> str:
    if argument.isdecimal():
        return argument
    return '"' + argument.replace("\\", r"\\").replace('"', r"\"") + '"'


def _with(fields: Headers, name: str, value: str) -> Headers:
    return (*(line for line in fields if line[0] != name), (name, value))
