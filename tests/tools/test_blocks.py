"""A block of ours in somebody else's file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.tools.blocks import has_block, with_block, without

TEXTS = st.text(st.sampled_from("a#>\n\r "), max_size=30)


@given(TEXTS, TEXTS)
def test_what_was_there_before_the_block_comes_back(text, body):
    changed = with_block(text, body, "boxes go through it", "fetchonce vagrant remove")
    assert changed.startswith(text)
    assert has_block(changed)
    assert not has_block(text)
    assert without(changed) == text


@pytest.mark.parametrize("text", ["", "end = 1\n", "end = 1"])
def test_a_second_time_replaces_the_block(text):
    first = with_block(text, "one", "a", "b")
    assert with_block(first, "two", "a", "b") == with_block(text, "two", "a", "b")


def test_what_was_written_below_the_block_stays():
    assert without(with_block("above\n", "ours", "a", "b") + "below\n") == "above\nbelow\n"
