"""Changes of a text at places that were found in it."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edit:
    """`new` in place of what stands from `start` to `end`."""

    start: int
    end: int
    new: str


def edited(text: str, edits: Iterable[Edit], start: int = 0, end: int | None = None) -> str:
    """`text[start:end]` with the edits, which do not overlap."""
    parts = []
    for edit in sorted(edits, key=lambda edit: edit.start):
        parts += [text[start : edit.start], edit.new]
        start = edit.end
    return "".join([*parts, text[start:end]])
