"""Which requests a stored answer may serve (RFC 9111 §4.1). We keep one variant of each URL.

Upstream sees our own fields and a few of the client's, so requests that differ in other fields are the same to upstream
and to us. We send `Accept-Encoding: identity`, which every client understands, and no User-Agent or cookies. An answer
to a request with credentials is kept only if it is for everybody (freshness.py). Once a stored answer's Vary names a
field, that field goes upstream too.
"""

from .entry import Head, Headers, field
from .headers import HOP_BY_HOP, OURS

NEGOTIATING = {"accept": "*/*", "accept-language": "*"}
"""Fields that go upstream, and what their absence means (RFC 9110 §12.5.1, §12.5.4)."""
PASSED_ON = ("cache-control", "pragma", "authorization", "via")
"""Fields for every cache on the way (RFC 9111 §5.2), the client's credentials, and the proxies it came through."""
KEPT_BACK = (
    HOP_BY_HOP
    | OURS
    | {"accept-encoding", "cookie", "expect", "forwarded", "host", "range", "user-agent"}
    | {"if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", *PASSED_ON, "*", ""}
)
"""Fields that never come from a client's request or never select an answer, whatever Vary says."""


def passed_on(headers: Headers, stored: Head | None) -> Headers:
    """The fields of a client's request that go upstream. `stored` is the stored answer of the URL."""
    names = [*NEGOTIATING, *PASSED_ON, *(nominated(stored) if stored else ())]
    return tuple((name, value) for name in dict.fromkeys(names) if (value := field(headers, name)) is not None)


def that_select(asked: Headers) -> Headers:
    """Those of the fields sent upstream that may have selected the answer."""
    return tuple(line for line in asked if line[0] not in KEPT_BACK)


def with_each(asked: Headers) -> Headers:
    """Those of the fields sent upstream that every request for a part of the same body needs too."""
    return *that_select(asked), *(line for line in asked if line[0] == "authorization")


def is_for(headers: Headers, head: Head) -> bool:
    """Whether the answer may serve a request with `headers`: they agree in every field that its Vary names."""
    return all(_normal(name, headers) == _normal(name, head.nominated) for name in nominated(head))


def nominated(head: Head) -> set[str]:
    """The fields that the answer's Vary names, without those that make no difference to us."""
    vary = field(head.headers, "vary")
    return {name.strip(" \t").lower() for name in vary.split(",")} - KEPT_BACK if vary else set()


def _normal(name: str, headers: Headers) -> str:
    members = (field(headers, name) or "").split(",")
    return ",".join(text for member in members if (text := member.strip(" \t"))) or NEGOTIATING.get(name, "")
