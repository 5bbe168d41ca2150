"""Objects to ask for, in three states, and checks of the answers.

`stored`: whole, on disk. `filling`: READY bytes are there, the transfer is stalled, and upstream supports ranges.
`chunked`: the same, but the length is unknown until the end. What can be answered in the middle of a fill must be, so a
transfer is released only where a test says that a client has to wait. One process serves all objects, each at its own
path; a test that stops a process or an origin has its own.
"""

import email.utils
import itertools
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email import message_from_bytes

import pytest

from proxy.rules.segments import NEAR_BYTES
from tests.harness import Connection, Proxy, Response
from tests.origin import LAST_MODIFIED, Origin, Pattern, Resource, pattern_bytes

MIB = 1024**2
SIZE, SEED = 6 * MIB, 7
READY = MIB // 4
FAR = READY + NEAR_BYTES + 1
"""From here on a reader does not wait for the transfer, which is stalled at READY."""
BODY = pattern_bytes(SIZE, SEED)
ETAG = Pattern(SIZE, SEED).etag
MODIFIED = email.utils.formatdate(LAST_MODIFIED, usegmt=True)
BEFORE = email.utils.formatdate(LAST_MODIFIED - 1, usegmt=True)
AFTER = email.utils.formatdate(LAST_MODIFIED + 1, usegmt=True)
SMALL = os.urandom(30_000)
PATIENCE_SECONDS = 10.0
NEVER = '[fill]\nread_timeout = "10m"\n'
"""A stalled transfer is not given up: a new one would hide what a test is to find."""
SAME_EVERYWHERE = ("last-modified", "etag", "accept-ranges", "content-type")

numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Image:
    """An object with BODY, in one of the states."""

    resource: Resource
    ready: int
    """How many bytes from its beginning are available now."""

    @property
    def path(self) -> str:
        return "/u" + self.resource.path

    def reach(self, start: int, end: int) -> int:
        """Where a reader of [start, end) has to stop now."""
        return end if start >= FAR else min(end, self.ready)


Place = Callable[..., Awaitable[Image]]


def only(*states: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("place", states, indirect=True)


async def bring(origin: Origin, proxy: Proxy, state: str, **fields: str | None) -> Image:
    resource = origin.pattern(f"/{state}-{next(numbers)}.img", SIZE, SEED).headers(cache_control="max-age=600")
    resource.headers(**fields)
    if state == "chunked":
        resource.chunked()
    if state != "stored":
        resource.stall_at(READY, times=1)
    image = Image(resource, SIZE if state == "stored" else READY)
    async with await proxy.stream(image.path) as first:
        assert await first.read(image.ready) == BODY[: image.ready]
    if state == "stored":
        await proxy.wait_idle(image.resource.path)
    return image


async def small(origin: Origin, proxy: Proxy, **fields: str | None) -> Image:
    """A stored object with SMALL."""
    resource = origin.body(f"/small-{next(numbers)}.img", SMALL).headers(cache_control="max-age=600").headers(**fields)
    image = Image(resource, len(SMALL))
    assert (await proxy.get(image.path)).body == SMALL
    await proxy.wait_idle(image.resource.path)
    return image


def ask(path: str, headers: str = "", *, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()


async def seen(proxy: Proxy, image: Image) -> dict[str, str]:
    """The fields on which HEAD, GET and a range agree, with the Content-Length of the whole."""
    heads = []
    for method, headers in (
        ("HEAD", {}),
        ("GET", {}),
        ("GET", {"Range": "bytes=10-19"}),
        ("GET", {"Range": "bytes=0-"}),
    ):
        async with await proxy.stream(image.path, headers, method=method) as answer:
            fields = {name: answer.headers[name] for name in SAME_EVERYWHERE if name in answer.headers}
            fields["content-length"] = answer.headers["content-length"]
            if answer.status == 206:
                span, _, total = answer.headers["content-range"].removeprefix("bytes ").partition("/")
                start, end = map(int, span.split("-"))
                assert answer.headers["content-length"] == str(end + 1 - start)
                fields["content-length"] = total
            heads.append(fields)
    assert all(fields == heads[0] for fields in heads)
    return heads[0]


async def assert_is_whole(proxy: Proxy, image: Image, headers: dict[str, str]) -> None:
    """The answer is 200 with the whole body, as far as it is available now."""
    async with await proxy.stream(image.path, headers) as answer:
        assert (answer.status, answer.headers["content-length"]) == (200, str(SIZE))
        assert "content-range" not in answer.headers
        assert await answer.read(image.ready) == BODY[: image.ready]


def assert_is_error(answer: Response, status: int) -> None:
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["cache-status"].startswith("fetchonce; ")
    assert email.utils.parsedate_to_datetime(answer.headers["date"])
    assert not {"etag", "last-modified", "transfer-encoding"} & answer.headers.keys()
    said = answer.json()
    assert set(said) == {"message"}
    assert len(said["message"]) > 20


def byteranges(answer: Response) -> list[tuple[str, str, bytes]]:
    """Content-Range, Content-Type and bytes of each part, as a mime parser reads them."""
    content_type = answer.headers["content-type"]
    message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + answer.body)
    assert message.get_content_type() == "multipart/byteranges"
    assert not message.defects
    return [
        (part["content-range"], part["content-type"], part.get_payload(decode=True)) for part in message.get_payload()
    ]


async def http_1_0(proxy: Proxy, path: str, headers: str = "") -> Connection:
    """A connection on which this was requested, without Host."""
    connection = await proxy.connect()
    await connection.send(f"GET {path} HTTP/1.0\r\n{headers}\r\n".encode())
    return connection
