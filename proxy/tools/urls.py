"""URLs as they stand in files: upstream's, and ours in their place.

Only the head of a URL changes, `https://` into our address. What follows stays as it is written, and may hold variables
of the file's language: `https://HOST/${version}/x.iso`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..rules.access import OWN_NAMES
from ..rules.digests import Digest
from ..rules.links import Links

# Variables are bounded, so that many that do not end take no time.
_BODY = r"(?:[$#%]?\{[^}\s]{0,255}\}|[^\s\"'`<>|,;()\[\]{}\\])*"
URL = re.compile(
    # Behind a letter or a slash it is the rest of another word or URL; but \n before it is a line's end in a string.
    rf"(?:(?<![A-Za-z0-9+./_])|(?<=\\[nrt]))https?://(?:\[[0-9A-Fa-f:.]+\])?{_BODY}"
)
"""A URL in any text. One within another, as in ?next=https://HOST/, is part of that."""
_HEAD = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)*+(?::[0-9]+)?+)(?!\.?[A-Za-z0-9_@:-])"
    r"(?P<path>(?:/(?:[A-Za-z0-9._~!&+,;:@=-]|%[0-9A-Fa-f]{2})*)*)(?P<end>[?\s]|#(?!\{)|\Z)?"
)
"""The part of a URL that is known, whatever its variables are; `end` if none follows."""
_REPOSITORY = re.compile(r"https?://github\.com(?:/[^/]*){0,2}", re.IGNORECASE)
"""What git may clone: it asks with POST, which we refuse. Files are further down."""
_OURS = re.compile(
    r"(?P<base>https?://(?:[^\s/@]*@)?(?P<authority>[^\s/@]+))"
    r"(?:/(?P<digest>sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}))?/(?:(?P<scheme>https?)/)?(?P<rest>.+)",
    re.DOTALL,
)
LOOPBACK = re.compile(r"(?:localhost|127(?:\.[0-9]+){3}|0\.0\.0\.0|\[::1?\])(?::[0-9]+)?", re.IGNORECASE)
"""HOST[:PORT] that means another machine wherever else it is read."""


@dataclass(frozen=True, slots=True)
class Ours:
    """One of our URLs, by its parts."""

    base: str
    original: str
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class Urls:
    """Translates URLs of configured hosts, and knows ours at every address we have or had."""

    links: Links
    bases: frozenset[str] = field(default=frozenset())
    """Further addresses of ours, as Links.base. Those on this machine need not be named: the port may have changed."""

    def proxied(self, url: str, digest: Digest | None = None) -> str | None:
        """Our URL in place of upstream's `url`; None if no mirror has it, if a variable decides that, or for git's."""
        found = _HEAD.match(url)
        if not found or _REPOSITORY.fullmatch(url):
            return None
        path = found["path"]
        if found["end"] is None:  # a variable follows: the last segment is not whole
            path = path[: path.rfind("/") + 1]
        known = f"{found['scheme']}://{found['host']}{path.rstrip('.,;:!')}"
        link = self.links.proxied(known)
        if link is None:
            return None
        marked = re.match(r"/https?/", link.removeprefix(self.links.base))
        rest = url.partition("://")[2]
        return f"{self.links.base}{f'/{digest}' if digest else ''}{marked[0] if marked else '/'}{rest}"

    def ours(self, url: str, *, anywhere: bool = False) -> Ours | None:
        """The parts of one of our URLs as `proxied` makes them; None if it is not one.

        `anywhere`: also at an address that we do not know to be ours.
        """
        found = _OURS.match(url)
        if not found or not (anywhere or self._is_own(found["base"], found["authority"])):
            return None
        original = f"{found['scheme'] or 'https'}://{found['rest']}"
        digest = Digest.parse(found["digest"]) if found["digest"] else None
        made = self.proxied(original, digest)
        if made is None or made.removeprefix(self.links.base) != url.removeprefix(found["base"]):
            return None
        return Ours(found["base"], original, digest)

    def direct(self, url: str, stated: Digest | None = None) -> str | None:
        """Upstream's URL in place of ours; None if it is not ours, or names a digest other than the `stated` one."""
        ours = self.ours(url)
        return ours.original if ours and ours.digest in (None, stated) else None

    def is_link(self, url: str, original: str, stated: Digest | None = None) -> bool:
        """Whether `url` is what Links makes of `original` at an address of ours, with the `stated` digest or none."""
        found = _OURS.match(url)
        if not found or not self._is_own(found["base"], found["authority"]):
            return False
        links = Links(self.links.mirrors, found["base"])
        return url in (links.proxied(original), links.proxied(original, stated))

    def _is_own(self, base: str, authority: str) -> bool:
        is_here = LOOPBACK.fullmatch(authority) or authority.partition(":")[0].lower() in OWN_NAMES
        return bool(is_here) or base in self.bases or base == self.links.base

    def all_ours(self, text: str, *, anywhere: bool = False) -> Iterator[tuple[int, str, Ours]]:
        """Line, URL and parts of each of our URLs in any text."""
        line, at = 1, 0
        for found in URL.finditer(text):
            url = found[0].rstrip(".:!?")
            if ours := self.ours(url, anywhere=anywhere):
                line += text.count("\n", at, found.start())
                at = found.start()
                yield line, url, ours
