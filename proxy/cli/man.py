"""fetchonce man: the manual page, made from the commands themselves."""

import inspect
import re

import click

from ..version import VERSION

FILES = (
    ("~/.config/fetchonce/fetchonce.toml", "The configuration; macOS: ~/Library/Application Support/fetchonce/."),
    ("~/.cache/fetchonce", "What is stored; macOS: ~/Library/Caches/fetchonce."),
)
ENVIRONMENT = (
    ("FETCHONCE_CONFIG", "The configuration file, as --config."),
    ("FETCHONCE_<SECTION>_<KEY>", "Any key of the configuration, such as FETCHONCE_CACHE_DIR."),
)
SPECIAL = str.maketrans({"\\": r"\(rs", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "~": r"\(ti", "^": r"\(ha"})
CODES = (("0", "Done."), ("1", "Failed."), ("2", "Wrong usage or configuration."))


@click.command()
@click.pass_context
def man(ctx: click.Context) -> None:
    """Print the manual page: fetchonce man | man -l -"""
    assert ctx.parent
    click.echo(page(ctx.parent.command, ctx.parent))


def page(group: click.Command, ctx: click.Context) -> str:
    """The whole page, for man(7)."""
    assert isinstance(group, click.Group)
    lines = [f'.TH FETCHONCE 1 "" "fetchonce {VERSION}"']
    lines += [".SH NAME", r"fetchonce \- a caching proxy in front of VM image mirrors"]
    lines += [".SH SYNOPSIS", r".B fetchonce", r"[\fICOMMAND\fR] [\fIOPTION\fR ...] [\fIARGUMENT\fR ...]"]
    lines += [".SH DESCRIPTION", *_paragraphs(group.help or ""), ".SH COMMANDS"]
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command
        lines += _command(command, click.Context(command, parent=ctx, info_name=name))
    for title, pairs in (("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES), ("EXIT STATUS", CODES)):
        lines.append(f".SH {title}")
        for term, text in pairs:
            lines += [".TP", rf"\fB{_plain(term)}\fR", _plain(text)]
    return "\n".join(lines)


def _command(command: click.Command, ctx: click.Context) -> list[str]:
    pieces = " ".join(command.collect_usage_pieces(ctx))
    lines = [f".SS {_plain(ctx.command_path)}", rf"\fB{_plain(ctx.command_path)}\fR \fI{_plain(pieces)}\fR", ".PP"]
    lines += _paragraphs(command.help or "")
    for parameter in command.params:
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
            lines += [".TP", rf"\fB{_plain(record[0])}\fR", _plain(record[1])]
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            inner = command.get_command(ctx, name)
            assert inner
            lines += _command(inner, click.Context(inner, parent=ctx, info_name=name))
    return lines


def _paragraphs(text: str) -> list[str]:
    lines: list[str] = []
    for each in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if each.startswith("\b"):  # click's mark of lines that stay as they are
            lines += [".nf", *(_plain(line) for line in each.splitlines()[1:]), ".fi", ".PP"]
        else:
            lines += [_plain(" ".join(each.split())), ".PP"]
    return lines[:-1]


def _plain(text: str) -> str:
    """Text that means itself in roff."""
    text = text.translate(SPECIAL)
    return rf"\&{text}" if text.startswith(".") else text
