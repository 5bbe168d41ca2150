"""A block of ours in a text file that belongs to somebody else: added at its end, taken out byte for byte.

The first line of the block says what stood before it, so that `without` can restore exactly that.
"""

import contextlib
import os
import re
import tempfile
from pathlib import Path

BEGIN = "# >>> fetchonce: {about}; `{undo}` takes it out"
END = "# <<< fetchonce"
UNENDED = " (the line before had no end)"
ABSENT = " (there was no file)"
_FIRST = r"^# >>> fetchonce: [^\n]*\n"
_LAST = r"^# <<< fetchonce[ \r]*(?:\n|\Z)"
# An editor may have changed the line ends since. A block never reaches into the next one: what is between is not ours.
_BLOCK = re.compile(rf"(\n?)({_FIRST})((?:(?!{_FIRST}).*\n)*?){_LAST}", re.MULTILINE)
_MARK = re.compile(rf"{_FIRST}|{_LAST}", re.MULTILINE)


def with_block(text: str | None, body: str, about: str, undo: str) -> str:
    """`text` with `body` in a block at its end, in place of the block that is there. `undo` is a command.

    `text` is None if there is no file yet."""
    note = ABSENT if text is None or was_absent(text) else ""
    text = without(text or "")
    is_unended = bool(text) and not text.endswith("\n")
    line_end = "\n" if is_unended else ""
    first = BEGIN.format(about=about, undo=undo) + note + (UNENDED if is_unended else "")
    return f"{text}{line_end}{first}\n{body.rstrip()}\n{END}\n"


def has_block(text: str) -> bool:
    return bool(_BLOCK.search(text))


def body_of(text: str) -> str | None:
    """What is between the first and the last line of the block; None if there is no block."""
    found = _BLOCK.search(text)
    return found[3] if found else None


def head_of(text: str) -> str | None:
    """The first line of the block; None if there is no block."""
    found = _BLOCK.search(text)
    return found[2] if found else None


def was_absent(text: str) -> bool:
    """Whether the file was made for the block."""
    return ABSENT in (head_of(text) or "")


def is_torn(text: str) -> bool:
    """Whether the first or the last line of a block is there without the other: nobody can tell what is ours."""
    return len(_MARK.findall(text)) != 2 * len(_BLOCK.findall(text))


def without(text: str) -> str:
    """`text` as it was before `with_block`; what was written around the block since then stays."""
    return _BLOCK.sub(lambda found: "" if UNENDED in found[2] else found[1], text)


def read(path: Path) -> str | None:
    """The text of the file, whatever its line ends and encoding: `write` gives it back byte for byte. None: no file."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace the file at once, so that nobody reads half of it. Owner and permissions stay; a symlink is followed.

    A new file has `mode`. What an interruption leaves behind is called .fetchonce-*.
    """
    path = path.resolve()
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=".fetchonce-")
    try:
        with open(fd, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)  # or a power cut may leave nothing of what stood there
        if path.exists():
            before = path.stat()
            with contextlib.suppress(PermissionError):  # only root may give files away
                os.chown(name, before.st_uid, before.st_gid)
            os.chmod(name, before.st_mode & 0o7777)
        else:
            os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
