"""What a fill is at a moment: each state carries its data. They only go forward.

Asking → Streaming | Arrived → Complete | Failed, or Asking → Confirmed | Passed | Failed.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ProxyError
from ..rules.entry import Entry, Head
from ..rules.splice import Known
from .growing import Growing
from .ingest import Ingest
from .verify import Verifier


@dataclass(frozen=True, slots=True)
class Incoming:
    """A body that comes in, or has."""

    head: Head
    url: str
    """The upstream URL that gave the head."""
    source: str
    """Where the bytes come from, for people."""
    answered_at: float
    """Unix time."""
    growing: Growing
    verifier: Verifier
    is_followed: bool = False
    """Another process fetches it."""
    ingest: Ingest | None = None
    """What fetches it here."""

    @property
    def is_hidden(self) -> bool:
        """Of an empty body the head says all: where one must be verified, that is what is kept back."""
        return self.growing.length == 0 and self.growing.is_withheld

    @property
    def length(self) -> int | None:
        return self.growing.length

    @property
    def received(self) -> int:
        """Bytes that are there."""
        return self.growing.received

    def read(self, count: int) -> bytes:
        """The first bytes, `count` at most."""
        return self.growing.partial.read(0, count)


@dataclass(frozen=True, slots=True)
class Small:
    """A small body, whole in memory, of which nothing is to be verified. It needs no file to be read from."""

    head: Head
    url: str
    source: str
    answered_at: float
    """As in Incoming."""
    body: bytes

    is_followed: ClassVar = False
    is_hidden: ClassVar = False

    @property
    def length(self) -> int:
        return len(self.body)

    @property
    def received(self) -> int:
        return len(self.body)

    def read(self, count: int) -> bytes:
        """The first bytes, `count` at most."""
        return self.body[:count]


@dataclass(frozen=True, slots=True)
class Asking:
    """Nothing is known yet."""

    name: ClassVar = "asking"
    incoming: ClassVar = None


@dataclass(frozen=True, slots=True)
class Streaming:
    """Bytes come."""

    name: ClassVar = "streaming"
    incoming: Incoming


@dataclass(frozen=True, slots=True)
class Arrived:
    """All of it is in memory, and is being stored."""

    name: ClassVar = "streaming"
    incoming: Small


@dataclass(frozen=True, slots=True)
class Complete:
    """Every byte is there. `entry` is what was stored; None if no client wanted that."""

    name: ClassVar = "complete"
    incoming: Incoming | Small
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Nothing had to be fetched: `entry` is what we have."""

    name: ClassVar = "unchanged"
    incoming: ClassVar = None
    entry: Entry


@dataclass(frozen=True, slots=True)
class Passed:
    """There is an answer, and it is not kept: `error` says why."""

    name: ClassVar = "passed"
    incoming: ClassVar = None
    known: Known
    answered_at: float
    error: ProxyError


@dataclass(frozen=True, slots=True)
class Failed:
    """Bytes that came can still be read, unless there is no room for them."""

    name: ClassVar = "failed"
    error: ProxyError
    incoming: Incoming | Small | None


State = Asking | Streaming | Arrived | Complete | Confirmed | Passed | Failed
