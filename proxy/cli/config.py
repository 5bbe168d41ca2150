"""fetchonce config: is the configuration right, and what is in force."""

from typing import Any

import click
import msgspec

from ..config import Settings
from .common import json_option, print_json, settings_options


@click.group()
def config() -> None:
    """Check or show the configuration."""


@config.command()
@settings_options
def check(settings: Settings) -> None:
    """Exit 0 if the configuration is right; else say which file, line and key is not, and what was expected."""
    click.echo(f"{settings.sources[0]}: ok, {len(settings.mirrors)} mirrors from {len(settings.sources)} files")


@config.command(name="show")
@json_option
@settings_options
def show_config(settings: Settings, as_json: bool) -> None:
    """Print what is in force: defaults, files, environment and options together."""
    whole = in_force(settings)
    if as_json:
        print_json(whole)
        return
    click.echo("# from " + ", ".join(settings.sources[:1]) + f" and {len(settings.sources) - 1} mirror files")
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
    whole["mirror"] = [
        {
            "name": mirror.name,
            "upstreams": list(mirror.upstreams),
            "immutable": list(mirror.immutable),
            "moving": list(mirror.moving),
            "ttl": mirror.ttl,
            "checksums": list(mirror.checksums),
            "ignore_query": mirror.ignore_query,
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
        return (
            f"'{value}'"
            if "\\" in value and "'" not in value
            else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


COMMANDS = [config]
