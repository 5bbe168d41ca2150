"""fetchonce lima: have Lima download through fetchonce, and directly while fetchonce does not run."""

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click

from ..config import Settings
from ..errors import ConfigError, ProxyError
from ..rules.links import Links
from ..tools.lima import Lima, Way, ask, home_of
from ..tools.lima_home import TO_DO, Found, State, apply, compare, left_of, mark_in
from ..tools.urls import LOOPBACK
from .common import json_option, own_bases, print_json, proxy_option, settings_options, unanswered

WOULD = "would write"


class Choices(NamedTuple):
    lima_home: str | None
    templates: Path | None
    proxy: str | None


@dataclass(frozen=True, slots=True)
class Look:
    """What is in Lima's home, beside what should be."""

    home: Path
    lima: Lima
    way: Way
    command: str
    """Makes it as it should be."""
    found: list[Found]
    notes: list[str]
    """What its user should know besides."""
    is_used: bool
    """Whether Lima looks for templates there."""


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What install and status can be told."""
    for option in (
        proxy_option,
        click.option(
            "--templates",
            type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
            metavar="DIR",
            help="Where Lima's own templates are [limactl is asked].",
        ),
        home_option,
    ):
        option(command)
    return command


home_option = click.option("--lima-home", metavar="DIR", help="Lima's home directory [LIMA_HOME, or ~/.lima].")
dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would be done.")


@click.group()
def lima() -> None:
    """Lead Lima through fetchonce without an option: by templates of its own in Lima's home directory."""


@lima.command(short_help="Put templates that go through fetchonce into Lima's home, or renew them.")
@click.option("--no-fallback", is_flag=True, help="Leave the originals out: without fetchonce nothing can be created.")
@dry_run_option
@json_option
@options
@settings_options
def install(settings: Settings, no_fallback: bool, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Make every `limactl create` and `start` go through fetchonce.

    Of each template of Lima that names an image of a configured mirror, a copy is written to LIMA_HOME/_templates, with
    each image twice: through fetchonce, and then from where it is. nerdctl's archives get the same in
    LIMA_HOME/_config/default.yaml. Where fetchonce does not run, Lima takes the original at once. Files of yours are
    left alone. After an update of Lima, run it again; `lima remove` takes everything back.
    """
    look = looked(settings, Choices(**given), not no_fallback)
    if not dry_run:
        apply(look.home, look.found)
    report(look, as_json, WOULD if dry_run else "wrote")
    sys.exit(not dry_run and any(each.state is State.EDITED for each in look.found))


@lima.command(short_help="Take out of Lima's home what install has put there.")
@home_option
@dry_run_option
@json_option
@settings_options
def remove(settings: Settings, lima_home: str | None, dry_run: bool, as_json: bool) -> None:
    """Take away what `lima install` has written, and leave the rest as it was, byte for byte."""
    home = home_of(os.environ, lima_home)
    with os_errors(home):
        found = left_of(home)
    if not dry_run:
        apply(home, found)
    if as_json:
        print_json({"lima_home": str(home), "files": objects(found, done=not dry_run)})
    elif not found:
        click.echo(f"nothing of fetchonce is in {home}")
    else:
        gone = [each for each in found if each.state is State.UNWANTED]
        click.echo(f"{'would take' if dry_run else 'took'} {counted(len(gone))} out of {home}")
    told(found, (State.EDITED, State.FOREIGN))
    sys.exit(not dry_run and any(each.state is State.EDITED for each in found))


@lima.command(short_help="Say whether Lima goes through fetchonce.")
@json_option
@options
@settings_options
def status(settings: Settings, as_json: bool, **given: Any) -> None:
    """Exit 0 if Lima goes through fetchonce with templates that are up to date; else say what is wrong."""
    look = looked(settings, Choices(**given), None)
    report(look, as_json, None)
    sys.exit(not look.is_used or any(each.state in (*TO_DO, State.EDITED) for each in look.found))


def looked(settings: Settings, choices: Choices, fallback: bool | None) -> Look:
    """`fallback` None: as it is installed, and through another machine if it leads there."""
    home, is_install = home_of(os.environ, choices.lima_home), fallback is not None
    with os_errors(home):
        mark = mark_in(home)
    bases = own_bases(settings)
    is_kept = mark and (mark.base in bases or (fallback is None and not LOOPBACK.fullmatch(urlsplit(mark.base).netloc)))
    base = choices.proxy or (mark.base if mark and is_kept else next(iter(bases), None))
    if base is None:
        raise ConfigError("Lima cannot use a unix socket, and the server has no other address: add one to `listen`")
    if fallback is None:
        fallback = mark.fallback if mark else True
    where = "" if home == home_of({}) else f" --lima-home {shlex.quote(str(home))}"
    given = ("" if base in bases else f" --proxy {shlex.quote(base)}") + ("" if fallback else " --no-fallback")
    links = Links(settings.mirror_table(), base)
    way = Way(links, fallback, f"fetchonce lima remove{where}")
    tool, notes = lima_of(choices.templates)
    tool, order = ordered(tool, home, choices.templates is None, os.environ)
    with os_errors(home):
        found, unread = compare(home, tool, way)
    if not any(each.path.is_relative_to(home / "_templates") and each.state is not State.UNWANTED for each in found):
        where = ", ".join(map(str, tool.templates)) or "Lima's share directory"
        where += " (LIMA_TEMPLATES_PATH)" if order else ""
        raise ProxyError(f"no template in {where} names an image of a configured mirror; nothing was changed")
    meanwhile = "Lima takes the originals" if way.fallback else "Lima can download nothing"
    notes += [*unread, *order, *(unanswered(base, meanwhile) if mark or is_install else [])]
    return Look(home, tool, way, f"fetchonce lima install{given}{where}", found, notes, not order)


def lima_of(templates: Path | None) -> tuple[Lima, list[str]]:
    """The installed Lima, with other templates if they are given; and what is missing then."""
    try:
        tool = ask(os.environ)
        return (replace(tool, templates=(templates,)) if templates else tool), []
    except ProxyError as error:
        if templates is None:
            raise
        return Lima("unknown", (templates,)), [f"nerdctl's archives are left out: {error.message}"]


def ordered(tool: Lima, home: Path, is_asked: bool, environment: Mapping[str, str]) -> tuple[Lima, list[str]]:
    """Where LIMA_TEMPLATES_PATH is set: Lima with the templates there, and what is to be done about it, if anything."""
    own = home / "_templates"
    listed = [Path(each) for each in environment.get("LIMA_TEMPLATES_PATH", "").split(os.pathsep) if each]
    others = [each for each in listed if os.path.realpath(each) != os.path.realpath(own)]
    if others and is_asked:
        tool = replace(tool, templates=tuple(others))
    if not listed or listed[0] not in others:
        return tool, []
    path = os.pathsep.join(map(str, (own, *others)))
    return tool, [
        f"LIMA_TEMPLATES_PATH is set, so Lima looks nowhere else: put our directory in front of it\n"
        f"  export LIMA_TEMPLATES_PATH={shlex.quote(path)}"
    ]


def report(look: Look, as_json: bool, did: str | None) -> None:
    """`did`: what was done with files that were not as they should be; None: nothing."""
    changed = [each for each in look.found if each.state in TO_DO]
    good = [each for each in look.found if each.state is State.GOOD]
    behind = ", with the originals as fallback" if look.way.fallback else ""
    how = f"Lima {look.lima.version} goes {look.way}{behind}"
    if as_json:
        print_json(
            {
                "lima_home": str(look.home),
                "lima": look.lima.version,
                "proxy": look.way.links.base,
                "fallback": look.way.fallback,
                "used": look.is_used,
                "files": objects(look.found, done=did not in (None, WOULD)),
            }
        )
    elif did and changed:
        for each in changed if did == WOULD else ():
            click.echo(each.path)
        told(changed, (State.STALE, State.UNWANTED), err=False)
        click.echo(f"{did} {counted(len(changed))} in {look.home}: {how}")
    elif did:
        click.echo(f"nothing to change: {counted(len(good))} in {look.home}: {how}")
    elif all(each.state in (State.MISSING, State.FOREIGN) for each in look.found):
        click.echo(f"not installed in {look.home}: `{look.command}` would write {counted(len(changed))}")
    else:
        told(changed, TO_DO, err=False)
        ending = f"; `{look.command}` mends the others" if changed else ""
        click.echo(f"good: {counted(len(good))} in {look.home}: {how}{ending}")
    told(look.found, (State.EDITED, State.FOREIGN))
    for note in look.notes:
        click.echo(note, err=True)


def told(found: Sequence[Found], states: Collection[State], *, err: bool = True) -> None:
    """Print the files in these states, those with the same reason on one line."""
    groups: dict[tuple[State, str], list[Path]] = {}
    for each in found:
        if each.state in states:
            groups.setdefault((each.state, each.why), []).append(each.path)
    for (state, why), paths in groups.items():
        name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        click.echo(f"{state.value}: {name}{': ' if why else ''}{why}", err=err)


def objects(found: Sequence[Found], *, done: bool) -> list[dict[str, str]]:
    """`done`: what was to be done was done."""
    changed = {State.MISSING: "written", State.STALE: "written", State.UNWANTED: "taken out"} if done else {}
    return [
        {"path": str(each.path), "state": changed.get(each.state, each.state.value), "why": each.why} for each in found
    ]


def counted(number: int) -> str:
    return f"{number} file{'' if number == 1 else 's'}"


@contextlib.contextmanager
def os_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ProxyError(f"{error.filename or home}: {error.strerror or error}. nothing was changed") from error
