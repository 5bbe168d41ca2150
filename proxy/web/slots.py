"""Memory that the workers of one server share. Each writes its own slot, and all read all.

It is made before the workers are forked and outlives each of them: the successor of a worker that died finds what that
one wrote last.
"""

import mmap
import struct

HALF_BYTES = 1 << 20
"""The most that a slot holds. The kernel gives only the pages that are written."""
_NUMBER = struct.Struct("=Q")
_LENGTH = struct.Struct("=I")


class Slots:
    """A slot is two halves and a number. The last bit of the number says which half is whole.

    A writer that is killed half way leaves the other half valid. A reader that was overtaken sees another number.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._size = _NUMBER.size + 2 * HALF_BYTES
        self._memory = mmap.mmap(-1, count * self._size)

    def write(self, index: int, data: bytes) -> None:
        """Put `data` in place of what slot `index` holds. Raises ValueError if it is too long."""
        if len(data) > HALF_BYTES - _LENGTH.size:
            raise ValueError(f"{len(data)} bytes do not fit into a slot")
        number = self._number(index) + 1
        start = self._half(index, number)
        _LENGTH.pack_into(self._memory, start, len(data))
        self._memory[start + _LENGTH.size : start + _LENGTH.size + len(data)] = data
        _NUMBER.pack_into(self._memory, index * self._size, number)

    def read(self, index: int) -> bytes:
        """What was written last; b"" if nothing was."""
        while True:
            number = self._number(index)
            start = self._half(index, number)
            (length,) = _LENGTH.unpack_from(self._memory, start)
            data = self._memory[start + _LENGTH.size : start + _LENGTH.size + min(length, HALF_BYTES)]
            if self._number(index) == number:
                return data

    def _number(self, index: int) -> int:
        number: int = _NUMBER.unpack_from(self._memory, index * self._size)[0]
        return number

    def _half(self, index: int, number: int) -> int:
        return index * self._size + _NUMBER.size + (number & 1) * HALF_BYTES
