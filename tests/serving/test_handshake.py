"""The TLS listener itself: it counts its handshakes, survives a failing accept(), and ends with its server."""

import asyncio
import contextlib
import resource
import socket
import ssl

import pytest
import trustme

from proxy.serving.connection import REFUSED
from proxy.serving.handshake import TlsSockets
from proxy.serving.request import Limits
from proxy.serving.server import Server
from proxy.serving.sockets import bind
from tests.harness import Client, until

END_SECONDS = 30


@pytest.fixture(scope="module")
def anyio_backend(both_loops):
    return both_loops


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


class Site:
    """A server with one https listener."""

    def __init__(self, limits):
        self.authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1").configure_cert(context)
        self.socket = bind("https://127.0.0.1:0")
        self.port = self.socket.getsockname()[1]
        self.client = Client("127.0.0.1", self.port)
        """Speaks no TLS."""
        self.server = Server(app, [], tls=TlsSockets([self.socket], lambda: context), limits=limits)

    async def is_served(self):
        """Whether a new client gets through the handshake and is answered."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        try:
            async with asyncio.timeout(END_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                answer = await reader.read()
        except ConnectionError:
            return False
        writer.transport.abort()
        return answer.startswith(b"HTTP/1.1 204 ")


@pytest.fixture
async def serve():
    async with contextlib.AsyncExitStack() as stack:

        async def make(**limits):
            site = Site(Limits(**limits))
            running = asyncio.create_task(site.server.run())

            async def end():
                site.client.close()
                site.server.stop()
                async with asyncio.timeout(END_SECONDS):
                    await running

            stack.push_async_callback(end)
            return site

        yield make


async def test_a_handshake_is_counted_until_it_succeeds_or_fails(serve):
    site = await serve(connections=1, header_timeout=3600.0)
    assert await site.is_served()  # what has succeeded leaves all places free:
    silent = [await site.client.connect() for _ in range(1 + REFUSED)]
    assert not await site.is_served()
    silent.pop().close()  # leaves in the middle of its handshake
    await until(site.is_served)
    failing = await site.client.connect()  # takes its place
    assert not await site.is_served()
    await failing.send(b"\x16\x03\x01\x00\x05nonse")
    await failing.rest()
    await until(site.is_served)


async def test_listening_goes_on_after_an_accept_that_found_no_descriptor(serve, caplog):
    site = await serve()
    assert await site.is_served()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            client.connect(("127.0.0.1", site.port))
            await until(lambda: "server.accept_failed" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert await site.is_served()


async def test_a_stop_does_not_wait_for_handshakes(serve):
    site = await serve(header_timeout=3600.0)
    silent = await site.client.connect()
    assert await site.is_served()  # so the silent one has been accepted before
    site.server.stop()
    assert await silent.rest() == b""
