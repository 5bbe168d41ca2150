"""Byte ranges, against tables from RFC 9110, sets of offsets, werkzeug and the standard library's MIME parser."""

from email import message_from_bytes
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug import http as werkzeug

from proxy.rules.ranges import (
    FARTHEST,
    MAX_RANGES,
    Range,
    Span,
    Spec,
    Suffix,
    content_range,
    multipart,
    parse,
    resolve,
    select,
    unsatisfied,
)


@pytest.mark.parametrize(
    ("value", "specs"),
    [
        pytest.param("bytes=0-499", (Span(0, 500),), id="rfc9110-14.1.2-first-500"),
        pytest.param("bytes=500-", (Span(500, None),), id="rfc9110-14.1.2-from-500"),
        pytest.param("bytes=-500", (Suffix(500),), id="rfc9110-14.1.2-last-500"),
        pytest.param("bytes=0-0,-1", (Span(0, 1), Suffix(1)), id="rfc9110-14.1.2-first-and-last"),
        pytest.param("bytes= 0-999, 4500-5499, -1000", (Span(0, 1000), Span(4500, 5500), Suffix(1000)),
                     id="rfc9110-14.1.2-space-in-the-list"),
        pytest.param("bytes=500-700,601-999", (Span(500, 701), Span(601, 1000)), id="rfc9110-14.1.2-overlap"),
        pytest.param("bytes=5-5,0-0", (Span(5, 6), Span(0, 1)), id="order-of-the-request"),
        pytest.param(" BYTES=0-1 ", (Span(0, 2),), id="rfc9110-14.1-unit-in-any-case"),
        pytest.param("bytes=,0-1,\t,2-3,", (Span(0, 2), Span(2, 4)), id="rfc9110-5.6.1.2-empty-members"),
        pytest.param("bytes=-0", (Suffix(0),), id="rfc9110-14.1.2-suffix-0-is-well-formed"),
        pytest.param("bytes=007-010", (Span(7, 11),), id="leading-zeros"),
        pytest.param(f"bytes={10**18}-", (Span(10**18, None),), id="rfc9110-14.1.2-nineteen-digits"),
        pytest.param(f"bytes=0-{FARTHEST}", (Span(0, FARTHEST + 1),), id="rfc9110-14.1.2-large"),
        pytest.param("bytes=0-" + "9" * 5000, (Span(0, FARTHEST + 1),), id="rfc9110-14.1.2-larger-than-int-takes"),
        pytest.param("bytes=" + "9" * 5000 + "-", (Span(FARTHEST, None),), id="rfc9110-14.1.2-large-first"),
        pytest.param("bytes=-" + "9" * 5000, (Suffix(FARTHEST),), id="rfc9110-14.1.2-large-suffix"),
        pytest.param("bytes=" + "0" * 5000 + "1-1", (Span(1, 2),), id="many-leading-zeros"),
        pytest.param(None, None, id="rfc9110-14.2-absent"),
        pytest.param("", None, id="rfc9110-14.2-empty"),
        pytest.param("bytes", None, id="rfc9110-14.2-no-set"),
        pytest.param("bytes=", None, id="rfc9110-14.1.1-empty-set"),
        pytest.param("bytes=,", None, id="rfc9110-14.1.1-empty-members-only"),
        pytest.param("bytes=-", None, id="rfc9110-14.1.1-no-digits"),
        pytest.param("bytes=5-2", None, id="rfc9110-14.1.1-last-before-first"),
        pytest.param("bytes=5-4", None, id="rfc9110-14.1.1-last-just-before-first"),
        pytest.param("bytes=0-1,5-2", None, id="rfc9110-14.1.1-one-malformed-spoils-all"),
        pytest.param("bytes=0", None, id="rfc9110-14.1.1-no-dash"),
        pytest.param("bytes=a-b", None, id="rfc9110-14.1.1-no-numbers"),
        pytest.param("bytes=0x1-2", None, id="rfc9110-14.1.1-hexadecimal"),
        pytest.param("bytes=1_0-20", None, id="rfc9110-14.1.1-underscore"),
        pytest.param("bytes=+1-2", None, id="rfc9110-14.1.1-plus"),
        pytest.param("bytes=--1", None, id="rfc9110-14.1.1-two-dashes"),
        pytest.param("bytes=0-1-2", None, id="rfc9110-14.1.1-three-numbers"),
        pytest.param("bytes=0 - 1", None, id="rfc9110-14.1.1-space-within"),
        pytest.param("bytes =0-1", None, id="rfc9110-14.1.1-space-before-equals"),
        pytest.param("bytes=\u0661-\u0662", None, id="rfc9110-14.1.1-digits-are-ascii"),
        pytest.param("bytes=0-1\n", None, id="line-break"),
        pytest.param("bytes=0-1, bytes=4-5", None, id="rfc9110-14.1.1-two-lines"),
        pytest.param("items=0-1", None, id="rfc9110-14.2-another-unit"),
        pytest.param("=0-1", None, id="rfc9110-14.2-no-unit"),
        pytest.param("bytes=" + "0-0," * MAX_RANGES + "0-0", None, id="rfc9110-14.2-too-many"),
    ],
)  # fmt: skip
def test_parse(value: str | None, specs: tuple[Spec, ...] | None) -> None:
    assert parse(value) == specs


def test_as_many_ranges_as_allowed_are_parsed() -> None:
    specs = parse("bytes=" + ", ".join(["0-0"] * MAX_RANGES))
    assert specs is not None
    assert len(specs) == MAX_RANGES


@pytest.mark.parametrize("unit", ["9", ",", "-", " ", "0-0,", "0-"])
def test_parse_takes_linear_time(unit: str) -> None:
    """Backtracking over half a megabyte would not end before the suite's time limit."""
    assert parse("bytes=" + unit * (500_000 // len(unit)) + "x") is None


@pytest.mark.parametrize(
    ("value", "size", "ranges"),
    [
        pytest.param(None, 10, None, id="rfc9110-14.2-absent"),
        pytest.param("bytes=5-2", 10, None, id="rfc9110-14.2-malformed-is-ignored"),
        pytest.param("bytes=0-9", 10, (Range(0, 10),), id="rfc9110-14.2-all-of-it-is-206-too"),
        pytest.param("bytes=2-", 10, (Range(2, 10),), id="rfc9110-14.1.2-to-the-end"),
        pytest.param("bytes=2-99", 10, (Range(2, 10),), id="rfc9110-14.1.2-clipped"),
        pytest.param("bytes=-3", 10, (Range(7, 10),), id="rfc9110-14.1.2-suffix"),
        pytest.param("bytes=-99", 10, (Range(0, 10),), id="rfc9110-14.1.2-suffix-longer-than-the-body"),
        pytest.param("bytes=9-", 10, (Range(9, 10),), id="last-byte"),
        pytest.param("bytes=10-", 10, (), id="rfc9110-15.5.17-first-is-the-size"),
        pytest.param("bytes=10-20", 10, (), id="rfc9110-15.5.17-beyond"),
        pytest.param("bytes=" + "9" * 5000 + "-", 10, (), id="rfc9110-15.5.17-far-beyond"),
        pytest.param("bytes=-0", 10, (), id="rfc9110-15.5.17-suffix-0"),
        pytest.param("bytes=10-,12-13", 10, (), id="rfc9110-15.5.17-none-of-several"),
        pytest.param("bytes=10-,0-1,-0", 10, (Range(0, 2),), id="rfc9110-14.1.2-one-of-several"),
        pytest.param("bytes=8-9,0-1", 10, (Range(8, 10), Range(0, 2)), id="rfc9110-15.3.7.2-order-of-the-request"),
        pytest.param("bytes=0-4,5-9", 10, (Range(0, 5), Range(5, 10)), id="all-of-it-in-parts"),
        pytest.param("bytes=0-5,2-5", 10, (Range(0, 6), Range(2, 6)), id="rfc9110-14.2-little-overlap"),
        pytest.param("bytes=0-5,5-9", 10, None, id="rfc9110-17.15-more-than-there-is"),
        pytest.param("bytes=0-,0-,0-", 10, None, id="rfc9110-17.15-the-body-many-times"),
        pytest.param("bytes=0-", 0, (), id="rfc9110-14.1.2-empty-body"),
        pytest.param("bytes=-5", 0, None, id="rfc9110-14.1.2-suffix-of-an-empty-body"),
        pytest.param("bytes=-0", 0, (), id="rfc9110-14.1.2-suffix-0-of-an-empty-body"),
    ],
)
def test_select(value: str | None, size: int, ranges: tuple[Range, ...] | None) -> None:
    assert select(value, size) == ranges


SPECS = st.one_of(
    st.builds(Span, st.integers(0, 14), st.none()),
    st.tuples(st.integers(0, 14), st.integers(1, 14)).map(lambda pair: Span(pair[0], sum(pair))),
    st.builds(Suffix, st.integers(0, 14)),
)


def written(spec: Spec) -> str:
    match spec:
        case Span(start, end):
            return f"{start}-{'' if end is None else end - 1}"
        case Suffix(length):
            return f"-{length}"


def offsets(spec: Spec, size: int) -> list[int]:
    """The model: the offsets a spec means."""
    match spec:
        case Span(start, end):
            return [offset for offset in range(size) if offset >= start and (end is None or offset < end)]
        case Suffix(length):
            return [offset for offset in range(size) if offset >= size - length]


@given(st.text(max_size=60) | st.text("bytes=0123456789-, \t", max_size=60).map("bytes={}".format), st.integers(0, 12))
def test_any_text_is_ranges_or_none(text: str, size: int) -> None:
    assert all(0 <= part.start < part.end <= size for part in select(text, size) or ())


@given(st.lists(SPECS, min_size=1, max_size=5), st.integers(0, 12))
def test_ranges_hold_the_offsets_that_were_asked_for(specs: list[Spec], size: int) -> None:
    value = f"bytes={', '.join(written(spec) for spec in specs)}"
    assert parse(value) == tuple(specs)

    wanted = [found for spec in specs if (found := offsets(spec, size))]
    assert [list(range(part.start, part.end)) for part in resolve(specs, size)] == wanted
    assert [part.length for part in resolve(specs, size)] == [len(found) for found in wanted]

    ranges = select(value, size)
    if ranges is None:
        assert sum(map(len, wanted)) > size or (size == 0 and any(isinstance(spec, Suffix) for spec in specs))
    else:
        assert ranges == resolve(specs, size)
        assert sum(part.length for part in ranges) <= size


def is_ascending(specs: tuple[Spec, ...]) -> bool:
    """Whether the ranges are in order, do not overlap, and a range without an end is the last."""
    for before, after in pairwise(specs):
        if not isinstance(before, Span) or before.end is None:
            return False
        if isinstance(after, Span) and after.start < before.end:
            return False
    return True


@given(
    st.sampled_from(["bytes=", "Bytes=", "bytes =", "items=", "bytes", "bytes=="]),
    st.lists(
        st.lists(st.sampled_from(["0", "1", "2", "7", "12", "-", "-", "-", " ", "x"]), max_size=4).map("".join)
        | SPECS.map(written),
        max_size=4,
    ),
    st.sampled_from([",", ", ", "\t,", ",,"]),
)
def test_parse_is_werkzeugs(unit: str, members: list[str], comma: str) -> None:
    """But for known differences, in which we follow RFC 9110.

    werkzeug refuses ranges that are not ascending (§14.2 lets it), empty list members (§5.6.1.2) and `-0` (well-formed,
    only unsatisfiable: §14.1.2). It allows space around the dash and before the equals sign, where §14.1.1 has none,
    and leaves the unit to its caller.
    """
    value = unit + comma.join(members)
    listed = [member.strip(" \t") for member in value.partition("=")[2].split(",")]
    ours, theirs = parse(value), werkzeug.parse_range_header(value)
    if theirs is None:
        assert ours is None or "" in listed or Suffix(0) in ours or not is_ascending(ours)
    elif theirs.units != "bytes" or unit == "bytes =" or any(" " in member for member in listed):
        assert ours is None
    else:
        assert ours == tuple(Suffix(-start) if start < 0 else Span(start, end) for start, end in theirs.ranges)


@given(SPECS, st.integers(0, 12))
def test_one_range_resolves_as_werkzeugs(spec: Spec, size: int) -> None:
    """Known differences, left out: to werkzeug a suffix longer than the body is unsatisfiable (RFC 9110 §14.1.2: it
    means the whole body), and `-0` malformed.
    """
    if isinstance(spec, Suffix) and (spec.length == 0 or spec.length > size):
        return
    theirs = werkzeug.parse_range_header(f"bytes={written(spec)}")
    assert theirs is not None
    ranges = resolve([spec], size)
    assert [(part.start, part.end) for part in ranges] == [
        found for found in [theirs.range_for_length(size)] if found is not None
    ]
    assert [content_range(part, size) for part in ranges] == [
        found for found in [theirs.to_content_range_header(size)] if found is not None
    ]


def test_content_range() -> None:
    assert content_range(Range(0, 10), 100) == "bytes 0-9/100"  # RFC 9110 §14.4
    assert unsatisfied(100) == "bytes */100"


def test_multipart_is_written_as_in_the_rfc() -> None:
    """The example of RFC 9110 §14.6, with the line break that may precede the first boundary."""
    frame = multipart([Range(500, 1000), Range(7000, 8000)], 8000, "application/pdf", "THIS_STRING_SEPARATES")
    first = (
        b"\r\n--THIS_STRING_SEPARATES\r\nContent-Type: application/pdf\r\nContent-Range: bytes 500-999/8000\r\n\r\n",
        Range(500, 1000),
    )
    second = (
        b"\r\n--THIS_STRING_SEPARATES\r\nContent-Type: application/pdf\r\nContent-Range: bytes 7000-7999/8000\r\n\r\n",
        Range(7000, 8000),
    )
    assert frame.parts == (first, second)
    assert frame.trailer == b"\r\n--THIS_STRING_SEPARATES--\r\n"
    assert frame.length == len(first[0]) + 500 + len(second[0]) + 1000 + len(frame.trailer)
    assert frame.content_type == "multipart/byteranges; boundary=THIS_STRING_SEPARATES"


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)).map(lambda pair: Range(pair[0], sum(pair))), min_size=1),
    st.none() | st.sampled_from(["application/octet-stream", "text/plain; charset=caf\xe9"]),
)
def test_multipart_is_read_by_a_mime_parser(ranges: list[Range], content_type: str | None) -> None:
    body = bytes(65 + offset % 26 for offset in range(50))
    frame = multipart(ranges, len(body), content_type, "3d6b6a416f9b5")
    sent = b"".join(head + body[part.start : part.end] for head, part in frame.parts) + frame.trailer
    assert len(sent) == frame.length

    message = message_from_bytes(f"Content-Type: {frame.content_type}\r\n\r\n".encode() + sent)
    assert message.get_content_type() == "multipart/byteranges"
    assert not message.defects
    assert not message.preamble
    parts = message.get_payload()
    assert [part["content-range"] for part in parts] == [content_range(part, len(body)) for part in ranges]
    assert [part.get_payload(decode=True) for part in parts] == [body[part.start : part.end] for part in ranges]
    assert {"content-type" in part for part in parts} == {content_type is not None}
