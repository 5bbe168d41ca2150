"""What a reader of a growing body hands to the server: all that is to come, and nobody hands it on piece by piece."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from proxy.fill.fill import Fill, Question
from proxy.fill.growing import Growing
from proxy.fill.origin import Mishaps
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


@pytest.fixture
def fill():
    context = SimpleNamespace(clock=time.time, settings=SimpleNamespace(on_abandon="finish"))
    return Fill(SimpleNamespace(), Question(()), context, None, Mishaps())


async def test_a_whole_body_is_stored_behind_those_who_read_it(fill):
    await fill.wait_read(60)  # nobody does
    with fill.attach():
        waiting = asyncio.create_task(fill.wait_read(60))
        with fill.attach():
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()  # one of two has left
    await waiting


async def test_it_waits_for_no_reader_longer_than_it_was_told(fill):
    with fill.attach():
        await fill.wait_read(0.01)


@pytest.mark.parametrize("what", [Fill.hurry, Fill.wait_over])
async def test_it_waits_for_no_reader_where_somebody_waits_for_more_than_bytes(fill, what):
    with fill.attach():
        waiting = asyncio.create_task(fill.wait_read(60))
        await asyncio.sleep(0)
        for_more = what(fill)
        task = for_more and asyncio.create_task(for_more)
        await waiting
        await fill.wait_read(60)  # nor does it begin to
        if task:
            task.cancel()
