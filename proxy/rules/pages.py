"""Web pages: in place of files (a login, a captive portal, a "please wait"), and what they may do in a browser.

Whatever their host, their address is ours: a browser takes them all for one site, and us for its server.
"""

import re
import urllib.parse
from collections.abc import Iterable, Iterator

from .entry import Headers, field

PAGE_BYTES = 4 * 1024**2
"""An answer longer than this is not a page, whatever its Content-Type says."""

_FILE = re.compile(
    # Images, archives, packages, boot files and checksum files, as VM tools and their mirrors name them.
    r"\.(img|iso|qcow2?|raw|vmdk|vdi|vhdx?|ova|ovf|box|wsl|dmg|ipsw|wim|squashfs|efi|fd|bin|exe|msi|deb|rpm|apk|whl)$"
    r"|\.(tar|tgz|txz|tbz2?|gz|xz|bz2|zst|lz4|lzma|zip|7z|cpio)$"
    r"|\.(sha\d+(sums?)?|md5(sums?)?|asc|gpg|sig)$",
    re.IGNORECASE,
)
_SUMS = re.compile(r"sums?$|checksums?$|^checksum", re.IGNORECASE)
"""Checksum files without an ending. A directory may be called so as well."""
_PAGE = re.compile(r"\.x?html?$|^$", re.IGNORECASE)
"""Last segments of what is a page for sure; a directory is shown by one."""
_FILENAME = re.compile(r"filename(\*?)[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|([^;]*))", re.IGNORECASE)
_TYPE = re.compile(r"[!#$&^_.+\w-]+/[!#$&^_.+\w-]+", re.ASCII)
_UNKNOWN = frozenset({"unknown/unknown", "application/unknown"})
"""Types that make a browser guess (https://mimesniff.spec.whatwg.org/#mime-type-sniffing-algorithm)."""


def is_page(urls: Iterable[str], headers: Headers, length: int | None) -> bool:
    """Whether the answer is a web page for people, where `urls` (those of its redirects, and its own) name a file."""
    kind = (field(headers, "content-type") or "").partition(";")[0].strip().lower()
    if kind not in ("text/html", "application/xhtml+xml") or (length is not None and length >= PAGE_BYTES):
        return False
    return any(map(_names_file, urls)) or any(map(_is_file, _offered(field(headers, "content-disposition") or "")))


def confined(headers: Headers) -> Headers:
    """The fields by which a page that comes from us can do nothing in our name; () for what a browser does not show.

    Without them it could read what we have, and have us fetch. Not only HTML runs scripts: SVG and other XML do.
    """
    kinds = [kind.partition(";")[0].strip().lower() for kind in (field(headers, "content-type") or "").split(",")]
    if any(not _TYPE.fullmatch(kind) or kind in _UNKNOWN or kind.endswith(("html", "xml")) for kind in kinds):
        return ("content-security-policy", "sandbox"), ("x-content-type-options", "nosniff")
    return ()


def _names_file(url: str) -> bool:
    path, _, query = url.partition("?")
    segments = path.partition("://")[2].split("/")[1:]
    *directories, name = [urllib.parse.unquote(each.partition(";")[0]) for each in segments] or [""]
    if not _PAGE.search(name) and (_is_file(name) or any(map(_FILE.search, directories))):
        return True
    # A name alone, without "=", is taken as a value.
    values = (value or key for key, value in urllib.parse.parse_qsl(query, keep_blank_values=True))
    return any(_is_file(value.rpartition("/")[2]) for value in values)


def _is_file(name: str) -> bool:
    return bool(_FILE.search(name) or _SUMS.search(name))


def _offered(disposition: str) -> Iterator[str]:
    """The file names in a Content-Disposition (RFC 6266 §4.3)."""
    for is_extended, quoted, bare in _FILENAME.findall(disposition):
        name = (quoted or bare).strip()
        yield urllib.parse.unquote(name.rpartition("'")[2]) if is_extended else name
