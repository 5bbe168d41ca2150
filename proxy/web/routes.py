"""Our own endpoints, below /-/."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..errors import ProxyError, RequestError
from ..gateway import Gateway
from ..prefetch import prefetch
from ..rules.digests import Digest
from .metrics import exposition
from .monitor import Monitor
from .status import OWN_PATH, status, whole_status


def own_endpoints(gateway: Gateway, monitor: Monitor) -> Starlette:
    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def show_status(request: Request) -> Response:
        return JSONResponse(await whole_status(gateway))

    async def show_own_status(request: Request) -> Response:
        return JSONResponse(status(gateway))

    async def show_metrics(request: Request) -> Response:
        text, content_type = await exposition(gateway, monitor, request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    async def start_prefetch(request: Request) -> Response:
        gateway.settings.access.judge_change(request.method, request.headers.raw)
        try:
            body = json.loads(await request.body())
            url, digest_text, pin = body["url"], body.get("digest"), body.get("pin", False)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RequestError('expected a JSON body such as {"url": "https://HOST/PATH"}') from error
        if not isinstance(url, str):
            raise RequestError("url: expected a string")
        if not isinstance(pin, bool):
            raise RequestError("pin: expected true or false")
        digest = Digest.parse(digest_text) if isinstance(digest_text, str) else None
        if digest_text is not None and digest is None:
            raise RequestError("digest: expected sha256:HEX or sha512:HEX")

        async def lines() -> AsyncIterator[bytes]:
            async with aclosing(prefetch(gateway, url, digest, pin=pin)) as steps:
                async for step in steps:
                    yield json.dumps(step).encode() + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def root(request: Request) -> Response:
        here = f"{request.scope['scheme']}://{request.headers.get('host', 'HOST:PORT')}"
        text = f"this is fetchonce: in a URL, replace https:// by {here}/. /-/status shows what is going on"
        return JSONResponse({"message": text})

    return Starlette(
        routes=[
            Route("/", root),
            Route("/-/healthz", healthz),
            Route("/-/status", show_status),
            Route(OWN_PATH, show_own_status),
            Route("/-/metrics", show_metrics),
            Route("/-/api/prefetch", start_prefetch, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _http_error, ProxyError: _proxy_error},
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = "there is no such page" if error.status_code == 404 else error.detail
    return JSONResponse({"message": message}, error.status_code, headers=error.headers)


async def _proxy_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProxyError)
    return JSONResponse({"message": error.message}, error.status, headers=dict(error.headers))
