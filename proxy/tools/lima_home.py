"""What we keep in Lima's home directory: compared with what is wanted, written, and taken away again.

Only files with our mark are ours, and an edited one is never overwritten. A directory that we make holds a file that
says so from the moment it has its name: so `remove` knows which directories to delete, whatever was interrupted.
"""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..errors import ProxyError
from . import lima_nerdctl
from .blocks import write
from .lima import Lima, Mark, Way, mark_of, shadows

MADE = ".fetchonce"
"""The file that marks a directory as made by us. Lima ignores it."""
MADE_TEXT = "made by `fetchonce lima install`; `fetchonce lima remove` takes it away\n"
SCRATCH = ".fetchonce-"
"""Prefix of the names of unfinished files and directories."""
_LOGIN = re.compile(r"https?://[^\s/@]+@")


class State(Enum):
    GOOD = "good"
    MISSING = "missing"
    STALE = "stale"
    UNWANTED = "unwanted"
    EDITED = "edited"
    """Ours, and changed since by somebody else."""
    FOREIGN = "foreign"
    """Somebody else's, where ours would be."""


TO_DO = (State.MISSING, State.STALE, State.UNWANTED)
"""What `apply` writes or deletes."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file of ours, or one that should be."""

    path: Path
    state: State
    why: str = ""
    text: str | None = None
    """What is to be in it where it is MISSING, STALE or UNWANTED; None: it is to be deleted."""


def compare(home: Path, lima: Lima, way: Way) -> tuple[list[Found], list[str]]:
    """Each file that is ours or should be, and what could not be read of Lima's. Raises OSError."""
    wanted, unread = shadows(lima, way)
    paths = sorted({*wanted, *_marks(home)})
    return [*(_template(home, path, wanted.get(path)) for path in paths), *_default(home, lima, way)], unread


def left_of(home: Path) -> list[Found]:
    """Each file of ours, as one that is not wanted any more. Raises OSError."""
    return [*(_template(home, path, None) for path in _marks(home)), *_default(home, None, None)]


def mark_in(home: Path) -> Mark | None:
    """How what is installed leads Lima; None if nothing is installed. Raises OSError."""
    marks = _marks(home).values()
    return next(iter(marks), None) or lima_nerdctl.mark_of(_read(home / "_config" / "default.yaml") or "")


def _marks(home: Path) -> dict[Path, Mark]:
    """The marks of our templates, by path below _templates. A link to one of them is somebody else's."""
    templates = home / "_templates"
    paths = [path.relative_to(templates) for path in _files(templates)]
    marks = {path: mark_of(path, _read(templates / path) or "") for path in paths}
    return {path: mark for path, mark in marks.items() if mark}


def _template(home: Path, name: Path, wanted: str | None) -> Found:
    """`wanted` is None for one of ours that is not wanted."""
    templates = home / "_templates"
    path = templates / name
    if path.parent.resolve() != templates.resolve() / name.parent:
        return Found(path, State.FOREIGN, "a link leads elsewhere, where nothing is written")
    if not os.path.lexists(path):
        return Found(path, State.MISSING, "", wanted)
    text = None if path.is_symlink() else _read(path)
    mark, expected = mark_of(name, text or ""), mark_of(name, wanted or "")
    if mark is None:
        return Found(path, State.FOREIGN, "it is not of fetchonce, and Lima uses it as it is")
    if mark.is_edited:
        return Found(path, State.EDITED, "it was edited: to keep it, delete its first line; else delete it")
    if expected is None:
        return Found(path, State.UNWANTED, "its original is gone, or names no configured host any more")
    return Found(path, State.GOOD) if text == wanted else Found(path, State.STALE, mark.difference(expected), wanted)


def _default(home: Path, lima: Lima | None, way: Way | None) -> Iterator[Found]:
    """default.yaml, unless it neither has nor should have a block of ours."""
    path = home / "_config" / "default.yaml"
    try:
        text = path.read_bytes().decode() if path.exists() else None
    except UnicodeDecodeError:
        yield Found(path, State.FOREIGN, "it is not UTF-8, so nerdctl's archives are left out")
        return
    mark = lima_nerdctl.mark_of(text or "")
    if mark and mark.is_edited:
        yield Found(path, State.EDITED, "the block of fetchonce was edited: delete it, with the lines around it")
    elif lima is None or way is None:
        if mark:
            yield Found(path, State.UNWANTED, "", lima_nerdctl.taken_out(text or ""))
    elif lima.archives is not None:
        try:
            wanted = lima_nerdctl.put_in(text, _read(path.with_name("override.yaml")) or "", lima, way)
        except ValueError as error:
            why, rest = f"{error}, so nerdctl's archives are left out", lima_nerdctl.taken_out(text or "")
            yield Found(path, State.UNWANTED, why, rest) if mark else Found(path, State.FOREIGN, why)
            return
        expected = lima_nerdctl.mark_of(wanted or "")
        if mark and expected:  # where it stands does not matter: somebody may have written something below it
            good = mark == expected
            yield Found(path, State.GOOD) if good else Found(path, State.STALE, mark.difference(expected), wanted)
        elif mark or expected:
            yield Found(path, State.MISSING if expected else State.UNWANTED, "", wanted)


def apply(home: Path, found: Sequence[Found]) -> None:
    """Write and delete what `found` asks for. After an interruption, run it again. Raises ProxyError."""
    try:
        with _alone(home):
            _sweep(home)
            for each in found:
                if each.state in TO_DO:
                    _put(each)
            _prune(home)
    except OSError as error:
        where = Path(error.filename2 or error.filename or home)
        where = where.parent if where.name.startswith(SCRATCH) else where
        raise ProxyError(
            f"{where}: {error.strerror or error}. what is done stays, and the same command goes on from there"
        ) from error


def _put(found: Found) -> None:
    if found.text is not None:
        _make(found.path.parent)
        write(found.path, found.text, 0o600 if _LOGIN.search(found.text) else 0o644)  # a token is nobody else's
    elif found.path.exists():
        found.path.resolve().unlink()  # default.yaml may be a link, which stays


def _make(directory: Path) -> None:
    """Make it, and the directories above it, each with our mark in it from the first moment."""
    if directory.is_dir():
        return
    _make(directory.parent)
    new = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=directory.parent))  # only for the user, as Lima makes its own
    (new / MADE).write_text(MADE_TEXT)
    new.rename(directory)


def _prune(home: Path) -> None:
    """Delete the directories that we made and that hold nothing of ours any more; of those in use, only the mark."""
    left = {parent for each in left_of(home) for parent in each.path.parents}
    made = [path.parent for path in _files(home / "_templates", MADE)]
    inner = sorted(made, key=lambda path: -len(path.parts))
    for directory in (*inner, home / "_config", home, *home.parents):
        if directory in left or _read(directory / MADE) != MADE_TEXT:
            continue
        if [entry.name for entry in os.scandir(directory)] != [MADE]:
            (directory / MADE).unlink()
            continue
        away = tempfile.mkdtemp(prefix=SCRATCH, dir=directory.parent)
        directory.rename(away)  # at once, with its mark: an empty directory without one would stay for ever
        shutil.rmtree(away)


def _sweep(home: Path) -> None:
    """Delete what an interrupted run has left behind."""
    directories = [home.parent, home, home / "_config", *(home / "_templates").glob("**/")]
    for left in [left for directory in directories for left in directory.glob(f"{SCRATCH}*")]:
        with contextlib.suppress(OSError):  # it is somebody else's, or holds something of theirs
            if left.is_dir() and not left.is_symlink():
                (left / MADE).unlink(missing_ok=True)
                left.rmdir()
            elif left.parent != home.parent:
                left.unlink()


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Wait until no other process does this. The home may not be there yet, so the directory around it is locked."""
    around = next(path for path in (*home.parents, home) if path.is_dir())
    fd = os.open(around, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _files(directory: Path, pattern: str = "*.yaml") -> list[Path]:
    return sorted(path for path in directory.glob(f"**/{pattern}") if path.is_file() and not path.is_symlink())


def _read(path: Path) -> str | None:
    """Its text, whatever bytes it holds; None if it is no file that is there."""
    try:
        return path.read_bytes().decode(errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
