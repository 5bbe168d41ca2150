"""Progress bars on a terminal. Apart from common.py, because loading them takes longer than `ls`."""

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


def progress_bars(quiet: bool) -> Progress:
    """Bars that count bytes, on standard error; nothing if that is not a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    )


def say_beside(bars: Progress, quiet: bool, text: str) -> None:
    """A line on standard error, above the bars if there are any."""
    if not bars.disable:
        bars.console.print(text, highlight=False, markup=False, soft_wrap=True)
    elif not quiet:
        click.echo(text, err=True)
