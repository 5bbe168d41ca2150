"""fetchonce config: is the configuration right, and what is in force."""

import json
import re
import time
from typing import Any

import click
import msgspec

from ..config import Settings
from ..errors import ConfigError
from ..serving.tls import certificate
from .common import json_option, print_json, settings_options

MASK = "***"
"""In place of what is secret."""


@click.group()
def config() -> None:
    """Check or show the configuration."""


@config.command(short_help="Say whether the configuration is right.")
@json_option
@settings_options
def check(settings: Settings, as_json: bool) -> None:
    """Exit 0 if the configuration is right; else say which file, line and key is not, and what was expected."""
    if (found := certificate(settings)) and (problem := found.problem(time.time())):
        raise ConfigError(f"{found.path}: no client will trust this certificate: {problem}")
    if as_json:
        print_json({"file": settings.sources[0], "sources": settings.sources, "mirrors": len(settings.mirrors)})
    else:
        mirrors = _counted(len(settings.mirrors), "mirror")
        click.echo(f"{settings.sources[0]}: ok, {mirrors} from {_counted(len(settings.sources), 'file')}")


@config.command(name="show", short_help="Print what is in force.")
@json_option
@settings_options
def show_config(settings: Settings, as_json: bool) -> None:
    """Print what is in force: defaults, files, environment and options together."""
    whole = in_force(settings)
    if as_json:
        print_json(whole)
        return
    click.echo(f"# from {settings.sources[0]} and {_counted(len(settings.sources) - 1, 'mirror file')}")
    for key, value in whole.items():
        if not isinstance(value, dict | list) or key == "listen":
            click.echo(f"{key} = {_toml(value)}")
    for key, value in whole.items():
        if isinstance(value, dict):
            click.echo(f"\n[{key}]")
            for name, each in value.items():
                click.echo(f"{name} = {_toml(each)}")
    for mirror in whole["mirror"]:
        click.echo("\n[[mirror]]")
        for name, each in mirror.items():
            click.echo(f"{name} = {_toml(each)}")


def in_force(settings: Settings) -> dict[str, Any]:
    whole: dict[str, Any] = msgspec.to_builtins(settings.file, enc_hook=_plain)
    whole["cache"]["dir"] = str(settings.cache_dir)
    if whole["access"]["token"]:
        whole["access"]["token"] = MASK
    whole["upstream"]["proxy"] = re.sub("//.*@", f"//{MASK}@", whole["upstream"]["proxy"])
    whole["mirror"] = [
        {
            "name": mirror.name,
            "upstreams": list(mirror.upstreams),
            "immutable": list(mirror.immutable),
            "moving": list(mirror.moving),
            "ttl": mirror.ttl,
            "checksums": list(mirror.checksums),
            "ignore_query": mirror.ignore_query,
            "headers": {name: MASK for fields in mirror.credentials for name, _ in fields},
        }
        for mirror in settings.mirrors
    ]
    return whole


def _plain(value: Any) -> int | float:
    """A Size or Duration as the number it is."""
    return int(value) if isinstance(value, int) else float(value)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A regular expression reads best as a literal string; JSON's escapes are TOML's.
        is_literal = "\\" in value and "'" not in value and value.isprintable()
        return f"'{value}'" if is_literal else json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


COMMANDS = [config]
