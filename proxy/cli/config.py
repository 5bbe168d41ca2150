"""fetchonce config: is the configuration right, and what is in force?"""

import functools
import os
import re
import time
from typing import Any

import click
import msgspec
import tomli_w

from ..config import Settings, misspelt
from ..errors import ConfigError
from .common import given_settings, json_option, print_json, settings_options

file_options = functools.partial(settings_options, settings_of=given_settings)
"""For what is about the file itself, whatever a server that runs was given."""
MASK = "***"
"""Printed in place of a secret."""


@click.group()
def config() -> None:
    """Check or show the configuration."""


@config.command(short_help="Say whether the configuration is right.")
@json_option
@file_options
def check(settings: Settings, as_json: bool) -> None:
    """Exit 0 if the configuration is right; else say which file, line and key is wrong, and what was expected."""
    from ..serving.sockets import UNIX, resolve  # here, because they load the whole server
    from ..serving.tls import certificate
    from .serve import refuse_network

    for address in settings.file.listen:
        refuse_network(address, settings)
        if not address.startswith(UNIX):
            resolve(address)
    if (found := certificate(settings)) and (problem := found.problem(time.time())):
        raise ConfigError(f"{found.path}: no client will trust this certificate: {problem}")
    for name, hint in misspelt(os.environ).items():
        click.echo(f"{name}: ignored; {hint}", err=True)
    if as_json:
        print_json({"file": settings.sources[0], "sources": settings.sources, "mirrors": len(settings.mirrors)})
    else:
        mirrors = _counted(len(settings.mirrors), "mirror")
        click.echo(f"{settings.sources[0]}: ok, {mirrors} from {_counted(len(settings.sources), 'file')}")


@config.command(name="show", short_help="Print what is in force.")
@json_option
@file_options
def show_config(settings: Settings, as_json: bool) -> None:
    """Print what is in force: defaults, files, environment and options together."""
    whole = in_force(settings)
    if as_json:
        print_json(whole)
        return
    click.echo(f"# from {settings.sources[0]} and {_counted(len(settings.sources) - 1, 'mirror file')}")
    click.echo(tomli_w.dumps(whole), nl=False)


def in_force(settings: Settings) -> dict[str, Any]:
    """Every key of the settings and its value. Loading it gives the same settings, but for the secrets."""
    whole: dict[str, Any] = msgspec.to_builtins(settings.file, enc_hook=_number)
    whole["cache"]["dir"] = str(settings.cache_dir)
    secrets = ("access", "token"), ("fleet", "token"), ("s3", "access_key_id"), ("s3", "secret_access_key")
    for section, key in secrets:
        whole[section][key] = MASK if whole[section][key] else ""
    for section, key in (("upstream", "proxy"), ("lease", "redis")):
        masked = re.sub("//.*@", f"//{MASK}@", whole[section][key])
        whole[section][key] = re.sub("(?<=[?&]password=)[^&]*", MASK, masked)
    for table, mirror in zip(whole["mirror"], settings.mirrors, strict=True):
        table["upstreams"] = list(mirror.upstreams)  # without user and password
        table["headers"] = {name: MASK for fields in mirror.credentials for name, _ in fields}
    return whole


def _number(value: Any) -> int | float:
    """A Size or Duration as a plain number."""
    return int(value) if value == int(value) else float(value)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
