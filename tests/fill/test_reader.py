"""What a reader of a growing body hands to the server: all that is to come, and nobody hands it on piece by piece."""

from types import SimpleNamespace

import pytest

from proxy.fill.growing import Growing
from proxy.fill.reader import FillBody
from proxy.rules.entry import Head
from proxy.rules.pieces import Slice
from proxy.store.partial import Partial

LENGTH = 10 * 1024**2


@pytest.fixture
def growing(tmp_path):
    growing = Growing(Partial(tmp_path, "a" * 64, "b" * 16), LENGTH)
    yield growing
    growing.close()


def pieces(growing, start, end):
    incoming = SimpleNamespace(head=Head((), LENGTH, ""), url="", growing=growing, verifier=None)
    return FillBody(SimpleNamespace(), incoming, None).pieces(start, end)


async def test_the_first_byte_brings_all_that_is_to_come(growing):
    growing.add(0, 1)
    assert [piece async for piece in pieces(growing, 0, LENGTH)] == [Slice(growing.partial.fd, 0, LENGTH, growing)]
    assert [piece async for piece in pieces(growing, 0, 1000)] == [Slice(growing.partial.fd, 0, 1000, growing)]


async def test_what_nobody_knows_the_end_of_comes_in_pieces(growing):
    growing.add(0, LENGTH)
    assert [piece async for piece in pieces(growing, 5, None)] == [Slice(growing.partial.fd, 5, LENGTH)]


async def test_who_watches_is_called_once_a_wake_and_reads_no_withheld_byte(growing):
    calls = []

    def changed():
        calls.append(growing.readable(0))

    growing.withhold()
    for _ in range(8):
        growing.watch(changed)
    growing.add(0, LENGTH)  # the first bytes wake at once
    growing.release()
    growing.unwatch(changed)
    growing.wake()
    assert calls == [LENGTH - 1, LENGTH, LENGTH]
    for _ in range(7):
        growing.unwatch(changed)
    growing.wake()
    assert len(calls) == 3
