"""Key=value log lines on standard error.

There are two loggers: `proxy` for events, and `proxy.access` for one line per request at its end. A line is an event
name and fields: log(logger, INFO, "fill.complete", key=..., bytes=...). No other file formats log text.
"""

import asyncio
import codecs
import contextlib
import logging
import re
import sys
import threading
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

events = logging.getLogger("proxy")
access = logging.getLogger("proxy.access")
_root = logging.getLogger()
_SPECIAL = re.compile(r'[ "=\\]')
codecs.lookup("unicode_escape")  # Python loads it from a file at its first use, which fails when descriptors run out


def log(logger: logging.Logger, level: int, event: str, **fields: Any) -> None:
    if logger.isEnabledFor(level):
        _say(logger, level, ((int(time.time() * 1000), line(event, **fields), 1),))


def line(event: str, **fields: Any) -> str:
    """The text of a log line."""
    return event + "".join([f" {key}={quoted(value)}" for key, value in fields.items()])


def log_past(logger: logging.Logger, level: int, moments: Iterable[tuple[int, str, int]]) -> None:
    """Log what happened a moment ago: lines, each with its Unix time in milliseconds and how often it is to be written.

    One that is written again costs next to nothing.
    """
    if logger.isEnabledFor(level):
        _say(logger, level, moments)


def _say(logger: logging.Logger, level: int, moments: Iterable[tuple[int, str, int]]) -> None:
    match _root.handlers:
        case [Lines() as lines]:  # without a LogRecord: all that is known is in the text
            name = logging.getLevelName(level)
            lines.add("".join(f"{_second(at // 1000)},{at % 1000:03d} {name} {text}\n" * n for at, text, n in moments))
        case _:
            for _, text, times in moments:
                for _ in range(times):
                    logger.log(level, "%s", text)


def quoted(value: object) -> str:
    """A single word as it is; anything else in double quotes with backslash escapes, so that a line can be parsed."""
    text = str(value)
    if text and text.isprintable() and not _SPECIAL.search(text):
        return text
    escaped = text.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{escaped}"'


class Lines(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to standard error: what is said in one turn of the event loop with one call, at the end of the turn.

    Around each call the interpreter changes hands between threads: with one for each line a small miss cost 6 % more
    processor time.
    """

    lock: threading.RLock

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._text: list[str] = []
        self._due: asyncio.AbstractEventLoop | None = None
        """This loop will flush at the end of its turn, unless it ends before."""

    def emit(self, record: logging.LogRecord) -> None:
        self.add(self.format(record) + "\n")

    def add(self, text: str) -> None:
        """Whole lines. From any thread: where no event loop runs they are written at once."""
        with self.lock:
            self._text.append(text)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
        else:
            if self._due is not loop:
                loop.call_soon(self.flush)
                self._due = loop

    def flush(self) -> None:
        # Where nobody reads it, or it is closed, there is no other place to say so.
        with self.lock, contextlib.suppress(OSError, ValueError):
            self._due = None
            texts, self._text = self._text, []
            if texts:
                self.stream.write("".join(texts))
                self.stream.flush()


def set_up(level: str) -> None:
    """Send our log, and the libraries' warnings, to standard error. `level` is logging's: INFO, DEBUG ..."""
    handler = Lines()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _root.handlers[:] = [handler]
    _root.setLevel(logging.WARNING)
    events.setLevel(level.upper())


@lru_cache(maxsize=8)
def _second(at: int) -> str:
    """As logging.Formatter writes it."""
    return time.strftime(logging.Formatter.default_time_format, time.localtime(at))
