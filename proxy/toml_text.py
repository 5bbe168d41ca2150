"""The text of a configuration file, and where in it a key is."""

import functools
import itertools
import re
from pathlib import Path
from typing import Any


def text_of(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else _text_once(path, path.stat().st_ino)


@functools.cache
def _text_once(path: Path, inode: int) -> str:
    """Of a pipe or device: it gives its text once, and SIGHUP and messages about a mistake need it again."""
    return path.read_text("utf-8")


def line_of(path: Path, keys: list[Any]) -> int:
    """Line (from 1) of the key, else of its table, else 1. tomllib keeps no positions, so we search the text."""
    lines: dict[tuple[Any, ...], int] = {}
    here: tuple[Any, ...] = ()
    for number, line in enumerate(text_of(path).splitlines(), 1):
        if header := re.match(r"\s*(\[\[?)\s*([\w.\-]+)\s*\]", line):
            here = tuple(header[2].split("."))
            if header[1] == "[[":
                here = next((*here, index) for index in itertools.count() if (*here, index) not in lines)
            lines.setdefault(here, number)
        elif key := re.match(r"\s*([\w\-]+)\s*=", line):
            lines.setdefault((*here, key[1]), number)
    return next((lines[tuple(keys[:end])] for end in range(len(keys), 0, -1) if tuple(keys[:end]) in lines), 1)
