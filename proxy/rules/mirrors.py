"""Request target → mirror, path and upstream URLs.

Whatever the spelling, one object has one Target and one key: mirror, path and query, never the URL of one upstream.
The path goes upstream byte for byte. It is checked once, here, in the form it has when decoded until nothing changes;
nobody decodes it afterwards. The error for an unknown host gives the configuration lines that would allow it.
"""

import difflib
import functools
import hashlib
import re
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ..errors import ConfigError, RequestError, UnknownMirror
from .digests import Digest
from .entry import Headers

RESERVED = frozenset({"-", "http", "https", "HTTPS", "v2"})
"""First segments that cannot be the name of a mirror. Nor can a segment that contains one of DIGESTS."""
DIGESTS = ("sha256:", "sha512:")

MAX_TARGET_BYTES = 16 * 1024  # a signed URL has 2 KB; nginx takes 8 KB, Varnish and Apache less
MAX_ENCODINGS = 8  # rounds of percent-encoding; each costs time to decode, and nobody needs two
DEFAULT_PORTS = {"http": "80", "https": "443"}
SHOWN_CHARACTERS = 100  # how much of a client's text a message repeats

_UNSENDABLE = re.compile(r"[^\x21-\x7e]|[#\\]")
_DOT_SEGMENT = re.compile(r"(?:\A|/)\.{1,2}(?:/|\Z)")
_HIDDEN = re.compile(r"[\0\r\n\\]")
_ABSOLUTE = re.compile(r"(https?)://", re.IGNORECASE)
# /https/HOST, /https://HOST, apt-cacher-ng's /HTTPS///HOST, and /https:/HOST of clients that merge slashes.
_PREFIXED = re.compile(r"/(https?):?/+", re.IGNORECASE)
_HOST = re.compile(r"((?:[a-z0-9_-]+\.)*[a-z0-9_-]+|\[[0-9a-f:.]+\])\.?(?::([0-9]{0,5}))?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Mirror:
    """One tree of objects, and the servers that have it."""

    name: str
    """Without a dot; for an allowed host without a mirror, the host itself."""
    upstreams: tuple[str, ...]
    """Base URLs ending in "/", tried in order."""
    immutable: tuple[str, ...] = ()
    """Regular expressions, searched for in "/" + path."""
    moving: tuple[str, ...] = ()
    """Like `immutable`, and wins over it."""
    ttl: float = 300.0
    """Seconds a moving object stays fresh."""
    negative_ttl: float = 10.0
    """Seconds at most for which a 404 or 410 is remembered."""
    stale_if_error: float = 30 * 86400.0
    """Seconds past its freshness that an object is served while upstream fails."""
    checksums: tuple[str, ...] = ()
    """Names of sibling files, the likeliest first; `{file}` stands for the object's file name."""
    verify: str = "strict"
    """What to do if the digest in a checksum file does not match: strict (nothing is stored), warn, or off."""
    ignore_query: bool = False
    rewrite: tuple[str, ...] = ()
    """Like `immutable`: JSON that names its files by absolute URLs."""
    connections: int = 0
    """Connections for one object; 0: as [fill] says."""
    forward_authorization: bool = True
    """Whether a client's credentials go to it."""
    credentials: tuple[Headers, ...] = field(default=(), repr=False)
    """The fields to send to each of `upstreams` and to nobody else; () if there are none."""
    any_scheme: bool = False
    """For an allowed host: ask upstream with the scheme that the client named."""

    def is_immutable(self, path: str) -> bool:
        # A dated name in a moving directory moves: one question too many is cheaper than an old image for ever.
        return _matches(self.immutable, path) and not _matches(self.moving, path)

    def is_moving(self, path: str) -> bool:
        return _matches(self.moving, path)

    def is_rewritten(self, path: str) -> bool:
        return bool(self.rewrite) and _matches(self.rewrite, path)

    def is_checksum(self, name: str) -> bool:
        """Whether the file `name` is itself a checksum file."""
        for template in self.checksums:
            before, stands_for_file, after = template.partition("{file}")
            if name == template:
                return True
            if stands_for_file and name.startswith(before) and name.endswith(after) and len(name) > len(before + after):
                return True
        return False


@dataclass(frozen=True)
class Target:
    """One object of a mirror. Its names are computed once: a miss asks twenty times for its key."""

    mirror: Mirror
    path: str
    """The path below the mirror's base, verbatim with its percent-escapes. It begins after the base's last slash."""
    query: str
    """Without "?"; empty if there is none or the mirror ignores it."""
    scheme: str
    """The scheme to ask upstream with, if the mirror takes any."""
    digest: Digest | None = None
    """What the client expects of the body. Not part of the key."""
    is_apart: bool = False
    """The body with that digest, which may be of another time or URL: nobody else is to get it, so the key has both."""

    @functools.cached_property
    def key(self) -> str:
        # An allowed host without a dot could look like the name of a mirror.
        owner = f"//{self.mirror.name}" if self.mirror.any_scheme else self.mirror.name
        return cache_key(owner, self.path, f"{self.query}#{self.digest}" if self.is_apart else self.query)

    @functools.cached_property
    def urls(self) -> tuple[str, ...]:
        """The upstream URLs, in the order to try them."""
        rest = f"{self.path}?{self.query}" if self.query else self.path
        if self.mirror.any_scheme:
            return tuple(f"{self.scheme}://{base.partition('://')[2]}{rest}" for base in self.mirror.upstreams)
        return tuple(base + rest for base in self.mirror.upstreams)

    def urls_for(self, fields: Headers) -> tuple[str, ...]:
        """The URLs that may get `fields` of a client's request: its credentials are for the first upstream alone."""
        return self.urls[:1] if any(name == "authorization" for name, _ in fields) else self.urls

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def name(self) -> str:
        """The last segment of the path: the file's name, or "" for a directory."""
        return self.path.rpartition("/")[2]

    @property
    def checksum_paths(self) -> tuple[str, ...]:
        """Paths of the files beside it that may list its digest; () for a directory and for a checksum file."""
        name = self.name
        if not name or self.mirror.is_checksum(name):
            return ()
        directory = self.path.removesuffix(name)
        return tuple(directory + template.replace("{file}", name) for template in self.mirror.checksums)

    @property
    def checksums(self) -> tuple["Target", ...]:
        """The objects at `checksum_paths`."""
        return tuple(replace(self, path=path, query="", digest=None) for path in self.checksum_paths)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A target in its parts. Either `host` or `name` is set."""

    host: str | None
    """HOST[:PORT] in lower case, without default port and trailing dot."""
    name: str | None
    """First segment of the name form."""
    scheme: str
    """The one the client named; if none, http for port 80 and https for all others."""
    path: str
    """Verbatim, starting with the slash after host or name; may be empty."""
    query: str
    digest: Digest | None = None
    """The digest of the digest form."""


class MirrorTable:
    """Mirrors and allowed hosts, arranged for lookup."""

    def __init__(self, mirrors: Iterable[Mirror], allow_hosts: Iterable[str] = ()) -> None:
        """Raises ConfigError for an upstream or allowed host that is malformed."""
        self._names = {mirror.name: mirror for mirror in mirrors}
        bases: dict[str, dict[str, Mirror]] = {}
        # The last one wins: a mirror's first upstream over another's fallback, a later mirror over an earlier one.
        for part in (slice(1, None), slice(1)):
            for mirror in self._names.values():
                for url in mirror.upstreams[part]:
                    host, path = _split_base(url)
                    bases.setdefault(host, {})[path] = mirror
        self._hosts = {host: sorted(of.items(), key=lambda item: -len(item[0])) for host, of in bases.items()}
        # Mirrors whose base contains the base of another: the name form must find the inner one too.
        self._outer: dict[str, tuple[str, str]] = {}
        for mirror in self._names.values():
            host, path = _split_base(mirror.upstreams[0])
            if any(other.startswith(path) and other != path for other, _ in self._hosts[host]):
                self._outer[mirror.name] = host, path
        allowed = [allowed_host(entry) for entry in allow_hosts]
        self._allowed = {host: _host_mirror(host) for host in allowed if not host.startswith("*")}
        self._suffixes = tuple(host[1:] for host in allowed if host.startswith("*"))

    def resolve(self, raw: bytes | str) -> Target:
        """The object that a request target or URL names, in any spelling. Raises RequestError, UnknownMirror."""
        parsed = parse_target(raw)
        if parsed.name is not None and (mirror := self._names.get(parsed.name)):
            return self._target(self._inner(mirror, parsed.path), parsed)
        host = parsed.host or (parsed.name or "").lower()
        if found := self._find(host, parsed.path):
            return self._target(found, parsed)
        if host in self._allowed:
            return self._target((self._allowed[host], parsed.path[1:]), parsed)
        if host.endswith(self._suffixes):
            return self._target((_host_mirror(host), parsed.path[1:]), parsed)
        if parsed.name is not None:
            raise UnknownMirror(self._unknown_name(parsed.name))
        raise UnknownMirror(self._unknown_host(host, parsed))

    def _find(self, host: str, path: str) -> tuple[Mirror, str] | None:
        """The mirror with the longest base that contains `path`, and the path below that base."""
        for base, mirror in self._hosts.get(host, ()):
            if path.startswith(base):
                return mirror, path[len(base) :]
            if path + "/" == base:
                return mirror, ""
        return None

    def _inner(self, mirror: Mirror, path: str) -> tuple[Mirror, str]:
        """`mirror` and the path below it, or an inner mirror and the path below that."""
        if outer := self._outer.get(mirror.name):
            host, base = outer
            found = self._find(host, base + path[1:])
            if found and len(found[1]) < len(path[1:]):
                return found
        return mirror, path[1:]

    def _target(self, found: tuple[Mirror, str], parsed: Parsed) -> Target:
        mirror, path = found
        scheme = parsed.scheme if mirror.any_scheme else mirror.upstreams[0].partition("://")[0]
        return Target(mirror, path, "" if mirror.ignore_query else parsed.query, scheme, parsed.digest)

    def _unknown_name(self, name: str) -> str:
        similar = ", ".join(difflib.get_close_matches(name, self._names, 3))
        hint = f"similar ones: {similar}" if similar else "mirrors are set as [[mirror]] tables in the configuration"
        return f'no mirror is called "{_shown(name)}". {hint}. an upstream host is written as it is: /example.org/PATH'

    def _unknown_host(self, host: str, parsed: Parsed) -> str:
        host = _shown(host)
        if bases := self._hosts.get(host):
            known = ", ".join(base for base, _ in bases)
            return (
                f"of {host} only {known} is configured, and {_shown(parsed.path or '/')} is not below it. "
                f"to allow the whole host: start with --allow {host}"
            )
        labels = host.partition(":")[0].split(".")
        name = labels[-2] if len(labels) > 1 else labels[0]
        if not is_valid_name(name) or name.isdigit() or name in self._names:
            name = "-".join(["my", *re.findall(r"[a-z0-9]+", host)])  # a name already in use would replace that mirror
        return (
            f"no mirror is configured for {host}. to allow it: start with --allow {host}, or add to the configuration: "
            f'[[mirror]] name = "{name}" upstreams = ["{parsed.scheme}://{host}/"]'
        )


def parse_target(raw: bytes | str) -> Parsed:
    """Split a request target (origin-form or absolute-form) or an upstream URL.

    Raises RequestError if it is malformed, or if some server could read it as a path outside the mirror's base.
    """
    text = raw if isinstance(raw, str) else raw.decode("latin-1")
    if len(text) > MAX_TARGET_BYTES:
        raise RequestError(f"the request target is longer than {MAX_TARGET_BYTES} bytes")
    if found := _UNSENDABLE.search(text):
        raise RequestError(f"the request target holds {_described(found[0])}; it must be percent-encoded or left out")
    whole, _, query = text.partition("?")
    _check_path(whole)
    if marked := _PREFIXED.match(whole) or _ABSOLUTE.match(whole):
        scheme = marked[1].lower()
        authority, slash, rest = whole[marked.end() :].partition("/")
        return Parsed(normal_host(authority, scheme), None, scheme, slash + rest, query)
    if not whole.startswith("/"):
        raise RequestError(f'"{_shown(text)}" is neither a path nor an http:// or https:// URL')
    first, slash, rest = whole[1:].partition("/")
    if not first:
        raise RequestError("the request names no host: ask for /HOST/PATH or /MIRROR/PATH")
    if first.startswith(DIGESTS):
        digest = Digest.parse(first)
        if digest is None or rest.startswith(DIGESTS):
            wrong = first if digest is None else rest.partition("/")[0]
            raise RequestError(
                f'"{_shown(wrong)}" is not one digest: expected /sha256: and 64 hexadecimal digits, '
                "or /sha512: and 128, and then /HOST/PATH or /MIRROR/PATH"
            )
        return replace(parse_target(f"/{rest}?{query}" if query else f"/{rest}"), digest=digest)
    if first.lower() in RESERVED or any(each in first for each in DIGESTS):
        raise RequestError(f'"{_shown(first)}" is neither a host nor a mirror: ask for /HOST/PATH or /MIRROR/PATH')
    if "." in first or ":" in first or "@" in first or first.lower() == "localhost":
        scheme = "http" if first.endswith(":80") else "https"
        return Parsed(normal_host(first, scheme), None, scheme, slash + rest, query)
    return Parsed(None, first, "https", slash + rest, query)


def proxied_path(url: str) -> str:
    """The path under which we serve the upstream URL `url`, in the host form. Raises RequestError if it is not one."""
    if not _ABSOLUTE.match(url):
        raise RequestError(f'"{_shown(url)}" is no http:// or https:// URL')
    parsed = parse_target(url)
    rest = f"{parsed.path or '/'}?{parsed.query}" if parsed.query else parsed.path or "/"
    is_plain = parsed.scheme == "https" and "." in (parsed.host or "") and not (parsed.host or "").endswith(":80")
    # Without the scheme, a host without a dot would be read as a mirror's name, and port 80 as http.
    return f"/{parsed.host}{rest}" if is_plain else f"/{parsed.scheme}/{parsed.host}{rest}"


def normal_host(authority: str, scheme: str = "https") -> str:
    """HOST[:PORT] in lower case, without the scheme's default port and trailing dot. Raises RequestError."""
    if "@" in authority:
        raise RequestError("a user or password in the URL is not accepted: remove what stands before the @")
    found = _HOST.fullmatch(authority.lower())
    if not found or int(found[2] or 0) > 65535:
        raise RequestError(f'"{_shown(authority)}" is not a host name' if authority else "the request names no host")
    host, port = found[1], (found[2] or "").lstrip("0")
    return host if not port or port == DEFAULT_PORTS[scheme] else f"{host}:{port}"


def allowed_host(entry: str) -> str:
    """An entry of `allow_hosts`, HOST[:PORT] or *.DOMAIN[:PORT], in its normal form. Raises ConfigError."""
    star = "*." if entry.startswith("*.") else ""
    try:
        return star + normal_host(entry.removeprefix(star), "http" if entry.endswith(":80") else "https")
    except RequestError as error:
        raise ConfigError(f'allow_hosts: "{entry}": expected HOST, HOST:PORT or *.DOMAIN') from error


def is_valid_name(name: str) -> bool:
    """Whether a mirror may have this name: ASCII letters, digits, "-" and "_"; not a reserved word, not like a host."""
    return bool(_NAME.fullmatch(name)) and name.lower() not in RESERVED | {"localhost"}


@functools.lru_cache(maxsize=1024)
def cache_key(owner: str, path: str, query: str) -> str:
    """The name of an object in the cache: 64 hex digits. No part contains NUL, so NUL separates them."""
    return hashlib.sha256(f"{owner}\0{path}\0{query}".encode("latin-1")).hexdigest()


def _check_path(path: str) -> None:
    """Raise RequestError if `path`, decoded until nothing changes, has a dot segment or a forbidden character."""
    decoded = path
    for _ in range(MAX_ENCODINGS):
        encoded, decoded = decoded, urllib.parse.unquote(decoded, "latin-1")
        if encoded == decoded:
            break
    else:
        raise RequestError("the request target is percent-encoded too many times over")
    # Decoding only adds such characters and segments, so checking the last stage checks every stage.
    if found := _HIDDEN.search(decoded):
        raise RequestError(f"the request target holds {_described(found[0])} in percent-encoding")
    if _DOT_SEGMENT.search(decoded):
        raise RequestError('the request target holds the segment "." or ".."; write the path without it')


def _described(character: str) -> str:
    match character:
        case " ":
            return "a space"
        case "#":
            return 'a fragment ("#")'
        case "\\":
            return "a backslash"
        case _:
            return f"the byte 0x{ord(character):02x}" if character < "\x80" else "a character beyond ASCII"


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def _split_base(url: str) -> tuple[str, str]:
    """HOST[:PORT] and path of an upstream's base URL."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    if scheme not in DEFAULT_PORTS or not slash or not url.endswith("/"):
        raise ConfigError(f'upstream "{url}": expected http(s)://HOST[:PORT]/[PATH/]')
    try:
        return normal_host(authority, scheme), slash + path
    except RequestError as error:
        raise ConfigError(f'upstream "{url}": {error.message}') from error


def _host_mirror(host: str) -> Mirror:
    return Mirror(host, (f"https://{host}/",), any_scheme=True)


def _matches(patterns: tuple[str, ...], path: str) -> bool:
    return any(pattern.search("/" + path) for pattern in _compiled(patterns))


@functools.lru_cache(maxsize=256)
def _compiled(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern) for pattern in patterns)
