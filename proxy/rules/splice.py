"""Whether an answer goes on with a body of which some bytes are here already (RFC 9110 §13.1.5, §14.4, §15.3.7)."""

import enum
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from .entry import Head, Headers, field
from .validators import resume_validator


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
        """Whether upstream can be asked for a part of exactly this body."""
        return self.head.length is not None and resume_validator(self.head.headers) is not None


class Answer(Protocol):
    """The head of an upstream answer (upstream.exchange.Exchange)."""

    url: str
    status: int
    headers: Headers
    length: int | None


class Splice(enum.Enum):
    PART = "part"
    """Exactly the bytes that were asked for, of exactly this body."""
    COMPARE = "compare"
    """A whole body that may be this one: what is here must be compared with it."""
    OTHER = "other"
    """Another body, for sure."""
    NONE = "none"
    """Neither: the range was not answered as it was asked for."""


def judge(known: Known, offset: int, answer: Answer) -> Splice:
    """What an answer with status 200 or 206 is, to a question for the bytes of `known` from `offset` on."""
    if answer.status == 206:
        return Splice.PART if _is_rest(known.head, offset, answer) else Splice.NONE
    head = known.head
    if _is_other(known, answer) or (head.length is not None and answer.length not in (None, head.length)):
        return Splice.OTHER
    if known.held is Held.PASSED and resume_validator(answer.headers) != resume_validator(head.headers):
        return Splice.OTHER  # there are no bytes to compare with
    return Splice.COMPARE


def rest_condition(head: Head, start: int, stop: int | None) -> Headers:
    """Fields that ask for the bytes from `start` to `stop` of exactly that body (RFC 9110 §13.1.5).

    Up to its end the range is left open.
    """
    last = "" if stop in (None, head.length) else str(stop - 1)
    return ("range", f"bytes={start}-{last}"), ("if-range", resume_validator(head.headers) or "")


def _is_other(known: Known, answer: Answer) -> bool:
    """Whether the validators of an answer say for sure that it is another body: of one kind, and different.

    Only between answers of one server: another mirror may have another tag for the same bytes.
    """
    if urlsplit(answer.url).netloc != urlsplit(known.url).netloc:
        return False
    for name in ("etag", "last-modified"):
        now, before = field(answer.headers, name), field(known.head.headers, name)
        if now is not None and before is not None:
            return now.removeprefix("W/") != before.removeprefix("W/")
    return False


def _is_rest(head: Head, offset: int, answer: Answer) -> bool:
    """Whether a 206 has the same validators, the same length, and exactly the range that was asked for."""
    wanted = f"bytes {offset}-"
    given = field(answer.headers, "content-range") or ""
    span, _, total = given.removeprefix(wanted).partition("/")
    return (
        all(field(answer.headers, name) in (None, field(head.headers, name)) for name in ("etag", "last-modified"))
        and given.startswith(wanted)
        and total == str(head.length)
        and span.isdecimal()
        and (answer.length is None or answer.length == int(span) + 1 - offset)
    )
