"""`fetchonce status --watch`: what comes in, drawn anew twice a second; lines where it is no terminal."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..errors import ProxyError
from .common import age_text, size_text

LOOK_SECONDS = 0.5
RATE_SECONDS = 5.0
"""The rate shown is the mean of the last five seconds."""
FAILURES_SHOWN = 3
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


class Rates:
    """How fast each fill has come lately."""

    def __init__(self) -> None:
        self._samples: dict[tuple[str, float], deque[tuple[float, int]]] = {}

    def of(self, fill: Status, now: float) -> float:
        """Bytes per second."""
        samples = self._samples.setdefault((fill["key"], fill["started_at"]), deque())
        samples.append((now, fill["bytes"]))
        while len(samples) > 2 and samples[0][0] < now - RATE_SECONDS:
            samples.popleft()
        then, before = samples[0]
        return max(0.0, (fill["bytes"] - before) / (now - then)) if now > then else float(fill["rate"])


def drawn(whole: Status, head: list[str], rates: Rates) -> RenderableType:
    now = time.monotonic()
    parts: list[RenderableType] = [Text(line) for line in head]
    for fill in whole["fills"]:
        parts += [Text(""), *_fill(fill, rates.of(fill, now))]
    for failure in whole["failures"][:FAILURES_SHOWN]:
        ago = age_text(time.time() - failure["at"])
        parts += [Text(""), Text(f"failed {ago} ago: {failure['message']}", style="red")]
    if not whole["fills"] and whole["workers"]:
        parts.append(Text("nothing is being fetched"))
    return Group(*parts)


def _fill(fill: Status, rate: float) -> Iterator[RenderableType]:
    yield Text(fill["url"].partition("?")[0].rpartition("/")[2] or fill["url"], style="bold", overflow="ellipsis")
    done, length = fill["bytes"], fill["length"]
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(ratio=1)
    for width in (24, 10, 8):  # so that the rows of several fills stand in line
        row.add_column(justify="right", no_wrap=True, min_width=width)
    of = f"{size_text(done)} of {size_text(length)} ({done * 100 // length}%)" if length else size_text(done)
    left = f"{age_text((length - done) / rate)} left" if length and rate else ""
    bar = ProgressBar(length or 100, done if length else 0, pulse=not length)
    row.add_row(bar, of, f"{size_text(int(rate))}/s" if rate else "waiting", left)
    yield row
    yield Text(_about(fill), style="dim", overflow="ellipsis", no_wrap=True)
    if fill["trouble"]:
        yield Text(fill["trouble"], style="yellow")


def _about(fill: Status) -> str:
    readers = f"{fill['readers']} reader{'s' if fill['readers'] != 1 else ''}"
    resumes = f", went on after {fill['resumes']} break{'s' if fill['resumes'] != 1 else ''}" if fill["resumes"] else ""
    return f"{fill['state']}, {readers}{resumes}, from {fill['source']}"


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
