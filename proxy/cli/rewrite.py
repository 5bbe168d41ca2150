"""fetchonce rewrite: templates and scripts, changed so that what they download comes through fetchonce, and back."""

import difflib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click

from ..config import Settings
from ..rules.links import Links
from ..tools import blocks
from ..tools.rewriting import Change, Form, Kind, changes, kind_of, rewritten, undone
from ..tools.urls import LOOPBACK, Urls
from .common import json_option, own_bases, print_json, proxy_option, settings_options

STDIN = "-"
NOTHING = "nothing to change: no URL of a configured host"
BASED = "; fetchonce lima install is for the templates it is based on"
UNDONE = "nothing to undo"
HEAD_BYTES = 64 * 1024
"""A file with a NUL in its beginning is not read further: an image may have been named by mistake."""


class Options(NamedTuple):
    in_place: bool
    diff: bool
    undo: bool
    digest_form: bool
    no_fallback: bool
    proxy: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    file: str
    kind: Kind
    old: str
    new: str
    changes: list[Change]


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("-i", "--in-place", is_flag=True, help="Change the files, instead of printing what one becomes.")
@click.option("--diff", is_flag=True, help="Print what changes.")
@click.option("--undo", is_flag=True, help="Take back what rewrite did; what was edited since stays.")
@click.option("--no-fallback", is_flag=True, help="Do not keep the original URL behind ours in lists.")
@click.option("--digest-form", is_flag=True, help="Let URLs name the digest where the file states one.")
@proxy_option
@json_option
@settings_options
def rewrite(settings: Settings, files: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Change templates and scripts so that what they download comes through fetchonce.

    FILE is a Lima template, a Packer template (HCL or JSON), a Vagrantfile, a cloud-init file, a script or any other
    text; - is standard input. URLs of configured hosts become ours, and nothing else changes. Where the tool takes a
    list, the original follows ours, for when fetchonce does not run. A second time renews what the first did: after a
    change of the port, say.
    """
    options = Options(**given)
    if options.in_place and STDIN in files:
        raise click.UsageError("- is standard input, which -i cannot change")
    if len(files) > 1 and not (options.in_place or options.diff or as_json):
        raise click.UsageError("these are several files: -i changes them, --diff shows what would change")
    bases = own_bases(settings)
    base = options.proxy or next(iter(bases), None)
    if base is None:
        raise click.UsageError("fetchonce listens on no TCP address: name one with --proxy http://HOST:PORT")
    table = settings.mirror_table()
    urls = Urls(Links(table, base), frozenset(bases))
    outcomes = []
    for file in dict.fromkeys(files):
        shown = "standard input" if file == STDIN else click.format_filename(file)
        try:
            outcome = changed(file, urls, options)
            if options.in_place and outcome.new != outcome.old:
                blocks.write(Path(file), outcome.new)
            click.echo(f"{shown} ({outcome.kind}): {told(outcome, urls, options)}", err=True)
        except OSError as error:
            click.echo(f"fetchonce: {shown}: {error.strerror or error}", err=True)
            continue
        except ValueError as error:
            click.echo(f"fetchonce: {shown}: {error}; it stays as it is", err=True)
            continue
        outcomes.append(outcome)
        if options.diff and not as_json:
            print_text("".join(diff_lines(outcome, shown)))
        elif not (options.in_place or as_json):
            print_text(outcome.new)
    if as_json:
        print_json([as_object(outcome, options.undo) for outcome in outcomes])
    sys.exit(len(outcomes) < len(set(files)))


def changed(file: str, urls: Urls, options: Options) -> Outcome:
    """What becomes of a file. Raises OSError, and ValueError if it cannot be changed."""
    old = read(file)
    kind = kind_of(Path(file).name, old)
    if options.undo:
        new = undone(old, kind, urls)
        return Outcome(file, kind, old, new, list(changes(new, old, kind, urls)))
    is_known = kind not in (Kind.CLOUD_INIT, Kind.GUEST) or options.proxy is not None
    if not is_known and (ours := next((ours for _, _, ours in urls.all_ours(old)), None)):
        urls, is_known = replace(urls, links=replace(urls.links, base=ours.base)), True  # as it was said before
    new = rewritten(old, kind, urls, Form(not options.no_fallback, options.digest_form))
    found = list(changes(old, new, kind, urls))
    if found and not is_known and LOOPBACK.fullmatch(urlsplit(urls.links.base).netloc):
        raise ValueError(
            f"line {found[0].line} is read in the guest, whose 127.0.0.1 is not this machine: say how it is reached "
            "from there, such as --proxy http://host.lima.internal:8642, or http://host.docker.internal:8642"
        )
    return Outcome(file, kind, old, new, found)


def read(file: str) -> str:
    """The text, in which bytes that are not UTF-8 are surrogates. Raises OSError, ValueError."""
    with click.open_file(file, "rb") as stream:
        data = stream.read(HEAD_BYTES)
        if b"\0" not in data:
            data += stream.read()
    if b"\0" in data:
        raise ValueError("it is binary, or UTF-16")
    return str(data, "utf-8", "surrogateescape")


def told(outcome: Outcome, urls: Urls, options: Options) -> str:
    """What is done, in a few words."""
    found, several = outcome.changes, len(outcome.changes) > 1
    if outcome.new == outcome.old:
        return untold(outcome, urls, options.undo)
    if not found:
        return "the same URLs, with originals behind them or without"
    count = f"{len(found)} URL{'s' if several else ''}"
    verb = "would go" if not options.in_place else "go" if several else "goes"
    if options.undo:
        return f"{count} {verb} upstream again"
    bare = sum(not each.has_fallback for each in found)
    need = "and need it to run" if several else "and needs it to run"
    if bare and bare < len(found):
        need = f"{bare} of them without a fallback for when it does not run"
    return f"{count} {verb} through {found[0].base}" + (f", {need}" if bare else "")


def untold(outcome: Outcome, urls: Urls, undo: bool) -> str:
    """Why nothing is done."""
    if undo:
        others = (ours.base for _, _, ours in urls.all_ours(outcome.old, anywhere=True))
        return next((f"nothing to undo; if {other} is fetchonce, add --proxy {other}" for other in others), UNDONE)
    for _, _, ours in urls.all_ours(outcome.old):
        return f"nothing to change: {ours.base} is there already"
    return NOTHING + (BASED if outcome.kind is Kind.LIMA and re.search("^base:", outcome.old, re.MULTILINE) else "")


def diff_lines(outcome: Outcome, name: str) -> Iterator[str]:
    """A unified diff, as patch reads it."""
    old, new = (re.findall(r"[^\n]*\n|[^\n]+", text) for text in (outcome.old, outcome.new))
    for line in difflib.unified_diff(old, new, name, name):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def print_text(text: str) -> None:
    """Byte for byte."""
    click.echo(text.encode("utf-8", "surrogateescape"), nl=False)


def as_object(outcome: Outcome, undo: bool) -> dict[str, Any]:
    ends = [(each, *((each.ours, each.original) if undo else (each.original, each.ours))) for each in outcome.changes]
    changed = [{"line": each.line, "from": before, "to": after} for each, before, after in ends]
    return {"file": outcome.file, "kind": outcome.kind, "changed": changed}
