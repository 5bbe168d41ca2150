"""What a template or list wants: the URLs that its tool would download on this machine, with the digests it names.

Kinds: Lima templates (lima_templates.py), Packer in HCL and JSON (packer.py), Vagrant metadata (vagrant_metadata.py),
quickemu's .conf, and lists with a URL on each line. The name decides, and the content where the name says nothing.
A reader tells what it cannot make out, and goes on with the rest.
"""

import json
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import RequestError
from ..rules.digests import Digest

MAX_BYTES = 4 * 1024**2  # Lima reads no longer templates
ARCHES = {
    "amd64": "x86_64", "arm64": "aarch64", "arm": "armv7l", "armhf": "armv7l", "ppc64el": "ppc64le",
    **{name: name for name in ("x86_64", "aarch64", "armv7l", "ppc64le", "riscv64", "s390x")},
}  # fmt: skip
"""Lima's names of architectures, by these and by other people's names."""

_HEX = re.compile(r"[0-9a-fA-F]{64}(?:[0-9a-fA-F]{64})?")
_HCL = re.compile(r'^\s*(?:source|variable|locals|packer|build|data|local)\b[^=\n]*\{', re.MULTILINE)
_YAML = re.compile(r"^(?:images|base|minimumLimaVersion|containerd|vmType|arch|os)[ \t]*:", re.MULTILINE)
_COMMENT = re.compile(r"(?:^|\s)#.*")
_QUICKEMU = re.compile(r"^\s*(?:guest_os|disk_img)=", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file."""

    url: str
    """As the template has it: the tool may name its own cache by it."""
    digest: Digest | None = None
    """What the tool expects of it."""
    arch: str | None = None
    """Lima's name of the architecture; None if there is no telling."""
    instead: tuple["Wanted", ...] = ()
    """What the tool takes if this cannot be had, in this order."""

    def all(self) -> Iterator["Wanted"]:
        """This one, and those in its stead."""
        yield self
        yield from self.instead


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of the files that a template names are wanted."""

    arch: str | None = None
    """Lima's name; None: the template's, or else this machine's."""
    all_arch: bool = False
    """For every architecture, and every provider and version."""
    provider: str | None = None
    """Of a Vagrant box; None: the only one."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a template or list wants, and what is to be said about it."""

    wanted: tuple[Wanted, ...] = ()
    troubles: tuple[str, ...] = ()
    """What could not be made out, each with the place."""
    notes: tuple[str, ...] = ()
    """What a person should know, and is no failure."""


def this_arch() -> str:
    """Lima's name of this machine's architecture."""
    machine = platform.machine().lower()
    return ARCHES.get(machine, machine)


def is_source(argument: str) -> bool:
    """Whether `argument` is a file, an installed template or standard input ("-"), and not a URL in any spelling.

    A path may look like /HOST/PATH. It is one if there is such a file, or the directory in which it would be.
    """
    if argument == "-" or argument.startswith(("template:", "file://")):
        return True
    if "://" in argument or not argument:
        return False
    path = Path(argument)
    return not argument.startswith("/") or path.exists() or (path.parent.is_dir() and path.parent != Path("/"))


def read(argument: str, choice: Choice) -> Found:
    """What the file, the template ("template:NAME") or standard input ("-") wants. Raises RequestError."""
    argument = argument.removeprefix("file://")
    try:
        if argument.startswith("template:"):
            from .lima_templates import read_template  # here, as below: loading a parser takes longer than `ls`

            found = read_template(argument, choice)
        elif argument != "-" and Path(argument).is_dir():
            found = _read_directory(Path(argument), choice)
        else:
            found = _read_text(argument, text_of(argument), choice)
    except RecursionError as error:
        raise RequestError(f"{shown(argument)} is nested too deeply to be read") from error
    if not found.wanted and not found.troubles:
        raise RequestError(f"{shown(argument)} names no URL to fetch")
    return found


def text_of(argument: str) -> str:
    """The text of a file or of standard input. Raises RequestError."""
    try:
        if argument == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(argument, "rb") as file:
                data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        is_bare = not set(argument) & set("/.")
        hint = f", and a template of Lima's is template:{argument}" if is_bare else ", and a URL begins with https://"
        raise RequestError(f"there is no file {argument}{'' if argument.startswith('/') else hint}") from error
    except OSError as error:
        raise RequestError(f"{argument} cannot be read: {error.strerror}") from error
    try:
        if len(data) > MAX_BYTES or b"\0" in data:
            raise ValueError
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except ValueError as error:
        raise unknown_kind(argument) from error


def unknown_kind(argument: str) -> RequestError:
    return RequestError(
        f"{shown(argument)} is neither a list of URLs nor a template that fetchonce reads "
        "(Lima, Packer, Vagrant metadata, quickemu)"
    )


def shown(argument: str) -> str:
    return "standard input" if argument == "-" else argument


def digest_of(text: object, algorithm: object = None) -> Digest | None:
    """The digest in "sha256:HEX", "sha512:HEX" or bare "HEX"; None for what is none, or of another algorithm."""
    if not isinstance(text, str) or algorithm not in (None, "", "none", "sha256", "sha512"):
        return None
    text = text.strip()
    kind = "sha256" if len(text) == 64 else "sha512"
    return Digest.parse(f"{kind}:{text}" if _HEX.fullmatch(text) else text)


def is_url(text: object) -> bool:
    # What is not printable no mirror accepts, and a terminal might act on it.
    return isinstance(text, str) and text.isprintable() and text.lower().startswith(("https://", "http://"))


def in_turn(wanted: list[Wanted]) -> tuple[Wanted, ...]:
    """The first, with all others in its stead; () for none."""
    return (replace(wanted[0], instead=tuple(wanted[1:])),) if wanted else ()


def _read_directory(path: Path, choice: Choice) -> Found:
    """A directory is what Packer is given: all of its *.pkr.hcl files."""
    files = sorted(path.glob("*.pkr.hcl"))
    if not files:
        raise RequestError(f"{path} is a directory, and has no *.pkr.hcl files: name the files that are meant")
    parts = [_read_text(str(file), text_of(str(file)), choice) for file in files]
    return Found(
        tuple(each for part in parts for each in part.wanted), tuple(each for part in parts for each in part.troubles)
    )


def _read_text(argument: str, text: str, choice: Choice) -> Found:
    name = "" if argument == "-" else Path(argument).name.lower()
    is_yaml = name.endswith((".yaml", ".yml"))
    if name.endswith(".json") or (not is_yaml and text.lstrip().startswith("{")):
        return _read_json(argument, text, choice)
    if name.endswith(".hcl") or (not is_yaml and _HCL.search(text)):
        from .packer import read_hcl

        return read_hcl(argument, text)
    if is_yaml or _YAML.search(text):
        from .lima_templates import read_text

        return read_text(argument, text, choice)
    if _QUICKEMU.search(text):
        return _read_quickemu(argument, text)
    return _read_list(argument, text)


def _read_json(argument: str, text: str, choice: Choice) -> Found:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{shown(argument)} is not JSON that can be read: {error}") from error
    if isinstance(value, Mapping) and isinstance(value.get("versions"), list):
        from .vagrant_metadata import read_metadata

        return read_metadata(argument, value, choice)
    if isinstance(value, Mapping) and value.keys() & {"builders", "source", "variable", "variables"}:
        from .packer import read_json

        return read_json(argument, value)
    if isinstance(value, Mapping) and value.keys() & {"images", "base"}:
        from .lima_templates import read_text

        return read_text(argument, text, choice)
    raise unknown_kind(argument)


def _read_quickemu(argument: str, text: str) -> Found:
    """The shell variables of a quickemu .conf that hold URLs. What quickget writes names files that it has fetched."""
    found = []
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and name in ("iso", "img", "fixed_iso", "floppy"):
            try:
                words = shlex.split(value, comments=True)
            except ValueError:
                words = []
            found += [Wanted(word) for word in words if is_url(word)]
    if not found:
        raise RequestError(
            f"{shown(argument)} names files that quickget has fetched already, and no URL. "
            "`quickget --url OS RELEASE EDITION` prints the URL of one"
        )
    return Found(tuple(found))


def _read_list(argument: str, text: str) -> Found:
    """A URL on each line, in any spelling, with a digest beside it or without; `#` begins a comment."""
    wanted, troubles = [], []
    for number, line in enumerate(text.splitlines(), 1):
        words = _COMMENT.sub("", line).split()
        if not words:
            continue
        urls = [word for word in words if is_url(word) or (word.startswith("/") and word.isprintable())]
        digests = [digest for word in words if word not in urls and (digest := digest_of(word))]
        if len(urls) != 1 or len(urls) + len(digests) != len(words) or len(digests) > 1:
            troubles.append(
                f'{shown(argument)}:{number}: "{line.strip()[:80]}": expected a URL, and sha256:HEX or nothing'
            )
        else:
            wanted.append(Wanted(urls[0], digests[0] if digests else None))
    if troubles and not wanted:
        raise unknown_kind(argument)
    return Found(tuple(wanted), tuple(troubles))
