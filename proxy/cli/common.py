"""What the commands share: options, settings, URLs, output."""

import contextlib
import functools
import json
import logging
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

import click
from click.shell_completion import CompletionItem
from rich.filesize import decimal

from ..config import HTTPS, Settings, load
from ..errors import ConfigError, ProxyError
from ..rules.mirrors import Target
from ..store.index import stored_urls
from ..store.servers import running
from ..store.store import Store

FAILURES_SHOWN = 3
CONNECT_SECONDS = 0.5  # another machine answers within a few milliseconds, or is not there
PORTS = {"http": 80, "https": 443}


def given_settings(config: str | None, cache_dir: str | None) -> Settings:
    """The settings of the configuration file, and what --cache-dir says. Raises ConfigError."""
    return load(config, {"cache": {"dir": cache_dir}} if cache_dir else {})


def shared_settings(config: str | None, cache_dir: str | None) -> Settings:
    """The same, with what a server on the cache directory was given: its --config, --mirror and --allow.

    A file that the command names itself comes before the server's. Raises ConfigError.
    """
    settings = given_settings(config, cache_dir)
    for server in running(settings.cache_dir)[:1]:
        named = config or os.environ.get("FETCHONCE_CONFIG") or server.config
        if server.added or named not in ("", config, settings.sources[0]):
            with contextlib.suppress(ConfigError):  # the file is gone, or is being edited
                return load(named or None, {**server.added, "cache": {"dir": str(settings.cache_dir)}})
    return settings


def settings_options(
    command: Callable[..., Any], settings_of: Callable[[str | None, str | None], Settings] = shared_settings
) -> Callable[..., Any]:
    """Give a command the options --config and --cache-dir, and call it with `settings` made from them."""

    @functools.wraps(command)
    def with_settings(config: str | None, cache_dir: str | None, **arguments: Any) -> Any:
        return command(settings=settings_of(config, cache_dir), **arguments)

    for name, metavar, text in (
        ("--cache-dir", "DIR", "The cache directory [config: cache.dir]."),
        ("--config", "FILE", "The configuration file [env: FETCHONCE_CONFIG]."),
    ):
        option = click.option(name, metavar=metavar, help=text, shell_complete=files)
        option(with_settings)
    return with_settings


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Has the shell complete the names of files."""
    return [CompletionItem(incomplete, type="file")]


class UrlText(click.ParamType):  # type: ignore[type-arg]  # older clicks have no argument here
    """The type of URL arguments. Bytes that are not UTF-8 become backslash escapes, which no mirror accepts."""

    name = "url"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return value.encode(errors="backslashreplace").decode()

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The stored URLs. Says nothing where they cannot be read: a shell would put it between what is typed."""
        try:
            settings = given_settings(ctx.params.get("config"), ctx.params.get("cache_dir"))
            return [CompletionItem(url) for url in stored_urls(settings.cache_dir, incomplete)]
        except ProxyError:
            return []


url_text = UrlText()


def resolve(settings: Settings, url: str) -> Target:
    """The object that `url` names, in any spelling. Raises RequestError, UnknownMirror."""
    return settings.mirror_table().resolve(without_own_address(url, settings))


def without_own_address(url: str, settings: Settings) -> str:
    """`url` without our own address in front: what `fetchonce url` prints is another name of the same object."""
    target = url.encode()
    for base in own_bases(settings):
        host, _, port = base.partition("://")[2].rpartition(":")
        target = settings.access.own_path(target, (host.strip("[]"), int(port) if port.isdecimal() else None))
    return target.decode()


def own_bases(settings: Settings) -> list[str]:
    """http(s)://HOST:PORT of each server running on the cache directory, then of each configured address.

    Of one that listens everywhere it is where this machine finds it. http comes first: a tool may not trust our
    certificate.
    """
    known = [address for server in running(settings.cache_dir) for address in server.listen]
    addresses = [*sorted(known, key=_is_https), *sorted(settings.file.listen, key=_is_https)]
    return list(dict.fromkeys(_here(base_url(each)) for each in addresses if not each.startswith("unix:")))


def _is_https(address: str) -> bool:
    return address.startswith(HTTPS)


def _here(base: str) -> str:
    return base.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def base_url(listen: str) -> str:
    """The URL of an address to listen on; a unix socket has none and stays as it is."""
    return listen if listen.startswith(("unix:", HTTPS)) else f"http://{listen}"


def address_type(text: str) -> str:
    """The type of --proxy."""
    found = re.fullmatch(r"https?://([^\s/@#\"\\]+@)?(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:(\d{1,5}))?/?", text, re.ASCII)
    if not found or not 0 < int(found[4] or 1) < 65536:
        raise click.BadParameter(f'"{text}": expected http://HOST:PORT')
    return text.rstrip("/")


proxy_option = click.option(
    "--proxy", type=address_type, metavar="URL", help="Where fetchonce is, if not at this server's address."
)


def unanswered(base: str, meanwhile: str) -> list[str]:
    """What to say if nothing listens at http(s)://[LOGIN@]HOST[:PORT]: `meanwhile` is what the tool does then."""
    at = urlsplit(base)
    try:
        socket.create_connection((at.hostname or "", at.port or PORTS[at.scheme]), CONNECT_SECONDS).close()
    except OSError:
        where = f"{at.scheme}://{at.netloc.rpartition('@')[2]}"
        return [f"nothing answers at {where}: until fetchonce serves there, {meanwhile}"]
    return []


size_text = decimal
jobs_option = click.option(
    "-j", "jobs", metavar="N", type=click.IntRange(1, 64), default=2, show_default=True, help="How many at once."
)
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


def leave(code: int) -> NoReturn:
    """End the process at once, after a command that may have run transfers.

    Python would first join every thread, and a thread that waits for an upstream's answer cannot be woken. By now we
    have closed everything, so such a thread has nothing left to do.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def failure_texts(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """The last of the failures that a status tells of, a line each."""
    return [f"failed {age_text(time.time() - each['at'])} ago: {each['message']}" for each in failures[:FAILURES_SHOWN]]


def age_text(seconds: float) -> str:
    """A duration in its largest unit: 40s, 5m, 3h, 12d."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(max(seconds, 0))}s"


@contextlib.asynccontextmanager
async def opened_store(settings: Settings) -> AsyncIterator[Store]:
    store = Store(settings.cache_dir)
    await store.start()
    try:
        yield store
    finally:
        await store.close()
