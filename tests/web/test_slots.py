"""The memory that workers share."""

import os
import signal

import pytest

from proxy.web.slots import HALF_BYTES, Slots


def test_each_slot_holds_what_was_written_last():
    slots = Slots(2)
    assert slots.read(0) == slots.read(1) == b""
    for data in (b"one", b"", b"x" * (HALF_BYTES - 4)):
        slots.write(1, data)
        assert (slots.read(0), slots.read(1)) == (b"", data)
    with pytest.raises(ValueError, match="do not fit"):
        slots.write(1, b"x" * HALF_BYTES)
    assert len(slots.read(1)) == HALF_BYTES - 4


def test_a_reader_sees_nothing_half_written_and_what_a_killed_writer_wrote_stays():
    slots = Slots(1)
    slots.write(0, b"\0" * 50_000)
    pid = os.fork()
    if not pid:
        number = 0
        while True:
            number = (number + 1) % 256
            slots.write(0, bytes([number]) * (50_000 + number))
    seen = set()
    try:
        while len(seen) < 50:
            data = slots.read(0)
            assert data == data[:1] * (50_000 + data[0])
            seen.add(data[0])
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    data = slots.read(0)
    assert data == data[:1] * (50_000 + data[0])
