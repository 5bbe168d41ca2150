"""Key=value log lines on standard error.

There are two loggers: `proxy` for events, and `proxy.access` for one line per request at its end. A line is an event
name and fields: log(logger, INFO, "fill.complete", key=..., bytes=...). No other file formats log text.
"""

import codecs
import logging
import sys
from typing import Any

events = logging.getLogger("proxy")
access = logging.getLogger("proxy.access")
codecs.lookup("unicode_escape")  # Python loads it from a file at its first use, which fails when descriptors run out


def log(logger: logging.Logger, level: int, event: str, **fields: Any) -> None:
    if logger.isEnabledFor(level):
        logger.log(level, "%s%s", event, "".join(f" {key}={quoted(value)}" for key, value in fields.items()))


def quoted(value: object) -> str:
    """A single word as it is; anything else in double quotes with backslash escapes, so that a line can be parsed."""
    text = str(value)
    if text and text.isprintable() and not any(char in ' "=\\' for char in text):
        return text
    escaped = text.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{escaped}"'


def set_up(level: str) -> None:
    """Send our log, and the libraries' warnings, to standard error. `level` is logging's: INFO, DEBUG ..."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    events.setLevel(level.upper())
