"""Bring one URL into the cache, and report each step."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TypedDict

from .errors import DigestMismatch, ProxyError
from .fill.fill import Fill
from .fill.states import Complete
from .gateway import Gateway
from .rules.digests import Digest
from .rules.entry import Entry

STEP_SECONDS = 0.2


class Progress(TypedDict):
    url: str
    state: str
    """asking or streaming; in the last step complete (fetched now), cached (stored before) or failed."""
    bytes: int
    length: int | None
    digest: str | None
    """sha256:HEX when it is stored."""
    message: str | None
    """Why it failed."""
    source: str
    """Where the bytes come from, for people."""
    readers: int
    """Clients that read it while it comes; whoever prefetches is one."""
    resumes: int
    """How often a transfer broke and went on."""
    trouble: str | None
    """What went wrong last, and did not end it."""


async def prefetch(
    gateway: Gateway, url: str, digest: Digest | None = None, *, pin: bool = False
) -> AsyncGenerator[Progress]:
    """Fetch `url` (any spelling) and yield steps until it is stored or has failed; the last one says which.

    A ProxyError becomes the last step. A body with another digest than `digest` is fetched again from the next mirror,
    if there is one. `pin` keeps the entry from eviction. The fill goes on if the caller stops early.
    """
    try:
        while True:
            try:
                async with gateway.fetch(url, digest) as got:
                    if isinstance(got, Entry):
                        if pin:
                            await gateway.store.pin(got.key)
                        yield _stored(url, "cached", got)
                        return
                    while not got.is_over:
                        yield _step(url, got)
                        try:
                            async with asyncio.timeout(STEP_SECONDS):
                                await got.wait_over()
                        except TimeoutError:
                            continue
                    if got.error:
                        raise got.error
                    if got.entry:
                        await gateway.check(url, digest, got.entry)
                        if pin:
                            await gateway.store.pin(got.entry.key)
                    yield _step(url, got)
                    return
            except DigestMismatch as error:
                if error.next_url is None:
                    raise
    except ProxyError as error:
        yield {**begun(url), "state": "failed", "message": error.message}


def begun(url: str) -> Progress:
    return {
        "url": url,
        "state": "asking",
        "bytes": 0,
        "length": None,
        "digest": None,
        "message": None,
        "source": url,
        "readers": 1,
        "resumes": 0,
        "trouble": None,
    }


def _step(url: str, fill: Fill) -> Progress:
    if fill.entry:
        return _stored(url, "complete" if isinstance(fill.state, Complete) else "cached", fill.entry)
    return {
        **begun(url),
        "state": fill.state.name,
        "bytes": fill.received,
        "length": fill.length,
        "source": fill.source.partition("?")[0],  # the query of a signed URL is a password
        "readers": fill.readers,
        "resumes": fill.mishaps.resumes,
        "trouble": fill.mishaps.last,
    }


def _stored(url: str, state: str, entry: Entry) -> Progress:
    return {**begun(url), "state": state, "bytes": entry.size, "length": entry.size, "digest": f"sha256:{entry.sha256}"}
