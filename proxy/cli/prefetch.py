"""fetchonce prefetch: bring URLs into the cache, through the running server if there is one."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import click
from rich.progress import TaskID

from ..config import Settings
from ..errors import ProxyError
from ..gateway import Gateway
from ..prefetch import Progress, begun
from ..prefetch import prefetch as fetch
from ..rules.digests import Digest
from ..store.servers import ServerRecord, running
from ..upstream.local import LocalServer
from .bars import progress_bars, say_beside
from .common import age_text, json_option, leave, print_json, settings_options, size_text, url_text, without_own_address

Steps = Callable[[str], AsyncGenerator[Progress]]


class Options(NamedTuple):
    jobs: int
    digest: Digest | None
    pin: bool


def digest_type(text: str) -> Digest:
    """The type of --digest."""
    digest = Digest.parse(text)
    if digest is None:
        raise click.UsageError(f'--digest "{text}": expected sha256: and 64 hex digits, or sha512: and 128')
    return digest


@click.command()
@click.argument("urls", nargs=-1, required=True, type=url_text, metavar="URL...")
@click.option("-j", "jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="How many at once.")
@click.option("--digest", type=digest_type, metavar="ALG:HEX", help="Expected of the one URL: sha256:... or sha512:...")
@click.option("--pin", is_flag=True, help="Keep them from being evicted; fetchonce unpin undoes it.")
@json_option
@settings_options
def prefetch(settings: Settings, urls: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Bring URLs into the cache, in any spelling; exit 0 only when all are in.

    A stored object that is fresh is not fetched again. If a server runs on the same cache directory, it does the
    fetching, and its clients share it.
    """
    options = Options(**given)
    if options.digest and len(urls) > 1:
        raise click.UsageError("--digest is for one URL; of several, each can be given as /sha256:HEX/HOST/PATH")
    servers = running(settings.cache_dir)
    try:
        results = asyncio.run(run(settings, servers, list(dict.fromkeys(urls)), options, quiet=as_json))
    except KeyboardInterrupt:
        kept = "the server goes on fetching" if servers else "what came is kept, and the next prefetch goes on with it"
        click.echo(f"stopped; {kept}", err=True)
        leave(130)
    if as_json:
        print_json(results)
    leave(any(result["state"] == "failed" for result in results))


async def run(
    settings: Settings, servers: list[ServerRecord], urls: list[str], options: Options, *, quiet: bool
) -> list[Progress]:
    """The last step of each URL, in the order of `urls`. A URL that fails is a step too, not an error."""
    places = asyncio.Semaphore(options.jobs)
    bars = progress_bars(quiet)
    say = partial(say_beside, bars, quiet)

    async def one(url: str, steps: Steps) -> Progress:
        async with places:
            started = time.monotonic()
            bar: TaskID | None = None
            step: Progress | None = None
            async with aclosing(steps(without_own_address(url, settings))) as stream:
                async for step in stream:
                    step["url"] = url
                    if bar is None and step["state"] in ("asking", "streaming"):
                        bar = bars.add_task(url.rpartition("/")[2] or url, total=None)
                        if bars.disable:
                            say(f"fetching {url}")
                    if bar is not None:
                        bars.update(bar, completed=step["bytes"], total=step["length"])
            if step is None or step["state"] in ("asking", "streaming"):
                step = {**(step or begun(url)), "state": "failed", "message": "the server went away"}
            say(_result_text(step, time.monotonic() - started))
            return step

    async with _steps(settings, servers, options) as steps:
        with bars:
            return await asyncio.gather(*(one(url, steps) for url in urls))


@asynccontextmanager
async def _steps(settings: Settings, servers: list[ServerRecord], options: Options) -> AsyncIterator[Steps]:
    """How to fetch one URL: through the first of `servers`, or in this process if there is none."""
    if servers:
        async with LocalServer(servers[0].own, settings.access.token) as server:
            yield partial(_through_server, server, options)
        return
    gateway = Gateway(settings, time.time)
    await gateway.start()
    try:
        yield partial(fetch, gateway, digest=options.digest, pin=options.pin)
    finally:
        await gateway.close()


async def _through_server(server: LocalServer, options: Options, url: str) -> AsyncGenerator[Progress]:
    request = {"url": url, "digest": str(options.digest) if options.digest else None, "pin": options.pin}
    try:
        async with aclosing(server.post_lines("/-/api/prefetch", request)) as steps:
            async for step in steps:
                yield step
    except ProxyError as error:
        yield {**begun(url), "state": "failed", "message": error.message}


def _result_text(step: Progress, seconds: float) -> str:
    if step["state"] == "failed":
        return f"failed   {step['url']}: {step['message']}"
    if step["state"] == "cached":
        return f"cached   {step['url']} ({size_text(step['bytes'])})"
    return f"stored   {step['url']} ({size_text(step['bytes'])} in {age_text(seconds)}, {step['digest']})"
