"""HTTP to a server of ours on this machine, past every proxy.

Unlike the rest of upstream/ it is asynchronous: the loop may wait for a server on this machine, but an upstream's body
has to go through a thread.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import httpx

from ..errors import ProxyError

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0


class LocalServer:
    """A client of the server on `address` (HOST:PORT or unix:PATH). Use it with `async with`."""

    def __init__(self, address: str, token: str = "") -> None:
        self._address = address
        path = address.removeprefix("unix:")
        is_unix = path != address
        self._client = httpx.AsyncClient(
            base_url="http://localhost" if is_unix else f"http://{address}",
            # We speak plain http here. Loading the certificate authorities would take longer than the request.
            transport=httpx.AsyncHTTPTransport(uds=path if is_unix else None, verify=False, trust_env=False),
            headers={"authorization": f"Bearer {token}"} if token else None,
            trust_env=False,
            timeout=httpx.Timeout(CONNECT_SECONDS, read=READ_SECONDS),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    async def get_json(self, path: str) -> Any:
        """Raises ProxyError if the server does not answer, or not with JSON."""
        async with self._answer("GET", path) as response:
            try:
                return json.loads(await response.aread())
            except ValueError as error:
                raise ProxyError(f"the server on {self._address} did not answer {path} with JSON") from error

    async def post_lines(self, path: str, body: Any) -> AsyncGenerator[Any]:
        """Post `body` as JSON; yield each line of the answer, read as JSON, when it comes. Raises ProxyError.

        A server that goes away ends the lines early, without an error: the caller knows by the last line it got.
        """
        # The first line comes when an upstream has answered. How long that may take is for the server to decide.
        patience = httpx.Timeout(CONNECT_SECONDS, read=None)
        async with self._answer("POST", path, json=body, timeout=patience) as response:
            with suppress(httpx.ReadError, httpx.RemoteProtocolError):
                async for line in response.aiter_lines():
                    yield json.loads(line)

    @asynccontextmanager
    async def _answer(self, method: str, path: str, **extra: Any) -> AsyncIterator[httpx.Response]:
        try:
            async with self._client.stream(method, path, **extra) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise ProxyError(f"the server on {self._address} answered {response.status_code}: {response.text}")
                yield response
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ProxyError(f"the server on {self._address} does not answer: {reason}") from error
