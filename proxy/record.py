"""What is counted and logged of a request: once at its end, and for each repetition of its answer (rules/repeat.py)."""

import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any

from .delivery import Delivery
from .errors import FileEnded, ProxyError
from .gateway import Gateway
from .log import access as access_log
from .log import events, line, log, log_past
from .rules.repeat import Repeat, Repetition
from .stats import mirror_label

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Record:
    """Of one request, gathered on the way. `end` it."""

    def __init__(self, gateway: Gateway, scope: Scope, send: Send) -> None:
        self._gateway, self._scope, self._send = gateway, scope, send
        self.target: bytes = scope["raw_target"]
        self.status = self.sent = 0
        self.delivery: Delivery | None = None
        self.error: ProxyError | None = None
        self.is_aborted = False
        self._started = time.monotonic()
        self._first_ms: float | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._first_ms = (time.monotonic() - self._started) * 1000
        try:
            await self._send(message)
        except FileEnded as error:
            self._count_sent(error.sent)
            raise
        # Bytes handed to the server. Of a HEAD, or of the last piece before a break, fewer may have left.
        self._count_sent(message.get("count", 0) + len(message.get("body", b"")))

    def _count_sent(self, count: int) -> None:
        self.sent += count
        if self.delivery and count:  # at once, and not at the end, which may be hours away
            self._gateway.stats.sent_bytes[mirror_label(self.delivery.target.mirror),] += count

    def deliver(self, delivery: Delivery) -> None:
        """The answer is `delivery`. If it is repeated, each repetition is counted and logged too."""
        self.delivery = delivery
        if repeat := delivery.repeat:
            delivery.repeat = replace(repeat, served=self._noting(delivery, repeat))

    def end(self) -> None:
        """Count and log the request."""
        delivery, error = self.delivery, self.error
        result = "-"  # one of our own endpoints: no cache was involved
        if delivery or error:
            result = "ERROR" if error or not delivery else delivery.cache_status.result
            self._count(result, 1)
            if self._first_ms is not None:
                self._gateway.stats.first_byte.observe(self._first_ms / 1000)
        level = logging.INFO if delivery or error else logging.DEBUG  # own endpoints: `status --watch` polls them
        if access_log.isEnabledFor(level):
            ms = round((time.monotonic() - self._started) * 1000)
            first_ms = round(self._first_ms) if self._first_ms is not None else "-"
            fields = self._fields(result, self.sent, first_ms, ms, is_aborted=self.is_aborted)
            log(access_log, level, "access", **fields, **({"error": error.message} if error else {}))
        if error and delivery and self.status and delivery.status:
            log(events, logging.WARNING, "delivery.broken", path=shown(self.target), at=delivery.sent, error=error)

    def _noting(self, delivery: Delivery, repeat: Repeat) -> Callable[[Mapping[Repetition, int]], None]:
        result, label = delivery.cache_status.result, mirror_label(delivery.target.mirror)
        stats = self._gateway.stats
        lines: dict[tuple[int, float, bool], str] = {}
        """By all in which they differ. They come within a second, so they are not many."""

        def text(repetition: Repetition) -> str:
            _, sent, seconds, is_aborted = repetition
            if not (text := lines.get(repetition[1:])):
                fields = self._fields(result, sent, 0, round(seconds * 1000), is_aborted=is_aborted)
                text = lines[repetition[1:]] = line("access", **fields)
            return text

        def served(repetitions: Mapping[Repetition, int]) -> None:
            repeat.served(repetitions)
            count = sum(repetitions.values())
            self._count(result, count)
            stats.repeated[label,] += count
            if sent := sum(sent * times for (_, sent, _, _), times in repetitions.items()):
                stats.sent_bytes[label,] += sent
            stats.first_byte.observe(0.0, count)
            log_past(access_log, logging.INFO, ((each[0], text(each), times) for each, times in repetitions.items()))

        return served

    def _count(self, result: str, times: int) -> None:
        mirror = None
        if self.delivery:
            mirror = self.delivery.target.mirror
        else:
            with contextlib.suppress(ProxyError):
                mirror = self._gateway.mirrors.resolve(self.target).mirror
        method = self._scope["method"] if self._scope["method"] in ("GET", "HEAD") else "other"
        self._gateway.stats.requests[mirror_label(mirror), method, str(self.status), result] += times

    def _fields(self, result: str, sent: int, first_ms: int | str, ms: int, *, is_aborted: bool) -> dict[str, object]:
        """Of the access line."""
        fields: dict[str, object] = {"method": self._scope["method"], "path": shown(self.target)}
        fields |= {"status": self.status or "-", "bytes": sent, "cache": result}
        if self.delivery:
            target = self.delivery.target
            fields |= {"key": target.key[:12], "mirror": target.mirror.name}
        fields |= {"ttfb_ms": first_ms, "ms": ms, "client": (self._scope.get("client") or ("unix",))[0]}
        return fields | ({"aborted": "client"} if is_aborted else {})


def shown(target: bytes) -> str:
    """The target for the log, without the user and password that a client may have put into it."""
    text = target.decode("latin-1")
    return re.sub(r"(\A/(?:https?:?/+)?|://)[^/?]+@", r"\1***@", text, flags=re.IGNORECASE) if "@" in text else text
