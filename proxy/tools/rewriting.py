"""Files that name upstream URLs, changed so that these come through fetchonce, and changed back.

Rewriting is taking back what is ours in a file, and then putting it in: so a second time changes nothing, and another
address, or another form, replaces the one before. Taking back needs no record. Each form that we write is known by its
shape, since the original stands in it or behind it; so what else was edited in the meantime stays, and a copied or
renamed file can be changed back, too. `rewritten` proves each time that it can be.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from . import lima_yaml, packer_urls, plain
from .urls import URL, Urls


class Kind(StrEnum):
    """What a file is for."""

    LIMA = "lima"
    PACKER = "packer"
    VAGRANT = "vagrant"
    CLOUD_INIT = "cloud-init"
    GUEST = "guest"
    """Other files that a guest or container reads: Dockerfile, Kickstart, preseed, Ignition."""
    SHELL = "shell"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Form:
    fallback: bool = True
    """Whether the original stays behind ours, where the tool takes a list."""
    digest_form: bool = False
    """Whether our URL names the digest that the file states."""


@dataclass(frozen=True, slots=True)
class Change:
    line: int
    """Where our URL stands, counted from 1."""
    original: str
    ours: str
    base: str
    """The address in `ours`."""
    has_fallback: bool
    """Whether the original stands there too, for when we do not run."""


class Irreversible(ValueError):
    """A text that cannot be changed so that `undone` restores it. The message says where."""


_LIMA = re.compile(r"^(?:minimumLimaVersion|vmType)[ \t]*:|^base:\s*(?:-\s*)?[\"']?template:", re.MULTILINE)
_LIMA_FILES = re.compile(r"^[ \t{]*[\"']?(?:images|firmware|containerd|osOpts)[\"']?[ \t]*:", re.MULTILINE)
_GUEST = re.compile(
    r"(?:dockerfile|containerfile)(?:[.-].*)?|.*\.(?:dockerfile|ks|ign|bu)|ks\.cfg|preseed.*\.cfg|autoinstall\.ya?ml"
)
_CLOUD_INIT = re.compile(r"^(?:#cloud-config\b|Content-Type: *(?:text/cloud-config|multipart/mixed))", re.MULTILINE)
_PACKER = re.compile(r"^(?:source|build|packer|variable)\b[^\n={]*\{", re.MULTILINE)
_SHELL = re.compile(r"#![^\n]*\b(?:ba|da|k|z)?sh\b")


def kind_of(name: str, text: str) -> Kind:
    """By the file's name, or else by what is in it."""
    text = text.removeprefix("\ufeff")
    name = name.lower()
    is_yaml, is_json = name.endswith((".yaml", ".yml")), text.lstrip().startswith("{")
    if name.endswith((".pkr.hcl", ".pkrvars.hcl", ".pkr.json", ".pkrvars.json")):
        return Kind.PACKER
    if _SHELL.match(text) or name.endswith(".sh"):  # it may write a Vagrantfile
        return Kind.SHELL
    if name.startswith("vagrantfile") or "Vagrant.configure" in text:
        return Kind.VAGRANT
    if _CLOUD_INIT.search(text[:4096]):
        return Kind.CLOUD_INIT
    if _GUEST.fullmatch(name):
        return Kind.GUEST
    if '"builders"' in text if is_json else name.endswith((".hcl", "-")) and _PACKER.search(text):
        return Kind.PACKER
    # A template without images is one too: the scripts in it run in the guest, whose 127.0.0.1 is not ours.
    if (is_yaml or is_json or name == "-") and (
        _LIMA.search(text) or ("location" in text and _LIMA_FILES.search(text))
    ):
        return Kind.LIMA
    return Kind.TEXT


def rewritten(text: str, kind: Kind, urls: Urls, form: Form) -> str:
    """`text` with the URLs of configured hosts through us. What went through us before, elsewhere too, is renewed.

    Raises Irreversible, and ValueError if the text is not of its kind.
    """
    original = undone(text, kind, urls)
    match kind:
        case Kind.LIMA:
            new = lima_yaml.through(original, urls.links, fallback=form.fallback, digest_form=form.digest_form)
        case Kind.PACKER:
            new = packer_urls.through(original, urls, fallback=form.fallback, digest_form=form.digest_form)
        case Kind.VAGRANT:
            new = plain.vagrant_through(original, urls)
        case Kind.SHELL | Kind.TEXT | Kind.CLOUD_INIT | Kind.GUEST:
            new = plain.through(original, urls)
    if (back := undone(new, kind, urls)) != original:
        for line, (one, other) in enumerate(zip(back.split("\n"), original.split("\n"), strict=False), 1):
            if one != other:
                raise Irreversible(f"line {line}: --undo could not restore this: {other.strip()}")
        raise Irreversible("--undo could not restore its end")
    return new


def undone(text: str, kind: Kind, urls: Urls) -> str:
    """`text` as it was before `rewritten`, byte for byte, but for what was edited since. Raises ValueError."""
    match kind:
        case Kind.LIMA:
            return lima_yaml.direct(text, urls)
        case Kind.PACKER:
            return packer_urls.direct(text, urls)
        case Kind.VAGRANT:
            return plain.vagrant_direct(text, urls)
        case Kind.SHELL | Kind.TEXT | Kind.CLOUD_INIT | Kind.GUEST:
            return plain.direct(text, urls)


def changes(old: str, new: str, kind: Kind, urls: Urls) -> Iterator[Change]:
    """Our URLs in `new` that `old` has not."""
    known = Counter(url for _, url, _ in urls.all_ours(old))
    kept = {found[0] for found in URL.finditer(new)} if kind in (Kind.LIMA, Kind.PACKER) else set()
    for line, url, ours in urls.all_ours(new):
        if known[url]:
            known[url] -= 1
        else:
            yield Change(line, ours.original, url, ours.base, ours.original in kept)
