"""fetchonce ls, show, rm, url: what is in the cache. They read the cache directory, with or without a server."""

import asyncio
import contextlib
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import click

from ..config import Settings
from ..errors import RequestError
from ..rules.mirrors import proxied_path
from ..web.entries import list_objects, matches
from .common import (
    age_text,
    json_option,
    opened_store,
    own_bases,
    print_json,
    resolve,
    settings_options,
    size_text,
    table,
    url_text,
    without_own_address,
)


@click.command()
@click.argument("pattern", required=False)
@json_option
@settings_options
def ls(settings: Settings, pattern: str | None, as_json: bool) -> None:
    """List what is stored: size, age, hits, state and URL.

    PATTERN is a part of the URL, or a glob over the whole of it (with * or ?).
    """
    objects = [each for each in asyncio.run(read_objects(settings)) if pattern is None or matches(each["url"], pattern)]
    if as_json:
        print_json(objects)
    elif not objects:
        where = f"in {settings.cache_dir}"
        message = f"nothing is stored {where} yet" if pattern is None else f"nothing stored {where} matches {pattern}"
        click.echo(message, err=True)
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
@click.argument("url", type=url_text)
@json_option
@settings_options
def show(settings: Settings, url: str, as_json: bool) -> None:
    """Show everything about one stored URL, in any spelling."""
    objects = asyncio.run(read_objects(settings))
    key, name = identify(settings, objects, url)
    found = [each for each in objects if each["key"] == key]
    if not found:
        click.echo(f"{name} is not stored", err=True)
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
        elif isinstance(value, bool):
            click.echo(f"{key:13} {'yes' if value else 'no'}")
        else:
            click.echo(f"{key:13} {'-' if value is None else value}")


@click.command()
@click.argument("urls", nargs=-1, required=True, type=url_text, metavar="URL...")
@json_option
@settings_options
def rm(settings: Settings, urls: tuple[str, ...], as_json: bool) -> None:
    """Remove URLs from the cache, in any spelling. A client that is reading one reads it to its end.

    A URL that is not stored is a glob over those that are, if it has * or ?.
    """
    removed, refused = asyncio.run(remove(settings, urls))
    if as_json:
        print_json(removed)
    else:
        for each in removed:
            unfinished = "the unfinished " if each["state"] == "partial" else ""
            click.echo(f"removed {unfinished}{each['url']} ({size_text(each['size'])})")
        if len(removed) > 1:
            click.echo(f"removed {len(removed)} URLs ({size_text(total_size(removed))})")
    if removed and settings.file.s3.url:
        click.echo("what the bucket has comes back with the next request: fetchonce s3 rm URL, first", err=True)
    for why in refused:
        click.echo(why, err=True)
    sys.exit(bool(refused))


@click.command()
@click.argument("urls", nargs=-1, required=True, type=url_text, metavar="URL...")
@json_option
@settings_options
def url(settings: Settings, urls: tuple[str, ...], as_json: bool) -> None:
    """Print the proxied form of upstream URLs, each on a line. --json prints one object, or a list of several."""
    found = [proxied(settings, each) for each in urls]
    if as_json:
        print_json(found[0] if len(found) == 1 else found)
    else:
        click.echo("\n".join(each["proxied"] for each in found))


def proxied(settings: Settings, url: str) -> dict[str, str]:
    own = own_bases(settings)
    target, upstream = resolve(settings, url), without_own_address(url, settings)
    path = proxied_path(upstream if urlsplit(upstream).scheme in ("http", "https") else target.url)
    path = f"/{target.digest}{path}" if target.digest else path
    base = own[0] if own else "http://127.0.0.1:8642"
    return {"url": target.url, "mirror": target.mirror.name, "proxied": f"{base}{path}"}


async def read_objects(settings: Settings) -> list[dict[str, Any]]:
    """Everything stored, as values that JSON can hold, sorted by URL."""
    if not settings.cache_dir.exists():
        return []  # reading must not create the directory
    async with opened_store(settings) as store:
        return await list_objects(store)


async def remove(settings: Settings, urls: tuple[str, ...]) -> tuple[list[dict[str, Any]], list[str]]:
    """What was removed, and for each other URL why not. If one of them is not a URL, nothing is removed."""
    removed = []
    async with opened_store(settings) as store:
        objects = await list_objects(store)
        pairs, refused = named(settings, objects, urls)
        by_key = defaultdict(list)
        for each in objects:
            by_key[each["key"]].append(each)
        for key, name in pairs:
            gone = {"complete": await store.remove(key) is not None, "partial": await store.forget_partial(key)}
            if any(gone.values()):
                removed += [each for each in by_key[key] if gone[each["state"]]]
            elif (lock := store.try_lock(key)) is None:
                refused.append(f"{name} is being fetched right now; remove it once it is stored")
            else:
                lock.close()
                refused.append(f"{name} is not stored")
    return removed, refused


def named(
    settings: Settings, objects: list[dict[str, Any]], arguments: Iterable[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Key and URL of all objects that the arguments name, and of each glob that matches nothing a message.

    A URL of a stored object, in any spelling, is that URL: it may hold * and ?. Raises RequestError, UnknownMirror.
    """
    found: list[tuple[str, str]] = []
    unmatched = []
    stored = {each["key"] for each in objects}
    for argument in arguments:
        is_glob = not {"*", "?"}.isdisjoint(argument)
        try:
            pair = identify(settings, objects, argument)
        except RequestError:
            if not is_glob:
                raise
            pair = "", argument
        matching = [(each["key"], each["url"]) for each in objects if is_glob and matches(each["url"], argument)]
        if pair[0] in stored or not matching:
            matching = [pair] if pair[0] else []
        if not matching:
            unmatched.append(f"nothing stored matches {argument}")
        found += matching
    return list(dict.fromkeys(found)), unmatched


def selected(settings: Settings, objects: list[dict[str, Any]], pattern: str) -> list[dict[str, Any]]:
    """The objects that match as for ls; if none does, the one that `pattern` is a URL of, in any spelling."""
    found = [each for each in objects if matches(each["url"], pattern)]
    with contextlib.suppress(RequestError):
        key, _ = identify(settings, objects, pattern)
        found = found or [each for each in objects if each["key"] == key]
    return found


def identify(settings: Settings, objects: list[dict[str, Any]], url: str) -> tuple[str, str]:
    """Key and upstream URL of the object that `url` names. Raises RequestError, UnknownMirror.

    A URL that `ls` prints is always found, even if only a server's own --allow or --mirror knows its host.
    """
    for each in objects:
        if each["url"] == url:
            return each["key"], url
    target = resolve(settings, url)
    return target.key, target.url


def total_size(objects: Iterable[dict[str, Any]]) -> int:
    """Bytes of their bodies, each counted once."""
    return sum({each["digest"] or each["key"]: each["size"] for each in objects}.values())
