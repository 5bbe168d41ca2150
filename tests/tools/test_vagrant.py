"""The hook in Vagrant's home. tests/clients has the real Vagrant with it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.mirrors import Mirror
from proxy.tools.blocks import has_block, without
from proxy.tools.vagrant import Hook, home, installed, places, remove, vagrantfile, with_hook, write

HOOKS = [
    Hook("http://127.0.0.1:8642", ("images.example/pub/", "*.allowed.example"), falls_back=True, is_given=False),
    Hook("https://me:to%2Fken@[::1]:8643", ('q"\\uote.example/é/',), falls_back=False, is_given=True),
    Hook("http://cache", (), falls_back=True, is_given=True),
]
LINES = ["a", "Vagrant.configure('2') { }", "__END__", " __END__", "__END__ x", "# >>> x", "\udce9", ""]
FILES = st.lists(st.sampled_from(LINES)).flatmap(
    lambda lines: st.sampled_from(["\n", "\r\n"]).map(lambda end: end.join(lines))
)


@given(FILES | st.none(), st.sampled_from(HOOKS), st.sampled_from(HOOKS), st.booleans())
def test_a_hook_can_be_read_back_replaced_and_taken_out(text, first, second, is_new_directory):
    once = with_hook(text, first, is_new_directory=is_new_directory)
    assert installed(once) == first
    assert with_hook(once, first, is_new_directory=False) == once
    twice = with_hook(once, second, is_new_directory=False)
    assert installed(twice) == second
    assert with_hook(text, second, is_new_directory=is_new_directory) == twice
    assert without(twice) == (text or "")
    before = twice.partition("class Fetchonce")[0]
    assert not [line for line in before.splitlines() if line == "__END__"]  # Ruby reads nothing behind it


def test_what_is_no_hook_of_ours_is_none():
    assert installed(None) is installed("") is installed("# >>> fetchonce: a\n# <<< fetchonce\n") is None
    assert installed(with_hook(None, HOOKS[0], is_new_directory=False).replace("images.example", "\\x")) is None


def test_places_are_the_bases_of_all_upstreams_and_the_allowed_hosts():
    mirrors = [
        Mirror("a", ("https://Images.Example:443/pub/", "http://old.example:8080/x/y/")),
        Mirror("b", ("https://images.example/pub/inner/", "https://images.example/other/")),
        Mirror("c", ("https://git.example/a/b/",)),
    ]
    assert places(mirrors, ["git.example", "*.allowed.example:8443"]) == (
        "*.allowed.example:8443",
        "git.example/",
        "images.example/other/",
        "images.example/pub/",
        "old.example:8080/x/y/",
    )


def test_vagrant_has_one_home_and_one_file_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VAGRANT_HOME", raising=False)
    assert home(None) == tmp_path / ".vagrant.d"
    monkeypatch.setenv("VAGRANT_HOME", "~/its home")
    assert home(None) == tmp_path / "its home"
    assert home("~/a") == tmp_path / "a"
    assert vagrantfile(tmp_path).name == "Vagrantfile"
    (tmp_path / "vagrantfile").touch()
    assert vagrantfile(tmp_path) == tmp_path / "vagrantfile"


@pytest.mark.parametrize("kept", [None, "file", "directory", "more in it", "more beside it"])
def test_what_was_made_for_it_goes_with_it(tmp_path, kept):
    path = tmp_path / "home" / "Vagrantfile"
    if kept in ("file", "directory"):
        path.parent.mkdir()
    if kept == "file":
        path.touch()
    write(path, with_hook("" if kept == "file" else None, HOOKS[0], is_new_directory=not path.parent.exists()))
    if kept == "more in it":
        path.write_text(path.read_text() + "theirs\n")
    if kept == "more beside it":
        (path.parent / "boxes").mkdir()
    remove(path, path.read_text())
    assert path.parent.exists() == bool(kept)
    assert path.exists() == (kept in ("file", "more in it"))
    if path.exists():
        assert path.read_text() == ("theirs\n" if kept == "more in it" else "")
        assert not has_block(path.read_text())


@pytest.mark.parametrize(("hook", "mode"), [(HOOKS[0], 0o644), (HOOKS[1], 0o600)], ids=["open", "with a token"])
def test_a_token_is_for_its_owner(tmp_path, hook, mode):
    write(tmp_path / "Vagrantfile", with_hook(None, hook, is_new_directory=False))
    assert (tmp_path / "Vagrantfile").stat().st_mode & 0o777 == mode


def test_a_symlink_stays(tmp_path):
    (tmp_path / "home").mkdir()
    link, there = tmp_path / "home" / "Vagrantfile", tmp_path / "dotfiles"
    link.symlink_to(there)
    write(link, with_hook(None, HOOKS[0], is_new_directory=False))
    assert installed(there.read_text()) == HOOKS[0]
    remove(link, there.read_text())
    assert link.is_symlink()
    assert not there.exists()
