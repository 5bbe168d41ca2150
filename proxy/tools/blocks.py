"""A block of ours in a text file that belongs to somebody else: added at its end, taken out byte for byte.

The first line of the block says what stood before it, so that `without` can restore exactly that.
"""

import os
import re
import tempfile
from pathlib import Path

BEGIN = "# >>> fetchonce: {about}; `{undo}` takes it out"
END = "# <<< fetchonce"
UNENDED = " (the line before had no end)"
_BLOCK = re.compile(r"(\n?)# >>> fetchonce: [^\n]*\n(?s:.*?)^# <<< fetchonce\n", re.MULTILINE)


def with_block(text: str, body: str, about: str, undo: str) -> str:
    """`text` with `body` in a block at its end, in place of the block that is there. `undo` is a command."""
    text = without(text)
    is_unended = bool(text) and not text.endswith("\n")
    line_end = "\n" if is_unended else ""
    first = BEGIN.format(about=about, undo=undo) + (UNENDED if is_unended else "")
    return f"{text}{line_end}{first}\n{body.rstrip()}\n{END}\n"


def has_block(text: str) -> bool:
    return bool(_BLOCK.search(text))


def without(text: str) -> str:
    """`text` as it was before `with_block`; what was written around the block since then stays."""

    def before(found: re.Match[str]) -> str:
        return "" if found[0].lstrip("\n").partition("\n")[0].endswith(UNENDED) else found[1]

    return _BLOCK.sub(before, text)


def write(path: Path, text: str) -> None:
    """Replace the file at once, so that nobody reads half of it; its permissions stay, and a symlink is followed."""
    path = path.resolve()
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(fd, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)
        os.chmod(name, path.stat().st_mode & 0o7777 if path.exists() else 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
