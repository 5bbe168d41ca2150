"""What lies where in the bucket that servers share.

urls/KEY.json      an entry, as a sidecar has it
blobs/ab/HEX       a body, named by its SHA-256; written once, before the JSON that names it
renewed/HEX        for a moment, a body that is made to count as new (upstream/objects.py)
check/...          for a moment, whether the bucket takes anything (cli/s3.py, fill/behind.py)
"""

import re
from dataclasses import replace

import msgspec

from .digests import Digest
from .entry import Entry
from .foreign import Unbelievable, attested, believed

_BLOB = re.compile(r"(?!https?:)[a-z0-9]+://.+/blobs/[0-9a-f]{2}/([0-9a-f]{64})")

TRIAL_PATH = "check/small"
ENTRY_BYTES = 512 * 1024
"""Of an entry's JSON; upstream's head has at most 100 KiB."""


def entry_path(key: str) -> str:
    return f"urls/{key}.json"


def blob_path(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"


def digest_in(url: str) -> Digest | None:
    """What a body must have that came, or was begun, from the URL of a blob; None for a mirror's URL."""
    found = _BLOB.fullmatch(url)
    return Digest("sha256", found[1]) if found else None


def text_of(entry: Entry) -> bytes:
    """The JSON for an entry. A pin is one machine's."""
    return msgspec.json.encode(replace(entry, pinned=False))


def read_entry(text: bytes, key: str, now: float) -> Entry:
    """The entry that the JSON of `key` holds, believed as an archive's is. Raises Unbelievable."""
    try:
        entry = believed(msgspec.json.decode(text, type=Entry), now)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Unbelievable("it is damaged") from None
    if entry.key != key:
        raise Unbelievable("it is another one's")
    return attested(replace(entry, head=replace(entry.head, by_login=False), pinned=False), entry.sha512)
