"""The ASGI application: routes a request, turns errors into HTTP, and has it counted and logged at its end (record.py).

Everything below raises. Only here does a ProxyError become a status and a JSON message. Once the head of an answer has
been sent, an error can no longer change the status: the answer is broken off, and the server closes the connection.
"""

import json
from collections.abc import Awaitable, Callable

from .delivery import Request
from .errors import ClientGone, LoopDetected, MethodNotAllowed, ProxyError, UpstreamStatus
from .gateway import Gateway
from .record import Message, Record, Scope, Send, shown
from .rules.access import is_via
from .rules.entry import Headers
from .rules.fleet import SAID_OF_THE_OBJECT
from .rules.headers import http_date
from .store.pseudonym import pseudonym
from .upstream.wording import WAY_OUT
from .web.monitor import Monitor
from .web.page import PATHS
from .web.routes import own_endpoints

Receive = Callable[[], Awaitable[Message]]


class Application:
    def __init__(self, gateway: Gateway, monitor: Monitor) -> None:
        self.gateway = gateway
        self._own = own_endpoints(gateway, monitor)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server, record = scope.get("server"), Record(self.gateway, scope, send)
        try:
            access = self.gateway.settings.access
            access.judge(record.target, scope["headers"], (scope.get("client") or (None,))[0], (server or (None,))[0])
            target = record.target = access.own_path(record.target, server)
            if is_via(scope["headers"], pseudonym(self.gateway.store.root)):
                what = shown(target)[:200]
                raise LoopDetected(f"{what} was asked for by this very fetchonce: upstream leads back to it. {WAY_OUT}")
            if target.startswith(b"/-/") or target.partition(b"?")[0] in PATHS:
                scope["path"] = target.partition(b"?")[0].decode("latin-1")
                await self._own(scope, receive, record.send)
            else:
                await self._proxy(scope, receive, record)
        except ClientGone:
            record.is_aborted = True
        except ProxyError as error:
            record.error = error
            if not record.status:
                await self._answer(scope["method"], error, record)
        finally:
            record.end()

    async def _proxy(self, scope: Scope, receive: Receive, record: Record) -> None:
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

        async with self.gateway.handle(Request(method, record.target, headers, gone, own_base)) as delivery:
            record.deliver(delivery)
            await delivery.send(record.send)

    async def _answer(self, method: str, error: ProxyError, record: Record) -> None:
        body = json.dumps({"message": error.message}, ensure_ascii=False).encode()
        fields = (
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("date", http_date(self.gateway.clock())),
            ("cache-status", error.cache_status.header()),
            *_remembering(error),
            *error.headers,
        )
        encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in fields]
        await record.send({"type": "http.response.start", "status": error.status, "headers": encoded})
        await record.send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


def _remembering(error: ProxyError) -> Headers:
    """What upstream says of how long its own answer about the object may be remembered: also its age, by then."""
    if not isinstance(error, UpstreamStatus) or error.upstream_status not in SAID_OF_THE_OBJECT:
        return ()
    return tuple(line for line in error.fields if line[0] in ("age", "cache-control", "vary"))


def _base(scope: Scope) -> str:
    """The URL under which the client has reached us."""
    host, port = scope.get("server") or ("", None)
    if port is None:
        return "http://127.0.0.1:8642"
    return f"{scope['scheme']}://[{host}]:{port}" if ":" in host else f"{scope['scheme']}://{host}:{port}"
