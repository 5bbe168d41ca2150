"""fetchonce ls, show, rm, url: what is in the cache. With and without a running server, on the cache directory."""

import asyncio
import sys
import time
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

import click

from ..config import Settings
from ..partial import PartialRecord
from ..rules.mirrors import MirrorTable, proxied_path
from ..store import Record
from .common import age_text, json_option, opened_store, print_json, settings_options, size_text, table


@click.command()
@click.argument("pattern", required=False)
@json_option
@settings_options
def ls(settings: Settings, pattern: str | None, as_json: bool) -> None:
    """List what is stored: size, age, hits, state and URL.

    PATTERN is a part of the URL, or a glob over the whole of it (with * or ?).
    """
    objects = [each for each in asyncio.run(read(settings)) if pattern is None or matches(each["url"], pattern)]
    if as_json:
        print_json(objects)
    elif not objects:
        click.echo("nothing is stored yet" if pattern is None else "nothing stored matches", err=True)
    else:
        now = time.time()
        rows = [("SIZE", "AGE", "USED", "HITS", "STATE", "URL")]
        for each in objects:
            used = age_text(now - each["used_at"]) if each["used_at"] else "-"
            stored = age_text(now - each["stored_at"]) if each["stored_at"] else "-"
            state = each["state"] + (" pinned" if each["pinned"] else "")
            rows.append((size_text(each["size"]), stored, used, str(each["hits"]), state, each["url"]))
        table(rows, right=frozenset({0, 1, 2, 3}))


@click.command()
@click.argument("url")
@json_option
@settings_options
def show(settings: Settings, url: str, as_json: bool) -> None:
    """Tell all about one stored URL, in any spelling."""
    target = MirrorTable(settings.mirrors, settings.file.access.allow_hosts).resolve(url.encode())
    found = [each for each in asyncio.run(read(settings)) if each["key"] == target.key]
    if not found:
        click.echo(f"{target.url} is not stored", err=True)
        sys.exit(1)
    if as_json:
        print_json(found[0])
        return
    for key, value in found[0].items():
        if key == "headers":
            for name, text in value:
                click.echo(f"  {name}: {text}")
        elif key.endswith("_at"):
            click.echo(f"{key:13} {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(value)) if value else 'never'}")
        else:
            click.echo(f"{key:13} {value}")


@click.command()
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@settings_options
def rm(settings: Settings, urls: tuple[str, ...]) -> None:
    """Forget stored URLs, in any spelling. Who is reading one reads it to its end."""

    async def remove() -> list[str]:
        mirrors = MirrorTable(settings.mirrors, settings.file.access.allow_hosts)
        missing = []
        async with opened_store(settings) as store:
            for url in urls:
                target = mirrors.resolve(url.encode())
                entry = await store.remove(target.key)
                if entry:
                    click.echo(f"removed {entry.url} ({size_text(entry.size)})")
                elif not await store.forget_partial(target.key):
                    missing.append(target.url)
                else:
                    click.echo(f"removed the unfinished {target.url}")
        return missing

    if missing := asyncio.run(remove()):
        for url in missing:
            click.echo(f"{url} is not stored", err=True)
        sys.exit(1)


@click.command()
@click.argument("url")
@settings_options
def url(settings: Settings, url: str) -> None:
    """Print the proxied form of an upstream URL."""
    target = MirrorTable(settings.mirrors, settings.file.access.allow_hosts).resolve(url.encode())
    listen = next((each for each in settings.file.listen if not each.startswith("unix:")), "127.0.0.1:8642")
    click.echo(f"http://{listen}{proxied_path(url if urlsplit(url).scheme in ('http', 'https') else target.url)}")


async def read(settings: Settings) -> list[dict[str, Any]]:
    async with opened_store(settings) as store:
        entries = [_entry(record) for record in await store.records()]
        return sorted(entries + [_partial(each) for each in await store.partials()], key=lambda each: each["url"])


def matches(url: str, pattern: str) -> bool:
    return fnmatchcase(url, pattern) if "*" in pattern or "?" in pattern else pattern in url


def _entry(record: Record) -> dict[str, Any]:
    entry = record.entry
    return {
        "url": entry.url,
        "mirror": entry.mirror,
        "size": entry.size,
        "digest": f"sha256:{entry.digest}",
        "state": "complete",
        "hits": record.usage.hits,
        "pinned": entry.pinned,
        "stored_at": entry.stored_at,
        "used_at": record.usage.used_at or None,
        "key": entry.key,
        "validated_at": entry.validated_at,
        "headers": entry.head.headers,
    }


def _partial(record: PartialRecord) -> dict[str, Any]:
    return {
        "url": record.url,
        "mirror": record.mirror,
        "size": sum(end - start for start, end in record.extents),
        "digest": None,
        "state": "partial",
        "hits": 0,
        "pinned": False,
        "stored_at": None,
        "used_at": None,
        "key": record.key,
        "length": record.head.length,
        "headers": record.head.headers,
    }


COMMANDS = [ls, show, rm, url]
