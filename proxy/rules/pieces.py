"""What a body yields: bytes in memory, or a slice of an open file that the kernel can send by itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slice:
    """The bytes from `start` to `end` of the open file `fd`."""

    fd: int
    start: int
    end: int


Piece = bytes | Slice
