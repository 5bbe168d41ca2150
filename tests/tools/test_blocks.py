"""A block of ours in somebody else's file."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.tools.blocks import body_of, has_block, is_torn, read, was_absent, with_block, without, write

TEXTS = st.text(st.sampled_from("a#>\n\r "), max_size=30)


@given(TEXTS, TEXTS)
def test_what_was_there_before_the_block_comes_back(text, body):
    changed = with_block(text, body, "boxes go through it", "fetchonce vagrant remove")
    assert changed.startswith(text)
    assert has_block(changed)
    assert not has_block(text)
    assert not is_torn(changed)
    assert body_of(changed).rstrip() == body.rstrip()
    assert without(changed) == text


@pytest.mark.parametrize("text", ["", "end = 1\n", "end = 1"])
def test_a_second_time_replaces_the_block(text):
    first = with_block(text, "one", "a", "b")
    assert with_block(first, "two", "a", "b") == with_block(text, "two", "a", "b")


def test_what_was_written_around_the_block_stays():
    assert without(with_block("above\n", "ours", "a", "b") + "below\n") == "above\nbelow\n"
    both = with_block("above\n", "ours", "a", "b") + "between\n" + with_block("", "ours", "a", "b")
    assert without(both) == "above\nbetween\n"


@pytest.mark.parametrize("text", ["above\n", "above", "", None])
def test_an_editor_may_change_the_line_ends(text):
    changed = with_block(text, "one\ntwo", "a", "b")
    assert without(changed.replace("\n", "\r\n")).rstrip("\r\n") == (text or "").rstrip()
    assert without(changed.removesuffix("\n")) == (text or "")


def test_it_knows_whether_there_was_a_file():
    made = with_block(None, "one", "a", "b")
    assert was_absent(made)
    assert was_absent(with_block(made, "two", "a", "b"))
    assert without(made) == ""
    assert not was_absent(with_block("", "one", "a", "b"))
    assert not was_absent("# (there was no file)\n")


def test_a_block_that_has_lost_a_line_does_not_take_others_with_it():
    whole = with_block("above\n", "ours", "a", "b")
    first, last = "# >>> fetchonce: a; `b` takes it out\n", "# <<< fetchonce\n"
    for torn in (whole.replace(last, "") + "theirs\n", whole.replace(first, ""), whole.replace(first, first * 2)):
        assert is_torn(torn)
        assert "theirs" not in torn or "theirs" in without(with_block(torn, "ours", "a", "b"))
    assert not is_torn("# a comment of theirs: # >>> fetchonce: x\n")


def test_other_bytes_than_utf_8_and_the_files_mode_stay(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(path)
    before = b"caf\xe9\r\n\xff\n\r"
    path.write_bytes(before)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1, 2)
    write(link, with_block(read(link), "ours", "a", "b"))
    assert path.read_bytes().startswith(before)
    write(link, without(read(link)))
    assert path.read_bytes() == before
    assert link.is_symlink()
    now = path.stat()
    assert now.st_mode & 0o7777 == 0o640
    assert (now.st_uid, now.st_gid) == ((1, 2) if os.geteuid() == 0 else (os.geteuid(), os.getegid()))
    assert read(tmp_path / "nothing") is None
