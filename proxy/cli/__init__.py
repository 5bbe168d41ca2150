"""The command line, one file for each group of commands: nobody imports it.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. What a command was asked for goes to standard output,
everything else to standard error.
"""

import difflib
import errno
import importlib
import io
import keyword
import os
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

from .. import log as logs
from ..errors import ConfigError, ProxyError
from ..version import VERSION

COMMANDS = {
    "completion": ("completion", "Print a script by which your shell completes what you type."),
    "config": ("config", "Check or show the configuration."),
    "export": ("carry", "Write what is stored into a tar, for another machine."),
    "import": ("carry", "Bring in what another machine has exported."),
    "hint": ("hint", "Say what to type so that a tool fetches through fetchonce."),
    "lima": ("lima", "Lead Lima through fetchonce by itself, or take that back."),
    "ls": ("entries", "List what is stored."),
    "man": ("man", "Print the manual page."),
    "pin": ("space", "Never evict these URLs."),
    "prefetch": ("prefetch", "Bring URLs, or what templates and lists name, into the cache."),
    "prune": ("space", "Remove what was not used for long."),
    "rewrite": ("rewrite", "Change templates and scripts so that what they download comes through fetchonce."),
    "rm": ("entries", "Remove URLs from the cache."),
    "s3": ("s3", "Try the bucket that servers share."),
    "seed": ("seed", "Put what Lima or minikube will want into its own cache."),
    "serve": ("serve", "Run the proxy (the default command)."),
    "service": ("service", "Print the file that runs it as a service or container."),
    "show": ("entries", "Show everything about one stored URL."),
    "status": ("status", "Show running fills, what is stored, and what failed."),
    "tls": ("tls", "A certificate for tools that insist on https."),
    "unpin": ("space", "Let pinned URLs be evicted again."),
    "url": ("entries", "Print the proxied form of an upstream URL."),
    "vagrant": ("vagrant", "Have Vagrant's boxes come through fetchonce."),
    "verify": ("verify", "Read stored bodies again and compare their digests."),
}
"""Each command's module and its line in --help. A module is imported when its command runs: `ls` needs no server."""


class Commands(click.Group):
    """Finds commands in COMMANDS, runs `serve` where none is named, and prints ProxyErrors as messages."""

    def main(self, *args: Any, **extra: Any) -> Any:
        if "_FETCHONCE_COMPLETE" in os.environ:  # a shell asks; our answer to bash is not click's
            importlib.import_module(".completion", __name__)
        if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold bytes that are no text
            sys.stdout.reconfigure(errors="backslashreplace")
        return super().main(*args, **{"prog_name": "fetchonce", **extra})  # also for `python -m proxy`

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _ = COMMANDS[name]
        function = f"{name}_" if keyword.iskeyword(name) else name
        command: click.Command = getattr(importlib.import_module(f".{module}", __name__), function)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands and options, those of `serve` too. (A group's own would import every command.)"""
        items = [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        items += click.Command.shell_complete(self, ctx, incomplete)
        serve = self.get_command(ctx, "serve") if incomplete.startswith("-") else None
        return items + serve.shell_complete(ctx, incomplete) if serve else items

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and ctx.resilient_parsing:
            return super().parse_args(ctx, args)  # a shell completes the first word
        if not args or (args[0] not in COMMANDS and args[0] not in ("--help", "-h", "--version")):
            if args and not args[0].startswith("-"):
                close = difflib.get_close_matches(args[0], COMMANDS, 1)
                ctx.fail(f"No such command '{args[0]}'." + (f" Did you mean {close[0]}?" if close else ""))
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ProxyError as error:
            click.echo(f"fetchonce: {error.message}", err=True)
            ctx.exit(2 if isinstance(error, ConfigError) else 1)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends without a word
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"fetchonce: {where}{error.strerror or error}", err=True)
            ctx.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="fetchonce")
def main() -> None:
    """A caching proxy in front of VM image mirrors.

    In a URL, replace https:// by http://127.0.0.1:8642/. Each URL is fetched once, streamed to everybody who asks while
    it comes, and served from disk afterwards. Without a command: serve.
    """
    # Commands print their own messages. serve sets the configured level.
    logs.set_up("error")
