"""The arguments of commands that take URLs, files, templates and standard input alike."""

import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import click

from ..config import Settings
from ..errors import ProxyError
from ..rules.digests import Digest
from ..rules.links import Links
from ..tools.urls import Urls
from ..tools.wanted import ARCHES, Choice, Wanted, in_turn, is_source, read
from .common import own_bases


class Asked(NamedTuple):
    """What the arguments of a command want."""

    wanted: list[Wanted]
    failed: list[tuple[str, str]]
    """What could not be made out: the argument, and why, with its name."""


def choice_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options --arch and --all-arch, and call it with a `choice` made from them."""

    @functools.wraps(command)
    def with_choice(arch: str | None, all_arch: bool, **arguments: Any) -> Any:
        return command(choice=Choice(arch, all_arch), **arguments)

    for option in (
        click.option("--all-arch", is_flag=True, help="Of templates: all that they name, for every architecture."),
        click.option("--arch", type=arch_type, metavar="ARCH", help="Of templates: x86_64, aarch64 [this machine's]."),
    ):
        option(with_choice)
    return with_choice


def arch_type(text: str) -> str:
    """The type of --arch."""
    if text not in ARCHES:
        raise click.BadParameter(f"expected one of {', '.join(sorted(set(ARCHES.values())))}")
    return ARCHES[text]


def asked(settings: Settings, arguments: Sequence[str], choice: Choice) -> Asked:
    """What the arguments want, each object once: URLs in any spelling, and files, templates and "-" that are read."""
    wanted: dict[tuple[str, Digest | None], Wanted] = {}
    failed: list[tuple[str, str]] = []
    upstream = upstream_names(settings)
    for argument in dict.fromkeys(arguments):
        if not is_source(argument):
            wanted.setdefault((argument, None), Wanted(argument))
            continue
        try:
            found = read(argument, choice)
        except ProxyError as error:
            failed.append((argument, error.message))
            continue
        for note in found.notes:
            click.echo(f"{argument}: {note}", err=True)
        failed += [(argument, trouble) for trouble in found.troubles]
        for each in found.wanted:
            named = upstream(each)
            wanted.setdefault((named.url, named.digest), named)
    return Asked(list(wanted.values()), [(argument, _printable(why)) for argument, why in failed])


def _printable(text: str) -> str:
    """What quotes a file, for a terminal."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


def upstream_names(settings: Settings) -> Callable[[Wanted], Wanted]:
    """What gives a Wanted by its upstream URLs: a template may name ours beside them, and each is to be tried once."""
    table = settings.mirror_table()
    links = [Links(table, base) for base in own_bases(settings)]
    urls = Urls(Links(table, ""))  # what was written for another port of this machine is ours, too

    def upstream(url: str) -> str:
        if ours := urls.ours(url):
            return ours.original
        with suppress(ProxyError):  # the server may know more mirrors; it will say so if it does not
            return url if not url.startswith("/") else table.resolve(url).url
        return url

    def named(wanted: Wanted) -> Wanted:
        turns: dict[tuple[str, Digest | None], Wanted] = {}
        for each in wanted.all():
            ours = (original for link in links if (original := link.original(each.url)))
            url = next(ours, None) or upstream(each.url)
            turns.setdefault((url, each.digest), Wanted(url, each.digest, each.arch))
        return in_turn(list(turns.values()))[0]

    return named
