"""One process and one origin for a file of tests, and objects in each state."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.delivery.images import (
    NEVER,
    PATIENCE_SECONDS,
    Image,
    Place,
    bring,
)
from tests.harness import Proxy
from tests.origin import Origin


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        yield origin


@pytest.fixture(scope="module")
def proxy(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Mirrors: `u` is the origin, `down` refuses connections, `half` has `down` and then the origin."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: the port stays ours and refuses connections
        down = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
        proxy = Proxy(
            tmp_path_factory.mktemp("delivery") / "cache",
            mirrors={"u": origin.url(), "down": down, "half": f"{down},{origin.url()}"},
            config_text=NEVER,
        )
        proxy.client.timeout = PATIENCE_SECONDS
        with contextlib.closing(proxy):
            yield proxy.start()


@pytest.fixture(scope="module")
def standing(origin: Origin, proxy: Proxy) -> Iterator[dict[str, Image]]:
    """One object in each state, for requests that do not change it."""
    images = {state: asyncio.run(bring(origin, proxy, state)) for state in ("stored", "filling", "chunked")}
    yield images
    for image in images.values():
        image.resource.release()


@pytest.fixture(params=["stored", "filling"])
def image(request: pytest.FixtureRequest, standing: dict[str, Image]) -> Image:
    return standing[request.param]


@pytest.fixture(params=["stored", "filling"])
async def place(request: pytest.FixtureRequest, origin: Origin, proxy: Proxy) -> AsyncIterator[Place]:
    """Brings a new object, with these fields from upstream, into the state."""
    placed: list[Image] = []

    async def place(**fields: str | None) -> Image:
        placed.append(await bring(origin, proxy, request.param, **fields))
        return placed[-1]

    yield place
    for image in placed:
        image.resource.release()
        await proxy.wait_idle(image.resource.path)
