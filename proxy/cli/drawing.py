"""How a fill that runs looks on a terminal, and in lines where there is none."""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from time import monotonic
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..prefetch import Progress
from .common import age_text, size_text

RATE_SECONDS = 5.0
"""The rate shown is the mean of the last five seconds."""


class Rates:
    """How fast each fill has come lately."""

    def __init__(self) -> None:
        self._samples: dict[Hashable, deque[tuple[float, int]]] = {}

    def of(self, name: Hashable, count: int) -> float:
        """Bytes per second of the fill that has `count` bytes now; 0 until there is something to compare."""
        samples, now = self._samples.setdefault(name, deque()), monotonic()
        samples.append((now, count))
        while len(samples) > 2 and samples[0][0] < now - RATE_SECONDS:
            samples.popleft()
        then, before = samples[0]
        return max(0.0, (count - before) / (now - then)) if now > then else 0.0


def rows(fill: Mapping[str, Any], rate: float, about: str) -> Iterator[RenderableType]:
    """Name, bar and what there is to say of a fill: `url`, `bytes`, `length`, `trouble` are looked at."""
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
    yield Text(about, style="dim", overflow="ellipsis", no_wrap=True)
    if fill["trouble"]:
        yield Text(fill["trouble"], style="yellow")


def resumes_text(count: int) -> str:
    return f", went on after {count} break{'s' if count != 1 else ''}" if count else ""


class Fetches:
    """What a command fetches, on standard error: drawn in place on a terminal, in lines elsewhere, or not at all."""

    def __init__(self, quiet: bool) -> None:
        self._console, self._quiet = Console(stderr=True), quiet
        self._is_drawn = not quiet and self._console.is_terminal
        self._running: dict[str, Progress] = {}
        self._rates = Rates()
        self._live = Live(console=self._console, get_renderable=self._drawn, transient=True, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._is_drawn:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._is_drawn:
            self._live.stop()

    def update(self, step: Progress) -> None:
        """A fill goes on, or is over."""
        url, before = step["url"], self._running.get(step["url"])
        if step["state"] not in ("asking", "streaming"):
            self._running.pop(url, None)
            return
        self._running[url] = step
        if self._is_drawn:
            return
        if before is None:
            self.say(f"fetching {url}")
        elif step["resumes"] > before["resumes"]:
            self.say(f"goes on  {url}: {step['trouble']}")

    def say(self, text: str) -> None:
        """A line above what is drawn."""
        if self._is_drawn:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif not self._quiet:
            click.echo(text, err=True)

    def _drawn(self) -> RenderableType:
        parts: list[RenderableType] = []
        for url, step in self._running.items():
            clients = step["readers"] - 1  # this command is one
            along = f", {clients} client{'s' if clients != 1 else ''} read along" if clients > 0 else ""
            about = f"{step['state']}{along}{resumes_text(step['resumes'])}, from {step['source']}"
            parts += [Text(""), *rows(step, self._rates.of(url, step["bytes"]), about)]
        return Group(*parts)
