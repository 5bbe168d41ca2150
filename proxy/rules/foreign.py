"""An entry that another machine has written, in an archive that anybody may have made: what of it is believed.

Its key and digest become names of files, its headers go to clients, its texts to terminals. Whoever made the archive
may say what the body of a URL is; he cannot say more than that.
"""

import re
from dataclasses import replace

from ..errors import RequestError
from . import vary
from .digests import Digest
from .entry import Entry
from .headers import DELTA_MAX, stored_headers
from .mirrors import DEFAULT_PORTS, cache_key, is_valid_name, parse_target

TIME_MAX = 253402300799.0  # the end of the year 9999
CLOCK_SECONDS = 86400.0
"""How far the clocks of two machines may differ: many count in local time."""

_HEX = re.compile(r"[0-9a-f]{64}")
_GENERATION = re.compile(r"[0-9A-Za-z]{1,64}")
_VERIFIED = re.compile(r"(sha(?:256|512):[0-9a-f]+) \([\x20-\x7e]{1,255}\)")
_NODE = re.compile(r"https?://[\x21-\x7e]{1,300}")


class Unbelievable(ValueError):
    """Why the entry is none."""


def believed(entry: Entry, now: float) -> Entry:
    """The entry, with all that may be stored, sent and printed as it is. Raises Unbelievable.

    It keeps the time at which upstream confirmed it: its freshness goes on. If that is to come, a clock was wrong, and
    the entry is stale (policy.py). It was not stored later than now, or it would be the last to be evicted for years.
    """
    head, times = entry.head, (entry.stored_at, entry.validated_at)
    if not (_HEX.fullmatch(entry.key) and _HEX.fullmatch(entry.sha256) and _GENERATION.fullmatch(head.generation)):
        raise Unbelievable("its key, digest or generation is none")
    if head.length is None or head.length < 0:
        raise Unbelievable("its length is none")
    if not all(0 <= time <= TIME_MAX for time in times) or not 0 <= head.age <= DELTA_MAX:
        raise Unbelievable("its times are none")
    if base(entry) is None:
        raise Unbelievable("its key is not that of its URL")
    head = replace(
        head,
        headers=stored_headers(head.headers),
        nominated=stored_headers(vary.without_login(head.nominated)),
        node=head.node if _NODE.fullmatch(head.node) else "",
    )
    return replace(entry, head=head, stored_at=min(entry.stored_at, now))


def attested(entry: Entry, sha512: str | None) -> Entry:
    """The entry with the SHA-512 that its body has, as far as we know, and without what else it says of its digests."""
    entry = replace(entry, sha512=sha512)
    found = _VERIFIED.fullmatch(entry.verified or "")
    digest = Digest.parse(found[1]) if found else None
    return entry if digest and entry.has(digest) else replace(entry, verified=None)


def base(entry: Entry) -> str | None:
    """The URL below which its mirror has the entry; None if its key is not that of its URL under its mirror's name."""
    where, _, query = entry.url.partition("?")
    scheme, _, rest = where.partition("://")
    try:
        host = parse_target(entry.url).host
    except RequestError:
        return None
    if scheme not in DEFAULT_PORTS:
        return None
    ends = [found.end() + len(where) - len(rest) for found in re.finditer("/", rest)]
    owners = {f"//{entry.mirror}": ends[:1]} if host == entry.mirror else {}  # an allowed host (Target.key)
    if is_valid_name(entry.mirror):
        owners[entry.mirror] = ends
    keys = ((where[:end], cache_key(owner, where[end:], query)) for owner, ends in owners.items() for end in ends)
    return next((found for found, key in keys if key == entry.key), None)


def is_newer(entry: Entry, stored: Entry, now: float) -> bool:
    """Whether upstream has confirmed `entry` after `stored`. What was confirmed in the future may be of any time."""
    times = (entry.validated_at, entry.stored_at), (stored.validated_at, stored.stored_at)
    return times[0] > times[1] and entry.validated_at <= now + CLOCK_SECONDS
