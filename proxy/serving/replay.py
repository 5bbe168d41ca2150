"""Answers given again: the same question gets the same answer without a parser, a task or the app.

The app says which answers may be repeated, and asked again says whether that is still so (rules/repeat.py). A question
is a whole request head, byte for byte, with the client's address and ours; of `Range: bytes=FIRST-LAST` the numbers may
differ. Whatever is not such a question goes to the parser. Nothing here knows a cache.
"""

import asyncio
import os
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sized
from dataclasses import dataclass, field
from typing import NamedTuple

from ..rules.repeat import Repeat, Repetition
from .sendfile import SMALL_BYTES, read_now

KEPT = 256
"""Answers at hand, each with a descriptor."""
QUESTION_BYTES = 4096
HEAD_BYTES = 16 * 1024
"""With a longer question or head an answer is not kept: this bounds the memory."""
LENGTH_MAX = 256 * 1024
"""With a longer body, asking the app costs little beside sending."""
TELL_SECONDS = 0.05
"""How long the app waits to hear of a repetition."""
SWEEP_SECONDS = 1.0
"""How long a descriptor stays open that nobody may use any more."""
ALONE = 32
"""After a turn of the loop in which no answer was repeated twice, so many repetitions are looked at one by one."""
CROWD = 1000
"""Connections above which all are. After 1,024 events libuv asks the kernel for more of them in the same turn."""

_NUMBERS = re.compile(rb"\r\n[Rr]ange: bytes=([0-9]{1,18})-([0-9]{0,18})\r\n")
"""No more digits than a file has bytes: they would only cost time."""
_RANGE_LINE = re.compile(rb"\nrange", re.IGNORECASE)
_PART = re.compile(rb"(.*\r\ncontent-length: )\d+(\r\n.*\r\ncontent-range: bytes )(\d+)-(\d+)(/(\d+)\r\n.*)", re.DOTALL)
"""The head of a 206, cut at its length, first and last byte; and these two, and the size of the whole."""

Peer = tuple[object, ...]
"""The client's address without its port, and ours."""


@dataclass(slots=True)
class Replay:
    """One answer at hand."""

    repeat: Repeat
    head: bytes
    """Of a 206 with holes for its length, first and last byte."""
    fd: int
    """The whole body. Ours; -1: the answer is `head` alone, or in `whole`."""
    whole: bytes
    """Head and body of a small answer that is no 206."""
    is_part: bool
    turn: int = -1
    """Of the loop: it was found to be true then."""
    untold: dict[Repetition, int] = field(default_factory=dict)
    """How many there were of each."""


class Answer(NamedTuple):
    """What is to be sent: `head`, then `size` bytes of the file from `start` on. Without a file `head` is all."""

    replay: Replay
    head: bytes
    start: int
    size: int


class Replays:
    """The answers at hand of one server."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connections: Sized) -> None:
        self._loop, self._connections = loop, connections
        self._kept: OrderedDict[tuple[Peer, bytes], Replay] = OrderedDict()
        self._untold: list[Replay] = []
        """Those that have been repeated since the app was told."""
        self._telling: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._turn = self._shared = self._alone = 0
        """The number of the loop's turn, the looks that were spared in it, and the repetitions that spare none."""
        self._is_turn_ending = False

    def keep(self, peer: Peer, question: bytes, head: bytes, repeat: Repeat, length: int | None) -> None:
        """Keep the answer that begins with `head`. Its body, of `length` bytes, is `repeat.file` or a range of it.

        `length` None: it has no body. An answer that does not look as its question lets expect is not kept.
        """
        key, numbers = _split(question)
        is_part = head.startswith(b"HTTP/1.1 206 ")
        if len(question) > QUESTION_BYTES or len(head) > HEAD_BYTES or (numbers is not None) is not is_part:
            return
        file = repeat.file
        size = file.end - file.start
        fd, whole = -1, b""
        if numbers:
            holes = _holes(head, numbers, size)
            if holes is None or length is None or len(_RANGE_LINE.findall(question)) != 1:
                return
            head = holes
        if length is None:
            whole = head
        elif not is_part and (length != size or size > LENGTH_MAX):
            return
        elif not is_part and size <= SMALL_BYTES and (data := read_now(file.fd, file.start, size)) is not None:
            whole = head + data
        else:
            try:
                fd = os.dup(file.fd)
            except OSError:
                return  # no descriptor is left: the answer itself needs none
        self._drop((peer, key))
        while len(self._kept) >= KEPT:
            self._drop(next(iter(self._kept)))
        self._kept[peer, key] = Replay(repeat, head, fd, whole, is_part)
        if not self._sweeping:
            self._sweeping = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def find(self, peer: Peer, question: bytes) -> Answer | None:
        """The answer to `question`, if it is at hand and still true."""
        question, numbers = _split(question)
        replay = self._kept.get((peer, question))
        if replay is None:
            return None
        if not self._is_true(replay):
            self._drop((peer, question))
            return None
        if replay.fd < 0:
            return Answer(replay, replay.whole, 0, 0)
        file = replay.repeat.file
        start, end = file.start, file.end
        head = replay.head
        if replay.is_part:
            assert numbers
            first, last = numbers
            size = end - start
            stop = min(last + 1, size) if last is not None else size
            if first >= stop or stop - first > LENGTH_MAX:
                return None  # what is malformed, or outside of the body, gets another answer
            head %= stop - first, first, stop - 1
            start, end = start + first, start + stop
        return Answer(replay, head, start, end - start)

    def rest(self, answer: Answer, sent: int) -> Callable[..., Awaitable[None]]:
        """An app that sends what the socket did not take at once, behind `sent` bytes of the body. Raises OSError."""
        file, started = os.dup(answer.replay.fd), self._loop.time()

        async def app(scope: object, receive: object, send: Callable[[dict[str, object]], Awaitable[None]]) -> None:
            place = {"file": file, "offset": answer.start + sent, "count": answer.size - sent}
            count = sent
            try:
                await send({"type": "http.response.zerocopysend", **place})
                count = answer.size
            finally:
                os.close(file)
                seconds = self._loop.time() - started
                self.repeated(answer.replay, count, seconds, is_aborted=count < answer.size)

        return app

    def repeated(self, replay: Replay, sent: int, seconds: float = 0.0, *, is_aborted: bool = False) -> None:
        """Tell the app, soon, that `replay` was repeated."""
        if not replay.untold:
            self._untold.append(replay)
            if not self._telling:
                self._telling = self._loop.call_later(TELL_SECONDS, self.tell)
        repetition = int(time.time() * 1000), sent, seconds, is_aborted
        replay.untold[repetition] = replay.untold.get(repetition, 0) + 1

    def tell(self) -> None:
        """Tell the app now of all repetitions that it does not know of."""
        if self._telling:
            self._telling.cancel()
            self._telling = None
        replays, self._untold = self._untold, []
        for replay in replays:
            repetitions, replay.untold = replay.untold, {}
            replay.repeat.served(repetitions)

    def close(self) -> None:
        if self._sweeping:
            self._sweeping.cancel()
        while self._kept:
            self._drop(next(iter(self._kept)))
        self.tell()

    def _is_true(self, replay: Replay) -> bool:
        """Whether it may be repeated now. Where several requests come in one turn of the loop, one look is for all.

        Whatever is answered in a turn had begun to come before it, so the look is later than its question. A look takes
        3 us, and a busy server gets 30 requests in a turn. But to hear of the turn's end takes another epoll_wait, and
        that is too much for a client alone.
        """
        if not replay.repeat.since <= time.time() < replay.repeat.until:
            return False
        if replay.turn == self._turn:
            self._shared += 1
            return True
        if not replay.repeat.is_current():
            return False
        if self._alone:
            self._alone -= 1
        elif len(self._connections) <= CROWD:
            replay.turn = self._turn
            if not self._is_turn_ending:
                self._is_turn_ending = True
                self._loop.call_soon(self._end_turn)
        return True

    def _end_turn(self) -> None:
        self._alone = 0 if self._shared else ALONE
        self._turn += 1
        self._shared, self._is_turn_ending = 0, False

    def _drop(self, key: tuple[Peer, bytes]) -> None:
        replay = self._kept.pop(key, None)
        if replay and replay.fd >= 0:
            os.close(replay.fd)

    def _sweep(self) -> None:
        for key, replay in list(self._kept.items()):
            if not self._is_true(replay):
                self._drop(key)
        self._sweeping = self._loop.call_later(SWEEP_SECONDS, self._sweep) if self._kept else None


def _holes(head: bytes, numbers: tuple[int, int | None], size: int) -> bytes | None:
    """The head of a 206, with holes for its length, first and last byte; None if it is not the answer to `numbers`."""
    match = _PART.fullmatch(head)
    first, last = numbers
    end = size if last is None else min(last + 1, size)
    if not match or (int(match[3]), int(match[4]), int(match[6])) != (first, end - 1, size):
        return None
    return b"%b%%d%b%%d-%%d%b" % tuple(match[each].replace(b"%", b"%%") for each in (1, 2, 5))


def _split(question: bytes) -> tuple[bytes, tuple[int, int | None] | None]:
    """The question without the numbers of its range, and these: first and last byte, as sent.

    None: it has no Range of that form, and the question is whole.
    """
    found = _NUMBERS.search(question)
    if found is None:
        return question, None
    first, last = found.groups()
    return question[: found.start(1)] + question[found.end(2) :], (int(first), int(last) if last else None)
