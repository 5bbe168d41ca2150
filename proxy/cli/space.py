"""fetchonce pin, unpin, prune, verify: what stays, what goes, what is whole. With and without a running server."""

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from ..config import Settings, duration, size
from ..rules.entry import Entry
from ..rules.eviction import Candidate, choose, total, unused_since
from ..store.janitor import eviction_lock
from ..store.store import Store
from .common import (
    age_text,
    json_option,
    opened_store,
    print_json,
    progress_bars,
    say_beside,
    settings_options,
    size_text,
    table,
    url_text,
)
from .entries import listed, meant

READ_BYTES = 4 * 1024**2


def age(text: str) -> float:
    """The type of --older-than."""
    try:
        return duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def measure(text: str) -> int:
    """The type of --to-size."""
    try:
        return size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


# -- pin ---------------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("urls", nargs=-1, required=True, type=url_text, metavar="URL...")
@json_option
@settings_options
def pin(settings: Settings, urls: tuple[str, ...], as_json: bool) -> None:
    """Keep stored URLs, in any spelling: they are never evicted, nor are their next generations."""
    _pin(settings, urls, True, as_json)


@click.command()
@click.argument("urls", nargs=-1, required=True, type=url_text, metavar="URL...")
@json_option
@settings_options
def unpin(settings: Settings, urls: tuple[str, ...], as_json: bool) -> None:
    """Let pinned URLs go when space is wanted, like all others."""
    _pin(settings, urls, False, as_json)


def _pin(settings: Settings, urls: tuple[str, ...], pinned: bool, as_json: bool) -> None:
    done, unknown = asyncio.run(set_pins(settings, urls, pinned))
    if as_json:
        print_json([{"url": entry.url, "pinned": entry.pinned, "size": entry.size} for entry in done])
    else:
        for entry in done:
            click.echo(f"{'pinned' if pinned else 'unpinned'} {entry.url} ({size_text(entry.size)})")
    for name in unknown:
        click.echo(f"{name} is not stored" + (": fetchonce prefetch --pin URL" if pinned else ""), err=True)
    sys.exit(bool(unknown))


async def set_pins(settings: Settings, urls: tuple[str, ...], pinned: bool) -> tuple[list[Entry], list[str]]:
    """The entries as they are now, and the names of those that are not stored."""
    done, unknown = [], []
    async with opened_store(settings) as store:
        objects = await listed(store)
        for key, name in dict.fromkeys(meant(settings, objects, url) for url in urls):
            entry = await store.pin(key, pinned)
            if entry:
                done.append(entry)
            else:
                unknown.append(name)
    return done, unknown


# -- prune -------------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--older-than", type=age, metavar="AGE", help="What was not used for so long, such as 30d.")
@click.option("--to-size", type=measure, metavar="SIZE", help="Least recently used first, until so much is left.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
@settings_options
def prune(settings: Settings, older_than: float | None, to_size: int | None, dry_run: bool, as_json: bool) -> None:
    """Remove what was not used for long; by default down to cache.max_size. Never what is pinned.

    Bodies that were begun and that nobody goes on with count too, and what was found damaged goes in any case.
    """
    if to_size is None and older_than is None:
        to_size = settings.file.cache.max_size or None
    gone, freed = asyncio.run(pruned(settings, older_than, to_size, dry_run))
    if as_json:
        objects = [{"url": each.url, "size": each.size, "used_at": each.used_at} for each in gone]
        print_json({"removed": objects, "freed": freed, "dry_run": dry_run})
        return
    now = time.time()
    table(
        [(size_text(each.size), f"used {age_text(now - each.used_at)} ago", each.url) for each in gone],
        right=frozenset({0}),
    )
    word = "would free" if dry_run else "freed"
    click.echo(f"{word} {size_text(freed)}")


async def pruned(
    settings: Settings, older_than: float | None, to_size: int | None, dry_run: bool
) -> tuple[list[Candidate], int]:
    """What went (or would), and the bytes that came free."""
    if not settings.cache_dir.exists():
        return [], 0
    async with opened_store(settings) as store, eviction_lock(store):
        survey = await store.survey()
        bodies = list(survey.bodies)
        going: list[Candidate] = []
        if older_than is not None:
            going += unused_since(bodies, time.time() - older_than).victims
        if to_size is not None:
            rest = [each for each in bodies if each not in set(going)]
            going += choose(rest, max(0, total(rest) - to_size)).victims
        gone = going if dry_run else await store.evict(going)
        if not dry_run:
            await store.clear_damaged()
    rest = [each for each in bodies if each not in set(gone)]
    return gone, total(bodies) - total(rest) + survey.damaged


# -- verify ------------------------------------------------------------------------------------------------------------


@click.command(short_help="Read stored bodies again and compare their digests.")
@click.argument("urls", nargs=-1, type=url_text, metavar="[URL...]")
@click.option("--repair", is_flag=True, help="Move damaged ones aside: the next request fetches them anew.")
@json_option
@settings_options
def verify(settings: Settings, urls: tuple[str, ...], repair: bool, as_json: bool) -> None:
    """Read stored bodies (all, or those of the URLs) and compare their SHA-256; exit 1 if one is damaged."""
    results = asyncio.run(verified(settings, urls, repair, quiet=as_json))
    if as_json:
        print_json(results)
    else:
        bad = sum(each["state"] != "ok" for each in results)
        whole = sum({each["digest"]: each["size"] for each in results if each["state"] == "ok"}.values())
        click.echo(f"{len(results) - bad} ok ({size_text(whole)}), {bad} not")
        if bad and not repair and any(each["state"] == "damaged" for each in results):
            click.echo("fetchonce verify --repair moves the damaged ones aside; they are then fetched anew", err=True)
    sys.exit(any(each["state"] != "ok" for each in results))


async def verified(settings: Settings, urls: tuple[str, ...], repair: bool, *, quiet: bool) -> list[dict[str, Any]]:
    """One object for each entry: url, size, digest, state (ok, damaged, missing), message."""
    if not settings.cache_dir.exists():
        return [_result(url, None, "missing", "it is not stored") for url in urls]
    async with opened_store(settings) as store:
        entries = [record.entry for record in await store.records()]
        if urls:
            objects = await listed(store)
            wanted = dict(meant(settings, objects, url) for url in urls)
            stored = {entry.key for entry in entries}
            results = [
                _result(name, None, "missing", "it is not stored") for key, name in wanted.items() if key not in stored
            ]
            entries = [entry for entry in entries if entry.key in wanted]
        else:
            # What did not fit at first sight was moved aside when the store was opened.
            results = [_result(name, None, "damaged", f"{why}; moved aside") for name, why in store.blobs.was_damaged]
        blobs: dict[str, list[Entry]] = {}
        for entry in sorted(entries, key=lambda entry: entry.url):
            blobs.setdefault(entry.digest, []).append(entry)
        bar = progress_bars(quiet)
        say = partial(say_beside, bar, quiet)

        for each in results:
            say(f"{each['state']:8} {each['url']}: {each['message']}")
        with bar:
            task = bar.add_task("verifying", total=sum(same[0].size for same in blobs.values()))
            for same in blobs.values():
                why = await asyncio.to_thread(damage, store, same[0], lambda count: bar.advance(task, count))
                if why:
                    same = [entry for entry in same if store.blobs.has(entry)]  # else removed or replaced while we read
                if why and repair and same:
                    await store.set_aside(same[0], why)
                    why += f"; moved to {store.blobs.damaged}"
                for entry in same:
                    results.append(_result(entry.url, entry, "damaged" if why else "ok", why))
                    say(f"damaged  {entry.url}: {why}" if why else f"ok       {entry.url} ({size_text(entry.size)})")
    return results


def damage(store: Store, entry: Entry, advance: Callable[[int], object]) -> str | None:
    """In a thread: what is wrong with the body of `entry`; None if nothing is."""
    state = hashlib.sha256()
    count = 0
    try:
        with open(store.blobs.path(entry), "rb", buffering=0) as file:
            while data := file.read(READ_BYTES):
                state.update(data)
                count += len(data)
                advance(len(data))
            if hasattr(os, "posix_fadvise"):
                # Read once and not wanted again: the page cache is the readers'.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except FileNotFoundError:
        return "its body is gone"
    except OSError as error:
        return f"its body cannot be read at byte {count}: {error.strerror}"
    if count != entry.size:
        return f"its body has {count} bytes instead of {entry.size}"
    if state.hexdigest() != entry.digest:
        return f"expected sha256:{entry.digest}, got sha256:{state.hexdigest()}"
    return None


def _result(url: str, entry: Entry | None, state: str, message: str | None) -> dict[str, Any]:
    return {
        "url": url,
        "size": entry.size if entry else None,
        "digest": f"sha256:{entry.digest}" if entry else None,
        "state": state,
        "message": message,
    }


COMMANDS = [pin, unpin, prune, verify]
