"""What shells complete, asked of the shells themselves."""

import subprocess
import sys

import pytest

from proxy.cli import COMMANDS
from tests.cli.commands import QUICK_SECONDS, brought_in
from tests.clients.tools import needs
from tests.harness import REPOSITORY


@pytest.fixture
def shell(cli, tmp_path):
    """Runs a shell that has our script, with a fetchonce on its PATH."""
    program = tmp_path / "bin" / "fetchonce"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{REPOSITORY}" exec "{sys.executable}" -m proxy "$@"\n')
    program.chmod(0o755)
    path = {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(tmp_path), "TERM": "dumb", "PS1": "$ "}

    def run(*command, **how):
        return subprocess.Popen(command, cwd=tmp_path, env=cli.env(path), text=True, **how)

    return run


def said(process):
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    return out


BASH = """\
source <(fetchonce completion bash)
count=0
while IFS= read -r COMP_LINE; do
    count=$((count + 1)) COMP_POINT=${#COMP_LINE}
    {
        _fetchonce_completion fetchonce
        echo "${COMPREPLY[*]}"
    } >answer-$count &
done
wait
for each in $(seq $count); do cat answer-$each; done
"""


def test_bash_completes_commands_options_urls_and_tools(cli, origin, shell, tmp_path):
    broken, missing = tmp_path / "broken", tmp_path / "missing"
    (broken / "index").mkdir(parents=True)
    (broken / "index" / "cache.db").write_bytes(b"no database" * 1000)
    names = ("noble", "jammy", "noble%20big?a&b", "run$(id)")
    for name in names:
        origin.body(f"/{name}", b"x").headers(cache_control="max-age=600")
    cli("prefetch", *(f"/u/{name}" for name in names))
    jammy = origin.url("/jammy")
    after_colon = origin.url().rpartition(":")[2]
    expected = {
        "fetchonce ": " ".join(COMMANDS),
        "fetchonce --off": "--offline",
        "fetchonce prefetch --di": "--digest",
        "fetchonce tls ": "init",
        "fetchonce hint VIRT": "virt-builder virt-install",
        "fetchonce show nothing": "",
        f"fetchonce show {origin.url('/no')}": rf"{after_colon}noble {after_colon}noble%20big\?a\&b",
        f"fetchonce rm /u/noble {jammy[:-3]}": f"{after_colon}jammy",
        f"fetchonce pin '{jammy[:-3]}": jammy,
        f"fetchonce show {origin.url('/run')}": rf"{after_colon}run\$\(id\)",
        f'fetchonce show "{origin.url("/run")}': "",  # in quotes it would run
        f"fetchonce verify --config {cli.config} {jammy[:-3]}": f"{after_colon}jammy",
        "fetchonce unpin --config /nowhere http": "",
        f"fetchonce unpin --cache-dir {broken} http": "",
        f"fetchonce unpin --cache-dir {missing} http": "",
        "fetchonce ls --config /etc/pass": "",  # bash then completes the names of files
    }
    process = shell("bash", "--norc", "-c", BASH, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate("".join(f"{line}\n" for line in expected), timeout=30)
    assert err == ""
    assert dict(zip(expected, out.splitlines(), strict=True)) == expected
    assert not missing.exists()


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("bash", "--norc", "--noprofile", "-i"), marks=needs("bash"), id="bash"),
        pytest.param(("zsh", "-f", "-i"), marks=needs("zsh"), id="zsh"),
    ],
)
def test_a_tab_completes_a_url_with_its_colons(cli, origin, shell, terminal, command):
    url = brought_in(origin, cli, "noble", size=1)["noble"]
    process = shell(*command, stdin=terminal.fd, stdout=terminal.fd, stderr=terminal.fd, start_new_session=True)
    try:
        setup = "autoload -Uz compinit; compinit -u; " if command[0] == "zsh" else ""
        terminal.type(f"{setup}source <(fetchonce completion {command[0]}); echo re''ady\n")
        terminal.read_until("ready\r\n", QUICK_SECONDS)
        terminal.type(f"fetchonce sh\t{url[:-6]}\t")
        terminal.read_until(url, QUICK_SECONDS)
        terminal.type("\n")
        terminal.read_until("sha256:", QUICK_SECONDS)
        terminal.type("exit\n")
        terminal.read_until(None, QUICK_SECONDS)
        process.wait(QUICK_SECONDS)
    finally:
        process.kill()
        process.wait()


@needs("fish")
def test_fish_completes_commands_urls_and_tools(cli, origin, shell):
    url = brought_in(origin, cli, "noble", size=1)["noble"]
    asked = ["fetchonce sho", "fetchonce hint vir", f"fetchonce show {url[:-6]}"]
    script = "fetchonce completion fish | source; for line in $argv; complete -C $line; end"
    process = shell("fish", "--no-config", "-c", script, *asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert said(process).splitlines() == [
        "show\tShow everything about one stored URL.",
        "virt-builder",
        "virt-install",
        url,
    ]
