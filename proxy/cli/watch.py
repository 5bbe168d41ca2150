"""`fetchonce status --watch`: what comes in, drawn anew twice a second; lines where it is no terminal."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..errors import ProxyError
from .common import failure_texts, size_text
from .drawing import Rates, resumes_text, rows

LOOK_SECONDS = 0.5
LINE_SECONDS = 10.0
"""Where it is no terminal, a fill that comes is told of this often."""

Status = dict[str, Any]


def watch(read: Callable[[], Status], head: Callable[[Status], list[str]]) -> None:
    """Show what `read` returns until Ctrl-C; `head` gives the lines about the servers."""
    console = Console()
    if not console.is_terminal:
        lines = Lines()
        for whole in _looks(read):
            for line in lines.changes(whole):
                click.echo(line)
        return
    rates = Rates()
    with Live(console=console, auto_refresh=False) as live:
        for whole in _looks(read):
            live.update(drawn(whole, head(whole), rates), refresh=True)


def _looks(read: Callable[[], Status]) -> Iterator[Status]:
    while True:
        try:
            yield read()
        except ProxyError:
            yield {"fills": [], "totals": {}, "failures": [], "workers": []}  # it is being restarted
        time.sleep(LOOK_SECONDS)


def drawn(whole: Status, head: list[str], rates: Rates) -> RenderableType:
    parts: list[RenderableType] = [Text(line) for line in head]
    for fill in whole["fills"]:
        rate = rates.of((fill["key"], fill["started_at"]), fill["bytes"])
        parts += [Text(""), *rows(fill, rate, _about(fill))]
    for text in failure_texts(whole["failures"]):
        parts += [Text(""), Text(text, style="red")]
    if not whole["fills"] and whole["workers"]:
        parts.append(Text("nothing is being fetched"))
    return Group(*parts)


def _about(fill: Status) -> str:
    readers = f"{fill['readers']} reader{'s' if fill['readers'] != 1 else ''}"
    return f"{fill['state']}, {readers}{resumes_text(fill['resumes'])}, from {fill['source']}"


class Lines:
    """What has changed, a line each, for logs and pipes."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, Status]] = {}
        self._failed_at = time.time()

    def changes(self, whole: Status) -> Iterator[str]:
        now = time.monotonic()
        for fill in whole["fills"]:
            at, _ = self._told.get(fill["key"], (0.0, fill))
            is_new = fill["key"] not in self._told
            if is_new or now - at >= LINE_SECONDS:
                of = f" of {size_text(fill['length'])}" if fill["length"] else ""
                word = "fetching" if is_new else "still   "
                yield f"{word} {fill['url']}: {size_text(fill['bytes'])}{of}, {_about(fill)}"
                at = now
            self._told[fill["key"]] = at, fill
        for failure in reversed(whole["failures"]):
            if failure["at"] > self._failed_at:
                self._failed_at = failure["at"]
                yield f"failed   {failure['url']}: {failure['message']}"
        failed_at = {failure["url"]: failure["at"] for failure in reversed(whole["failures"])}
        for key in self._told.keys() - {fill["key"] for fill in whole["fills"]}:
            _, fill = self._told.pop(key)
            has_failed = failed_at.get(fill["url"].partition("?")[0], 0.0) >= fill["started_at"]
            if whole["workers"] and not has_failed:
                yield f"in       {fill['url']}"
