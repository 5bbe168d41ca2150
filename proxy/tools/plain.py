"""Scripts, cloud-init and any other text: each URL changes where it stands. Lines that are comments stay."""

import re
from collections.abc import Callable

from .urls import URL, Urls

_COMMENT = r"^[ \t]*#[^\n]*"
_URL = re.compile(rf"(?P<comment>{_COMMENT})|{URL.pattern}", re.MULTILINE)
_BOX_URL = re.compile(
    rf"(?P<comment>{_COMMENT})|\bbox_url\b[\"']?[ \t]*(?:=>|=|:)[ \t]*(?:\[[^\]]*\]|(?:[^\n,]|,(?!\s))*)",
    re.MULTILINE | re.IGNORECASE,
)


def through(text: str, urls: Urls) -> str:
    return _changed(text, urls.proxied)


def direct(text: str, urls: Urls) -> str:
    return _changed(text, urls.direct)


def vagrant_through(text: str, urls: Urls) -> str:
    """Of a Vagrantfile, what it calls box_url. All else in it is fetched by the guest, whose 127.0.0.1 is not ours.

    A list of two is no fallback: Vagrant asks for each of them before it takes one, and refuses two with metadata.
    """
    return _in_box_urls(text, urls.proxied)


def vagrant_direct(text: str, urls: Urls) -> str:
    return _in_box_urls(text, urls.direct)


def _changed(text: str, change: Callable[[str], str | None]) -> str:
    return _URL.sub(lambda found: found[0] if found["comment"] else change(found[0]) or found[0], text)


def _in_box_urls(text: str, change: Callable[[str], str | None]) -> str:
    return _BOX_URL.sub(lambda found: found[0] if found["comment"] else _changed(found[0], change), text)
