"""Whether an answer goes on with a body of which some bytes are here already (RFC 9110 §13.1.5, §14.4, §15.3.7).

An entity tag is its server's own: two nodes behind one redirector may tag the same bytes differently. So a tag is
compared only with what the same node has said; between nodes the bytes themselves are compared, where they overlap.
"""

import enum
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from .entry import Head, Headers, field
from .validators import resume_validator, strong_match

OVERLAP_BYTES = 64 * 1024
"""Asked for again of another node, to be compared with what is here."""


class Held(enum.Enum):
    """Where the bytes are that came of a body."""

    SAVED = "saved"
    """On disk, and nobody reads them: another body will do as well."""
    READ = "read"
    """On disk, and clients have some of them: nothing but this body will do. Other bytes can be compared with them."""
    PASSED = "passed"
    """With one client, and not here: nothing but this body will do, and nothing can be compared."""


@dataclass(frozen=True, slots=True)
class Known:
    """A body of which some bytes are here: its head, the upstream URL that gave it, and where the bytes are."""

    head: Head
    url: str
    held: Held

    @property
    def can_resume(self) -> bool:
        """Whether the node that gave it can be asked for a part of exactly this body."""
        return self.head.length is not None and resume_validator(self.head.headers) is not None

    def is_from(self, url: str) -> bool:
        """Whether the server of `url` gave it."""
        return _server(url) == (self.head.node or _server(self.url))


class Answer(Protocol):
    """The head of an upstream answer (upstream.exchange.Exchange)."""

    final_url: str
    status: int
    headers: Headers
    length: int | None


class Splice(enum.Enum):
    PART = "part"
    """Exactly the bytes that were asked for, of exactly this body."""
    COMPARE = "compare"
    """The part, or a whole body, that may be of this one: where it overlaps with what is here it must be equal."""
    OTHER = "other"
    """Another body, for sure."""
    NONE = "none"
    """Neither: the range was not answered as it was asked for."""


def rest_fields(known: Known, start: int, stop: int | None, url: str) -> Headers:
    """Fields that ask the server of `url` for the known body from `start_of_rest` to `stop`; its end is left open."""
    last = "" if stop in (None, known.head.length) else str(stop - 1)
    condition = resume_validator(known.head.headers) if known.is_from(url) else _date(known.head)
    asked = ("range", f"bytes={start_of_rest(known, start, url)}-{last}")
    return (asked, ("if-range", condition)) if condition else (asked,)


def start_of_rest(known: Known, start: int, url: str) -> int:
    """From where on the server of `url` is asked: another node repeats a little of what is here."""
    return start if known.is_from(url) or known.held is Held.PASSED else max(0, start - OVERLAP_BYTES)


def judge(known: Known, start: int, answer: Answer) -> Splice:
    """What an answer with status 200 or 206 is, to a question for the bytes of `known` from `start` on."""
    is_same_node, head = known.is_from(answer.final_url), known.head
    if answer.status == 206:
        if not _is_range(head, start, answer):
            return Splice.NONE
        if is_same_node or (known.held is Held.PASSED and _is_equal(head, answer)):
            return _is_same(head, answer)
        has_same_date = field(answer.headers, "last-modified") == field(head.headers, "last-modified")
        return Splice.COMPARE if has_same_date and known.held is not Held.PASSED else Splice.NONE
    if head.length is not None and answer.length not in (None, head.length):
        return Splice.OTHER
    if is_same_node and _is_other(head, answer):
        return Splice.OTHER
    is_same = _is_same(head, answer) is Splice.PART if is_same_node else _is_equal(head, answer)
    if known.held is Held.PASSED and not is_same:
        return Splice.OTHER  # there are no bytes to compare with
    return Splice.COMPARE


def is_the_same(known: Known, answer: Answer) -> bool:
    """Whether a 200 is for sure the known body: a server may ignore the condition it was asked on."""
    return (
        answer.status == 200
        and answer.length == known.head.length
        and known.can_resume
        and known.is_from(answer.final_url)
        and resume_validator(answer.headers) == resume_validator(known.head.headers)
    )


def _is_same(head: Head, answer: Answer) -> Splice:
    """PART if an answer of the node that gave `head` carries the validator that it gave then (RFC 9110 §15.3.7)."""
    if _is_other(head, answer):
        return Splice.OTHER
    name = "etag" if field(head.headers, "etag") is not None else "last-modified"
    return Splice.NONE if field(answer.headers, name) is None else Splice.PART


def _is_equal(head: Head, answer: Answer) -> bool:
    """Whether two nodes give a body both its strong tag and its date: with no bytes to compare, no less will do."""
    tag, date = field(head.headers, "etag"), field(head.headers, "last-modified")
    has_same_tag = tag is not None and strong_match(tag, field(answer.headers, "etag") or "")
    return has_same_tag and date is not None and date == field(answer.headers, "last-modified")


def _is_other(head: Head, answer: Answer) -> bool:
    """Whether the validators of an answer of the same node say for sure that it is another body."""
    for name in ("etag", "last-modified"):
        now, before = field(answer.headers, name), field(head.headers, name)
        if now is not None and before is not None:
            return now.removeprefix("W/") != before.removeprefix("W/")
    return False


def _is_range(head: Head, start: int, answer: Answer) -> bool:
    """Whether a 206 has the same length, and exactly the range that was asked for."""
    wanted = f"bytes {start}-"
    given = field(answer.headers, "content-range") or ""
    span, _, total = given.removeprefix(wanted).partition("/")
    return (
        given.startswith(wanted)
        and total == str(head.length)
        and span.isdecimal()
        and start <= int(span) < int(total)
        and (answer.length is None or answer.length == int(span) + 1 - start)
    )


def _date(head: Head) -> str | None:
    """A strong Last-Modified, which several nodes may share."""
    return resume_validator(tuple(line for line in head.headers if line[0] != "etag"))


def _server(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = parts.hostname or ""
    return f"{parts.scheme}://[{host}]:{port}" if ":" in host else f"{parts.scheme}://{host}:{port}"
