"""fetchonce verify: do the stored bodies still match their digests? With and without a running server."""

import asyncio
import sys
from functools import partial
from typing import Any

import click

from ..config import Settings
from ..rules.entry import Entry
from ..store.integrity import find_damage
from ..web.entries import list_objects
from .bars import progress_bars, say_beside
from .common import json_option, opened_store, print_json, settings_options, size_text, url_text
from .entries import identify


@click.command()
@click.argument("urls", nargs=-1, type=url_text, metavar="[URL...]")
@click.option("--repair", is_flag=True, help="Move damaged ones aside: the next request fetches them again.")
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
            objects = await list_objects(store)
            wanted = dict(identify(settings, objects, url) for url in urls)
            stored = {entry.key for entry in entries}
            results = [
                _result(name, None, "missing", "it is not stored") for key, name in wanted.items() if key not in stored
            ]
            entries = [entry for entry in entries if entry.key in wanted]
        else:
            # Opening the store moved aside the bodies whose size was wrong.
            results = [_result(name, None, "damaged", f"{why}; moved aside") for name, why in store.blobs.was_damaged]
        blobs: dict[str, list[Entry]] = {}
        for entry in sorted(entries, key=lambda entry: entry.url):
            blobs.setdefault(entry.sha256, []).append(entry)
        bar = progress_bars(quiet)
        say = partial(say_beside, bar, quiet)

        for each in results:
            say(f"{each['state']:8} {each['url']}: {each['message']}")
        with bar:
            task = bar.add_task("verifying", total=sum(same[0].size for same in blobs.values()))
            for same in blobs.values():
                path = store.blobs.path(same[0])
                why = await asyncio.to_thread(find_damage, path, same[0], lambda count: bar.advance(task, count))
                if why:
                    # The others were removed or replaced while we read.
                    same = [entry for entry in same if store.blobs.has(entry)]
                if why and repair and same:
                    await store.set_aside(same[0], why)
                    why += f"; moved to {store.blobs.damaged}"
                for entry in same:
                    results.append(_result(entry.url, entry, "damaged" if why else "ok", why))
                    say(f"damaged  {entry.url}: {why}" if why else f"ok       {entry.url} ({size_text(entry.size)})")
    return results


def _result(url: str, entry: Entry | None, state: str, message: str | None) -> dict[str, Any]:
    return {
        "url": url,
        "size": entry.size if entry else None,
        "digest": f"sha256:{entry.sha256}" if entry else None,
        "state": state,
        "message": message,
    }
