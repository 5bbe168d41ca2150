"""Web pages in place of files: a login, a captive portal or a "please wait", sent with 200 for an image."""

import re

from .entry import Headers, field

PAGE_BYTES = 4 * 1024**2
"""An answer longer than this is not a page, whatever its Content-Type says."""

_FILE = re.compile(
    # Images, archives, packages, boot files and checksum files, as VM tools and their mirrors name them.
    r"\.(img|iso|qcow2?|raw|vmdk|vdi|vhdx?|ova|ovf|box|wsl|dmg|ipsw|wim|squashfs|efi|fd|bin|exe|msi|deb|rpm|apk|whl)$"
    r"|\.(tar|tgz|txz|tbz2?|gz|xz|bz2|zst|lz4|lzma|zip|7z|cpio)$"
    r"|\.(sha\d+(sums?)?|md5(sums?)?|asc|gpg|sig)$"
    r"|sums?$|checksums?$|^checksum",
    re.IGNORECASE,
)


def is_page(name: str, headers: Headers, length: int | None) -> bool:
    """Whether the answer for the file `name` is a web page for people."""
    kind = (field(headers, "content-type") or "").partition(";")[0].strip().lower()
    if kind not in ("text/html", "application/xhtml+xml") or not _FILE.search(name):
        return False
    return length is None or length < PAGE_BYTES
