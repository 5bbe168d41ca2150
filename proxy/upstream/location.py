"""URLs of upstream: how they go out, where a redirect leads, and which server they mean."""

import urllib.parse

import httpx

from ..errors import UpstreamError


class VerbatimUrl(httpx.URL):
    """A URL whose path and query go out byte for byte; httpx would normalise them.

    Its extension "target" does that too, but it also replaces what a proxy is told: the whole URL, or CONNECT's host
    and port.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._target = _target(url)

    @property
    def raw_path(self) -> bytes:
        return self._target


def endpoint(url: httpx.URL) -> tuple[str, int]:
    """Host and port that a connection for `url` goes to, as httpx reads it: another parser could read another host."""
    # `host` would decode IDNA, and raises where that fails.
    return url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)


def node(url: str) -> str:
    """The server of `url`: scheme://host:port, the port always written (an origin of RFC 6454 §4)."""
    parsed = httpx.URL(url)
    host, port = endpoint(parsed)
    return f"{parsed.scheme}://[{host}]:{port}" if ":" in host else f"{parsed.scheme}://{host}:{port}"


def redirected(here: str, location: str, url: str) -> str:
    """Where the redirect of `here` to `location` leads, on the way that began at `url`.

    Raises UpstreamError if we do not go there.
    """
    try:
        there = urllib.parse.urldefrag(urllib.parse.urljoin(here, location)).url
        parsed = httpx.URL(there)
    except (ValueError, httpx.InvalidURL) as error:
        raise UpstreamError(f"{url} redirects to {shown(location)!r}, which is no URL. nothing was fetched") from error
    if parsed.scheme not in ("http", "https") or not parsed.raw_host:
        raise UpstreamError(f"{url} redirects to {shown(there)}, which is no http(s) URL. nothing was fetched")
    if parsed.userinfo:
        # No honest server sends one (RFC 9110 §4.2.4), and it would make httpx log in.
        raise UpstreamError(f"{url} redirects to a URL with a user in it. nothing was fetched")
    return there


def shown(url: str) -> str:
    """A URL of upstream's making, for people: without its query, which may be as good as a password."""
    return url.partition("?")[0]


def _target(url: str) -> bytes:
    parts = urllib.parse.urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # A Location may carry spaces or raw UTF-8; only what may not stand in a request line is encoded.
    return urllib.parse.quote(target, safe="".join(map(chr, range(0x21, 0x7F)))).encode("ascii")
