"""`man`, and whether everything that can be typed or asked is written down."""

import re

import click
import pytest

from proxy.cli import COMMANDS, main
from proxy.web.metrics import METRICS
from tests.harness import REPOSITORY, fetchonce

README = (REPOSITORY / "README.md").read_text()


def test_the_manual_page_has_every_command_and_no_stray_control_line():
    text = fetchonce("man").stdout
    for name in COMMANDS:
        assert f".SS fetchonce {name}\n" in text, name
    known = {".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".nf", ".fi"}
    for line in text.splitlines():
        assert not line.startswith("'")
        assert not line.startswith(".") or line.split()[0] in known, line
    assert "\\fB\\-\\-listen" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_names_every_command(name):
    assert re.search(rf"fetchonce ([\w|]+\|)?{name}\b", README), name


def options(command, path):
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield f"{path} {parameter.opts[0]}", parameter.help
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from options(command.get_command(click.Context(command), name), f"{path} {name}")


def test_every_option_says_what_it_does():
    told = dict(options(main, "fetchonce"))
    assert len(told) > 100
    assert [option for option, text in told.items() if not text] == []


def test_the_readme_names_every_endpoint_and_the_metrics_page_every_metric():
    routes = (REPOSITORY / "proxy/web").glob("*.py")
    paths = {path for file in routes for path in re.findall(r'Route\("(/-/[a-z]+)', file.read_text())}
    paths -= {"/-/api", "/-/static"}
    assert {path for path in paths if path not in README} == set()
    assert all(re.fullmatch(r"fetchonce_[a-z_]+", name) for name in METRICS)
