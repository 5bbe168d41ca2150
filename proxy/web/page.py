"""The page at /-/ and its files. Nothing of it comes from elsewhere, and no script or style stands in the HTML."""

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

TYPES = {
    "icon.svg": "image/svg+xml",
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""CSP 3: nothing but our own files. A form is needed for the dialog, which sends nothing."""
PATHS = (b"/", b"/-", b"/favicon.ico", b"/robots.txt")
"""What is ours outside of /-/."""


def page_routes() -> list[Route]:
    files = {name: (Path(__file__).parent / "static" / name).read_bytes() for name in TYPES}

    def answer(name: str, request: Request) -> Response:
        etag = f'"{hashlib.sha256(files[name]).hexdigest()[:16]}"'
        headers = {
            "content-type": TYPES[name],
            "content-security-policy": POLICY,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
            "etag": etag,
        }
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(files[name], headers=headers)

    async def page(request: Request) -> Response:
        return answer("index.html", request)

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        return answer(name, request) if name in files else JSONResponse({"message": "there is no such file"}, 404)

    async def icon(request: Request) -> Response:
        return answer("icon.svg", request)

    async def robots(request: Request) -> Response:
        return Response("User-agent: *\nDisallow: /\n", media_type="text/plain")

    async def root(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/-/", 303, headers={"vary": "accept"})
        here = f"{request.scope['scheme']}://{request.headers.get('host', 'HOST:PORT')}"
        text = f"this is fetchonce: in a URL, replace https:// by {here}/. {here}/-/ shows what is going on"
        return JSONResponse({"message": text}, headers={"vary": "accept"})

    async def without_slash(request: Request) -> Response:
        return RedirectResponse("/-/", 308)

    return [
        Route("/", root),
        Route("/-", without_slash),
        Route("/-/", page),
        Route("/-/static/{name:str}", file),
        Route("/favicon.ico", icon),
        Route("/robots.txt", robots),
    ]
