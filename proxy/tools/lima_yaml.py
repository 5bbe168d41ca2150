"""Lima templates: each image once more through fetchonce, in front of itself.

The YAML is only read to find the places; the text is changed there and nowhere else, so comments, order, quoting and
line ends stay. Lima takes the first entry of a list that it can fetch, so the original behind is the fallback.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from ..rules.digests import Digest
from ..rules.links import Links
from .edits import Edit, edited
from .urls import Urls

LISTS = (("images",), ("firmware", "images"), ("containerd", "archives"), ("osOpts", "Windows", "virtioWin"))
"""Where Lima has lists of files of which it takes the first that it can fetch (its limatype.LimaYAML)."""
INNER = ("kernel", "initrd")
"""What an image may have besides, each with a location of its own."""

_DASH = re.compile(r" *-(?:\s|#[^\n]*\n)*+")
"""What may stand before an item, from the start of a line."""
_OTHER_LINE_END = re.compile("\r(?!\n)|[\x85\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class _File:
    location: ScalarNode
    digest: Digest | None


def through(text: str, links: Links, *, fallback: bool = True, digest_form: bool = False) -> str:
    """`text` with every location of a configured host proxied; the same text if there is none left.

    Each list item then stands twice, the proxied one first; without `fallback` it is changed where it stands. An item
    that stands twice already is left, whatever `fallback` says. `digest_form`: the URL has the item's digest, if any.
    Raises ValueError, with line and reason, if the text is not one YAML document.
    """
    root = _read(text)
    edits: list[Edit] = []
    for found in (_at(root, *path) for path in LISTS):
        if not isinstance(found, SequenceNode):
            continue
        before: list[str] = []
        for item in _items(found):
            files = _files(item)
            given = [file.location.value for file in files]
            plain, strict = ([_proxied(file, links, form) for file in files] for form in (False, True))
            wanted = strict if digest_form else plain
            if wanted != given and before not in (plain, strict):
                own = [_replaced(text, file.location, new) for file, new in zip(files, wanted, strict=True)]
                edits += [_copy(text, item, own, in_lines=not found.flow_style)] if fallback else own
            before = given
    return edited(text, edits)


def place_in(text: str, key: str, new: str) -> tuple[int, int]:
    """Where the key `new` can be written into the map `key` of the document, and its indentation.

    The end of the text and 0 if there is no such map yet. Raises ValueError if it has the key already, or is not
    written in lines.
    """
    found = _at(_read(text), key)
    if found is None:
        return len(text), 0
    if _at(found, new) is not None:
        raise ValueError(f"it has {new} of its own")
    if not isinstance(found, MappingNode) or found.flow_style or not found.value:
        raise ValueError(f"its {key}: is not written in lines")
    return _line_end(text, _end(found)), found.value[0][0].start_mark.column


def direct(text: str, urls: Urls) -> str:
    """What `through` made of it is taken back, and nothing else: the items before their originals go.

    Raises ValueError like `through`.
    """
    root = _read(text)
    edits: list[Edit] = []
    for found in (_at(root, *path) for path in LISTS):
        entries = list(_entries(text, found)) if isinstance(found, SequenceNode) else []
        for entry, following in zip_longest(entries, entries[1:]):
            if following and _is_copy(urls, entry, following):
                edits.append(Edit(entry.start, entry.end, ""))
                continue
            for file in entry.files:
                if url := urls.direct(file.location.value, file.digest):
                    edits.append(_replaced(text, file.location, url))
    return edited(text, edits)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A list item as text: its lines, or up to the next item if it has no dash."""

    start: int
    end: int
    bare: str
    """Without its locations and what follows it."""
    files: list[_File]


def _entries(text: str, found: SequenceNode) -> Iterator[_Entry]:
    items = list(_items(found))
    for item, following in zip_longest(items, items[1:]):
        start, end = item.start_mark.index, _end(item)
        files = _files(item)
        blanks = [Edit(file.location.start_mark.index, file.location.end_mark.index, "") for file in files]
        if found.flow_style:
            bare = edited(text, blanks, start, end)
            end = following.start_mark.index if following else end
        else:
            start, end = _lines(text, start, end)
            bare = edited(text, blanks, start, end).rstrip("\r\n")
        yield _Entry(start, end, bare, files)


def _is_copy(urls: Urls, entry: _Entry, original: _Entry) -> bool:
    """Whether the entry is what `through` puts before the other."""
    if entry.bare != original.bare or len(entry.files) != len(original.files):
        return False
    pairs = [(each, other.location.value) for each, other in zip(entry.files, original.files, strict=True)]
    changed = [(each, url) for each, url in pairs if each.location.value != url]
    return bool(changed) and all(urls.is_link(each.location.value, url, each.digest) for each, url in changed)


def _read(text: str) -> Node | None:
    if found := _OTHER_LINE_END.search(text):
        raise ValueError(f"line {text.count(chr(10), 0, found.start()) + 1}: a line ends with {found[0]!r}")
    reader = YAML(typ="safe", pure=True)
    reader.composer.warn_double_anchors = False  # the copy of an item has its anchors; YAML lets the last one count
    try:
        root: Node | None = reader.compose(text)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: a character that YAML forbids, or it is not UTF-8") from error
    except YAMLError as error:
        raise ValueError(_reason(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return root


def _at(node: Node | None, *path: str) -> Node | None:
    for key in path:
        pairs = node.value if isinstance(node, MappingNode) else []
        node = next((value for name, value in pairs if name.value == key), None)
    return node


def _items(node: SequenceNode) -> Iterator[MappingNode]:
    """The maps of a list. What is written elsewhere, and repeated here by an alias, is none of it."""
    at = node.start_mark.index
    for item in node.value:
        if isinstance(item, MappingNode) and item.start_mark.index >= at:
            yield item
            at = _end(item)


def _files(item: MappingNode) -> list[_File]:
    """What is to be fetched for a list item, with its locations written within it."""
    span = range(item.start_mark.index, _end(item))
    files: dict[int, _File] = {}
    for path in ((), *((key,) for key in INNER)):
        location, digest = _at(item, *path, "location"), _at(item, *path, "digest")
        if isinstance(location, ScalarNode) and (at := location.start_mark.index) in span:
            stated = Digest.parse(digest.value) if isinstance(digest, ScalarNode) else None
            files.setdefault(at, _File(location, stated))  # an alias names a location again
    return list(files.values())


def _proxied(file: _File, links: Links, digest_form: bool) -> str:
    url: str = file.location.value
    return links.proxied(url, file.digest if digest_form else None) or url


def _replaced(text: str, scalar: ScalarNode, new: str) -> Edit:
    """Another value for a scalar, with the quotes, the anchor and the tag that it has."""
    start, end = scalar.start_mark.index, scalar.end_mark.index
    written = text[start:end]
    if written.count(scalar.value) != 1:  # it is written with escapes
        return Edit(start, end, json.dumps(new))
    if scalar.style is None and "[" in new:  # an IPv6 address, which could be read as a list
        new = json.dumps(new)
    return Edit(start, end, written.replace(scalar.value, new))


def _copy(text: str, item: MappingNode, edits: Sequence[Edit], *, in_lines: bool) -> Edit:
    """The item, so edited, before itself: from the line of its dash to its last, or with a comma between [ and ]."""
    start, end = item.start_mark.index, _end(item)
    if not in_lines:
        return Edit(start, start, edited(text, edits, start, end) + ", ")
    start, end = _lines(text, start, end)
    copy = edited(text, edits, start, end)
    return Edit(start, start, copy if copy.endswith("\n") else copy + ("\r\n" if "\r\n" in text else "\n"))


def _lines(text: str, start: int, end: int) -> tuple[int, int]:
    """Where the lines of the item from `start` to `end` begin and end. Raises ValueError if no dash begins them."""
    first = text.rfind("\n", 0, start) + 1
    while not _DASH.fullmatch(text, first, start):  # it stands alone, above comments
        if not first:
            raise ValueError(f"line {text.count(chr(10), 0, start) + 1}: the dash of this item does not begin a line")
        first = text.rfind("\n", 0, first - 1) + 1
    return first, _line_end(text, end)


def _end(node: Node) -> int:
    """Where the text of the node ends. The mark of a block collection is behind that, at the next token."""
    if isinstance(node, CollectionNode) and node.value and not node.flow_style:
        last = node.value[-1]
        parts = last if isinstance(last, tuple) else (last,)
        # What an alias names stands before the node, or is the node itself.
        if here := [each for each in parts if each is not node and each.start_mark.index >= node.start_mark.index]:
            return max(map(_end, here))
    end: int = node.end_mark.index
    return end


def _line_end(text: str, at: int) -> int:
    """Where the line ends whose last character of interest is before `at`, with its line end."""
    return text.find("\n", at - 1) + 1 or len(text)


def _reason(error: YAMLError) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error)
