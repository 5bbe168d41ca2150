"""fetchonce vagrant: Vagrant's boxes come through fetchonce, by a hook in the Vagrantfile of its home directory."""

import difflib
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..config import Settings
from ..errors import ProxyError
from ..tools import blocks
from ..tools.vagrant import Hook, home, installed, places, vagrantfile, with_hook
from ..tools.vagrant import remove as remove_hook
from ..tools.vagrant import write as write_hook
from .common import json_option, own_bases, print_json, proxy_option, settings_options, unanswered

home_option = click.option("--vagrant-home", metavar="DIR", help="[env: VAGRANT_HOME; ~/.vagrant.d]")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only show what would change.")


@click.group()
def vagrant() -> None:
    """Have Vagrant's boxes come through fetchonce, or no longer."""


@vagrant.command(short_help="Have boxes come through fetchonce.")
@home_option
@proxy_option
@click.option("--no-fallback", is_flag=True, help="Never fetch a box directly, even if fetchonce does not run.")
@dry_run_option
@json_option
@settings_options
def install(
    settings: Settings, vagrant_home: str | None, proxy: str | None, no_fallback: bool, **given: bool
) -> None:
    """Have boxes and their metadata come through fetchonce: `vagrant up`, `box add`, `box update` and all else.

    It puts a hook between two marks into the Vagrantfile of Vagrant's home directory. Names, versions and checksums of
    boxes stay, also of those that are there. While fetchonce does not run, boxes come from where they always did; so do
    those that need a login. Run it again after a change of mirrors or address.
    """
    directory = home(vagrant_home)
    path, text = read(directory)
    hook = wanted(settings, installed(text), proxy, falls_back=not no_fallback)
    after = with_hook(text, hook, is_new_directory=not directory.exists())
    carry_out(path, (text, after), lambda: write_hook(path, after), **given)
    if given["as_json"]:
        print_json(described(path, hook, "installed") | {"changed": after != text})
    elif not given["dry_run"]:
        click.echo(f"{'unchanged' if after == text else 'installed'}: {sentence(path, hook)}")
        if shutil.which("vagrant") is None:
            click.echo("there is no `vagrant` on the PATH; once there is, it will read this", err=True)
        say_if_unanswered(hook)


@vagrant.command(short_help="Have boxes come from where they always did.")
@home_option
@dry_run_option
@json_option
@settings_options
def remove(settings: Settings, vagrant_home: str | None, **given: bool) -> None:
    """Take the hook out again. What it was put into becomes what it was, byte for byte."""
    path, text = read(home(vagrant_home))
    is_there = text is not None and blocks.has_block(text)
    if text is not None and is_there:
        carry_out(path, (text, blocks.without(text)), lambda: remove_hook(path, text), **given)
    if given["as_json"]:
        print_json(described(path, None, "absent") | {"changed": is_there})
    elif not is_there:
        click.echo(f"there is nothing of fetchonce in {path}")
    elif not given["dry_run"]:
        click.echo(f"removed from {path}: boxes come from where they always did")


@vagrant.command(short_help="Say whether boxes come through fetchonce.")
@home_option
@json_option
@settings_options
def status(settings: Settings, vagrant_home: str | None, as_json: bool) -> None:
    """Exit 0 if the hook is installed and agrees with mirrors and address of now; else say what is wrong."""
    path, text = read(home(vagrant_home))
    hook = installed(text)
    if hook is None:
        state, why = ("outdated", ["it is another version's"]) if blocks.has_block(text or "") else ("absent", [])
    else:
        new = wanted(settings, hook, hook.address if hook.is_given else None, falls_back=hook.falls_back)
        why = differences(hook, new, is_same=with_hook(text, new, is_new_directory=False) == text)
        state = "outdated" if why else "installed"
    if as_json:
        print_json(described(path, hook, state) | {"why": why})
    elif state == "absent":
        click.echo(f"not installed in {path}: fetchonce vagrant install")
    else:
        click.echo(f"{state}: {sentence(path, hook)}" if hook else f"{state}: {path}")
        if hook:
            say_if_unanswered(hook)
        for each in why:
            click.echo(f"  {each}")
        if why:
            click.echo(f"to mend it: {hook.command if hook else 'fetchonce vagrant install'}")
    sys.exit(state != "installed")


def read(directory: Path) -> tuple[Path, str | None]:
    """The Vagrantfile and its text (None: there is none). Raises ProxyError."""
    path = vagrantfile(directory)
    try:
        text = blocks.read(path)
    except OSError as error:
        raise ProxyError(f"{path} cannot be read: {error.strerror}. nothing was changed") from error
    if text is not None and blocks.is_torn(text):
        raise ProxyError(
            f'{path}: of the lines "# >>> fetchonce" and "# <<< fetchonce" one is missing. '
            "nothing was changed; take out by hand what is left between them"
        )
    return path, text


def wanted(settings: Settings, old: Hook | None, proxy: str | None, *, falls_back: bool) -> Hook:
    """The hook for these settings. The address stays the old one's as long as it is one of ours. Raises ProxyError."""
    of_settings = places(settings.mirrors, settings.file.access.allow_hosts)
    if proxy:
        return Hook(proxy, of_settings, falls_back, is_given=True)
    own = own_bases(settings)
    if not own:
        raise ProxyError("fetchonce listens on no address that Vagrant can use, only on a unix socket: say --proxy URL")
    return Hook(old.address if old and old.address in own else own[0], of_settings, falls_back)


def carry_out(
    path: Path, change: tuple[str | None, str], write: Callable[[], None], *, dry_run: bool, as_json: bool
) -> None:
    """Make the change of the file, or only show it. Raises ProxyError."""
    before, after = change
    if before == after:
        return
    if dry_run:
        if not as_json:
            lines = difflib.unified_diff(
                (before or "").splitlines(), after.splitlines(), str(path), str(path), lineterm=""
            )
            click.echo("\n".join(lines))
        return
    try:
        write()
    except OSError as error:
        raise ProxyError(f"{path} cannot be written: {error.strerror}. nothing was changed") from error


def differences(old: Hook, new: Hook, *, is_same: bool) -> list[str]:
    """Why the hook is to be installed again."""
    why = []
    if old.address != new.address:
        why.append(f"fetchonce is at {new.address} now")
    for word, some, others in (("new", new, old), ("gone", old, new)):
        if only := set(some.places) - set(others.places):
            why.append(f"{word} in the configuration: {', '.join(sorted(only))}")
    return why if why or is_same else ["it is another version's"]


def described(path: Path, hook: Hook | None, state: str) -> dict[str, Any]:
    of_hook = {"proxy": hook.address, "fallback": hook.falls_back, "places": hook.places} if hook else {}
    return {"file": str(path), "state": state, **of_hook}


def sentence(path: Path, hook: Hook) -> str:
    way = ", or directly while it does not run" if hook.falls_back else ""
    return f"boxes come through {re.sub('//.*@', '//***@', hook.address)}{way} ({path})"


def say_if_unanswered(hook: Hook) -> None:
    for each in unanswered(hook.address, "boxes come directly" if hook.falls_back else "no box can be fetched"):
        click.echo(each, err=True)
