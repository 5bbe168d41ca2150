"""Nerdctl's archives in Lima's default.yaml.

No template names them: Lima has a built-in list, which a list in default.yaml replaces. So default.yaml gets the
built-in list, each archive twice: through fetchonce, then from where it is. `remove` takes that block out again.
"""

import json
import re
import textwrap
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from .blocks import body_of, head_of, was_absent, with_block, without
from .lima import Lima, Mark, Way, sha256
from .lima_yaml import place_in, through

_HEAD = re.compile(
    r"# >>> fetchonce: nerdctl of Lima (?P<version>.+?) through (?P<base>\S+?)(?P<alone>, without fallback)?, "
    r"not to be edited \((?P<body>sha256:[0-9a-f]{64})\); "
)


def mark_of(text: str) -> Mark | None:
    """The mark of our block; None if there is none."""
    found = _HEAD.match(head_of(text) or "")
    if not found:
        return None
    digest = sha256((body_of(text) or "").rstrip().encode(errors="surrogateescape"))
    return Mark(found["version"], found["base"], not found["alone"], found["body"], digest != found["body"])


def taken_out(text: str) -> str | None:
    """The file without our block; None if there was no file before it."""
    rest = without(text)
    return None if was_absent(text) and not rest else rest


def put_in(text: str | None, override: str, lima: Lima, way: Way) -> str | None:
    """The file with our block, in place of the one that is there; as `taken_out` if no mirror has the archives.

    `text` is None where there is no file; `override` is override.yaml, whose archives Lima takes first. Raises
    ValueError, which says why, if what they hold leaves no room.
    """
    own = None if text is None else taken_out(text)
    body = _archives(lima, way)
    if not body:
        return own
    if (_loaded(override).get("containerd") or {}).get("archives"):
        raise ValueError("override.yaml beside it has archives")
    before = _loaded(own or "")
    at, indent = place_in(own or "", "containerd", "archives")
    lines = textwrap.indent(textwrap.dedent(body), " " * indent) if indent else "containerd:\n" + body
    about = f"nerdctl of Lima {lima.version} {way}, not to be edited ({sha256(lines.rstrip().encode())})"
    head, rest = (None, "") if own is None else (own[:at], own[at:])
    whole = with_block(head, lines, about, way.undo) + rest
    wanted = {**(before.get("containerd") or {}), **_loaded("containerd:\n" + body)["containerd"]}
    if _loaded(whole) != {**before, "containerd": wanted} or taken_out(whole) != own:
        raise ValueError("a block in it would mean something else")
    return whole


def _archives(lima: Lima, way: Way) -> str:
    """`archives:` and its lines, as below `containerd:`; empty if no mirror has one of them."""
    text = "containerd:\n  archives:\n"
    for archive in lima.archives or ():
        entry = "\n".join(f"{key}: {json.dumps(value)}" for key, value in archive.items())
        text += "  - " + textwrap.indent(entry, "    ")[4:] + "\n"
    changed = through(text, way.links, fallback=way.fallback)
    return changed.partition("\n")[2] if changed != text else ""


def _loaded(text: str) -> dict[str, Any]:
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, RecursionError) as error:
        raise ValueError("it cannot be read as YAML") from error
    if not isinstance(value or {}, dict):
        raise ValueError("it is no map of settings")
    return value or {}
