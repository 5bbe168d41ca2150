"""What may go on with a body that is here in part: by node, validator, range, and where its bytes are."""

from dataclasses import dataclass

import pytest

from proxy.rules.entry import Head
from proxy.rules.splice import OVERLAP_BYTES, Held, Known, Splice, is_the_same, judge, rest_fields, start_of_rest

A, B, MIRROR = "http://a.example/x", "http://b.example/x?signature=1", "http://mirror.example/x"
DATE, LATER = "Tue, 14 Nov 2023 22:13:20 GMT", "Wed, 15 Nov 2023 22:13:20 GMT"
TODAY = ("date", "Thu, 16 Nov 2023 22:13:20 GMT")
SIZE, START = 1_000_000, 250_000

TAGGED = (("etag", '"a"'), ("last-modified", DATE))
OF_B = (("etag", '"b"'), ("last-modified", DATE))


@dataclass(frozen=True)
class Answer:
    final_url: str
    status: int
    headers: tuple[tuple[str, str], ...]
    length: int | None


def known(headers=TAGGED, held=Held.READ, length=SIZE, node="http://a.example:80"):
    return Known(Head((TODAY, *headers), length, "generation", node=node), MIRROR, held)


def part(url, headers, *, start=START, end=SIZE, total=SIZE, length=-1, named=None):
    """A 206 of the bytes from `start` to `end`."""
    given = named or f"bytes {start}-{end - 1}/{total}"
    return Answer(url, 206, (*headers, ("content-range", given)), end - start if length == -1 else length)


def whole(url, headers, length=SIZE):
    return Answer(url, 200, headers, length)


ANSWERS = [
    # The node that gave the first bytes.
    pytest.param(known(), part(A, TAGGED), Splice.PART, id="rfc9110-15.3.7-same-tag"),
    pytest.param(known(), part(A, TAGGED, length=None), Splice.PART, id="rfc9110-14.4-chunked-part"),
    pytest.param(known(), part(A, TAGGED, end=SIZE // 2), Splice.PART, id="rfc9110-15.3.7-less-than-was-asked-for"),
    pytest.param(known(), part(A, (("etag", '"a"'),)), Splice.PART, id="rfc9110-15.3.7-if-range-by-tag-needs-no-date"),
    pytest.param(known(), part(A, OF_B), Splice.OTHER, id="rfc9110-15.3.7-another-tag"),
    pytest.param(known(), part(A, ()), Splice.NONE, id="rfc9110-15.3.7-no-validator"),
    pytest.param(
        known(), part(A, (("last-modified", DATE),)), Splice.NONE, id="rfc9110-15.3.7-the-date-but-not-the-tag"
    ),
    pytest.param(known(TAGGED[1:]), part(A, TAGGED[1:]), Splice.PART, id="rfc9110-15.3.7-same-date"),
    pytest.param(
        known(TAGGED[1:]), part(A, (("last-modified", LATER),)), Splice.OTHER, id="rfc9110-15.3.7-another-date"
    ),
    pytest.param(known(held=Held.SAVED), part(A, TAGGED), Splice.PART, id="saved-same-tag"),
    pytest.param(known(held=Held.PASSED), part(A, TAGGED), Splice.PART, id="passed-same-tag"),
    pytest.param(known(held=Held.PASSED), part(A, ()), Splice.NONE, id="passed-no-validator"),
    # Ranges that are not the one that was asked for.
    pytest.param(known(), part(A, TAGGED, total=SIZE + 1), Splice.NONE, id="rfc9110-14.4-another-total"),
    pytest.param(known(), part(A, TAGGED, total="*"), Splice.NONE, id="rfc9110-14.4-unknown-total"),
    pytest.param(known(), part(A, TAGGED, start=START + 1), Splice.NONE, id="rfc9110-14.4-later-start"),
    pytest.param(known(), part(A, TAGGED, start=START - 1), Splice.NONE, id="rfc9110-14.4-earlier-start"),
    pytest.param(known(), part(A, TAGGED, length=7), Splice.NONE, id="rfc9110-14.4-length-is-not-that-of-the-range"),
    pytest.param(known(), part(A, TAGGED, named="bytes */1000000"), Splice.NONE, id="rfc9110-14.4-unsatisfied"),
    pytest.param(
        known(),
        part(A, TAGGED, named=f"bytes {START}-{SIZE}/{SIZE}", length=None),
        Splice.NONE,
        id="rfc9110-14.4-past-end",
    ),
    pytest.param(
        known(),
        part(A, TAGGED, named=f"bytes {START}-{START - 1}/{SIZE}", length=0),
        Splice.NONE,
        id="rfc9110-14.4-empty",
    ),
    pytest.param(known(), part(A, TAGGED, named="nonsense"), Splice.NONE, id="rfc9110-14.4-nonsense"),
    pytest.param(
        known(),
        Answer(A, 206, (*TAGGED, ("content-type", "multipart/byteranges")), 100),
        Splice.NONE,
        id="rfc9110-14.6",
    ),
    # Another node: its tag says nothing, the bytes do.
    pytest.param(known(), part(B, OF_B), Splice.COMPARE, id="rfc9110-8.8.3-another-nodes-tag"),
    pytest.param(known(), part(B, TAGGED), Splice.COMPARE, id="rfc9110-8.8.3-equal-tag-of-another-node"),
    pytest.param(known(TAGGED[:1]), part(B, OF_B[:1]), Splice.COMPARE, id="another-node-neither-has-a-date"),
    pytest.param(known(), part(B, OF_B[:1]), Splice.NONE, id="another-node-without-the-date"),
    pytest.param(known(), part(B, (("last-modified", LATER),)), Splice.NONE, id="another-node-another-date"),
    pytest.param(known(held=Held.SAVED), part(B, OF_B), Splice.COMPARE, id="saved-another-node"),
    pytest.param(known(held=Held.PASSED), part(B, OF_B), Splice.NONE, id="passed-nothing-to-compare-with"),
    pytest.param(known(), part(B, OF_B, total=SIZE + 1), Splice.NONE, id="another-node-another-total"),
    # Whole answers.
    pytest.param(known(), whole(A, TAGGED), Splice.COMPARE, id="rfc9110-14.2-range-ignored"),
    pytest.param(known(), whole(A, OF_B), Splice.OTHER, id="rfc9110-13.1.5-changed"),
    pytest.param(known(), whole(A, ()), Splice.COMPARE, id="whole-without-validator"),
    pytest.param(known(), whole(A, TAGGED, SIZE + 1), Splice.OTHER, id="whole-of-another-length"),
    pytest.param(known(), whole(A, TAGGED, None), Splice.COMPARE, id="whole-in-chunks"),
    pytest.param(known(length=None), whole(A, TAGGED), Splice.COMPARE, id="whole-now-with-a-length"),
    pytest.param(known(), whole(B, OF_B), Splice.COMPARE, id="whole-of-another-node"),
    pytest.param(
        known(), whole(B, (("last-modified", LATER),)), Splice.COMPARE, id="whole-of-another-node-another-date"
    ),
    pytest.param(known(), whole(B, OF_B, SIZE + 1), Splice.OTHER, id="whole-of-another-node-another-length"),
    pytest.param(known(held=Held.PASSED), whole(A, TAGGED), Splice.COMPARE, id="passed-whole-same-tag"),
    pytest.param(known(held=Held.PASSED), whole(A, ()), Splice.OTHER, id="passed-whole-without-validator"),
    pytest.param(known(held=Held.PASSED), whole(B, OF_B), Splice.OTHER, id="passed-whole-of-another-node"),
    pytest.param(known(held=Held.PASSED), part(B, TAGGED), Splice.PART, id="passed-another-node-same-tag-and-date"),
    pytest.param(known(held=Held.PASSED), whole(B, TAGGED), Splice.COMPARE, id="passed-whole-same-tag-and-date"),
    pytest.param(known(TAGGED[:1], Held.PASSED), part(B, TAGGED[:1]), Splice.NONE, id="passed-same-tag-without-a-date"),
]


@pytest.mark.parametrize(("known", "answer", "splice"), ANSWERS)
def test_an_answer_is_gone_on_with_only_where_it_must_be_right(known, answer, splice):
    assert judge(known, START, answer) is splice


NODES = [
    pytest.param("http://a.example/other", True, id="path-does-not-matter"),
    pytest.param("http://A.example:80/x", True, id="rfc9110-4.2.3-default-port-and-case"),
    pytest.param("https://a.example/x", False, id="scheme"),
    pytest.param("http://a.example:8080/x", False, id="port"),
    pytest.param("http://b.example/x", False, id="host"),
    pytest.param(MIRROR, False, id="the-redirector-is-not-its-node"),
]


@pytest.mark.parametrize(("url", "is_from"), NODES)
def test_a_node_is_scheme_host_and_port(url, is_from):
    assert known().is_from(url) is is_from


def test_ipv6_nodes_are_written_as_the_exchange_writes_them():
    assert known(node="http://[::1]:8080").is_from("http://[::1]:8080/x")
    assert known(node="https://[::1]:443").is_from("https://[::1]/x")


def test_what_was_saved_before_nodes_were_noted_is_of_its_mirror():
    assert known(node="").is_from(MIRROR)
    assert not known(node="").is_from(A)


OVERLAPPED = START - OVERLAP_BYTES

QUESTIONS = [
    pytest.param(
        known(), A, None, (("range", f"bytes={START}-"), ("if-range", '"a"')), id="rfc9110-13.1.5-its-own-tag"
    ),
    pytest.param(known(), A, SIZE, (("range", f"bytes={START}-"), ("if-range", '"a"')), id="rest-is-open-ended"),
    pytest.param(known(), A, SIZE - 1, (("range", f"bytes={START}-{SIZE - 2}"), ("if-range", '"a"')), id="a-part"),
    pytest.param(
        known(),
        B,
        None,
        (("range", f"bytes={OVERLAPPED}-"), ("if-range", DATE)),
        id="rfc9110-13.1.5-date-for-another-node",
    ),
    pytest.param(
        known(), MIRROR, None, (("range", f"bytes={OVERLAPPED}-"), ("if-range", DATE)), id="date-for-the-redirector"
    ),
    pytest.param(known(TAGGED[:1]), B, None, (("range", f"bytes={OVERLAPPED}-"),), id="another-nodes-tag-is-not-sent"),
    pytest.param(
        known((("etag", '"a"'), ("last-modified", TODAY[1]))),
        B,
        None,
        (("range", f"bytes={OVERLAPPED}-"),),
        id="rfc9110-8.8.2.2-weak-date-is-not-sent",
    ),
    pytest.param(
        known(held=Held.PASSED), B, None, (("range", f"bytes={START}-"), ("if-range", DATE)), id="passed-has-no-overlap"
    ),
]


@pytest.mark.parametrize(("known", "url", "stop", "fields"), QUESTIONS)
def test_a_rest_is_asked_for_by_what_the_asked_node_can_compare(known, url, stop, fields):
    assert rest_fields(known, START, stop, url) == fields


def test_an_overlap_does_not_begin_before_the_body():
    assert start_of_rest(known(), 1000, B) == 0
    assert start_of_rest(known(), 1000, A) == 1000


@pytest.mark.parametrize(
    ("headers", "length", "can_resume"),
    [
        pytest.param(TAGGED, SIZE, True, id="strong-tag"),
        pytest.param((("etag", 'W/"a"'),), SIZE, False, id="rfc9110-13.1.5-weak-tag"),
        pytest.param(TAGGED[1:], SIZE, True, id="rfc9110-8.8.2.2-strong-date"),
        pytest.param((("last-modified", TODAY[1]),), SIZE, False, id="rfc9110-8.8.2.2-date-too-new"),
        pytest.param((), SIZE, False, id="no-validator"),
        pytest.param(TAGGED, None, False, id="unknown-length"),
    ],
)
def test_a_part_can_be_asked_for_where_a_strong_validator_and_the_length_are_known(headers, length, can_resume):
    assert known(headers, length=length).can_resume is can_resume


@pytest.mark.parametrize(
    ("answer", "is_same"),
    [
        pytest.param(whole(A, TAGGED), True, id="same-tag"),
        pytest.param(whole(A, OF_B), False, id="another-tag"),
        pytest.param(whole(A, (("etag", 'W/"a"'),)), False, id="rfc9110-8.8.3.2-weak-tag"),
        pytest.param(whole(A, TAGGED[1:]), False, id="the-date-but-not-the-tag"),
        pytest.param(whole(A, TAGGED, SIZE + 1), False, id="another-length"),
        pytest.param(whole(A, TAGGED, None), False, id="no-length"),
        pytest.param(whole(B, TAGGED), False, id="another-node"),
        pytest.param(part(A, TAGGED), False, id="a-part"),
    ],
)
def test_a_whole_answer_may_be_what_is_here(answer, is_same):
    assert is_the_same(known(), answer) is is_same


def test_what_nothing_identifies_is_never_the_same():
    assert not is_the_same(known(()), whole(A, ()))
