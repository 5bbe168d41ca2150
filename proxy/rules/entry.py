"""What the cache knows about a response, apart from its bytes.

Values only. A Head is what upstream said about one generation of an object; an Entry is a Head whose body is complete
on disk. Both are frozen: a new answer makes a new value, a new body a new generation.
"""

from dataclasses import dataclass, replace

from .digests import Digest

Headers = tuple[tuple[str, str], ...]
"""Field lines in upstream's order: names in lower case, values as received (latin-1)."""


def field(headers: Headers, name: str) -> str | None:
    """The value of field `name` (lower-case); several lines joined by ", " (RFC 9110 §5.3); None if absent."""
    found = None
    for key, value in headers:
        if key == name:
            found = value if found is None else f"{found}, {value}"
    return found


@dataclass(frozen=True, slots=True)
class Validator:
    """What distinguishes one generation of an object from another (RFC 9110 §8.8)."""

    etag: str | None = None
    """Entity tag as sent, with quotes and `W/`."""
    last_modified: str | None = None
    """Last-Modified as sent."""
    date: str | None = None
    """Date of the same answer: decides whether Last-Modified is strong (§8.8.2.2)."""


@dataclass(frozen=True, slots=True)
class Head:
    """One 200 answer without its body."""

    headers: Headers
    """End-to-end fields to pass on: no hop-by-hop ones, no Content-Length, no Accept-Ranges, no Age, no Set-Cookie."""
    length: int | None
    """Body bytes; None until the end if upstream has not said it (chunked)."""
    generation: str
    """Random name of this body, and its ETag if upstream sends none. Empty if there is no body (HEAD)."""
    age: float = 0.0
    """Its age in seconds when we received it (RFC 9111 §4.2.3)."""
    nominated: Headers = ()
    """The client's fields that we sent upstream, and that may have selected this answer (see vary.py)."""
    node: str = ""
    """The server that gave it, behind all redirects: scheme://host:port. Its entity tag is that server's."""
    by_login: bool = False
    """A client's credentials went upstream for it, or the mirror's; or another server of ours has not denied that."""

    @property
    def validator(self) -> Validator:
        """The validator to show clients: upstream's own ETag, else a strong one bound to the generation."""
        return Validator(
            etag=field(self.headers, "etag") or (f'"fetchonce-{self.generation}"' if self.generation else None),
            last_modified=field(self.headers, "last-modified"),
            date=field(self.headers, "date"),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """An object that is complete on disk."""

    key: str
    """Cache key: 64 hex digits, see mirrors.cache_key."""
    url: str
    """The first upstream URL of the object, as people see it."""
    mirror: str
    head: Head
    """`length` is never None here."""
    sha256: str
    """SHA-256 of the body, hex; the name of its blob."""
    stored_at: float
    """Unix time at which this generation was committed."""
    validated_at: float
    """Unix time at which upstream last confirmed it."""
    pinned: bool = False
    sha512: str | None = None
    """SHA-512 of the body, hex, if somebody needed it."""
    verified: str | None = None
    """The digest that the body was checked against, and its source: "sha256:HEX (SHA256SUMS)"; None: not checked."""

    @property
    def size(self) -> int:
        assert self.head.length is not None
        return self.head.length

    def has(self, digest: Digest) -> bool:
        """Whether the body is known to have that digest."""
        return digest.hex == (self.sha256 if digest.algorithm == "sha256" else self.sha512)


OF_THE_BYTES = frozenset(
    {"content-digest", "content-encoding", "content-md5", "content-type", "digest", "repr-digest"}
)
"""They describe the stored bytes, so a 304 cannot change them: its own Content-Digest is of no bytes (RFC 9530 §2)."""


def refreshed(entry: Entry, head: Head, now: float) -> Entry:
    """The entry after upstream confirmed it: the fields of `head` replace its own, the body stays (RFC 9111 §3.2).

    Vary is added to: a redirect's says nothing about the answer behind it, and a 304 may come without one.
    """
    new = {name for name, _ in head.headers} - OF_THE_BYTES - {"vary"}
    if head.node != entry.head.node:
        new -= {"etag"}  # another node's tag for the same bytes
    kept = tuple((name, value) for name, value in entry.head.headers if name not in new)
    added = tuple(line for line in head.headers if line[0] in new or (line[0] == "vary" and line not in kept))
    news = replace(entry.head, headers=kept + added, age=head.age, nominated=head.nominated)
    return replace(entry, head=news, validated_at=now)
