"""The hints: the README's table says the same, and every line is one that can be typed."""

import re
import shlex

import pytest

from proxy.tools.hints import HINTS, Addresses, as_markdown, as_text, find, near
from tests.harness import REPOSITORY

LINES = [(hint, step) for hint in HINTS for step in hint.steps]


def test_the_table_of_the_readme_is_the_hints():
    said = (REPOSITORY / "README.md").read_text("utf-8").partition("## Your tool\n\n")[2].partition("\n\n")[0]
    assert said.splitlines() == as_markdown(HINTS, Addresses()).splitlines()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("lima", ["Lima"]),
        ("LIM", ["Lima"]),
        ("virt", ["virt-builder", "virt-install"]),
        ("virt-i", ["virt-install"]),
        ("Virt-Install", ["virt-install"]),
        ("podman machine", ["podman machine"]),
        ("podman", ["podman machine"]),
        ("lxd", ["Incus, LXD"]),
        ("wget", ["curl, wget, aria2"]),
        ("bpg", ["Terraform"]),
        ("vagant", []),
        ("ima", []),
    ],
)
def test_a_tool_is_found_by_the_beginning_of_a_name(text, names):
    assert [hint.name for hint in find(text)] == names


def test_a_name_that_is_another_s_beginning_is_found_alone():
    assert all(hint in find(name) and len(find(name)) == 1 for hint in HINTS for name in hint.names)


def test_a_misspelt_tool_has_near_ones():
    assert near("vagant") == ["Vagrant"]
    assert near("VIRT-BILDER")[0] == "virt-builder"
    assert near("xyzzy") == []


@pytest.mark.parametrize(("hint", "step"), LINES, ids=[f"{hint.name}-{step.text[:24]}" for hint, step in LINES])
def test_a_line_is_whole_and_has_our_address(hint, step):
    text = Addresses("http://h:1", "https://h:2", "http://r:3").fill(step.text)
    assert "\n" not in text
    assert shlex.split(text)  # quotes are closed
    assert not re.search(r"\{[a-z]+\}", text)
    needs_none = text.startswith(("fetchonce ", "export DIB_RELEASE="))
    assert needs_none or re.search(r"http://h:1[/\"]|https://h:2/|http://r:3/", text)
    assert "127.0.0.1" not in text
    assert step.text in [each.text for each in hint.variables] or not text.startswith("export ")


def test_each_variable_is_quoted_and_exported_once():
    names = re.findall(r'^export ([A-Z0-9_]+)="[^\n]*"$', "\n".join(step.text for _, step in LINES), re.MULTILINE)
    assert len(names) == len(set(names)) == sum(len(hint.variables) for hint in HINTS) > 4


def test_text_for_people_has_each_line_by_itself():
    (lima,) = find("lima")
    lines = as_text(lima, Addresses(), ["first of all"]).splitlines()
    assert lines[:4] == ["Lima", "  first of all", f"  {lima.steps[0].about}:", "    fetchonce lima install"]
    assert f"    {Addresses().fill(lima.steps[1].text)}" in lines
    builder = as_text(find("virt-builder")[0], Addresses())
    assert "/etc/virt-builder/repos.d/*.conf" in builder.splitlines()[-1]  # can be copied
    assert all(len(line) <= 80 or line.startswith("    ") for line in lines)
