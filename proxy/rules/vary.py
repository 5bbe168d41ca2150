"""Which requests an answer is for (RFC 9111 §4.1): one variant of each URL is kept.

Upstream is asked by our own fields and few of the client's. So requests that differ in others are one to upstream, and
to us: with `Accept-Encoding: identity` we get what everybody understands; User-Agent and cookies stay here, and what
comes for credentials is kept only if it is for everybody (freshness.py). A field that a stored answer's Vary names goes
upstream too from then on.
"""

from .entry import Head, Headers, field
from .headers import HOP_BY_HOP, OURS

NEGOTIATING = {"accept": "*/*", "accept-language": "*"}
"""Fields that go upstream, and what it means that they are not there (RFC 9110 §12.5.1, §12.5.4)."""
PASSED_ON = ("cache-control", "pragma", "authorization", "via")
"""What the client asks of all caches on the way (RFC 9111 §5.2), who he is, and by which proxies he comes."""
KEPT_BACK = (
    HOP_BY_HOP
    | OURS
    | {"accept-encoding", "cookie", "expect", "forwarded", "host", "range", "user-agent"}
    | {"if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", *PASSED_ON, "*", ""}
)
"""Fields that are no client's, whatever Vary says."""


def passed_on(headers: Headers, stored: Head | None) -> Headers:
    """The fields of a client's request that go upstream, `stored` being what we have of the URL."""
    names = [*NEGOTIATING, *PASSED_ON, *(nominated(stored) if stored else ())]
    return tuple((name, value) for name in dict.fromkeys(names) if (value := field(headers, name)) is not None)


def that_select(asked: Headers) -> Headers:
    """Of the fields a request went upstream with, those that may have selected its answer."""
    return tuple(line for line in asked if line[0] not in KEPT_BACK)


def with_each(asked: Headers) -> Headers:
    """Of the fields a request went upstream with, those that go with each request for a part of the same body."""
    return *that_select(asked), *(line for line in asked if line[0] == "authorization")


def is_for(headers: Headers, head: Head) -> bool:
    """Whether the answer is for a request with `headers`: its Vary names nothing in which they differ from its own."""
    return all(_normal(name, headers) == _normal(name, head.asked) for name in nominated(head))


def nominated(head: Head) -> set[str]:
    """The fields of clients that the answer's Vary names, as far as they can make a difference."""
    vary = field(head.headers, "vary")
    return {name.strip(" \t").lower() for name in vary.split(",")} - KEPT_BACK if vary else set()


def _normal(name: str, headers: Headers) -> str:
    members = (field(headers, name) or "").split(",")
    return ",".join(text for member in members if (text := member.strip(" \t"))) or NEGOTIATING.get(name, "")
