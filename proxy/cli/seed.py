"""fetchonce seed: what a tool will want, put where it keeps its own downloads."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import click

from ..config import Settings
from ..errors import EntryGone, ProxyError
from ..rules.entry import field
from ..store.placing import place
from ..store.servers import running
from ..store.store import Store
from ..tools.seeding import Cache, LimaCache, MinikubeCache, Seed
from ..tools.wanted import Choice, Wanted
from ..web.entries import list_objects
from .common import jobs_option, json_option, leave, opened_store, print_json, settings_options, size_text, url_text
from .entries import identify
from .fetching import Options, fetch_all
from .sources import Asked, asked, choice_options, upstream_names


class Result(TypedDict):
    url: str
    state: str
    """seeded, present (it was there) or failed."""
    how: str | None
    """reflink, hard link or copy."""
    path: str | None
    size: int | None
    message: str | None


@click.group()
def seed() -> None:
    """Fetch what a tool will want, and put it into the tool's own cache. The tool then downloads nothing.

    Nothing of the tool's is changed. Files are shared with fetchonce's cache where the file system can do that
    (reflink, hard link), and copied elsewhere.
    """


def seeding_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that all kinds of `seed` have."""
    for option in (
        settings_options,
        json_option,
        jobs_option,
    ):
        command = option(command)
    return command


@seed.command(short_help="Put what templates want into Lima's cache.")
@click.argument("sources", nargs=-1, required=True, type=url_text, metavar="FILE|template:NAME|URL|-...")
@click.option("--into", type=click.Path(path_type=Path), metavar="DIR", help="Lima's cache [its own default].")
@choice_options
@seeding_options
def lima(settings: Settings, sources: tuple[str, ...], into: Path | None, choice: Choice, **given: Any) -> None:
    """Put the images, kernels, initrds and archives that Lima templates want into Lima's cache.

    Where the template has a digest, Lima then asks nobody; where it has none, Lima asks the mirror whether the image is
    still the newest, and uses it if it is, or if the mirror cannot be reached.
    """
    _seed(settings, asked(settings, sources, choice), LimaCache(into), **given)


@seed.command(short_help="Put ISOs and preloads into minikube's cache.")
@click.argument("sources", nargs=-1, required=True, type=url_text, metavar="URL|LIST|-...")
@click.option("--into", type=click.Path(path_type=Path), metavar="DIR", help="minikube's directory [its own default].")
@seeding_options
def minikube(settings: Settings, sources: tuple[str, ...], into: Path | None, **given: Any) -> None:
    """Put minikube's ISO and preloaded images into its cache, where it uses them unasked.

    `minikube start --help` shows the URLs of the ISO.
    """
    _seed(settings, asked(settings, sources, Choice()), MinikubeCache(into), **given)


def _seed(settings: Settings, wants: Asked, cache: Cache, jobs: int, as_json: bool) -> None:
    try:
        results = asyncio.run(_seeded(settings, wants, cache, Options(jobs, quiet=as_json)))
    except KeyboardInterrupt:
        click.echo("stopped; what came is kept, and the next seed goes on with it", err=True)
        leave(130)
    if as_json:
        print_json(results)
    leave(any(result["state"] == "failed" for result in results))


async def _seeded(settings: Settings, wants: Asked, cache: Cache, options: Options) -> list[Result]:
    say = partial(_say, options.quiet)
    results = [_failed(*trouble) for trouble in wants.failed]
    for _, why in wants.failed if not options.quiet else ():
        click.echo(f"failed   {why}", err=True)
    missing = []
    for each in map(upstream_names(settings), wants.wanted):
        try:
            path = cache.path(each.url)
        except ProxyError as error:
            results.append(say(_failed(each.url, error.message)))
            continue
        if cache.has(each.url, each.digest):
            results.append(say({**_result(each.url, "present"), "path": str(path)}))
        else:
            missing.append(each)
    if not missing:
        return results
    steps = await fetch_all(settings, running(settings.cache_dir), missing, options)
    async with opened_store(settings) as store:
        objects = await list_objects(store)
        for each, step in zip(missing, steps, strict=True):
            if step["state"] == "failed":
                results.append(_failed(step["url"], step["message"]))  # it is said already
                continue
            turn = next(turn for turn in each.all() if turn.url == step["url"])
            try:
                key, _ = identify(settings, objects, turn.url)
                results.append(say(await _put(store, cache, key, turn)))
            except (ProxyError, OSError) as error:
                results.append(say(_failed(turn.url, _why(error, cache))))
    return results


async def _put(store: Store, cache: Cache, key: str, wanted: Wanted) -> Result:
    """Put the body of `key` where the tool will look. Raises ProxyError, OSError."""
    entry = await (store.find(wanted.digest, key) if wanted.digest else store.lookup(key))
    if entry is None:
        raise EntryGone(f"{wanted.url} was removed from the cache just now. try again")
    modified, content_type = (field(entry.head.headers, name) or "" for name in ("last-modified", "content-type"))
    seed = Seed(wanted.url, wanted.digest, entry.size, entry.sha256, modified, content_type)
    how = await cache.put(seed, partial(place, store, entry), _say_wait)
    path = str(cache.path(wanted.url))
    return {**_result(wanted.url, "seeded" if how else "present"), "how": how or None, "path": path, "size": entry.size}


def _result(url: str, state: str) -> Result:
    return {"url": url, "state": state, "how": None, "path": None, "size": None, "message": None}


def _failed(url: str, message: str | None) -> Result:
    return {**_result(url, "failed"), "message": message}


def _why(error: ProxyError | OSError, cache: Cache) -> str:
    if isinstance(error, ProxyError):
        return error.message
    return f"{error.filename or cache.root} cannot be written: {error.strerror}"


def _say_wait(directory: Path) -> None:
    click.echo(f"waiting for another process, which has {directory} locked: it is fetching the same", err=True)


def _say(quiet: bool, result: Result) -> Result:
    """`result`, once it is said: what is done on standard output, what failed beside it."""
    match result["state"]:
        case _ if quiet:
            pass
        case "failed":
            click.echo(f"failed   {result['url']}: {result['message']}", err=True)
        case "seeded":
            click.echo(f"seeded   {result['url']} ({size_text(result['size'] or 0)}, {result['how']})")
        case _:
            click.echo(f"present  {result['url']}")
    return result
