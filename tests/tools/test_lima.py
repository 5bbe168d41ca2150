"""What `fetchonce lima` keeps in Lima's home: written, renewed, and taken away byte for byte."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ProxyError
from proxy.rules.links import Links
from proxy.rules.mirrors import Mirror, MirrorTable
from proxy.tools.lima import Lima, Way, home_of
from proxy.tools.lima_home import MADE, SCRATCH, State, apply, compare, left_of, mark_in
from proxy.tools.lima_nerdctl import put_in, taken_out

MIRRORS = MirrorTable([Mirror("u", ("https://u.example/",))])
WAY = Way(Links(MIRRORS, "http://127.0.0.1:8642"), fallback=True, undo="fetchonce lima remove")
ARCHIVE = {"location": "https://u.example/nerdctl.tar.gz", "arch": "x86_64", "digest": "sha256:" + "0" * 64}
IMAGE = "images:\n- location: https://u.example/a.img # the newest\n  arch: x86_64\n"


def snapshot(folder):
    """Everything below `folder`: names, permissions, bytes and where links lead."""

    def content(path):
        return os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None

    return {str(path.relative_to(folder)): (path.lstat().st_mode, content(path)) for path in folder.rglob("*")}


@pytest.fixture
def lima(tmp_path):
    templates = tmp_path / "share" / "lima" / "templates"
    (templates / "_images").mkdir(parents=True)
    for name in ("a", "b"):
        (templates / "_images" / f"{name}.yaml").write_text(IMAGE.replace("a.img", f"{name}.img"))
    (templates / "_images" / "newest.yaml").symlink_to("b.yaml")
    (templates / "vm.yaml").write_text("base: template:_images/a\n")
    (templates / "far.yaml").write_text("images:\n- location: https://n.example/a.img\n")
    return Lima("2.2.0", (templates,), (ARCHIVE,))


@pytest.fixture
def home(tmp_path):
    """Not made yet; somebody's home directory around it has another directory."""
    (tmp_path / "me" / "other").mkdir(parents=True)
    return tmp_path / "me" / ".lima"


def test_the_home_of_nobody_is_a_path_like_any_other():
    assert home_of({"LIMA_HOME": "~nobody-of-that-name/x"}).parts[-2:] == ("~nobody-of-that-name", "x")


def install(home, lima, way=WAY):
    """What was there before it, by state."""
    found, unread = compare(home, lima, way)
    assert unread == []
    apply(home, found)
    return states(found)


def remove(home):
    found = left_of(home)
    apply(home, found)
    return states(found)


def states(found):
    told = {}
    for each in found:
        told.setdefault(each.state, []).append(each.path.name)
    return told


def nothing(home):
    """There is no home yet."""


def empty_directories(home):
    (home / "_templates" / "_images").mkdir(parents=True, mode=0o750)
    (home / "_config").mkdir()


def own_files(home):
    empty_directories(home)
    (home / "_templates" / "mine.yaml").write_bytes(b"images: []\n\xff")
    (home / "_templates" / "_images" / "link.yaml").symlink_to("a.yaml")  # leads to ours, once that is there
    (home / "_config" / "default.yaml").write_bytes(b"ssh:\r\n  forwardAgent: true")
    (home / "_config" / "default.yaml").chmod(0o600)


def links(home):
    (home.parent / "dotfiles" / "templates").mkdir(parents=True)
    (home.parent / "dotfiles" / "default.yaml").write_text("cpus: 2\n")
    (home / "_config").mkdir(parents=True)
    (home / "_config" / "default.yaml").symlink_to("../../dotfiles/default.yaml")
    (home / "_templates").symlink_to("../dotfiles/templates")


def empty_default(home):
    (home / "_config").mkdir(parents=True)
    (home / "_config" / "default.yaml").touch()


@pytest.fixture(params=[nothing, empty_directories, own_files, links, empty_default], ids=lambda made: made.__name__)
def used_home(request, home):
    request.param(home)
    return home


def test_install_and_remove_leave_the_tree_as_it_was(used_home, lima):
    before = snapshot(used_home.parent)
    assert install(used_home, lima) == {State.MISSING: ["a.yaml", "b.yaml", "newest.yaml", "default.yaml"]}
    shadow = (used_home / "_templates" / "_images" / "a.yaml").read_text()
    assert shadow.partition("\n")[2] == (
        "images:\n- location: http://127.0.0.1:8642/u.example/a.img # the newest\n  arch: x86_64\n"
        "- location: https://u.example/a.img # the newest\n  arch: x86_64\n"
    )
    installed = snapshot(used_home.parent)
    assert set(install(used_home, lima)) == {State.GOOD}
    assert snapshot(used_home.parent) == installed
    remove(used_home)
    assert snapshot(used_home.parent) == before


def test_interrupted_anywhere_it_is_gone_on_with(used_home, lima):
    before = snapshot(used_home.parent)
    found, _ = compare(used_home, lima, WAY)
    for number in range(len(found) + 1):
        apply(used_home, found[:number])
        (used_home.parent / f"{SCRATCH}dir").mkdir()  # a directory that did not get its name yet
        (used_home.parent / f"{SCRATCH}dir" / MADE).touch()
        if number:
            (found[0].path.parent / f"{SCRATCH}file").write_text("half")
        install(used_home, lima)
        assert set(install(used_home, lima)) == {State.GOOD}
        apply(used_home, left_of(used_home)[:number])
        remove(used_home)
        assert snapshot(used_home.parent) == before


def test_what_somebody_puts_beside_ours_stays(home, lima):
    install(home, lima)
    (home / "_templates" / "mine.yaml").write_text("images: []\n")
    default = home / "_config" / "default.yaml"
    default.write_text(default.read_text() + "cpus: 2\n")
    (home / "vm").mkdir()
    assert set(install(home, lima)) == {State.GOOD}
    remove(home)
    assert set(snapshot(home)) == {"_templates", "_templates/mine.yaml", "_config", "_config/default.yaml", "vm"}
    assert default.read_text() == "cpus: 2\n"


def test_a_block_gives_way_to_archives_of_its_owner(home, lima):
    install(home, lima)
    default = home / "_config" / "default.yaml"
    own = "containerd:\n  archives:\n  - location: ~/nerdctl.tgz\n"
    default.write_text(default.read_text() + own)  # twice the same key: Lima would refuse it
    assert install(home, lima)[State.UNWANTED] == ["default.yaml"]
    assert default.read_text() == own
    assert install(home, lima)[State.FOREIGN] == ["default.yaml"]


def test_a_file_of_somebody_else_is_left_and_named(home, lima):
    mine = home / "_templates" / "_images" / "a.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("images: []\n")
    assert install(home, lima)[State.FOREIGN] == ["a.yaml"]
    copy = home / "_templates" / "my-b.yaml"
    copy.write_bytes((home / "_templates" / "_images" / "b.yaml").read_bytes())
    assert set(install(home, lima)) == {State.GOOD, State.FOREIGN}
    remove(home)
    assert mine.read_text() == "images: []\n"
    assert copy.exists()


def test_a_link_in_place_of_ours_is_somebody_elses(home, lima):
    install(home, lima)
    shadow, kept = home / "_templates" / "_images" / "a.yaml", home.parent / "dotfiles" / "_images" / "a.yaml"
    kept.parent.mkdir(parents=True)
    shadow.rename(kept)
    shadow.symlink_to(kept)
    assert install(home, lima, Way(WAY.links, False, "x"))[State.FOREIGN] == ["a.yaml"]
    remove(home)
    assert shadow.is_symlink()
    assert not (home / "_templates" / MADE).exists()
    assert "https://u.example/a.img" in kept.read_text()


def test_nothing_is_written_behind_a_link_in_the_tree(home, lima):
    (home.parent / "dotfiles").mkdir()
    (home / "_templates").mkdir(parents=True)
    (home / "_templates" / "_images").symlink_to("../../dotfiles")
    before = snapshot(home.parent)
    assert install(home, lima)[State.FOREIGN] == ["a.yaml", "b.yaml", "newest.yaml"]
    assert not list((home.parent / "dotfiles").iterdir())
    remove(home)
    assert snapshot(home.parent) == before


def test_scratch_of_somebody_else_stays(home, lima):
    (home.parent / "other" / MADE).write_text("theirs")
    (home.parent / f"{SCRATCH}link").symlink_to("other")
    before = snapshot(home.parent)
    install(home, lima)
    remove(home)
    assert snapshot(home.parent) == before


def test_a_block_at_an_end_that_was_trimmed_is_ours(home, lima):
    install(home, lima)
    default = home / "_config" / "default.yaml"
    default.write_text(default.read_text().rstrip())
    assert set(install(home, lima)) == {State.GOOD}
    remove(home)
    assert not home.exists()


@pytest.mark.parametrize(("base", "mode"), [("http://h:1", 0o644), ("http://x:s3cret@h:1", 0o600)])
def test_a_token_is_for_its_owner_alone(home, lima, base, mode):
    install(home, lima, Way(Links(MIRRORS, base), fallback=True, undo="fetchonce lima remove"))
    modes = {path.stat().st_mode & 0o777 for path in home.rglob("*") if path.is_file() and path.name != MADE}
    assert modes == {mode}


def test_an_edited_file_is_not_lost(home, lima):
    before = snapshot(home.parent)
    install(home, lima)
    edited = [home / "_templates" / "_images" / "a.yaml", home / "_config" / "default.yaml"]
    for file in edited:
        file.write_text(file.read_text().replace("x86_64", "aarch64"))
    kept = {file: file.read_bytes() for file in edited}
    assert mark_in(home).version == "2.2.0"
    for _ in range(2):
        assert install(home, lima)[State.EDITED] == ["a.yaml", "default.yaml"]
        assert remove(home)[State.EDITED] == ["a.yaml", "default.yaml"]
        assert {file: file.read_bytes() for file in edited} == kept
    for file in edited:
        file.unlink()
    remove(home)
    assert snapshot(home.parent) == before


STALE = {
    "another address": (
        lambda lima, t: (lima, Way(Links(MIRRORS, "http://127.0.0.1:1"), True, "x")),
        "it leads to http",
    ),
    "no fallback": (lambda lima, t: (lima, Way(WAY.links, False, "x")), "it has the originals behind"),
    "another Lima": (lambda lima, t: (Lima("2.3.0", lima.templates, lima.archives), WAY), "it is of Lima 2.2.0"),
    "other originals": (lambda lima, t: (t.write_text(IMAGE + "# new\n") and lima, WAY), "its original has changed"),
    "no original": (lambda lima, t: (t.unlink() or lima, WAY), "its original is gone"),
    "nothing for us": (
        lambda lima, t: (t.write_text("a: 1\n") and lima, WAY),
        "its original is gone",
    ),
}


@pytest.mark.parametrize(("change", "why"), STALE.values(), ids=STALE)
def test_what_is_out_of_date_is_told_and_mended(home, lima, change, why):
    install(home, lima)
    lima, way = change(lima, lima.templates[0] / "_images" / "a.yaml")
    (told,) = [each for each in compare(home, lima, way)[0] if each.path.name == "a.yaml"]
    assert told.state in (State.STALE, State.UNWANTED)
    assert told.why.startswith(why)
    install(home, lima, way)
    assert set(install(home, lima, way)) == {State.GOOD}
    remove(home)
    assert not home.exists()


def test_a_directory_whose_templates_vanished_goes(home, lima):
    before = snapshot(home.parent)
    install(home, lima)
    for file in (lima.templates[0] / "_images").iterdir():
        file.unlink()
    (lima.templates[0] / "vm.yaml").write_text(IMAGE)
    install(home, lima)
    assert not (home / "_templates" / "_images").exists()
    remove(home)
    assert snapshot(home.parent) == before


def test_what_cannot_be_read_is_left_out_and_told(home, lima):
    broken, binary = (lima.templates[0] / name for name in ("broken.yaml", "binary.yaml"))
    broken.write_text("images: [\n")
    binary.write_bytes(b"\xff\xfe")
    found, unread = compare(home, lima, WAY)
    assert len(found) == 4
    assert sorted(each.partition(" ")[0] for each in unread) == [str(binary), str(broken)]


def test_a_default_yaml_of_other_bytes_is_left(home, lima):
    install(home, lima)
    default = home / "_config" / "default.yaml"
    default.write_bytes(default.read_bytes().replace(b"x86_64", b"\xff"))
    for file in home.rglob("a.yaml"), home.rglob("b.yaml"), home.rglob("newest.yaml"):
        next(file).unlink()
    assert mark_in(home).is_edited
    assert install(home, lima)[State.FOREIGN] == ["default.yaml"]


def test_a_home_that_cannot_be_written_is_told(home, lima):
    home.parent.joinpath(".lima").write_text("a file")
    with pytest.raises(ProxyError, match=r"/me/\.lima.*: .* what is done stays"):
        install(home, lima)


# -- default.yaml -----------------------------------------------------------------------------------------------------

ROOM = {
    "nothing": ("", "containerd:\n  archives:"),
    "comments": ("# mine\n", "containerd:\n  archives:"),
    "other settings": ("cpus: 2\nssh: {forwardAgent: true}", "containerd:\n  archives:"),
    "containerd in the middle": (
        "containerd:\n    user: true # yes\n\n# then\ncpus: 2\n",
        "    user: true # yes\n# >>> fetchonce: nerdctl of Lima 2.2.0 through http://127.0.0.1:8642, ",
    ),
    "containerd at the end": ("cpus: 2\ncontainerd:\n  user: true", "  user: true\n# >>> fetchonce"),
    "CRLF": ("containerd:\r\n  user: true\r\ncpus: 2\r\n", "user: true\r\n# >>> fetchonce"),
    "archives elsewhere": ("# archives:\nparam:\n  archives: x\n", "\ncontainerd:\n  archives:"),
}
NO_ROOM = {
    "archives": ("containerd:\n  archives:\n  - location: ~/nerdctl.tgz\n", "it has archives of its own"),
    "one line": ("containerd: {user: true}\n", "its containerd: is not written in lines"),
    "no value": ("containerd:\n", "its containerd: is not written in lines"),
    "JSON": ('{"cpus": 2}\n', "it cannot be read as YAML|would mean something else"),
    "an end": ("cpus: 2\n...\n", "it cannot be read as YAML|would mean something else"),
    "two documents": ("cpus: 2\n---\ncpus: 3\n", "it cannot be read as YAML"),
    "a list": ("- 1\n", "it is no map of settings"),
    "no YAML": ("a: [\n", "it cannot be read as YAML"),
}


@pytest.mark.parametrize(("text", "part"), ROOM.values(), ids=ROOM)
def test_nerdctl_is_put_into_default_yaml(lima, text, part):
    whole = put_in(text, "", lima, WAY)
    assert part in whole
    assert whole.count("http://127.0.0.1:8642/u.example/nerdctl.tar.gz") == 1
    assert whole.count('"https://u.example/nerdctl.tar.gz"') == 1
    assert put_in(whole, "", lima, WAY) == whole
    assert taken_out(whole) == text


@pytest.mark.parametrize(("text", "why"), NO_ROOM.values(), ids=NO_ROOM)
def test_a_default_yaml_without_room_is_left_and_the_reason_told(home, lima, text, why):
    (home / "_config").mkdir(parents=True)
    file = home / "_config" / "default.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=why):
        put_in(text, "", lima, WAY)
    assert install(home, lima)[State.FOREIGN] == ["default.yaml"]
    assert file.read_text() == text


def test_archives_in_override_yaml_stay_the_only_ones(home, lima):
    (home / "_config").mkdir(parents=True)
    override = home / "_config" / "override.yaml"
    override.write_text("containerd:\n  archives:\n  - location: ~/nerdctl.tgz\n")
    assert install(home, lima)[State.FOREIGN] == ["default.yaml"]
    assert not (home / "_config" / "default.yaml").exists()
    override.write_text("cpus: 2\n")
    assert install(home, lima)[State.MISSING] == ["default.yaml"]


LINES = ["containerd:", "  user: true", "cpus: 2", "# x", "", "---", "  - a", "{}", "\r"]
LINES += ["# >>> fetchonce: x", "# >>> fetchonce: x (the line before had no end)", "# <<< fetchonce"]


@given(st.lists(st.sampled_from(LINES), max_size=5))
def test_whatever_default_yaml_holds_comes_back(lines):
    for text in ("\n".join(lines), "\n".join(lines) + "\n"):
        try:
            whole = put_in(text, "", Lima("2.2.0", (), (ARCHIVE,)), WAY)
        except ValueError:
            continue
        assert taken_out(whole) == taken_out(text)  # what looks like a block of ours is one
        assert whole != text


def test_archives_that_no_mirror_has_are_left_to_lima(home, lima):
    far = Lima("2.2.0", lima.templates, ({**ARCHIVE, "location": "https://n.example/n.tgz"},))
    install(home, lima)
    assert (home / "_config" / "default.yaml").exists()
    install(home, far)
    assert not (home / "_config").exists()
