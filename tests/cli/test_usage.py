"""Help, and wrong usage."""

import os
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from proxy.cli.lima import lima
from proxy.cli.rewrite import rewrite
from proxy.cli.vagrant import vagrant
from tests.cli.commands import COMMANDS
from tests.harness import REPOSITORY


def test_version(cli):
    assert re.fullmatch(r"fetchonce, version \d+\.\d+\.\d+\n", cli("--version").out)


def test_help_names_every_command_and_each_has_its_own(cli):
    """Each in a Python of its own: its module imports whatever it needs."""
    whole, *each = cli.together(*([*words.split(), "-h"] for words in ["", *COMMANDS]), new_python=True)
    for words, said in zip(COMMANDS, each, strict=True):
        assert re.search(rf"^  {words.split()[0]} ", whole.out, re.MULTILINE)
        assert said.out.startswith(f"Usage: fetchonce {words}")
        assert words in ("completion", "man") or "COMMAND [ARGS]" in said.out or "--config FILE" in said.out


@pytest.mark.parametrize("wrong", ["h:1", "ftp://h:1", "http://h:99999", "http://h:0", "http://h/x", "http://a b", ""])
def test_proxy_is_an_address_for_every_command_that_takes_one(wrong):
    for command, arguments in ((rewrite, ["x"]), (lima, ["install"]), (lima, ["status"]), (vagrant, ["install"])):
        ran = CliRunner().invoke(command, [*arguments, "--proxy", wrong])
        assert ran.exit_code == 2
        assert f'"{wrong}": expected http://HOST:PORT' in ran.output


HEAVY = {
    *("httpx", "httpcore", "starlette", "uvicorn", "httptools", "truststore", "cryptography", "http_sf"),
    *("rich.console", "rich.progress", "tomli_w"),
}
QUICK = [["--help"], ["ls"], ["ls", "--json"], ["show", "/u/a"], ["rm", "/u/a"], ["url", "/u/a"], ["hint", "lima"]]


@pytest.mark.parametrize("args", QUICK, ids=" ".join)
def test_what_needs_no_server_loads_none(cli, args):
    ran = subprocess.run(
        [sys.executable, "-c", LIST_MODULES, *args], cwd=REPOSITORY, env=cli.env(None), capture_output=True, text=True
    )
    assert ran.stdout + ran.stderr  # it did its work
    modules = set(ran.stderr.rpartition("loaded: ")[2].split())
    assert {"proxy.cli", "click"} <= modules
    assert modules & HEAVY == set()


LIST_MODULES = """
import sys
from proxy.cli import main
try:
    main()
finally:
    print("loaded:", *sys.modules, file=sys.stderr)
"""


def test_wrong_usage_is_exit_2(cli):
    wrong = {
        "No such command 'sreve'. Did you mean serve?": ["sreve"],
        "No such command 'fly'.": ["fly"],
        "No such option '--bogus'": ["--bogus"],
        "Missing argument 'URL...'": ["rm"],
        "0 is not in the range": ["prefetch", "-j", "0", "/u/a"],
        "--watch is for people": ["status", "--watch", "--json"],
        'expected a duration such as "30s"': ["prune", "--older-than", "soon"],
        'expected a size such as "500MB"': ["prune", "--to-size", "small"],
    }
    for said, ran in zip(wrong, cli.together(*wrong.values(), code=2), strict=True):
        assert said in ran.err
        assert not ran.out


def test_an_argument_that_is_no_text_is_an_error_like_any_other(cli):
    for ran in cli.together(*([command, b"/u/\xff"] for command in ("rm", "prefetch")), code=1):
        assert "must be percent-encoded" in ran.err


def test_output_that_cannot_be_written_is_no_traceback(cli, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"https://images.example/pub/\xff")
    strict = {"PYTHONIOENCODING": "utf-8:strict"}  # as in most locales
    (changed,) = cli("rewrite", "--json", str(tmp_path / "a.txt"), env=strict).json()
    assert changed["changed"][0]["from"] == "https://images.example/pub/\udcff"
    assert "\\udcff" in cli("lima", "remove", "--lima-home", os.fsencode(tmp_path) + b"/\xff", env=strict).out
    with open("/dev/full", "wb") as full:
        ran = cli.end(cli.start("man", fds={"stdout": full.fileno()}), code=1)
    assert ran.err == "fetchonce: No space left on device\n"
