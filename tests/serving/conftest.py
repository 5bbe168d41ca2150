"""Servers in this process, and files to send."""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.site import (
    BODY,
    HUGE,
    App,
    Serve,
    Site,
)


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def both_loops(request: pytest.FixtureRequest) -> str | tuple[str, dict[str, bool]]:
    """For `anyio_backend`: a server's loop on Linux, and the one elsewhere."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
        return "asyncio", {"use_uvloop": True}
    return "asyncio"


@pytest.fixture(autouse=True)
def no_thread_of_another_server() -> None:
    """A stopped server's threads end by themselves, and close descriptors that the next test would count."""
    for thread in threading.enumerate():
        if thread.name.startswith(("mover", "send")):
            thread.join(10)


@pytest.fixture
async def serve(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Serve]:
    """Starts servers and stops them at the end; fails if a task is left or the loop has reported an error."""
    sites: list[Site] = []
    strange: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: strange.append(context))
    caplog.set_level(logging.INFO)

    async def make(apps: dict[str, App] | App, **options: Any) -> Site:
        site = Site(apps if isinstance(apps, dict) else {"*": apps}, **options)
        sites.append(site)
        site.run = asyncio.create_task(site.server.run())
        await asyncio.sleep(0)  # now its own descriptors are open
        return site

    yield make
    for site in sites:
        site.client.close()
        site.server.stop()
        await site.ended()
        assert all(task.done() for task in site.tasks.values())
    assert strange == []


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file with BODY."""
    path = tmp_path / "body"
    path.write_bytes(BODY)
    with open(path, "rb") as opened:
        yield opened.fileno()


@pytest.fixture
def huge(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file with HUGE zeros."""
    path = tmp_path / "huge"
    path.touch()
    os.truncate(path, HUGE)
    with open(path, "rb") as opened:
        yield opened.fileno()
