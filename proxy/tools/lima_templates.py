"""Lima's templates: where the installed ones are, which others they build on, and which files they have Lima fetch.

As Lima 2.2 has it (pkg/limatmpl, pkg/templatestore, pkg/instance/start.go): `base` templates are merged depth first,
lists are appended, and of all else the first one to say it wins. Of the images of its architecture Lima takes the first
that it can have, among those of the first one's variant.
"""

import functools
import itertools
import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode

from ..errors import RequestError
from .lima import home_of
from .wanted import Choice, Found, Wanted, digest_of, in_turn, is_url, shown, text_of, this_arch

Template = Mapping[str, Any]

INFO_SECONDS = 30.0
MAX_VALUES = 100_000
"""In a template, all aliases written out: merge keys (<<) have the parser do so, and ten lines can be a billion."""
PREFIXES = ("/usr/local", "/opt/homebrew", "/usr")
"""Where to look for what is installed if there is no limactl in PATH."""
EMBED = "`limactl template copy --embed-all TEMPLATE - | fetchonce prefetch -` has Lima read it"


class _Unread(Exception):
    """Why a base template cannot be read here."""


def template_paths() -> list[Path]:
    """The directories in which Lima looks for `template:NAME`, in its order."""
    if paths := os.environ.get("LIMA_TEMPLATES_PATH"):
        return [Path(path) for path in paths.split(os.pathsep)]
    limactl = shutil.which("limactl")
    prefixes = [Path(limactl).absolute().parent.parent, Path(limactl).resolve().parent.parent] if limactl else []
    shares = [prefix / "share" / "lima" / "templates" for prefix in (*prefixes, *map(Path, PREFIXES))]
    return [home_of(os.environ) / "_templates", *dict.fromkeys(shares)]


def template_file(name: str) -> Path:
    """The file of the installed template `name`, such as "ubuntu-24.04". Raises RequestError."""
    if ".." in name:
        raise RequestError(f'the name of a template holds no "..": template:{name}')
    suffix = Path(name).suffix
    file = name if len(suffix) > 1 and not suffix[1].isdigit() else f"{name}.yaml"
    for path in template_paths():
        if (path / file).exists():
            return path / file
    looked = ", ".join(str(path) for path in template_paths() if path.is_dir())
    raise RequestError(f"there is no template:{name} {f'in {looked}' if looked else 'here, nor a Lima'}")


def read_template(locator: str, choice: Choice) -> Found:
    """What the installed template "template:NAME" wants. Raises RequestError."""
    return read_text(locator, text_of(str(_file(locator))), choice)


def read_text(locator: str, text: str, choice: Choice) -> Found:
    """What the template `text` wants; `locator` is its file, "-" or "template:NAME". Raises RequestError."""
    troubles: list[str] = []
    seen = set() if locator == "-" else {os.path.realpath(_file(locator))}
    templates = list(_with_bases(locator, _parsed(locator, text), troubles, seen))
    images = _listed(templates, "images")
    chosen = _arches(templates, choice) if images else []  # other YAML: Lima's own archives are not what it wants
    wanted: list[Wanted] = []
    notes: list[str] = []
    for arch in chosen:
        wanted += _images(images, arch, choice)
        files = [*_listed(templates, "firmware", "images"), *_listed(templates, "osOpts", "Windows", "virtioWin")]
        wanted += _in_turn(files, arch, choice)
        if _wants_containerd(templates, arch):
            archives = _listed(templates, "containerd", "archives") or _built_in_archives()
            wanted += _in_turn(archives or [], arch, choice)
            if archives is None:
                notes.append(
                    "the containerd archive that Lima adds by itself is not known, because `limactl info` does not "
                    "work here; name its URL too if it is wanted"
                )
    offered = {str(image.get("arch") or "") for image in images}
    for arch in chosen:
        if images and not offered & {arch, ""}:
            choices = ", ".join(sorted(offered))
            troubles.append(f"{shown(locator)} has no image for {arch}, but for {choices}: choose with --arch")
    return Found(tuple(dict.fromkeys(wanted)), tuple(troubles), tuple(dict.fromkeys(notes)))


def _template_name(locator: str) -> str:
    """NAME of template:NAME, and of template://NAME, as it was before Lima 2."""
    return locator.removeprefix("template:").removeprefix("//").strip("/")


def _file(locator: str) -> Path:
    """Where "template:NAME", or a file, is. Raises RequestError."""
    if locator.startswith("template:"):
        return template_file(_template_name(locator))
    return Path(locator.removeprefix("file://"))


def _parsed(locator: str, text: str) -> Template:
    reader = YAML(typ="safe", pure=True)
    reader.composer.warn_double_anchors = False  # `fetchonce lima install` writes some items twice
    try:
        node = reader.compose(text)
        if _expanded(node, {}) > MAX_VALUES:
            raise YAMLError("its aliases stand for too much")
        value = reader.constructor.construct_document(node) if node else None
    except (YAMLError, ValueError, TypeError) as error:  # it lets through what int, float and hash raise
        mark = getattr(error, "problem_mark", None)
        where = f"{shown(locator)}:{mark.line + 1}" if mark else shown(locator)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise RequestError(f"{where}: this is not YAML that can be read: {problem}") from error
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RequestError(f"{shown(locator)} is no Lima template: it has no keys at its top")
    return value


def _expanded(node: Any, known: dict[Any, float]) -> float:
    """How many values the node is with all aliases written out; infinite if it is a part of itself."""
    if node not in known:
        known[node] = math.inf
        value = node.value if isinstance(node, CollectionNode) else ()
        parts = itertools.chain(*value) if isinstance(node, MappingNode) else value
        known[node] = 1 + sum(_expanded(part, known) for part in parts)
    return known[node]


def _with_bases(locator: str, template: Template, troubles: list[str], seen: set[str]) -> Iterator[Template]:
    """The template, and all that it builds on, in the order in which Lima merges them."""
    yield template
    bases = template.get("base") or []
    for base in bases if isinstance(bases, list) else [bases]:
        url = base.get("url") if isinstance(base, Mapping) else base
        if not isinstance(url, str):
            troubles.append(f'{shown(locator)}: base: expected a file or "template:NAME", and not {base}')
            continue
        try:
            absolute = _absolute(url, locator)
            path = _file(absolute)
            if (real := os.path.realpath(path)) not in seen:  # ./a, ././a and so on are one file
                seen.add(real)
                yield from _with_bases(absolute, _parsed(str(path), text_of(str(path))), troubles, seen)
        except (RequestError, _Unread, ValueError) as error:  # no path can have a NUL or a lone surrogate
            troubles.append(f"{shown(locator)}: its base {url} is left out: {error}")


def _absolute(url: str, locator: str) -> str:
    """The base `url` of the template `locator`, as a file or "template:NAME"."""
    scheme = url.partition(":")[0]
    if scheme in ("template", "file"):
        return url
    if len(scheme) > 1 and scheme != url and "/" not in scheme:
        raise _Unread(f"only files and template:NAME are read here. {EMBED}")
    if url.startswith(("~", "/")):
        return os.path.expanduser(url)
    if locator == "-":
        raise _Unread("standard input is in no directory")
    if locator.startswith("template:"):
        return f"template:{os.path.join(os.path.dirname(_template_name(locator)), url)}"
    return os.path.join(os.path.dirname(locator.removeprefix("file://")), url)


def _first(templates: list[Template], *keys: str) -> Any:
    """What the first template says that says anything at `keys`."""
    for template in templates:
        value: Any = template
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def _listed(templates: list[Template], *keys: str) -> list[Template]:
    """The maps in all lists at `keys`."""
    values = (_first([template], *keys) for template in templates)
    return [each for value in values if isinstance(value, list) for each in value if isinstance(each, Mapping)]


def _own_arch(templates: list[Template]) -> str:
    arch = _first(templates, "arch")
    return arch if isinstance(arch, str) and arch not in ("", "default") else this_arch()


def _arches(templates: list[Template], choice: Choice) -> list[str]:
    if choice.all_arch:
        named = {str(image["arch"]) for image in _listed(templates, "images") if image.get("arch")}
        return sorted(named) or [_own_arch(templates)]
    return [choice.arch or _own_arch(templates)]


def _images(images: list[Template], arch: str, choice: Choice) -> list[Wanted]:
    """The image, kernel and initrd for `arch`."""
    images = [image for image in images if (image.get("arch") or arch) == arch]
    if images and not choice.all_arch:
        variant = images[0].get("variant") or ""
        images = [image for image in images if (image.get("variant") or "") == variant]
    variants: dict[str, list[Template]] = {}
    for image in images:
        variants.setdefault(str(image.get("variant") or ""), []).append(image)
    wanted: list[Wanted] = []
    for of_variant in variants.values():
        wanted += _in_turn(of_variant, arch, choice)
        for part in ("kernel", "initrd"):
            parts = [each for image in of_variant if isinstance(each := image.get(part), Mapping)]
            wanted += _in_turn(parts, arch, choice)
    return wanted


def _in_turn(files: list[Template], arch: str, choice: Choice) -> tuple[Wanted, ...]:
    """The first of the files for `arch`, the others in its stead. What is on this machine already is not wanted."""
    of_arch = [file for file in files if (file.get("arch") or arch) == arch and is_url(file.get("location"))]
    return in_turn([Wanted(file["location"], digest_of(file.get("digest")), arch) for file in of_arch])


def _wants_containerd(templates: list[Template], arch: str) -> bool:
    """Whether Lima installs containerd from its archive (pkg/limayaml/defaults.go)."""
    if _first(templates, "plain"):
        return False
    system, user = (_first(templates, "containerd", key) for key in ("system", "user"))
    if user is None:
        user = (_first(templates, "os") or "Linux") == "Linux" and arch in ("x86_64", "aarch64")
    return bool(system or user)


@functools.cache
def _built_in_archives() -> list[Template] | None:
    """The archives that this machine's Lima takes where a template names none; None if it cannot be asked."""
    try:
        ran = subprocess.run(
            ["limactl", "info"], stdin=subprocess.DEVNULL, capture_output=True, timeout=INFO_SECONDS, check=True
        )
        return _listed([json.loads(ran.stdout)], "defaultTemplate", "containerd", "archives")
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
