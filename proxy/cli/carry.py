"""fetchonce export, import: a cache as one file, for a machine without a network. With and without a running server."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, TypeVar

import click
from rich.progress import Progress

from ..config import Settings
from ..errors import RequestError, StoreError
from ..rules.entry import Entry
from ..rules.foreign import base
from ..rules.mirrors import MirrorTable
from ..store import archive
from ..store.archive import Carried, Importer, Kept, Left, Outcome, Watch
from ..store.files import publishing
from ..store.janitor import Janitor
from ..store.tar import TarReader, TarWriter
from ..web.entries import list_objects
from .bars import progress_bars, say_beside
from .common import files, json_option, leave, opened_store, print_json, settings_options, size_text, url_text
from .entries import selected

T = TypeVar("T")


class Told:
    """What became of the entries, said as it happens beside the bar."""

    def __init__(self, bars: Progress, work: str, quiet: bool) -> None:
        """`work`: export or import. `quiet`: only say what was not done."""
        self._bars, self._done, self._quiet = bars, f"{work}ed", quiet
        self._bar = bars.add_task(f"{work}ing", total=None)
        self.carried: list[Entry] = []
        self.kept: list[Entry] = []
        self.left = 0

    @property
    def watch(self) -> Watch:
        return Watch(self._tell, lambda done, size: self._bars.update(self._bar, completed=done, total=size))

    def _tell(self, outcome: Outcome) -> None:
        match outcome:
            case Carried(entry):
                self.carried.append(entry)
                self._say(f"{self._done} {entry.url} ({size_text(entry.size)})")
            case Kept(entry, is_newer):
                self.kept.append(entry)
                self._say(f"present  {entry.url}" + (", and newer" if is_newer else ""))
            case Left(name, why):
                self.left += 1
                text = why if name in why else f"{name}: {why}"
                say_beside(self._bars, quiet=False, text=f"not {self._done}: {text}")

    def _say(self, text: str) -> None:
        if not self._quiet:
            say_beside(self._bars, quiet=False, text=text)

    def summary(self) -> str:
        size = sum({entry.sha256: entry.size for entry in self.carried}.values())
        count = len(self.carried)
        return f"{self._done} {count} URL{'s' * (count != 1)} ({size_text(size)})"


@click.command()
@click.argument("file", metavar="FILE.tar", shell_complete=files)
@click.argument("patterns", nargs=-1, type=url_text, metavar="[PATTERN...]")
@json_option
@settings_options
def export(settings: Settings, file: str, patterns: tuple[str, ...], as_json: bool) -> None:
    """Write what is stored (all, or what the patterns match) into a tar, for `fetchonce import` on another machine.

    PATTERN is as for ls: a part of the URL, or a glob over the whole of it; or a URL in any spelling. FILE.tar gets its
    name when it is whole. "-" is standard output.
    """
    if file == "-" and (as_json or sys.stdout.isatty()):
        why = "--json prints there" if as_json else "it is a terminal"
        raise click.UsageError(f"the archive cannot go to standard output: {why}")
    code, objects = _stoppable(exported(settings, file, patterns, as_json), "nothing was written")
    if as_json:
        print_json(objects)
    leave(code)


async def exported(
    settings: Settings, file: str, patterns: tuple[str, ...], quiet: bool
) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and what was exported."""
    name = "standard output" if file == "-" else file
    what, where = f" that matches {' or '.join(patterns)}" if patterns else "", settings.cache_dir
    nothing = StoreError(f"nothing whole{what} is stored in {where}. {name} was not written")
    if not where.exists():
        raise nothing
    async with opened_store(settings) as store:
        objects = [each for each in await list_objects(store) if each["state"] == "complete"]
        found = {pattern: selected(settings, objects, pattern) for pattern in patterns}
        missing = [pattern for pattern, matching in found.items() if not matching]
        keys = {each["key"] for matching in (found.values() if patterns else [objects]) for each in matching}
        if not keys:
            raise nothing
        for pattern in missing:
            click.echo(f"nothing whole that is stored in {where} matches {pattern}", err=True)
        entries = [record.entry for record in await store.records() if record.entry.key in keys]
        bars = progress_bars(quiet)
        told = Told(bars, "export", quiet)
        try:
            with bars, _archive_to(file) as out:
                await archive.export(store, sorted(entries, key=lambda entry: entry.url), TarWriter(out), told.watch)
        except OSError as error:
            raise StoreError(f"{name} was not written: {error.strerror or error}") from error
    if not quiet:
        click.echo(f"{told.summary()} to {name}", err=file == "-")
    done = {entry.key for entry in told.carried}
    return int(bool(told.left or missing)), [each for each in objects if each["key"] in done]


@click.command("import")
@click.argument("file", metavar="FILE.tar", shell_complete=files)
@json_option
@settings_options
def import_(settings: Settings, file: str, as_json: bool) -> None:
    """Bring in what `fetchonce export` has written; "-" is standard input.

    Each body is stored only if it has its digest. What is here already, or is newer here, is passed over, so an import
    that was stopped can be run again.
    """
    if file == "-" and sys.stdin.isatty():
        raise click.UsageError("the archive cannot come from standard input: it is a terminal")
    kept = "what came is kept, and the next import goes on with the rest"
    code, objects = _stoppable(imported(settings, file, as_json), kept)
    if as_json:
        print_json(objects)
    leave(code)


async def imported(settings: Settings, file: str, quiet: bool) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and what was imported."""
    name = "standard input" if file == "-" else file
    bars = progress_bars(quiet)
    told = Told(bars, "import", quiet)
    try:
        # Unbuffered: a buffered read of a pipe goes on after a signal.
        with open(sys.stdin.fileno() if file == "-" else file, "rb", buffering=0, closefd=file != "-") as source:
            async with opened_store(settings) as store:
                janitor = Janitor(store, settings.file.cache)
                with bars:
                    await Importer(store, janitor, TarReader(source), name, told.watch).run(time.time())
                done = {entry.key for entry in told.carried}
                objects = [each for each in await list_objects(store) if each["key"] in done]
    except OSError as error:
        raise StoreError(f"{name} cannot be read: {error.strerror or error}") from error
    for hint in not_served(settings, [*told.carried, *told.kept]):
        click.echo(hint, err=True)
    if not quiet:
        present = f", {len(told.kept)} were here" if told.kept else ""
        click.echo(told.summary() + present)
    return int(told.left > 0), objects


def not_served(settings: Settings, entries: Sequence[Entry]) -> list[str]:
    """For each mirror that is not configured here, and so serves none of the entries: what to do."""
    mirrors = settings.mirror_table()
    missing: Counter[tuple[str, str]] = Counter()
    for entry in entries:
        below = base(entry) or entry.url
        spellings = entry.url, f"/{entry.mirror}/{entry.url.removeprefix(below)}"
        if not any(_key(mirrors, spelling) == entry.key for spelling in spellings):
            missing[entry.mirror, below] += 1
    hints = []
    for (mirror, below), count in sorted(missing.items()):
        is_host = below.partition("://")[2] == f"{mirror}/"
        option = f"--allow {mirror}" if is_host else f"--mirror {mirror}={below}"
        hints.append(f"no mirror here has what is below {below} ({count} imported): fetchonce serve {option}")
    return hints


def _key(mirrors: MirrorTable, spelling: str) -> str | None:
    try:
        return mirrors.resolve(spelling).key
    except RequestError:
        return None


@contextlib.contextmanager
def _archive_to(file: str) -> Iterator[IO[bytes]]:
    """What to write the archive into. A regular file gets its name when the block ends; a pipe or a device has it."""
    path = Path(file).resolve()
    if file == "-" or (path.exists() and not path.is_file()):
        # Unbuffered: after a signal, what is in a buffer would still have to be written.
        with open(sys.stdout.fileno() if file == "-" else path, "wb", buffering=0, closefd=file != "-") as out:
            yield out
    else:
        mask = os.umask(0)
        os.umask(mask)
        # Others' file systems cannot all sync a directory. The file is synced: a stick is pulled out soon.
        with publishing(path, 0o666 & ~mask, is_durable=False) as out:
            yield out
            out.flush()
            os.fsync(out.fileno())


def _stoppable(work: Coroutine[Any, Any, T], kept: str) -> T:
    """asyncio.run, that also ends a read or write that waits for a pipe. asyncio's own handler would only cancel it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        click.echo(f"stopped; {kept}", err=True)
        leave(130)
