"""Packer's templates, HCL and JSON: iso_url, iso_urls and iso_checksum of every source.

Variables and locals are put in: their defaults, *.auto.pkrvars.hcl beside the file and PKR_VAR_NAME, as Packer does. No
function is computed; what needs one is told.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import hcl2
from hcl2.utils import SerializationOptions
from lark.exceptions import LarkError

from ..errors import RequestError
from .wanted import Found, Wanted, digest_of, in_turn, is_url, shown, text_of

MAX_CHARACTERS = 1024**2
"""What the variables that one template refers to may have together: they can be made of each other without end."""

_PLAIN = SerializationOptions(
    strip_string_quotes=True, with_comments=False, explicit_blocks=False, preserve_heredocs=False
)
_REFERENCE = re.compile(r"\$\{\s*(var|local)\.([\w-]+)((?:\.[\w-]+|\[[^\[\]]*\])*)\s*\}")
_STEP = re.compile(r"\.([\w-]+)|\[\s*([^\[\]]*?)\s*\]")
_USER = re.compile(r"\{\{-?\s*user\s+[`\"]([^`\"]+)[`\"]\s*-?\}\}")
_ENV = re.compile(r"\{\{-?\s*env\s+[`\"]([^`\"]+)[`\"]\s*-?\}\}")
_EXPRESSION = re.compile(r"\$\{.*?\}|\{\{.*?\}\}", re.DOTALL)


class _Open(Exception):
    """What cannot be worked out, as it is written."""


class _Values(dict[tuple[str, str], Any]):
    """Variables by kind ("var", "local", "user", "env") and name. Once too much was looked up, there are none."""

    left = MAX_CHARACTERS

    def __getitem__(self, key: tuple[str, str]) -> Any:
        value = super().__getitem__(key)
        self.left -= 1 + len(str(value))
        if self.left < 0:
            raise KeyError(key)
        return value


def read_hcl(argument: str, text: str) -> Found:
    """What an HCL template wants. Variables may be declared in other *.pkr.hcl files beside it. Raises RequestError."""
    own = _parsed(argument, text)

    def beside(pattern: str) -> list[dict[str, Any]]:
        files = [str(file) for file in sorted(Path(argument).parent.glob(pattern))] if argument != "-" else []
        return [_parsed(file, text_of(file)) for file in files if file != argument]

    values = _Values()
    for body in (*beside("*.pkr.hcl"), own):
        for name, variable in _blocks(body, "variable"):
            if "default" in variable:
                values["var", name] = variable["default"]
        for each in _listed(body.get("locals")):
            values.update({("local", _name(name)): value for name, value in each.items()})
        values.update({("local", name): block.get("expression") for name, block in _blocks(body, "local")})
    for name, value in os.environ.items():
        if name.startswith("PKR_VAR_"):
            values["var", name.removeprefix("PKR_VAR_")] = value
    for body in beside("*.auto.pkrvars.hcl"):
        values.update({("var", name): value for name, value in body.items()})
    return _found(argument, own, lambda value: _referred(value, values))


def read_json(argument: str, template: Mapping[str, Any]) -> Found:
    """What a JSON template wants: the old kind with {{user `x`}}, and *.pkr.json with ${var.x}."""
    values = _Values({("env", name): value for name, value in os.environ.items()})
    values.update({("var", name): each["default"] for name, each in _blocks(template, "variable") if "default" in each})
    for kind, key in (("user", "variables"), ("local", "locals")):
        values.update({(kind, name): value for each in _listed(template.get(key)) for name, value in each.items()})

    def resolved(value: Any) -> Any:
        for kind, pattern in (("user", _USER), ("env", _ENV)):
            value = _with_values(value, pattern, lambda name, kind=kind: values[kind, name])
        return _referred(value, values)

    return _found(argument, template, resolved)


def _referred(value: Any, values: _Values) -> Any:
    """`value` with every var.NAME and local.NAME in it replaced, also if ["KEY"], [0] or .KEY follows. Raises _Open."""

    def lookup(kind: str, name: str, steps: str) -> Any:
        found = values[kind, name]
        for key, index in _STEP.findall(steps):
            if index.startswith(("var.", "local.")):
                index = _referred(f"${{{index}}}", values)
            found = found[key or (int(index) if index.isdecimal() else index.strip('"'))]
        return found

    return _with_values(value, _REFERENCE, lookup)


def _parsed(argument: str, text: str) -> dict[str, Any]:
    try:
        # It wants an end of the last line.
        body: dict[str, Any] = hcl2.loads(text + "\n", serialization_options=_PLAIN)
        return body
    except (LarkError, ValueError) as error:  # ValueError: a number of 5000 digits
        line = getattr(error, "line", None)
        where = f"{shown(argument)}:{line}" if isinstance(line, int) and line > 0 else shown(argument)
        raise RequestError(f"{where}: this is not HCL that can be read") from error


def _found(argument: str, template: Mapping[str, Any], resolved: Callable[[Any], Any]) -> Found:
    wanted: list[Wanted] = []
    troubles: list[str] = []
    for source in _sources(template):
        values: dict[str, Any] = {}
        for key in ("iso_url", "iso_urls", "iso_checksum", "iso_checksum_type"):
            try:
                values[key] = _closed(resolved(source.get(key)))
            except _Open as error:
                troubles.append(
                    f"{shown(argument)}: {key} needs {error}, which only Packer can work out: "
                    "set a default or PKR_VAR_NAME, or name the URL itself"
                )
        urls = list(chain(_texts(values.get("iso_url")), _texts(values.get("iso_urls"))))
        checksum = values.get("iso_checksum")
        digest = digest_of(checksum, values.get("iso_checksum_type"))
        wanted += in_turn([Wanted(url, digest) for url in dict.fromkeys(urls) if is_url(url)])
        file = checksum.removeprefix("file:") if isinstance(checksum, str) else None
        if file != checksum and is_url(file) and urls:
            wanted.append(Wanted(str(file)))
    return Found(tuple(dict.fromkeys(wanted)), tuple(dict.fromkeys(troubles)))


def _sources(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every map that has an iso_url or iso_urls, wherever it is."""
    if isinstance(value, Mapping):
        if value.keys() & {"iso_url", "iso_urls"}:
            yield value
        value = [each for key, each in value.items() if key not in ("variable", "variables", "locals")]
    if isinstance(value, list):
        for each in value:
            yield from _sources(each)


def _with_values(value: Any, reference: re.Pattern[str], lookup: Callable[..., Any]) -> Any:
    """`value` with every reference replaced. Raises _Open."""
    if isinstance(value, list):
        return [_with_values(each, reference, lookup) for each in value]
    if not isinstance(value, str):
        return value

    def replaced(found: re.Match[str]) -> Any:
        try:
            if (named := lookup(*found.groups())) is not None:
                return _with_values(named, reference, lookup)
        except (LookupError, TypeError, ValueError, RecursionError):  # a huge index; a cycle
            pass
        raise _Open(found[0])

    if whole := reference.fullmatch(value.strip()):
        return replaced(whole)
    return reference.sub(lambda found: str(replaced(found)), value)


def _closed(value: Any) -> Any:
    """`value`; raises _Open if something in it is still to be worked out."""
    for text in _texts(value):
        if opened := _EXPRESSION.search(text):
            raise _Open(opened[0])
    return value


def _blocks(body: Mapping[str, Any], kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and body of each block such as `variable "NAME" { ... }`."""
    for each in _listed(body.get(kind)):
        for name, block in each.items():
            if isinstance(block, Mapping):
                yield _name(name), block


def _listed(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, Mapping)]


def _texts(value: Any) -> list[str]:
    """The strings in a value that may be one, a list, or lists in a list."""
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []


def _name(label: str) -> str:
    return label.strip('"')
