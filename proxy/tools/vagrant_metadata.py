"""Vagrant's metadata of a box, the JSON that a box's URL leads to: versions, and in each a file for every provider."""

import re
from collections.abc import Mapping
from typing import Any

from ..errors import RequestError
from .wanted import ARCHES, Choice, Found, Wanted, digest_of, is_url, shown, this_arch


def read_metadata(argument: str, metadata: Mapping[str, Any], choice: Choice) -> Found:
    """The box of the newest version, for the provider and the architecture. Raises RequestError."""
    versions = [each for each in metadata["versions"] if isinstance(each, Mapping) and _providers(each)]
    versions.sort(key=lambda each: _order(str(each.get("version", ""))), reverse=True)
    if choice.all_arch:
        return Found(tuple(dict.fromkeys(_wanted(box) for each in versions for box in _providers(each))))
    arch = choice.arch or this_arch()
    for version in versions:
        boxes = [box for box in _providers(version) if _arch(box) in (None, arch)]
        if choice.provider:
            boxes = [box for box in boxes if box.get("name") == choice.provider]
        if len(names := {str(box.get("name")) for box in boxes}) > 1:
            raise RequestError(
                f"{shown(argument)} has a box for each of {', '.join(sorted(names))}: choose one with --provider"
            )
        if boxes:
            boxes.sort(key=lambda box: _arch(box) is None)  # made for this architecture before made for none
            return Found((_wanted(boxes[0]),))
    wanted = f"{choice.provider or 'any provider'} on {arch}"
    offered = sorted({f"{box.get('name')} on {_arch(box) or 'any'}" for each in versions for box in _providers(each)})
    raise RequestError(f"{shown(argument)} has no box for {wanted}, but for {', '.join(offered) or 'nothing'}")


def _providers(version: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    providers = version.get("providers")
    boxes = providers if isinstance(providers, list) else []
    return [box for box in boxes if isinstance(box, Mapping) and is_url(box.get("url"))]


def _wanted(box: Mapping[str, Any]) -> Wanted:
    return Wanted(box["url"], digest_of(box.get("checksum"), box.get("checksum_type")), _arch(box))


def _arch(box: Mapping[str, Any]) -> str | None:
    """Lima's name of the box's architecture; None where it says none, as boxes did before Vagrant 2.4."""
    name = box.get("architecture")
    return None if name in (None, "", "unknown") else ARCHES.get(str(name), str(name))


def _order(version: str) -> list[tuple[int, int, str]]:
    """Sorts versions as RubyGems does: numbers by value, and letters (1.0.rc1) before the end."""
    parts = re.findall(r"\d{1,18}|[a-zA-Z]+", version)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts] + [(1, 0, "")]
