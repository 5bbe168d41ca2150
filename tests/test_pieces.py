"""Delivery and Watch against bodies and clients that end early."""

import asyncio
import contextlib

import pytest

from proxy.delivery import Delivery, HeadBody, Request, Watch, while_connected
from proxy.errors import ClientGone, FileEnded, StoreError
from proxy.rules.cache_status import CacheStatus
from proxy.rules.entry import Head
from proxy.rules.mirrors import Mirror, MirrorTable
from proxy.rules.pieces import Slice

CONTENT = bytes(range(100))
TARGET = MirrorTable((Mirror("u", ("https://example.org/",)),), ()).resolve(b"/u/a.img")


class Scripted:
    """A body that yields one slice each time it is asked, or bytes once its file is said to be lost."""

    def __init__(self, *, length=100, is_lost=False):
        self.head, self.length, self.is_lost = Head((), length, "g"), length, is_lost
        self.asked = []

    in_memory = None

    async def wait_length(self):
        return self.length

    async def pieces(self, start, end):
        self.asked.append((start, end))
        if self.is_lost:
            for at in range(start, len(CONTENT) if end is None else end, 30):
                yield CONTENT[at : min(at + 30, end or len(CONTENT))]
        else:
            yield Slice(7, start, len(CONTENT) if end is None else end)

    def close(self): ...


class Client:
    """Takes what is sent. Its kernel finds the ends of the file at the offsets `ends`, one after the other."""

    def __init__(self, *ends, body=None):
        self.ends, self.body = list(ends), body
        self.status, self.headers, self.got = 0, {}, b""

    async def __call__(self, message):
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        elif message["type"] == "http.response.body":
            self.got += message.get("body", b"")
        else:
            start, count = message["offset"], message["count"]
            if self.ends and start <= self.ends[0] < start + count:
                count = self.ends.pop(0) - start
                self.got += CONTENT[start : start + count]
                if self.body and not self.ends:
                    self.body.is_lost = True
                raise FileEnded("the file ends here", count)
            self.got += CONTENT[start : start + count]


def delivery(body, *headers, method="GET", watch=None):
    async def gone():
        await asyncio.Event().wait()

    request = Request(method, b"/u/a.img", headers, gone)
    return Delivery(request, TARGET, body, CacheStatus(hit=True), 0.0, watch)


# -- delivery ----------------------------------------------------------------------------------------------------------


async def test_a_slice_is_sent_as_it_is():
    body, client = Scripted(), Client()
    answer = delivery(body)
    await answer.send(client)
    assert (client.status, client.got, answer.sent, body.asked) == (200, CONTENT, 100, [(0, 100)])


async def test_a_body_whose_file_ends_early_is_asked_for_the_rest():
    body = Scripted()
    client = Client(40, body=body)
    answer = delivery(body, ("range", "bytes=10-89"))
    await answer.send(client)
    assert (client.status, client.got, answer.sent) == (206, CONTENT[10:90], 80)
    assert body.asked == [(10, 90), (40, 90)]


async def test_each_byte_of_progress_earns_another_question():
    body, client = Scripted(), Client(40, 40 + 1, 60)
    await delivery(body).send(client)
    assert (client.got, body.asked) == (CONTENT, [(0, 100), (40, 100), (41, 100), (60, 100)])


async def test_a_body_that_ends_twice_at_one_byte_is_gone():
    body, client = Scripted(), Client(40, 40, 40)
    answer = delivery(body)
    with pytest.raises(StoreError, match=r"the body of https://example.org/a.img is gone"):
        await answer.send(client)
    assert (client.got, answer.sent, body.asked) == (CONTENT[:40], 40, [(0, 100), (40, 100)])


async def test_a_body_that_only_has_to_grow_is_not_gone():
    body, ends = Scripted(), [40, 40, 40, 60]

    async def client(message):
        if message["type"] == "http.response.zerocopysend" and ends:
            raise FileEnded("for now", ends.pop(0) - message["offset"], is_growing=True)

    answer = delivery(body)
    await answer.send(client)
    assert (answer.sent, body.asked) == (100, [(0, 100), (40, 100), (40, 100), (40, 100), (60, 100)])


async def test_each_part_of_a_multipart_answer_has_a_second_question():
    body = Scripted()
    await delivery(body, ("range", "bytes=0-9,40-49")).send(client := Client(5, 45))
    assert client.status == 206
    assert CONTENT[:10] in client.got
    assert CONTENT[40:50] in client.got
    assert body.asked == [(0, 10), (5, 10), (40, 50), (45, 50)]


async def test_a_range_of_a_body_without_a_length_gets_the_whole():
    body, client = Scripted(length=None, is_lost=True), Client()
    await delivery(body, ("range", "bytes=10-19")).send(client)
    assert (client.status, client.got, body.asked) == (200, CONTENT, [(0, None)])
    assert b"content-length" not in client.headers


async def test_what_upstream_said_to_head_has_no_bytes():
    client = Client()
    await delivery(HeadBody(Head((), 100, "")), method="HEAD").send(client)
    assert (client.status, client.got, client.headers[b"content-length"]) == (200, b"", b"100")
    async with contextlib.aclosing(HeadBody(Head((), 100, "")).pieces(0, None)) as pieces:
        assert [piece async for piece in pieces] == []


async def test_a_client_that_leaves_while_it_waits_for_a_piece_ends_the_answer():
    is_waiting, has_ended = asyncio.Event(), asyncio.Event()

    class Waiting(Scripted):
        async def pieces(self, start, end):
            try:
                yield CONTENT[:10]
                is_waiting.set()
                await asyncio.Event().wait()
            finally:
                has_ended.set()

    client = Client()
    with while_connected(is_waiting.wait) as watch, pytest.raises(ClientGone):
        await delivery(Waiting(), watch=watch).send(client)
    assert client.got == CONTENT[:10]
    assert has_ended.is_set()


# -- watch -------------------------------------------------------------------------------------------------------------


async def pieces():
    yield b"piece"


async def test_watch_returns_what_was_waited_for():
    assert await Watch().wait(asyncio.sleep(0, "result")) == "result"
    assert await Watch().wait(anext(pieces(), None)) == b"piece"


async def test_nothing_is_begun_for_a_client_that_has_left():
    began = []

    async def begin():
        began.append(True)

    watch = Watch()
    watch.leave()
    for waiting in (begin(), anext(pieces()), anext(pieces(), None)):
        with pytest.raises(ClientGone):
            await watch.wait(waiting)
    assert not began


async def test_a_departure_between_two_waits_cancels_nothing():
    watch = Watch()
    await watch.wait(asyncio.sleep(0))
    watch.leave()
    await asyncio.sleep(0)  # a send
    task = asyncio.current_task()
    assert task.cancelling() == 0
    with pytest.raises(ClientGone):
        await watch.wait(asyncio.sleep(0))


async def test_who_cancels_the_task_is_obeyed_even_if_the_client_leaves_with_it():
    watch = Watch()
    task = asyncio.ensure_future(watch.wait(asyncio.Event().wait()))
    await asyncio.sleep(0)
    watch.leave()
    await asyncio.sleep(0)  # the deadline has come, and cancelled the wait
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_timeout_of_what_is_waited_for_is_not_a_departure():
    async def times_out():
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await Watch().wait(times_out())
