"""The command line, one file for each group of commands: nobody imports it.

Exit codes: 0 done, 1 failed, 2 usage or configuration. What a command is asked for goes to standard output, all else to
standard error.
"""

from typing import Any

import click

from .. import log as logs
from ..errors import ConfigError, ProxyError
from ..version import VERSION


class Commands(click.Group):
    """`serve` where no command is named; ProxyErrors as messages."""

    def main(self, *args: Any, **extra: Any) -> Any:
        return super().main(*args, **{"prog_name": "fetchonce", **extra})  # also for `python -m proxy`

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h", "--version")):
            if args and not args[0].startswith("-"):
                return super().parse_args(ctx, args)  # click says that there is no such command
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ProxyError as error:
            click.echo(f"fetchonce: {error.message}", err=True)
            ctx.exit(2 if isinstance(error, ConfigError) else 1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="fetchonce")
def main() -> None:
    """A caching proxy in front of VM image mirrors.

    In a URL, replace https:// by http://127.0.0.1:8642/. Each URL is fetched once, streamed to everybody who asks while
    it comes, and served from disk afterwards. Without a command: serve.
    """
    # What a command has to say it says itself; serve sets the level that is configured.
    logs.set_up("error")


from . import config, entries, prefetch, serve, space, status, tls  # noqa: E402  (they hang themselves into the group)

for module in (serve, prefetch, entries, space, status, config, tls):
    for command in module.COMMANDS:
        main.add_command(command)
