"""Byte ranges: what a Range field asks for and how the answer frames it (RFC 9110 §14).

A field that we cannot or need not honour counts as absent (§14.2): the answer is 200 with everything. Only a
well-formed request for bytes that do not exist gets 416. This file does not know whether the body is complete yet.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# §14.2 lets us ignore sets that can only be abuse. Honest clients (zsync) ask for a few ranges at once.
MAX_RANGES = 256

FARTHEST = 2**63 - 1  # bytes; beyond the end of any file. Greater numbers count as this one (§14.1.2: no overflow).

# No whitespace within a range: only the list allows it (§14.1.1).
_SPEC = re.compile(r"([0-9]*)-([0-9]*)")


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of a body: absolute, half-open, never empty."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Span:
    """`first-last` or `first-`, made half-open; `end` None means to the end of the body."""

    start: int
    end: int | None


@dataclass(frozen=True, slots=True)
class Suffix:
    """`-length`: the last bytes of the body."""

    length: int


Spec = Span | Suffix


def parse(value: str | None) -> tuple[Spec, ...] | None:
    """The ranges of a Range field, in its order; None if it is absent, malformed or of another unit."""
    unit, equals, members = (value or "").strip(" \t").partition("=")
    if not equals or unit.lower() != "bytes":
        return None
    specs: list[Spec] = []
    for member in members.split(","):
        text = member.strip(" \t")
        if not text:
            continue  # empty list elements are ignored (§5.6.1.2)
        spec = _parse_spec(text)
        if spec is None or len(specs) == MAX_RANGES:
            return None
        specs.append(spec)
    return tuple(specs) or None


def resolve(specs: Sequence[Spec], size: int) -> tuple[Range, ...]:
    """The satisfiable ranges, in order, clipped to a body of `size` bytes; an empty result means 416 (§14.1.2)."""
    ranges = []
    for spec in specs:
        match spec:
            case Span(start, end):
                found = Range(start, size if end is None else min(end, size))
            case Suffix(length):
                found = Range(max(0, size - length), size)
        if found.length > 0:
            ranges.append(found)
    return tuple(ranges)


def select(value: str | None, size: int) -> tuple[Range, ...] | None:
    """The ranges of a body of `size` bytes to send with 206; None: 200 with the whole body; (): 416."""
    specs = parse(value)
    if specs is None:
        return None
    if size == 0 and any(isinstance(spec, Suffix) and spec.length for spec in specs):
        return None  # the last bytes of nothing are satisfiable (§14.1.2), but no Content-Range can express them
    ranges = resolve(specs, size)
    # Ranges that overlap so much that they exceed the body: §17.15 warns of them, §14.2 lets us ignore them.
    if sum(part.length for part in ranges) > size:
        return None
    return ranges


def content_range(part: Range, size: int) -> str:
    """Content-Range of a 206 or of one of its parts (RFC 9110 §14.4)."""
    return f"bytes {part.start}-{part.end - 1}/{size}"


def unsatisfied(size: int) -> str:
    """Content-Range of a 416 (RFC 9110 §14.4)."""
    return f"bytes */{size}"


@dataclass(frozen=True, slots=True)
class Multipart:
    """The frame of a multipart/byteranges body (RFC 9110 §14.6)."""

    parts: tuple[tuple[bytes, Range], ...]
    """Bytes to send before each range, and the range."""
    trailer: bytes
    """Bytes to send after the last range."""
    length: int
    """Bytes of the whole body, for Content-Length."""
    content_type: str
    """Content-Type of the whole body."""


def multipart(ranges: Sequence[Range], size: int, content_type: str | None, boundary: str) -> Multipart:
    """Frame `ranges` of a body of `size` bytes and type `content_type` (None: upstream sent none, §15.3.7.2).

    `boundary` is a token of 1 to 70 characters that the body will not contain: draw it at random.
    """
    kind = "" if content_type is None else f"Content-Type: {content_type}\r\n"
    parts = []
    for part in ranges:
        # The line break before the first part is optional (RFC 2046 §5.1.1). Apache and nginx send it, and zsync asks
        # again for ever if it is missing.
        head = f"\r\n--{boundary}\r\n{kind}Content-Range: {content_range(part, size)}\r\n\r\n"
        parts.append((head.encode("latin-1"), part))
    trailer = f"\r\n--{boundary}--\r\n".encode("latin-1")
    return Multipart(
        parts=tuple(parts),
        trailer=trailer,
        length=sum(len(head) + part.length for head, part in parts) + len(trailer),
        content_type=f"multipart/byteranges; boundary={boundary}",
    )


def _parse_spec(text: str) -> Spec | None:
    found = _SPEC.fullmatch(text)
    if found is None:
        return None
    first, last = found.groups()
    if first:
        start = _position(first)
        if not last:
            return Span(start, None)
        end = _position(last) + 1
        return Span(start, end) if start < end else None  # last before first is malformed (§14.1.1)
    return Suffix(_position(last)) if last else None


def _position(digits: str) -> int:
    # Compare the length first: int() refuses thousands of digits.
    digits = digits.lstrip("0")
    return FARTHEST if len(digits) > 19 else min(int(digits or "0"), FARTHEST)
