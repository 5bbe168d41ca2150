"""Time limits of a connection whose last request has been read."""

import asyncio

from proxy.serving.request import Limits
from proxy.serving.server import Server
from proxy.serving.sockets import bind
from tests.harness import Client


async def test_nothing_follows_a_slow_answer_to_a_last_request_with_a_body():
    has_body, go = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        while scope["path"] == "/slow" and (await receive())["more_body"]:
            pass
        if scope["path"] == "/slow":
            has_body.set()
            await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    listener = bind("127.0.0.1:0")
    client = Client("127.0.0.1", listener.getsockname()[1])
    server = Server(app, [listener], limits=Limits(idle_timeout=0.5))
    running = asyncio.create_task(server.run())
    try:
        async with await client.connect() as connection:
            await connection.send(b"POST /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nx")
            idle = await client.connect()
            await idle.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await (await idle.answer()).rest()
            await connection.send(b"y")
            await has_body.wait()
            assert await idle.rest() == b""
            idle = await client.connect()  # the first one's time may have begun a little before the body's
            await idle.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await (await idle.answer()).rest()
            assert await idle.rest() == b""
            go.set()
            answer = await connection.answer()
            assert (answer.status, await answer.rest()) == (200, b"ok")
            assert await connection.rest() == b""  # and no 408 behind it
    finally:
        client.close()
        server.stop()
        await running
