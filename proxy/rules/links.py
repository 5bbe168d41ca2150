"""The two names of an object: its upstream URL, and the URL under which we serve it."""

import re
from dataclasses import dataclass

from ..errors import RequestError, UnknownMirror
from .digests import Digest
from .mirrors import MirrorTable, proxied_path

_DIGEST = re.compile(r"/(?:sha256|sha512):[0-9a-fA-F]+(?=/)")
_SCHEME = re.compile(r"/(https?)(?::?/+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Links:
    """Translates URLs of configured hosts, and no others."""

    mirrors: MirrorTable
    base: str
    """http(s)://HOST:PORT of the server, without a slash at the end."""

    def proxied(self, url: str, digest: Digest | None = None) -> str | None:
        """Our URL of the upstream URL `url`, in the digest form if there is a digest; None if no mirror has it."""
        try:
            path = proxied_path(url)
            self.mirrors.resolve(url)
        except (RequestError, UnknownMirror):
            return None
        return f"{self.base}/{digest}{path}" if digest else f"{self.base}{path}"

    def original(self, url: str) -> str | None:
        """The upstream URL of our URL `url`; None if it is not one of ours."""
        if not url.startswith(self.base + "/"):
            return None
        path = _DIGEST.sub("", url.removeprefix(self.base), count=1)
        if marked := _SCHEME.match(path):
            return f"{marked[1].lower()}://{path[marked.end() :]}"
        first = path[1:].partition("/")[0]
        if "." in first:
            return f"https:/{path}"
        try:
            return self.mirrors.resolve(path).url
        except (RequestError, UnknownMirror):
            return None
