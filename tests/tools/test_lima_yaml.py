"""Lima templates through fetchonce: the text that is changed, and the text that stays."""

import pytest
from ruamel.yaml import YAML

from proxy.rules.links import Links
from proxy.rules.mirrors import Mirror, MirrorTable
from proxy.tools.lima_yaml import through

BASE = "http://127.0.0.1:8642"
LINKS = Links(MirrorTable([Mirror("u", ("https://u.example/",)), Mirror("f", ("http://f.example/",))]), BASE)
HEX = "0123456789abcdef" * 4
CASES = {
    "a dash and its lines": (
        "images:\n# first\n- location: \"https://u.example/a.img\" # dated\n  arch: 'x86_64'\n\n# second\n",
        "images:\n# first\n- location: \"http://127.0.0.1:8642/u.example/a.img\" # dated\n  arch: 'x86_64'\n"
        "- location: \"https://u.example/a.img\" # dated\n  arch: 'x86_64'\n\n# second\n",
    ),
    "order": (
        "images:\n- location: https://u.example/a\n- location: https://u.example/b\n",
        f"images:\n- location: {BASE}/u.example/a\n- location: https://u.example/a\n"
        f"- location: {BASE}/u.example/b\n- location: https://u.example/b\n",
    ),
    "kernel and initrd": (
        "images:\n  - arch: x\n    kernel: {location: 'https://u.example/k'}\n    location: https://u.example/a\n"
        "    initrd:\n      location: https://u.example/i\n",
        f"images:\n  - arch: x\n    kernel: {{location: '{BASE}/u.example/k'}}\n    location: {BASE}/u.example/a\n"
        f"    initrd:\n      location: {BASE}/u.example/i\n"
        "  - arch: x\n    kernel: {location: 'https://u.example/k'}\n    location: https://u.example/a\n"
        "    initrd:\n      location: https://u.example/i\n",
    ),
    "only the kernel is ours": (
        "images:\n- location: ~/a.img\n  kernel:\n    location: https://u.example/k\n",
        f"images:\n- location: ~/a.img\n  kernel:\n    location: {BASE}/u.example/k\n"
        "- location: ~/a.img\n  kernel:\n    location: https://u.example/k\n",
    ),
    "a dash alone, the end unended": (
        "images:\n-\n  # a - b\n  location: https://u.example/a",
        f"images:\n-\n  # a - b\n  location: {BASE}/u.example/a\n-\n  # a - b\n  location: https://u.example/a",
    ),
    "CRLF": (
        "images:\r\n- location: https://u.example/a\r\n  arch: x",
        f"images:\r\n- location: {BASE}/u.example/a\r\n  arch: x\r\n- location: https://u.example/a\r\n  arch: x",
    ),
    "JSON": (
        '{"images": [{"location": "https:\\/\\/u.example\\/a"}, {"location": "https://n.example/b"}]}',
        f'{{"images": [{{"location": "{BASE}/u.example/a"}}, {{"location": "https:\\/\\/u.example\\/a"}}, '
        '{"location": "https://n.example/b"}]}',
    ),
    "an anchor stays one": (
        "images:\n- &i {location: &l https://u.example/a, arch: x}\n- *i\nparam: {l: *l}\n",
        f"images:\n- &i {{location: &l {BASE}/u.example/a, arch: x}}\n"
        "- &i {location: &l https://u.example/a, arch: x}\n- *i\nparam: {l: *l}\n",
    ),
    "the other lists": (
        "containerd:\n  archives:\n  - location: https://u.example/n\n"
        "firmware:\n  images:\n  - location: https://u.example/f\n"
        "osOpts:\n  Windows:\n    virtioWin:\n    - location: https://u.example/w\n",
        f"containerd:\n  archives:\n  - location: {BASE}/u.example/n\n  - location: https://u.example/n\n"
        f"firmware:\n  images:\n  - location: {BASE}/u.example/f\n  - location: https://u.example/f\n"
        f"osOpts:\n  Windows:\n    virtioWin:\n    - location: {BASE}/u.example/w\n    - location: https://u.example/w\n",
    ),
    "http is named": (
        "images:\n- location: http://f.example/a\n",
        f"images:\n- location: {BASE}/http/f.example/a\n- location: http://f.example/a\n",
    ),
}
UNTOUCHED = [
    "",
    "# nothing\n",
    "images: []\n",
    "images:\n",
    "images: [https://u.example/a]\n",
    "images:\n- location: https://n.example/a\n- location: ~/a.img\n- location:\n- {}\n",
    "mounts:\n- location: https://u.example/a\n",
    "provision:\n- script: |\n    images:\n    - location: https://u.example/a\n",
    "note: |\n  images:\n  - location: https://u.example/a\n# images:\n# - location: https://u.example/a\n",
]


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_each_item_stands_twice_the_proxied_one_first(text, expected):
    assert through(text, LINKS) == expected
    assert through(expected, LINKS) == expected
    assert through(expected, LINKS, digest_form=True) == expected
    assert through(expected, LINKS, fallback=False) == expected


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_holds_no_image_of_a_configured_host_stays(text):
    assert through(text, LINKS) == text


@pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
@pytest.mark.parametrize("text", [text for text, _ in CASES.values()], ids=CASES)
def test_without_fallback_only_the_urls_change(text):
    once = through(text, LINKS, fallback=False)
    assert through(once, LINKS, fallback=False) == through(once, LINKS) == once
    twice = YAML(typ="safe").load(through(text, LINKS))
    assert YAML(typ="safe").load(once) != YAML(typ="safe").load(text) != twice
    assert len(once.splitlines()) == len(text.splitlines())


def test_the_digest_form_takes_the_digest_of_the_item():
    text = f"images:\n- location: https://u.example/a\n  digest: sha256:{HEX}\n- location: https://u.example/b\n"
    strict = through(text, LINKS, digest_form=True)
    assert f"- location: {BASE}/sha256:{HEX}/u.example/a\n  digest: sha256:{HEX}\n- location: https:" in strict
    assert f"- location: {BASE}/u.example/b\n" in strict
    assert through(strict, LINKS, digest_form=True) == through(strict, LINKS) == strict


@pytest.mark.parametrize(
    "text", ["images: [{location: https://u.example/a}]", "images:\n- location: https://u.example/a"]
)
def test_an_ipv6_address_is_quoted(text):
    changed = through(text, Links(LINKS.mirrors, "http://[::1]:8642"))
    found = [each["location"] for each in YAML(typ="safe").load(changed)["images"]]
    assert found == ["http://[::1]:8642/u.example/a", "https://u.example/a"]


def test_what_is_no_yaml_is_told_with_its_line():
    with pytest.raises(ValueError, match=r"^line 3: found unexpected end of stream"):
        through("images:\n- location: 'https://u.example/a\n", LINKS)
    with pytest.raises(ValueError, match=r"^line 2: but found another document"):
        through("a: 1\n---\nb: 1\n---\n", LINKS)
    for end in ("\r", "\x85", "\u2028"):
        with pytest.raises(ValueError, match=r"^line 2: a line ends with "):
            through(f"# x\nimages:{end}- location: https://u.example/a{end}", LINKS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x: 1\n? images\n: - location: https://u.example/a\n", "^line 3: the dash of this"),
        ("x:\n- 1\n? images\n: - location: https://u.example/a\n", "^line 4: the dash of this"),
        ("images:\n- x: " + "[" * 500 + "]" * 500, "^it is nested too deeply"),
    ],
)
def test_yaml_that_nobody_writes_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        through(text, LINKS)


def test_an_item_may_name_itself():
    text = "images:\n- &a\n  location: https://u.example/a\n  kernel: *a\n# end\n"
    item = text[len("images:\n") : -len("# end\n")]
    assert through(text, LINKS) == f"images:\n{item.replace('https:/', BASE)}{item}# end\n"
