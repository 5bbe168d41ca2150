"""What the commands share: options, settings, URLs, output, errors."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import click
import httpx
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ..config import HTTPS, Settings, load
from ..errors import ProxyError
from ..rules.mirrors import MirrorTable, Target
from ..store.servers import running
from ..store.store import Store


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--config and --cache-dir; the command gets `settings` for them."""

    def with_settings(config: str | None, cache_dir: str | None, **arguments: Any) -> Any:
        overrides = {"cache": {"dir": cache_dir}} if cache_dir else {}
        return command(settings=load(config, overrides), **arguments)

    with_settings.__name__, with_settings.__doc__ = command.__name__, command.__doc__
    with_settings.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in (
        click.option("--cache-dir", metavar="DIR", help="The cache directory [config: cache.dir]."),
        click.option("--config", metavar="FILE", help="The configuration file [env: FETCHONCE_CONFIG]."),
    ):
        option(with_settings)
    return with_settings


def url_text(argument: str) -> str:
    """The type of URL arguments. Bytes that are no text become a backslash's escape, which the mirrors refuse."""
    return argument.encode(errors="backslashreplace").decode()


def resolved(settings: Settings, url: str) -> Target:
    """The object `url` means, in any spelling. Raises RequestError, UnknownMirror."""
    return MirrorTable(settings.mirrors, settings.file.access.allow_hosts).resolve(bare(url, settings))


def bare(url: str, settings: Settings) -> str:
    """`url` without our own address before it: what `fetchonce url` prints names the object it was made of."""
    target = url.encode()
    for base in bases(settings):
        host, _, port = base.partition("://")[2].rpartition(":")
        target = settings.access.own_path(target, (host.strip("[]"), int(port) if port.isdecimal() else None))
    return target.decode()


def bases(settings: Settings) -> list[str]:
    """http(s)://HOST:PORT of the servers that run on the cache directory, then of the configuration."""
    known = [address for server in running(settings.cache_dir) for address in server.listen]
    return [base_url(each) for each in dict.fromkeys((*known, *settings.file.listen)) if not each.startswith("unix:")]


def base_url(listen: str) -> str:
    """The URL of an address to listen on; what has none stays as it is."""
    return listen if listen.startswith(("unix:", HTTPS)) else f"http://{listen}"


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> None:
    """Columns for people; `right` names the columns of numbers. The last column is never padded."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)] if rows else []
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        click.echo("  ".join([*cells, row[-1]]))


def progress_bars(quiet: bool) -> Progress:
    """Bars of bytes on standard error; nothing where that is no terminal."""
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
    """A line on standard error, above the bars where there are any."""
    if not bars.disable:
        bars.console.print(text, highlight=False, markup=False, soft_wrap=True)
    elif not quiet:
        click.echo(text, err=True)


def leave(code: int) -> NoReturn:
    """End the process now, where transfers may have run.

    Python would first wait for every thread; one that waits for an upstream's answer cannot be woken, and has nothing
    left to do for us. Everything of ours is closed by now.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def size_text(count: int) -> str:
    return decimal(count)


def age_text(seconds: float) -> str:
    """A span in its largest unit: 40s, 5m, 3h, 12d."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(max(seconds, 0))}s"


@contextlib.asynccontextmanager
async def opened_store(settings: Settings) -> Any:
    store = Store(settings.cache_dir)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@contextlib.contextmanager
def as_proxy_errors(address: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise ProxyError(f"the server on {address} does not answer: {error or type(error).__name__}") from error
