"""Packer templates, HCL and JSON: where Packer takes a list, ours and then the original; elsewhere ours alone.

The text is changed where a URL stands and nowhere else. Packer tries the `iso_urls` in order, and refuses an `iso_url`
beside them (packer-plugin-sdk, multistep/commonsteps/iso_config.go). Provisioners stay as they are: what they fetch is
fetched by the guest, whose 127.0.0.1 is not ours.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from ..rules.digests import Digest
from .edits import Edit, edited
from .urls import Urls

LISTS = ("iso_urls", "file_urls")
"""The first of these that can be fetched is taken; file_urls is packer-builder-arm's."""
SOURCES = {"source", "builders"}
"""Where the settings of builders are. An iso_url elsewhere is a variable, whose name and type must stay."""
PROVISIONERS = {"provisioner", "provisioners", "post-processor", "post-processors", "error-cleanup-provisioner"}

_QUOTED = r'"(?:[^"\\\n]|\\.)*+"'
# Bounded, so that a line of many that do not end takes no time.
_BRACED = rf'\{{(?:[^{{}}"\n]++|{_QUOTED}){{0,9}}+\}}'
_INTERPOLATION = rf'[$%]\{{(?:[^{{}}"\n]++|{_QUOTED}|{_BRACED}){{0,29}}+\}}'
_TOKEN = re.compile(
    rf"""
    (?P<skipped> [ \t\r\ufeff]+ | (?:\#|//)[^\n]* | /\*.*?(?:\*/|\Z)
        | <<-?(?P<end>\w+)\r?\n.*?(?:^[ \t]*(?P=end)\b|\Z) )
    | (?P<string> "(?: \$\$\{{ | %%\{{ | {_INTERPOLATION} | \\. | [^"\\\n] )*+" )
    | (?P<word> [A-Za-z_][\w.-]* )
    | (?P<mark> . )
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_URL = re.compile(rf"((?:file:)?)(https?://(?:{_INTERPOLATION}|\{{\{{.*?\}}\}}|\S)+)")
_NEXT = re.compile(r",\s*")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    is_first: bool
    """Whether it is the first of its line."""

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @property
    def is_name(self) -> bool:
        return self.kind != "mark"

    @property
    def name(self) -> str:
        return self.text.strip('"')

    @property
    def end_of_name(self) -> int:
        return self.end - (self.kind == "string")


@dataclass(frozen=True, slots=True)
class _Frame:
    """What stands between two brackets."""

    bracket: str
    key: _Token | None
    """The key whose value it is, or what the block is called."""
    outer: "_Frame | None"
    names: frozenset[str]
    """Its name, and those of all frames around it."""
    values: dict[str, str]
    """The keys in it, each with its value if that is one string, else with ""."""

    @property
    def name(self) -> str:
        return self.key.name if self.key else ""

    @property
    def is_list(self) -> bool:
        """Whether it is a list of which the first that can be fetched is taken."""
        named = self.outer if self.name == "default" else self  # of a variable
        return self.bracket == "[" and named is not None and named.name in LISTS

    def takes_list(self, key: _Token) -> bool:
        """Whether a list may stand in place of the one URL of `key`."""
        return key.name == "iso_url" and bool(self.names & SOURCES) and "iso_urls" not in self.values


@dataclass(frozen=True, slots=True)
class _String:
    """A URL in quotes, outside of provisioners."""

    token: _Token
    frame: _Frame
    key: _Token | None
    """What it is the whole value of."""
    is_element: bool
    """Whether it stands in a list, between brackets and commas."""
    prefix: str
    """`file:`, or nothing."""
    url: str

    @property
    def digest(self) -> Digest | None:
        """What a builder says of the image that it names here; digits alone are a digest too."""
        named = self.frame.outer if self.frame.name == "iso_urls" else self.frame
        if named is None or not (named is not self.frame or (self.key and self.key.name == "iso_url")):
            return None
        stated = named.values.get("iso_checksum", "")
        return Digest.parse(stated) or Digest.parse(f"{'sha512' if len(stated) == 128 else 'sha256'}:{stated}")


def through(text: str, urls: Urls, *, fallback: bool, digest_form: bool) -> str:
    edits = []
    line_end = "\r\n" if "\r\n" in text else "\n"
    for each in _strings(text):
        url = urls.proxied(each.url, each.digest if digest_form else None)
        if url is None:
            continue
        new, token = f'"{each.prefix}{url}"', each.token
        if fallback and each.is_element and each.frame.is_list:
            edits.append(Edit(token.start, token.start, f"{new},{_gap(text, token, line_end)}"))
        elif fallback and each.key and each.frame.takes_list(each.key):
            edits += [Edit(each.key.end_of_name, each.key.end_of_name, "s")]
            edits += [Edit(token.start, token.end, f"[{new}, {token.text}]")]
        else:
            edits.append(Edit(token.start, token.end, new))
    return edited(text, edits)


def direct(text: str, urls: Urls) -> str:
    """What `through` made of it is taken back, and nothing else."""
    edits = []
    strings = list(_strings(text))
    for each, following in zip_longest(strings, strings[1:]):
        url = urls.direct(each.url, each.digest)
        if url is None:
            continue
        new, token = f'"{each.prefix}{url}"', each.token
        if following and following.frame is each.frame and each.frame.is_list and following.token.text == new:
            original = following.token
            if key := _once_iso_url(text, each, following):
                edits += [Edit(key.end_of_name - 1, key.end_of_name, "")]
                edits += [Edit(token.start - 1, original.end + 1, original.text)]
                continue
            if _NEXT.fullmatch(text, token.end, original.start):
                edits += [Edit(token.start, original.start, "")]
                continue
        edits.append(Edit(token.start, token.end, new))
    return edited(text, edits)


def _once_iso_url(text: str, first: _String, second: _String) -> _Token | None:
    """The key of a list that `through` made of an iso_url: two on one line, without a space at the brackets."""
    frame, start, end = first.frame, first.token.start, second.token.end
    is_so = text[start - 1] == "[" and text[end : end + 1] == "]" and text[first.token.end : second.token.start] == ", "
    return frame.key if is_so and frame.name == "iso_urls" and frame.names & SOURCES else None


def _gap(text: str, token: _Token, line_end: str) -> str:
    """What goes between a new element and the comma behind it, and `token`: as it stands, on its line or on its own."""
    line = text.rfind("\n", 0, token.start) + 1
    before = text[line : token.start]
    if not before.strip(" \t"):
        return line_end + before
    if before.endswith("[") and text[token.end : token.end + 1] == "]":
        # The only one: on one line it would be taken for what was an iso_url.
        return line_end + before[: len(before) - len(before.lstrip(" \t"))] + "  "
    return " "


def _strings(text: str) -> Iterator[_String]:
    """The URLs in quotes, in the text's order. The frames are complete when it has ended."""
    tokens = list(_tokens(text))
    frame = _Frame("", None, None, frozenset(), {})
    line = 0
    found = []
    for at, token in enumerate(tokens):
        line = at if token.is_first else line
        before, after = (tokens[i] if 0 <= i < len(tokens) else None for i in (at - 1, at + 1))
        key = tokens[at - 2] if at > 1 and before and before.text in ("=", ":") and tokens[at - 2].is_name else None
        if key:
            frame.values.setdefault(key.name, "")
        if token.text in ("{", "[", "("):
            named = key or (_block(tokens[line : line + 2]) if token.text == "{" else None)
            names = frame.names | {named.name} if named else frame.names
            frame = _Frame(token.text, named, frame, names, {})
        elif token.text in ("}", "]", ")"):
            frame = frame.outer or frame
        elif token.kind == "string":
            ends = after is None or after.is_first or after.text in (",", "}")
            if key and ends:
                frame.values[key.name] = token.text[1:-1]
            url = _URL.fullmatch(token.text[1:-1])
            if url and not frame.names & PROVISIONERS:
                listed = frame.bracket == "[" and before is not None and before.text in ("[", ",")
                is_element = listed and after is not None and after.text in (",", "]")
                found.append(_String(token, frame, key if ends else None, is_element, url[1], url[2]))
    yield from found


def _block(line: list[_Token]) -> _Token | None:
    """What the block is called that begins with these tokens: its type, or the name of a variable."""
    if not line[0].is_name:
        return None
    return line[-1] if line[0].text == "variable" else line[0]


def _tokens(text: str) -> Iterator[_Token]:
    is_first = True
    for found in _TOKEN.finditer(text):
        if found.lastgroup is None or found["skipped"] is not None:
            continue
        if found[0] == "\n":
            is_first = True
            continue
        yield _Token(found.lastgroup, found[0], found.start(), is_first)
        is_first = False
