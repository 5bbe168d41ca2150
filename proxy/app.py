"""The ASGI application: routes a request, turns errors into HTTP, and writes one access line at its end.

Everything below raises. Only here does a ProxyError become a status and a JSON message. Once the head of an answer has
been sent, an error can no longer change the status: the answer is broken off, and the server closes the connection.
"""

import contextlib
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .delivery import Delivery, Request
from .errors import ClientGone, LoopDetected, MethodNotAllowed, ProxyError
from .gateway import Gateway
from .log import access as access_log
from .log import events, log
from .rules.access import is_via
from .rules.entry import Headers
from .rules.headers import http_date
from .stats import Stats, mirror_label
from .store.pseudonym import pseudonym
from .upstream.wording import WAY_OUT
from .web.monitor import Monitor
from .web.page import PATHS
from .web.routes import own_endpoints

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Application:
    def __init__(self, gateway: Gateway, monitor: Monitor) -> None:
        self.gateway = gateway
        self._own = own_endpoints(gateway, monitor)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        target, server = scope["raw_target"], scope.get("server")
        record = _AccessRecord(send, started, self.gateway.stats)
        try:
            access = self.gateway.settings.access
            access.judge(target, scope["headers"], (scope.get("client") or (None,))[0], (server or (None,))[0])
            target = access.own_path(target, server)
            if is_via(scope["headers"], pseudonym(self.gateway.store.root)):
                what = _shown(target)[:200]
                raise LoopDetected(f"{what} was asked for by this very fetchonce: upstream leads back to it. {WAY_OUT}")
            if target.startswith(b"/-/") or target.partition(b"?")[0] in PATHS:
                scope["path"] = target.partition(b"?")[0].decode("latin-1")
                await self._own(scope, receive, record.send)
            else:
                await self._proxy(scope, target, receive, record)
        except ClientGone:
            record.is_aborted = True
        except ProxyError as error:
            record.error = error
            if not record.status:
                await self._answer(scope["method"], error, record)
        finally:
            self._log(scope, target, record)

    async def _proxy(self, scope: Scope, target: bytes, receive: Receive, record: "_AccessRecord") -> None:
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

        def own_base() -> str | None:  # few answers need it
            return access.own_base(scope["scheme"], scope["raw_target"], scope["headers"], scope.get("server"))

        async with self.gateway.handle(Request(method, target, headers, gone, own_base)) as delivery:
            record.delivery = delivery
            await delivery.send(record.send)

    async def _answer(self, method: str, error: ProxyError, record: "_AccessRecord") -> None:
        body = json.dumps({"message": error.message}, ensure_ascii=False).encode()
        fields = (
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("date", http_date(self.gateway.clock())),
            ("cache-status", error.cache_status.header()),
            *error.headers,
        )
        encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in fields]
        await record.send({"type": "http.response.start", "status": error.status, "headers": encoded})
        await record.send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})

    def _count(self, method: str, target: bytes, result: str, record: "_AccessRecord") -> None:
        stats, mirror = self.gateway.stats, None
        if record.delivery:
            mirror = record.delivery.target.mirror
        else:
            with contextlib.suppress(ProxyError):
                mirror = self.gateway.mirrors.resolve(target).mirror
        label = mirror_label(mirror)
        stats.requests[label, method if method in ("GET", "HEAD") else "other", str(record.status), result] += 1
        if record.first_ms is not None:
            stats.first_byte.observe(record.first_ms / 1000)

    def _log(self, scope: Scope, target: bytes, record: "_AccessRecord") -> None:
        delivery, error = record.delivery, record.error
        result = "-"  # one of our own endpoints: no cache was involved
        if delivery or error:
            result = "ERROR" if error or not delivery else delivery.cache_status.result
            self._count(scope["method"], target, result, record)
        level = logging.INFO if delivery or error else logging.DEBUG  # own endpoints: `status --watch` polls them
        if not access_log.isEnabledFor(level):
            return
        ms = (time.monotonic() - record.started) * 1000
        log(
            access_log,
            level,
            "access",
            method=scope["method"],
            path=_shown(target),
            status=record.status or "-",
            bytes=record.sent,
            cache=result,
            **({"key": delivery.target.key[:12], "mirror": delivery.target.mirror.name} if delivery else {}),
            ttfb_ms=round(record.first_ms) if record.first_ms is not None else "-",
            ms=round(ms),
            client=(scope.get("client") or ("unix",))[0],
            **({"aborted": "client"} if record.is_aborted else {}),
            **({"error": error.message} if error else {}),
        )
        if error and delivery and record.status and delivery.status:
            log(events, logging.WARNING, "delivery.broken", path=_shown(target), at=delivery.sent, error=error)


class _AccessRecord:
    """What the access line says of one request, gathered on the way."""

    __slots__ = ("_send", "_stats", "delivery", "error", "first_ms", "is_aborted", "sent", "started", "status")

    def __init__(self, send: Send, started: float, stats: Stats) -> None:
        self._send, self.started, self._stats = send, started, stats
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
        # Bytes handed to the server. Of a HEAD, or of the last piece before a break, fewer may have left.
        count = message.get("count", 0) + len(message.get("body", b""))
        self.sent += count
        if self.delivery and count:  # at once, and not at the end, which may be hours away
            self._stats.sent_bytes[mirror_label(self.delivery.target.mirror),] += count


def _base(scope: Scope) -> str:
    """The URL under which the client has reached us."""
    host, port = scope.get("server") or ("", None)
    if port is None:
        return "http://127.0.0.1:8642"
    return f"{scope['scheme']}://[{host}]:{port}" if ":" in host else f"{scope['scheme']}://{host}:{port}"


def _shown(target: bytes) -> str:
    """The target for the log, without the user and password that a client may have put into it."""
    text = target.decode("latin-1")
    return re.sub(r"(\A/(?:https?:?/+)?|://)[^/?]+@", r"\1***@", text, flags=re.IGNORECASE) if "@" in text else text
