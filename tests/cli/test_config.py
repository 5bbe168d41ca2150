"""`config check` and `config show`."""

import os
import tomllib

import pytest

from proxy.config import load

AWKWARD = r"""
listen = ["127.0.0.1:0", "[::1]:0"]
shipped_mirrors = false
[fill]
connect_timeout = "250ms"
retries = 0
[server]
header_size = "64KB"
idle_timeout = "14d"
[access]
allow_hosts = ["a.example", "*.b.example:8443"]
[log]
access = false
[[mirror]]
name = "a"
upstreams = ["https://a.example/x", "http://127.0.0.1:9/"]
immutable = ['/\d{8}/', "it's \"quoted\"\\.", "two\nlines\\."]
moving = ["ü"]
ttl = 1234567.25
checksums = ["{file}.sha256"]
ignore_query = true
"""


def test_config_check_counts_what_it_read(cli):
    assert cli("config", "check").out == f"{cli.config}: ok, 2 mirrors from 1 file\n"
    told = cli("config", "check", "--json").json()
    assert told == {"file": str(cli.config), "sources": [str(cli.config)], "mirrors": 2}


@pytest.mark.parametrize("text", ["", AWKWARD], ids=["defaults", "awkward"])
def test_config_show_loads_to_the_same_settings(cli, tmp_path, monkeypatch, text):
    for name in [name for name in os.environ if name.startswith("FETCHONCE_")]:
        monkeypatch.delenv(name)
    cli.config.write_text(text)
    shown = cli("config", "show", "--cache-dir", str(cli.cache_dir)).out
    again = tmp_path / "elsewhere" / "fetchonce.toml"
    again.parent.mkdir()
    again.write_text(shown)
    before, after = load(str(cli.config), {"cache": {"dir": str(cli.cache_dir)}}), load(str(again))
    assert after.mirrors == before.mirrors
    for section in before.file.__struct_fields__:
        if section != "mirror":  # there it has the shipped ones too
            assert getattr(after.file, section) == getattr(before.file, section)


def test_config_show_is_what_the_environment_and_the_options_made_of_it(cli, tmp_path):
    elsewhere, env = tmp_path / "elsewhere", {"FETCHONCE_FILL_CONNECTIONS": "7"}
    shown = cli("config", "show", "--cache-dir", str(elsewhere), env=env).out
    assert shown.startswith(f"# from {cli.config}")
    told = tomllib.loads(shown)
    assert cli("config", "show", "--json", "--cache-dir", str(elsewhere), env=env).json() == told
    assert (told["fill"]["connections"], told["cache"]["dir"]) == (7, str(elsewhere))
    assert [mirror["name"] for mirror in told["mirror"]] == ["u", "https-one"]


def test_config_show_does_not_show_what_is_secret(cli):
    mirror = '[[mirror]]\nname = "v"\nupstreams = ["https://me:s3cret@a.example/"]\nheaders = {X-Key = "s3cret"}\n'
    cli.config.write_text(f'[access]\ntoken = "s3cret"\n[upstream]\nproxy = "http://me:s3cret@b.example:1"\n{mirror}')
    shown = cli("config", "show").out
    assert "s3cret" not in shown
    assert "bWU6" not in shown  # Basic
    told = tomllib.loads(shown)
    assert cli("config", "show", "--json").json() == told
    assert (told["access"]["token"], told["upstream"]["proxy"]) == ("***", "http://***@b.example:1")
    mirror = next(each for each in told["mirror"] if each["name"] == "v")
    assert mirror["upstreams"] == ["https://a.example/"]
    assert mirror["headers"] == {"X-Key": "***", "Authorization": "***"}
