"""URLs of upstream: how they go out, where a redirect leads, and which server they mean."""

import functools
import re
import urllib.parse

import httpx

from ..errors import UpstreamError

_PARTS = re.compile(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?(?:#.*)?")  # RFC 3986, appendix B
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


def request_line(method: str, url: str) -> bytes:
    """The request line for `url`, and Host."""
    scheme, authority, path, query = _split(url)
    return f"{method} {_sendable((path or '/') + query)} HTTP/1.1\r\nHost: {_host(f'{scheme}://{authority}')}\r\n".encode()


@functools.lru_cache(maxsize=1024)
def _host(base: str) -> str:
    return httpx.URL(base).netloc.decode("ascii")


class VerbatimUrl(httpx.URL):
    """A URL whose path and query go out byte for byte; httpx would normalise them.

    Its extension "target" does that too, but it also replaces what a proxy is told: the whole URL, or CONNECT's host
    and port.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        _, _, path, query = _split(url)
        self._target = _sendable((path or "/") + query).encode("ascii")

    @property
    def raw_path(self) -> bytes:
        return self._target


def endpoint(url: httpx.URL) -> tuple[str, int]:
    """Host and port that a connection for `url` goes to, as httpx reads it: another parser could read another host."""
    # `host` would decode IDNA, and raises where that fails.
    return url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)


def node(url: str) -> str:
    """The server of `url`: scheme://host:port, the port always written (an origin of RFC 6454 §4)."""
    scheme, authority, _, _ = _split(url)
    return _node(f"{scheme}://{authority}")


@functools.lru_cache(maxsize=1024)
def _node(base: str) -> str:
    parsed = httpx.URL(base)  # which takes 80 µs
    host, port = endpoint(parsed)
    return f"{parsed.scheme}://[{host}]:{port}" if ":" in host else f"{parsed.scheme}://{host}:{port}"


def redirected(here: str, location: str, url: str) -> str:
    """Where the redirect of `here` to `location` leads, on the way that began at `url`.

    `location` has one character for each byte. Raises UpstreamError if we do not go there.
    """
    try:
        there = resolve(here, location)
        parsed = httpx.URL(there)
    except (ValueError, httpx.InvalidURL) as error:
        raise UpstreamError(f"{url} redirects to {shown(location)!r}, which is no URL. nothing was fetched") from error
    if parsed.scheme not in ("http", "https") or not parsed.raw_host:
        raise UpstreamError(f"{url} redirects to {shown(there)}, which is no http(s) URL. nothing was fetched")
    if parsed.userinfo:
        # No honest server sends one (RFC 9110 §4.2.4), and it would make httpx log in.
        raise UpstreamError(f"{url} redirects to a URL with a user in it. nothing was fetched")
    return there


def resolve(base: str, reference: str) -> str:
    """The URL that `reference` means at `base`, without its fragment (RFC 3986 §5.2.2). Raises ValueError.

    urljoin drops a final ";" and empty segments of the base. `reference` has one character for each byte; bytes that a
    request line cannot hold are percent-encoded, as curl does it.
    """
    if _CONTROL.search(reference):
        raise ValueError("a control character")
    scheme, authority, path, query = _split(reference)
    base_scheme, base_authority, base_path, base_query = _split(base)
    path, query = _sendable(path, "latin-1"), _sendable(query, "latin-1")
    if not scheme:
        scheme = base_scheme
        if not authority:
            authority = base_authority.encode().decode("latin-1")
            if not path:
                path, query = base_path, query or base_query
            elif not path.startswith("/"):
                path = base_path[: base_path.rfind("/") + 1] + path if base_path else "/" + path
    return f"{scheme.lower()}://{authority.encode('latin-1').decode()}{_without_dots(path) or '/'}{query}"


def _split(url: str) -> tuple[str, str, str, str]:
    """Scheme, authority, path, and query with its "?"; "" for what is not there."""
    match = _PARTS.fullmatch(url)
    if not match:
        raise ValueError("more than one line")
    scheme, authority, path, query = (part or "" for part in match.groups())
    return scheme, authority, path, query


def _without_dots(path: str) -> str:
    """RFC 3986 §5.2.4."""
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments:
        if segment == ".." and len(kept) > 1:
            kept.pop()
        elif segment not in (".", ".."):
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/".join(kept)


def _sendable(text: str, encoding: str = "utf-8") -> str:
    """With what may not stand in a request line percent-encoded, and nothing else."""
    return urllib.parse.quote(text, safe=_PRINTABLE, encoding=encoding)


def shown(url: str) -> str:
    """A URL of upstream's making, for people: without its query, which may be as good as a password."""
    return url.partition("?")[0]
