"""JSON in which upstream's URLs become ours: for tools that take absolute URLs from it, and cannot be told otherwise.

Only the values change that are URLs of configured hosts. Every other byte stays: names, white space, escapes, numbers.
"""

import hashlib
import json
import re
from dataclasses import replace

from .entry import Head
from .headers import OF_THE_CONTENT
from .links import Links

MAX_BYTES = 4 * 1024**2
"""A longer body is given as it is. Vagrant's and CoreOS' have some kilobytes, and all of it is held in memory."""

_BEGINNING = re.compile(rb"[ \t\r\n]*([\[{\"]|\Z)")
# In a valid text a string is a name exactly if a colon follows, and no quote stands outside of strings.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"(?P<name>[ \t\r\n]*:)?')
_URL = re.compile(r"https?://", re.IGNORECASE)

_OF_THE_BYTES = OF_THE_CONTENT | {"digest", "etag", "repr-digest", "last-modified"}
"""Fields of the body that upstream sent. Last-Modified is one: it does not tell that other hosts are configured now."""


def may_be_json(beginning: bytes | bytearray) -> bool:
    """Whether a body that begins so can be JSON with a URL in it. Content-Type does not tell: many send text/plain."""
    return bool(_BEGINNING.match(beginning))


def rewrite(body: bytes, links: Links) -> bytes:
    """`body` with our URLs in place of upstream's; `body` itself where it is no JSON or has none."""
    try:
        json.loads(body.decode())
    except (ValueError, RecursionError):  # another encoding is no JSON either (RFC 8259 §8.1)
        return body
    return _STRING.sub(lambda found: _token(found, links), body)


def head_of(head: Head, body: bytes, *, is_secret: bool) -> Head:
    """The fields of the rewritten `body`; its tag is its own. `is_secret`: the client's token is in it.

    Each answer must name all fields that choose among them (RFC 9110 §12.5.5): who has no token gets URLs without it.
    """
    kept = tuple(line for line in head.headers if line[0] not in _OF_THE_BYTES)
    tag = f'"fetchonce-{hashlib.sha256(body).hexdigest()[:32]}"'
    own = ("etag", tag), ("vary", "Host, Authorization"), *[("cache-control", "private")] * is_secret
    return replace(head, headers=(*kept, *own), length=len(body))


def _token(found: re.Match[bytes], links: Links) -> bytes:
    token = found[0]
    if found["name"]:
        return token
    value = json.loads(token)
    ours = links.proxied(value) if _URL.match(value) else None
    return token if ours is None else json.dumps(ours).encode()
