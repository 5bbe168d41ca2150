"""What a body yields: bytes in memory, or a slice of an open file that the kernel can send by itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Growth(Protocol):
    """How far a file that grows may be read."""

    def readable(self, offset: int) -> int:
        """Offset up to which a reader standing at `offset` may read now. From any thread."""

    def watch(self, changed: Callable[[], object]) -> None:
        """Have `changed` called whenever more may be readable, until `unwatch` is called as often as this was."""

    def unwatch(self, changed: Callable[[], object]) -> None: ...


@dataclass(frozen=True, slots=True)
class Slice:
    """The bytes from `start` to `end` of the open file `fd`."""

    fd: int
    start: int
    end: int
    growth: Growth | None = None
    """Of a file that may not be there up to `end` yet. A sender that does not wait for the rest raises FileEnded, and
    the body is asked again."""


Piece = bytes | Slice
