"""fetchonce pin, unpin, prune: what stays and what goes. With and without a running server."""

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import click

from ..config import Settings
from ..errors import RequestError, UnknownMirror
from ..rules.entry import Entry
from ..rules.eviction import Candidate, choose, total, unused_since
from ..rules.units import parse_duration, parse_size
from ..store.janitor import eviction_lock
from ..tools.wanted import Choice
from ..web.entries import list_objects
from .common import (
    age_text,
    json_option,
    opened_store,
    print_json,
    resolve,
    settings_options,
    size_text,
    table,
    url_text,
)
from .entries import named
from .sources import asked


def age_type(text: str) -> float:
    """The type of --older-than."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def size_type(text: str) -> int:
    """The type of --to-size."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("urls", nargs=-1, required=True, type=url_text, metavar="URL...")
@json_option
@settings_options
def pin(settings: Settings, urls: tuple[str, ...], as_json: bool) -> None:
    """Never evict these stored URLs (in any spelling, or globs as for rm), nor their next generations."""
    _pin(settings, urls, True, as_json)


@click.command()
@click.argument("urls", nargs=-1, required=True, type=url_text, metavar="URL...")
@json_option
@settings_options
def unpin(settings: Settings, urls: tuple[str, ...], as_json: bool) -> None:
    """Let pinned URLs (in any spelling, or globs as for rm) be evicted again, like all others."""
    _pin(settings, urls, False, as_json)


def _pin(settings: Settings, urls: tuple[str, ...], pinned: bool, as_json: bool) -> None:
    done, unknown = asyncio.run(set_pins(settings, urls, pinned))
    if as_json:
        print_json([{"url": entry.url, "pinned": entry.pinned, "size": entry.size} for entry in done])
    else:
        for entry in done:
            click.echo(f"{'pinned' if pinned else 'unpinned'} {entry.url} ({size_text(entry.size)})")
    for why in unknown:
        click.echo(why, err=True)
    sys.exit(bool(unknown))


async def set_pins(settings: Settings, urls: tuple[str, ...], pinned: bool) -> tuple[list[Entry], list[str]]:
    """The entries as they are now, and for each other URL why not."""
    done = []
    async with opened_store(settings) as store:
        objects = [each for each in await list_objects(store) if each["state"] == "complete"]
        pairs, unknown = named(settings, objects, urls)
        for key, name in pairs:
            entry = await store.pin(key, pinned)
            if entry:
                done.append(entry)
            else:
                unknown.append(f"{name} is not stored" + (": fetchonce prefetch --pin URL" if pinned else ""))
    return done, unknown


@dataclass(frozen=True, slots=True)
class Pruning:
    """What to remove: all that one of these says."""

    older_than: float | None
    """Not used for so many seconds."""
    to_size: int | None
    """The least recently used, until so many bytes are left."""
    kept: frozenset[str] | None
    """All but what has one of these as its key, URL or digest."""
    dry_run: bool


@click.command()
@click.argument("sources", nargs=-1, type=url_text, metavar="[FILE|template:NAME|URL|-...]")
@click.option(
    "--keep-referred", is_flag=True, help="Remove what none of these templates, lists and URLs refers to."
)
@click.option("--older-than", type=age_type, metavar="AGE", help="Remove what was not used for this long, such as 30d.")
@click.option("--to-size", type=size_type, metavar="SIZE", help="Remove the least recently used until this is left.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
@settings_options
def prune(settings: Settings, sources: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Remove what was not used for long; by default down to cache.max_size. Pinned URLs stay.

    Unfinished bodies that nobody is fetching count too. Bodies found damaged are removed in any case.
    """
    if sources and not given["keep_referred"]:
        raise click.UsageError(f"{sources[0]}: templates are for prune --keep-referred; fetchonce rm removes URLs")
    kept = referred(settings, sources) if given.pop("keep_referred") else None
    options = Pruning(**given, kept=kept)
    if options.older_than is None and options.to_size is None and kept is None:
        options = replace(options, to_size=settings.file.cache.max_size or None)
    dry_run = options.dry_run
    gone, freed = asyncio.run(pruned(settings, options))
    if as_json:
        objects = [{"url": each.url, "size": each.size, "used_at": each.used_at} for each in gone]
        print_json({"removed": objects, "freed": freed, "dry_run": dry_run})
        return
    now = time.time()
    table(
        [(size_text(each.size), f"used {age_text(now - each.used_at)} ago", each.url) for each in gone],
        right=frozenset({0}),
    )
    click.echo(f"{'would free' if dry_run else 'freed'} {size_text(freed)}")


def referred(settings: Settings, sources: tuple[str, ...]) -> frozenset[str]:
    """Keys, URLs and digests of all that the templates, lists and URLs name, with the checksum files beside it.

    Raises RequestError if there is one that cannot be read whole: it may refer to anything.
    """
    if not sources:
        raise click.UsageError("--keep-referred needs templates, lists or URLs: what they refer to is kept")
    wanted, failed = asked(settings, sources, Choice(all_arch=True))
    if failed:
        reasons = "\n".join(why for _, why in failed)
        raise RequestError(f"nothing was removed, as what is referred to is not known:\n{reasons}")
    names: set[str] = set()
    for each in (turn for one in wanted for turn in one.all()):
        names |= {each.url, each.digest.hex} if each.digest else {each.url}
        with contextlib.suppress(UnknownMirror):
            target = resolve(settings, each.url)
            names |= {of.key for of in (target, *target.checksums)}
    return frozenset(names)


async def pruned(settings: Settings, options: Pruning) -> tuple[list[Candidate], int]:
    """What was removed (or would be), and the bytes freed."""
    if not settings.cache_dir.exists():
        return [], 0
    async with opened_store(settings) as store, eviction_lock(store):
        bodies, damaged = await store.survey(), (await store.used()).damaged
        if kept := options.kept:  # a body is named by its SHA-256, and may be referred to by its SHA-512
            same = {each.entry.sha256 for each in await store.records() if each.entry.sha512 in kept}
            options = replace(options, kept=kept | same)
        gone = chosen(bodies, options, time.time())
        if not options.dry_run:
            gone = await store.evict(gone)
            await store.clear_damaged()
    left = set(bodies) - set(gone)
    return gone, total(bodies) - total(left) + damaged


def chosen(bodies: Collection[Candidate], options: Pruning, now: float) -> list[Candidate]:
    """What the options have removed, in the order in which it goes."""
    going: dict[Candidate, None] = {}
    if options.kept is not None:
        strangers = [each for each in bodies if not options.kept & {each.key, each.url, each.blob}]
        going |= dict.fromkeys(unused_since(strangers, math.inf).victims)
    if options.older_than is not None:
        going |= dict.fromkeys(unused_since(bodies, now - options.older_than).victims)
    if options.to_size is not None:
        rest = [each for each in bodies if each not in going]
        going |= dict.fromkeys(choose(rest, max(0, total(rest) - options.to_size)).victims)
    return list(going)
