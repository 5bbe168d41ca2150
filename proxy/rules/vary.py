"""Which requests an answer may serve (RFC 9111 §4.1). We keep one variant of each URL.

Upstream sees our own fields and a few of the client's, so requests that differ in other fields are the same to upstream
and to us. We send `Accept-Encoding: identity`, which every client understands, and no User-Agent or cookies. An answer
to a request with credentials is kept only if it is for everybody (freshness.py). Once a stored answer's Vary names a
field, that field goes upstream too.
"""

from .entry import Head, Headers, field
from .headers import HOP_BY_HOP, OURS

NEGOTIATING = {"accept": "*/*", "accept-language": "*"}
"""Fields that go upstream, and what their absence means (RFC 9110 §12.5.1, §12.5.4)."""
FOR_EVERY_CACHE = ("cache-control", "pragma", "via")
"""Fields that go upstream too: for every cache on the way (RFC 9111 §5.2), and the proxies that a request came by."""
KEPT_BACK = (
    HOP_BY_HOP
    | OURS
    | {"accept-encoding", "cookie", "expect", "forwarded", "host", "range", "user-agent"}
    | {"if-match", "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", *FOR_EVERY_CACHE, "*", ""}
)
"""Fields that never come from a client's request or never select an answer, whatever Vary says."""


def passed_on(headers: Headers, stored: Head | None) -> Headers:
    """The fields of a client's request that go upstream. `stored` is the stored answer of the URL."""
    names = [*NEGOTIATING, *FOR_EVERY_CACHE, "authorization", *(nominated(stored) if stored else ())]
    return tuple((name, value) for name in dict.fromkeys(names) if (value := _sent(name, headers)) is not None)


def that_select(asked: Headers) -> Headers:
    """Those of the fields sent upstream that may have selected the answer.

    Every request for a part of the same body needs them too.
    """
    return tuple(line for line in asked if line[0] not in KEPT_BACK)


def login(asked: Headers) -> str | None:
    """The client's credentials; None if it has none. Two requests with different ones may get different answers."""
    return field(asked, "authorization")


def is_known_to_all(asked: Headers) -> bool:
    """Whether each cache of ours sends these fields upstream, whatever it has stored of the URL. None is a login."""
    return all(name in NEGOTIATING for name, _ in that_select(asked))


def without_login(asked: Headers) -> Headers:
    """The fields as they are stored: credentials are not written to disk. No answer that they select is stored."""
    return tuple(line for line in asked if line[0] != "authorization")


def is_for(headers: Headers, head: Head) -> bool:
    """Whether the answer may serve a request with `headers`: they agree in every field that its Vary names."""
    return all(_normal(name, headers) == _normal(name, head.nominated) for name in nominated(head))


def nominated(head: Head) -> set[str]:
    """The fields that the answer's Vary names, without those that make no difference to us."""
    return members(field(head.headers, "vary")) - KEPT_BACK


def members(vary: str | None) -> set[str]:
    """The names in a Vary field, in lower case."""
    return {name.strip(" \t").lower() for name in vary.split(",")} if vary else set()


def _sent(name: str, headers: Headers) -> str | None:
    """The value of a client's field as it goes upstream; None if it does not.

    A metalink names mirrors: some redirectors answer with one in place of the file, and the client would then fetch
    from them, past the cache. So upstream does not learn that a client takes metalinks.
    """
    value = field(headers, name)
    if name != "accept" or value is None or "metalink" not in value.lower():
        return value
    kept = (kind for kind in value.split(",") if not kind.strip(" \t").lower().startswith("application/metalink"))
    return ",".join(kept).strip(" \t") or None


def _normal(name: str, headers: Headers) -> str:
    listed = (_sent(name, headers) or "").split(",")
    return ",".join(text for member in listed if (text := member.strip(" \t"))) or NEGOTIATING.get(name, "")
