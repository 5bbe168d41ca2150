"""Key=value log lines on standard error.

There are two loggers: `proxy` for events, and `proxy.access` for one line per request at its end. A line is an event
name and fields: log(logger, INFO, "fill.complete", key=..., bytes=...). No other file formats log text.
"""

import codecs
import logging
import re
import sys
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

events = logging.getLogger("proxy")
access = logging.getLogger("proxy.access")
_SPECIAL = re.compile(r'[ "=\\]')
codecs.lookup("unicode_escape")  # Python loads it from a file at its first use, which fails when descriptors run out


def log(logger: logging.Logger, level: int, event: str, **fields: Any) -> None:
    if logger.isEnabledFor(level):
        logger.log(level, "%s", line(event, **fields))


def line(event: str, **fields: Any) -> str:
    """The text of a log line."""
    return event + "".join([f" {key}={quoted(value)}" for key, value in fields.items()])


def log_past(logger: logging.Logger, level: int, moments: Iterable[tuple[int, str, int]]) -> None:
    """Log what happened a moment ago: lines, each with its Unix time in milliseconds and how often it is to be written.

    A line costs a tenth of what it does alone, and one that is written again next to nothing.
    """
    if logger.isEnabledFor(level):
        name = logging.getLevelName(level)
        lines = (f"{_second(at // 1000)},{at % 1000:03d} {name} {text}\n" * times for at, text, times in moments)
        logger.log(level, "".join(lines)[:-1], extra={"is_formatted": True})


def quoted(value: object) -> str:
    """A single word as it is; anything else in double quotes with backslash escapes, so that a line can be parsed."""
    text = str(value)
    if text and text.isprintable() and not _SPECIAL.search(text):
        return text
    escaped = text.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{escaped}"'


class Formatter(logging.Formatter):
    """The time, the level and the message; of `log_past` the message alone."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return f"{_second(int(record.created))},{int(record.msecs):03d}"

    def format(self, record: logging.LogRecord) -> str:
        if getattr(record, "is_formatted", False):
            return record.getMessage()
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        return f"{self.formatTime(record)} {record.levelname} {record.getMessage()}"  # in half of logging's time


def set_up(level: str) -> None:
    """Send our log, and the libraries' warnings, to standard error. `level` is logging's: INFO, DEBUG ..."""
    # Nobody is told the place in the source, the thread or the process: they are a quarter of a line's cost.
    logging._srcfile = None
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    events.setLevel(level.upper())


@lru_cache(maxsize=8)
def _second(at: int) -> str:
    """As logging.Formatter writes it."""
    return time.strftime(logging.Formatter.default_time_format, time.localtime(at))
