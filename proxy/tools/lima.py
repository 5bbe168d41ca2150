"""What an installed Lima has, and the templates with which it goes through fetchonce.

Lima looks for a template in $LIMA_HOME/_templates first. So each template that names an image of a configured host gets
a full copy there, which names fetchonce too. lima_home.py writes the copies.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ProxyError
from ..rules.links import Links
from .lima_yaml import through

ANSWER_SECONDS = 30  # limactl info takes 0.1 s; on macOS a first start is checked by the system
_MARKER = re.compile(
    r"# fetchonce lima install: from (?P<source>.+) \((?P<original>sha256:[0-9a-f]{64}), Lima (?P<version>.+?)\) "
    r"through (?P<base>\S+?)(?P<alone>, without fallback)?; "
    r"what is below \((?P<body>sha256:[0-9a-f]{64})\) is not to be edited; [^\n]+\n"
)


@dataclass(frozen=True, slots=True)
class Lima:
    """An installation of Lima."""

    version: str
    """"unknown" if limactl was not asked."""
    templates: tuple[Path, ...]
    """Directories of templates; of several files of a name the first counts."""
    archives: tuple[dict[str, Any], ...] | None = None
    """Nerdctl's, built in: location, arch, digest. None: limactl was not asked."""


@dataclass(frozen=True, slots=True)
class Way:
    """How Lima reaches fetchonce."""

    links: Links
    fallback: bool
    undo: str
    """The command that takes everything away."""

    def __str__(self) -> str:
        return f"through {self.links.base}" + ("" if self.fallback else ", without fallback")


@dataclass(frozen=True, slots=True)
class Mark:
    """The first line of a copy: what it was made from, and for what."""

    version: str
    base: str
    fallback: bool
    original: str
    """Digest of what it was made from."""
    is_edited: bool = False

    def difference(self, wanted: "Mark") -> str:
        """Why a copy with this mark is out of date."""
        if self.base != wanted.base:
            return f"it leads to {self.base}"
        if self.fallback != wanted.fallback:
            return "it has the originals behind" if self.fallback else "it is without fallback"
        if self.version != wanted.version:
            return f"it is of Lima {self.version}"
        return "its original has changed" if self.original != wanted.original else "the configured mirrors have changed"


def mark_of(path: Path, text: str) -> Mark | None:
    """The mark of our template at `path` below _templates; None if somebody else wrote it, or copied it from ours."""
    found = _MARKER.match(text)
    if not found or not found["source"].endswith(f"/{path.as_posix()}"):
        return None
    is_edited = sha256(text[found.end() :].encode(errors="surrogateescape")) != found["body"]
    return Mark(found["version"], found["base"], not found["alone"], found["original"], is_edited)


def home_of(environment: Mapping[str, str], given: str | None = None) -> Path:
    """Lima's home directory (its dirnames.LimaDir)."""
    return Path(os.path.expanduser(given or environment.get("LIMA_HOME") or "~/.lima")).absolute()


def ask(environment: Mapping[str, str]) -> Lima:
    """What limactl says about itself, whatever its home holds. Raises ProxyError where it cannot be run."""
    program = shutil.which("limactl", path=environment.get("PATH"))
    if program is None:
        raise ProxyError("limactl is not in PATH: install Lima first, or say where its templates are: --templates DIR")
    # In an empty home it shows its own list of archives, not ours, and templates[] are the original ones.
    with tempfile.TemporaryDirectory(prefix="fetchonce-lima-") as empty:
        try:
            done = subprocess.run(
                [program, "info"],
                env={**environment, "LIMA_HOME": empty, "LIMA_TEMPLATES_PATH": ""},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=ANSWER_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ProxyError(f"{program} info does not answer: {error}") from error
    try:
        told = json.loads(done.stdout)
        shares = [Path(each, "templates") for each in told["sharePaths"]]
        archives = tuple((told["defaultTemplate"].get("containerd") or {}).get("archives") or ())
        return Lima(told["version"], tuple(filter(Path.is_dir, shares)), archives)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ProxyError(
            f"{program} info does not say where the templates are ({said or f'no {error}'}). Lima 2.0 or newer is "
            "needed, run by the user whose virtual machines it makes; or say where its templates are: --templates DIR"
        ) from error


def shadows(lima: Lima, way: Way) -> tuple[dict[Path, str], list[str]]:
    """The copies to write, by path below _templates, and a message for each template that could not be read."""
    found: dict[Path, Path] = {}
    for directory in lima.templates:
        for source in sorted(directory.glob("**/*.yaml")):
            found.setdefault(source.relative_to(directory), source)
    texts, unread = {}, []
    for path, source in found.items():
        try:
            content = source.read_bytes()
            text = content.decode("utf-8-sig")
            changed = through(text, way.links, fallback=way.fallback)
        except (OSError, ValueError) as error:
            unread.append(f"{source} cannot be read and is left out: {getattr(error, 'strerror', None) or error}")
            continue
        if changed != text:
            name = str(source).replace("\n", "?")  # the marker is one line
            texts[path] = _marked(changed, f"{name} ({sha256(content)}, Lima {lima.version})", way)
    return texts, unread


def _marked(body: str, origin: str, way: Way) -> str:
    return (
        f"# fetchonce lima install: from {origin} {way}; what is below "
        f"({sha256(body.encode())}) is not to be edited; `{way.undo}` takes it away\n{body}"
    )


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
