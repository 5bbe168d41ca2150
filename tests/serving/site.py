"""A real server in this process with small ASGI apps, and what the tests of the server share."""

import asyncio
import contextlib
import gc
import json
import os
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from proxy.serving.connection import ClientConnection
from proxy.serving.handshake import TlsSockets
from proxy.serving.sendfile import FIRST_BYTES, TURN_BYTES
from proxy.serving.server import Server
from proxy.serving.sockets import bind
from tests.harness import Client, until

BODY = random.Random(1).randbytes(2 * TURN_BYTES + FIRST_BYTES + 12_345)  # several calls of sendfile, and a rest
HUGE = 256 * 1024**2  # sparse; more than the kernel buffers for one connection
STALLED = "_writable", "_send_warm"
"""Where the send of a file waits for a client that does not read: on the loop or in a mover."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def start(length: int | None = None, status: int = 200, *fields: tuple[bytes, bytes]) -> dict[str, Any]:
    lines = [(b"content-length", b"%d" % length)] if length is not None else []
    return {"type": "http.response.start", "status": status, "headers": [*lines, *fields]}


def body(data: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


class Growth:
    """Of a file that may be read up to `end`."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.watchers: list[Callable[[], object]] = []

    def readable(self, offset: int) -> int:
        return max(offset, self.end)

    def watch(self, changed: Callable[[], object]) -> None:
        self.watchers.append(changed)

    def unwatch(self, changed: Callable[[], object]) -> None:
        self.watchers.remove(changed)

    def grow(self, end: int) -> None:
        self.end = end
        for each in set(self.watchers):
            each()


def zerocopy(file: int, offset: int, count: int, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.zerocopysend", "file": file, "offset": offset, "count": count, "more_body": more}


def answers(*messages: dict[str, Any]) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """The request, as the app sees it, in JSON."""
    data, more = b"", True
    while more:
        message = await receive()
        data, more = data + message["body"], message["more_body"]
    seen = {name: scope[name] for name in ("method", "path", "http_version")}
    seen |= {name: scope[name].decode("latin-1") for name in ("raw_path", "query_string", "raw_target")}
    seen["fields"] = len(scope["headers"])
    text = json.dumps(seen | {"body": data.decode()}).encode()
    await send(start(len(text)))
    await send(body(text))


class Site:
    """A running server. `apps` by path; "*" is for every other path."""

    def __init__(self, apps: dict[str, App], listener: socket.socket | None = None, **options: Any) -> None:
        self.apps = apps
        self.tasks: dict[str, asyncio.Task[Any]] = {}
        """The last request's task by path."""
        self.socket = listener or bind("127.0.0.1:0")
        self.port = self.socket.getsockname()[1]
        context = options.pop("tls", None)
        tls = TlsSockets([self.socket], lambda: context) if context else None
        self.server = Server(self, [] if tls else [self.socket], tls=tls, **options)
        self.client = Client("127.0.0.1", self.port)
        self.run: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task
        self.tasks[scope["path"]] = task
        await (self.apps.get(scope["path"]) or self.apps["*"])(scope, receive, send)

    async def ended(self) -> None:
        assert self.run
        await self.run

    async def waits_in(self, path: str, *functions: str) -> None:
        """Wait until the app at `path` is waiting in a coroutine of one of these names."""

        def is_there() -> bool:
            step = self.tasks[path].get_coro() if path in self.tasks else None
            while step is not None:
                if getattr(step, "__name__", "") in functions:
                    return True
                step = getattr(step, "cr_await", None)
            return False

        await until(is_there)


Serve = Callable[..., Awaitable[Site]]


def request(target: str = "/", *lines: str, method: str = "GET", version: str = "1.1", host: str = "Host: a") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", *([host] if host else []), *lines, "", ""]).encode()


def message_of(response: bytes) -> tuple[int, str]:
    """Status and message of a refusal: JSON, with a length, and the connection ends."""
    head, _, content = response.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    assert {line for line in lines if not line.startswith("date: ")} == {
        "content-type: application/json",
        f"content-length: {len(content)}",
        "cache-status: fetchonce; detail=refused",
        "connection: close",
    }
    return int(status.split(" ")[1]), json.loads(content)["message"]


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[BaseException]:
    """The exceptions that were logged with a traceback. Only our logger may have logged."""
    assert all(record.name == "proxy" for record in caplog.records), caplog.text
    return [record.exc_info[1] for record in caplog.records if record.exc_info and record.exc_info[1]]


def descriptors() -> Counter[str]:
    """What this process has open. Subtract what it had before: that may have been closed meanwhile, by anybody."""
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # it was closed just now
            found[os.readlink(f"/proc/self/fd/{fd}")] += 1
    return found


async def no_connection_is_held() -> None:
    """No timer, thread or traceback refers to a connection any more."""
    await until(lambda: gc.collect() >= 0 and not any(isinstance(each, ClientConnection) for each in gc.get_objects()))


async def numbered(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the path. The later in the pipeline, the sooner it is ready."""
    for _ in range(30 - min(30, int(scope["path"][1:]))):
        await asyncio.sleep(0)
    await send(start(len(scope["raw_path"])))
    await send(body(scope["raw_path"]))
