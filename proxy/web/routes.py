"""Our own endpoints, below /-/."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..errors import ProxyError
from ..gateway import Gateway
from .api import api_routes
from .events import Live
from .metrics import exposition
from .monitor import Monitor
from .page import page_routes
from .status import OWN_PATH, status, whole_status


def own_endpoints(gateway: Gateway, monitor: Monitor) -> Starlette:
    live = Live(gateway, monitor)

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        if monitor.is_stopping:
            return JSONResponse({"status": "stopping"}, 503)
        await gateway.store.disk()  # raises StoreError where the cache directory cannot be used
        return JSONResponse({"status": "ready"})

    async def show_status(request: Request) -> Response:
        return JSONResponse(await whole_status(gateway))

    async def show_own_status(request: Request) -> Response:
        return JSONResponse(status(gateway))

    async def show_metrics(request: Request) -> Response:
        text, content_type = await exposition(gateway, monitor, request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    async def show_events(request: Request) -> Response:
        return StreamingResponse(live.events(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    return Starlette(
        routes=[
            *page_routes(),
            Route("/-/healthz", healthz),
            Route("/-/readyz", readyz),
            Route("/-/status", show_status),
            Route(OWN_PATH, show_own_status),
            Route("/-/metrics", show_metrics),
            Route("/-/events", show_events),
            *api_routes(gateway),
        ],
        exception_handlers={HTTPException: _http_error, ProxyError: _proxy_error},
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = "there is no such page" if error.status_code == 404 else error.detail.lower()
    return JSONResponse({"message": message}, error.status_code, headers=error.headers)


async def _proxy_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProxyError)
    return JSONResponse({"message": error.message}, error.status, headers=dict(error.headers))
