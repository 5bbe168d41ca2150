"""What the page, and any program, can do: list what is stored, remove, pin and verify it, have more fetched.

Answers are JSON. Whatever changes something must come from our own page or from a program (Access.judge_change).
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..errors import Busy, NotStored, RequestError
from ..gateway import Gateway
from ..prefetch import prefetch
from ..rules.digests import Digest
from ..store.integrity import find_damage
from ..tools import hints
from ..version import VERSION
from .entries import SORTS, Wanted, find, find_one

PAGE_MAX = 1000
NOT_STORED = "nothing is stored under this key; /-/api/entries lists the keys"
Endpoint = Callable[[Request], Awaitable[Response]]


def api_routes(gateway: Gateway) -> list[Route]:
    def changing(endpoint: Endpoint) -> Endpoint:
        async def judged(request: Request) -> Response:
            gateway.settings.access.judge_change(request.method, request.headers.raw)
            return await endpoint(request)

        return judged

    async def entries(request: Request) -> Response:
        query = request.query_params
        sort, order = query.get("sort", "url"), query.get("order", "asc")
        if sort not in SORTS:
            raise RequestError(f"sort: expected one of {', '.join(SORTS)}")
        if order not in ("asc", "desc"):
            raise RequestError("order: expected asc or desc")
        start, length = _number(query, "offset", 0, 2**53), _number(query, "limit", 100, PAGE_MAX)
        return JSONResponse(await find(gateway.store, Wanted(query.get("q", ""), sort, order == "desc", start, length)))

    async def entry(request: Request) -> Response:
        if found := await find_one(gateway.store, request.path_params["key"]):
            return JSONResponse(found)
        raise NotStored(NOT_STORED)

    async def remove(request: Request) -> Response:
        key, store = request.path_params["key"], gateway.store
        gone = {"complete": await store.remove(key) is not None, "partial": await store.forget_partial(key)}
        if not any(gone.values()):
            if store.is_locked(key):
                raise Busy("it is being fetched right now; remove it once it is stored")
            raise NotStored(NOT_STORED)
        return JSONResponse({"key": key, "removed": [state for state, is_gone in gone.items() if is_gone]})

    async def pin(request: Request) -> Response:
        body = await _json(request)
        if not isinstance(pinned := body.get("pinned"), bool):
            raise RequestError('expected {"pinned": true} or {"pinned": false}')
        entry = await gateway.store.pin(request.path_params["key"], pinned)
        if entry is None:
            raise NotStored(NOT_STORED)
        return JSONResponse({"key": entry.key, "url": entry.url, "pinned": entry.pinned})

    async def verify(request: Request) -> Response:
        entry = await gateway.store.lookup(request.path_params["key"])
        if entry is None:
            raise NotStored(NOT_STORED)
        path = gateway.store.blobs.path(entry)
        why = await asyncio.to_thread(find_damage, path, entry, lambda _: None)
        if why and gateway.store.blobs.has(entry):
            await gateway.store.set_aside(entry, why)
        state = "damaged" if why else "ok"
        return JSONResponse({"url": entry.url, "size": entry.size, "state": state, "message": why})

    async def fetch(request: Request) -> Response:
        url, digest, pinned = _wanted(await _json(request))

        async def lines() -> AsyncIterator[bytes]:
            async with aclosing(prefetch(gateway, url, digest, pin=pinned)) as steps:
                async for step in steps:
                    yield json.dumps(step).encode() + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def tools(request: Request) -> Response:
        # The address under which the browser found us; other machines may need another one.
        addresses = hints.Addresses(f"{request.scope['scheme']}://{request.headers.get('host', '127.0.0.1:8642')}")
        return JSONResponse({"tools": [hints.as_value(each, addresses) for each in hints.HINTS], "version": VERSION})

    one = "/-/api/entries/{key:str}"
    return [
        Route("/-/api/entries", entries),
        Route(one, entry),
        Route(one, changing(remove), methods=["DELETE"]),
        Route(f"{one}/pin", changing(pin), methods=["POST"]),
        Route(f"{one}/verify", changing(verify), methods=["POST"]),
        Route("/-/api/tools", tools),
        Route("/-/api/prefetch", changing(fetch), methods=["POST"]),
    ]


def _number(query: Any, name: str, default: int, most: int) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch("[0-9]{1,16}", text) or int(text) > most:
        raise RequestError(f"{name}: expected a number from 0 to {most}")
    return int(text)


async def _json(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise RequestError('expected a JSON body such as {"url": "https://HOST/PATH"}')
    return body


def _wanted(body: dict[str, Any]) -> tuple[str, Digest | None, bool]:
    url, digest_text, pinned = body.get("url"), body.get("digest"), body.get("pin", False)
    if not isinstance(url, str):
        raise RequestError('url: expected a string, as in {"url": "https://HOST/PATH"}')
    if not isinstance(pinned, bool):
        raise RequestError("pin: expected true or false")
    digest = Digest.parse(digest_text) if isinstance(digest_text, str) else None
    if digest_text is not None and digest is None:
        raise RequestError("digest: expected sha256:HEX or sha512:HEX")
    return url, digest, pinned
