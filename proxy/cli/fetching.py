"""Bringing files into the cache for a command, with progress: through the running server if there is one."""

import time
from asyncio import Semaphore, gather
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import NamedTuple

from ..config import Settings
from ..errors import ProxyError
from ..gateway import Gateway
from ..prefetch import Progress, begun
from ..prefetch import prefetch as fetch
from ..rules.digests import Digest
from ..store.servers import ServerRecord
from ..tools.wanted import Wanted
from ..upstream.local import LocalServer
from .common import age_text, size_text, without_own_address
from .drawing import Fetches

Steps = Callable[[str, Digest | None], AsyncGenerator[Progress]]


class Options(NamedTuple):
    jobs: int
    pin: bool = False
    quiet: bool = False


def failed_step(url: str, message: str) -> Progress:
    return {**begun(url), "state": "failed", "message": message}


async def fetch_all(
    settings: Settings, servers: list[ServerRecord], wanted: Sequence[Wanted], options: Options
) -> list[Progress]:
    """The last step of each, or of what came in its stead, in their order. A failure is a step too, not an error."""
    places = Semaphore(options.jobs)
    fetches = Fetches(options.quiet)

    async def one(each: Wanted, steps: Steps) -> Progress:
        started = time.monotonic()
        step: Progress | None = None
        async with aclosing(steps(without_own_address(each.url, settings), each.digest)) as stream:
            async for step in stream:
                step["url"] = each.url
                fetches.update(step)
        if step is None or step["state"] in ("asking", "streaming"):
            step = failed_step(each.url, (step or begun(each.url))["message"] or "the server went away")
            fetches.update(step)
        fetches.say(result_text(step, time.monotonic() - started))
        return step

    async def first_of(each: Wanted, steps: Steps) -> Progress:
        async with places:
            step = await one(each, steps)
            for turn in each.instead:
                if step["state"] != "failed":
                    break
                fetches.say(f"instead  {turn.url}")
                step = await one(turn, steps)
            return step

    async with _steps(settings, servers, options) as steps:
        with fetches:
            return await gather(*(first_of(each, steps) for each in wanted))


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
        yield partial(fetch, gateway, pin=options.pin)
    finally:
        await gateway.close()


async def _through_server(
    server: LocalServer, options: Options, url: str, digest: Digest | None
) -> AsyncGenerator[Progress]:
    request = {"url": url, "digest": str(digest) if digest else None, "pin": options.pin}
    try:
        async with aclosing(server.post_lines("/-/api/prefetch", request)) as steps:
            async for step in steps:
                yield step
    except ProxyError as error:
        yield {**begun(url), "state": "failed", "message": error.message}


def result_text(step: Progress, seconds: float = 0.0) -> str:
    if step["state"] == "failed":
        return f"failed   {step['url']}: {step['message']}"
    if step["state"] == "cached":
        return f"cached   {step['url']} ({size_text(step['bytes'])})"
    return f"stored   {step['url']} ({size_text(step['bytes'])} in {age_text(seconds)}, {step['digest']})"
