"""The ASGI application: which door a request takes, errors → HTTP, and one access line at its end.

Everything below raises; this is the one place where a ProxyError becomes a status and a JSON message. After the head
of an answer is out there is no status left to say: it is broken off, and the server closes the connection.
"""

import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .delivery import Delivery
from .errors import (
    ClientGone,
    LoopDetected,
    MethodNotAllowed,
    NotInCache,
    ProxyError,
    RequestError,
    UpstreamError,
    UpstreamStatus,
)
from .gateway import Gateway, Request
from .log import access as access_log
from .log import events, log
from .rules.access import is_via
from .rules.entry import Headers
from .rules.headers import http_date
from .store.pseudonym import pseudonym
from .upstream.wording import WAY_OUT
from .web.routes import own_endpoints

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class App:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._own = own_endpoints(gateway)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        target, server = scope["raw_target"], scope.get("server")
        exchange = _Exchange(send, started)
        try:
            access = self.gateway.settings.access
            access.judge(target, scope["headers"], (scope.get("client") or (None,))[0], (server or (None,))[0])
            target = access.own_path(target, server)
            if is_via(scope["headers"], pseudonym(self.gateway.store.root)):
                what = _shown(target)[:200]
                raise LoopDetected(f"{what} was asked for by this very fetchonce: upstream leads back to it. {WAY_OUT}")
            if target.startswith(b"/-/") or target in (b"/", b"/-"):
                scope["path"] = target.partition(b"?")[0].decode("latin-1")
                await self._own(scope, receive, exchange.send)
            else:
                await self._proxy(scope, target, receive, exchange)
        except ClientGone:
            exchange.is_aborted = True
        except ProxyError as error:
            exchange.error = error
            if not exchange.status:
                await self._answer(scope["method"], error, exchange)
        finally:
            self._log(scope, target, exchange)

    async def _proxy(self, scope: Scope, target: bytes, receive: Receive, exchange: "_Exchange") -> None:
        method = scope["method"]
        if method == "CONNECT":
            raise MethodNotAllowed(
                f"fetchonce does not tunnel. replace https:// by {_base(scope)}/ in the URL, and set no proxy"
            )
        if method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{method} is not allowed: fetchonce only reads (GET and HEAD)")
        access = self.gateway.settings.access
        fields = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
        headers: Headers = tuple(line for line in fields if line[0] != "authorization" or not access.is_token(line[1]))

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async with self.gateway.handle(Request(method, target, headers, gone)) as delivery:
            exchange.delivery = delivery
            await delivery.send(exchange.send)

    async def _answer(self, method: str, error: ProxyError, exchange: "_Exchange") -> None:
        body = json.dumps({"message": error.message}, ensure_ascii=False).encode()
        fields = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("date", http_date(self.gateway.clock())),
            *error.headers,
        ]
        if not any(name == "cache-status" for name, _ in fields):
            fields.append(("cache-status", f"fetchonce; {_told(error)}"))
        encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in fields]
        await exchange.send({"type": "http.response.start", "status": error.status, "headers": encoded})
        await exchange.send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})

    def _log(self, scope: Scope, target: bytes, exchange: "_Exchange") -> None:
        delivery, error = exchange.delivery, exchange.error
        word = delivery.word if delivery and not error else "ERROR" if error else "-"
        stats = self.gateway.stats
        if delivery or error:
            stats.count_request(word)
        stats.sent_bytes += delivery.sent if delivery else 0
        level = logging.INFO if delivery or error else logging.DEBUG  # own endpoints: status --watch asks all the time
        if not access_log.isEnabledFor(level):
            return
        ms = (time.monotonic() - exchange.started) * 1000
        log(
            access_log,
            level,
            "access",
            method=scope["method"],
            path=_shown(target),
            status=exchange.status or "-",
            bytes=exchange.sent,
            cache=word,
            **({"key": delivery.target.key[:12], "mirror": delivery.target.mirror.name} if delivery else {}),
            ttfb_ms=round(exchange.first_ms) if exchange.first_ms is not None else "-",
            ms=round(ms),
            client=(scope.get("client") or ("unix",))[0],
            **({"aborted": "client"} if exchange.is_aborted else {}),
            **({"error": error.message} if error else {}),
        )
        if error and delivery and exchange.status and delivery.status:
            log(events, logging.WARNING, "delivery.broken", path=_shown(target), at=delivery.sent, error=error)


class _Exchange:
    """What the access line needs to know of one request."""

    __slots__ = ("_send", "delivery", "error", "first_ms", "is_aborted", "sent", "started", "status")

    def __init__(self, send: Send, started: float) -> None:
        self._send, self.started = send, started
        self.status = self.sent = 0
        self.first_ms: float | None = None
        self.delivery: Delivery | None = None
        self.error: ProxyError | None = None
        self.is_aborted = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.first_ms = (time.monotonic() - self.started) * 1000
        await self._send(message)
        # What the app handed over; a HEAD's or a broken answer's last piece may not have gone all the way.
        self.sent += message.get("count", 0) + len(message.get("body", b""))


def _base(scope: Scope) -> str:
    """The URL of what the client has reached us by."""
    host, port = scope.get("server") or ("", None)
    if port is None:
        return "http://127.0.0.1:8642"
    return f"{scope['scheme']}://[{host}]:{port}" if ":" in host else f"{scope['scheme']}://{host}:{port}"


def _shown(target: bytes) -> str:
    """A target for the log: without the user and password that a client may have put into it."""
    text = target.decode("latin-1")
    return re.sub(r"(\A/(?:https?:?/+)?|://)[^/?]+@", r"\1***@", text, flags=re.IGNORECASE) if "@" in text else text


def _told(error: ProxyError) -> str:
    """Cache-Status parameters of an answer that is an error (RFC 9211 §2)."""
    if isinstance(error, UpstreamStatus):
        return f"fwd=uri-miss; fwd-status={error.upstream_status}"
    if isinstance(error, UpstreamError):
        return "fwd=uri-miss; detail=upstream-failed"
    if isinstance(error, NotInCache):
        return "detail=not-in-cache"
    return "detail=refused" if isinstance(error, RequestError) else "detail=failed"
