"""`config check` and `config show`."""

import os
import tomllib

import pytest
from msgspec.structs import asdict, replace

from proxy.config import File, MirrorSection, Section, load

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


EVERY_KEY = r"""
listen = ["unix:HERE/socket"]
shipped_mirrors = false
[cache]
dir = "HERE/cache"
max_size = "7GB"
min_free = "1GiB"
[fill]
connections = 3
connect_timeout = "11s"
read_timeout = "1.5m"
checksum_timeout = "2s"
stale_after = "3s"
retries = 2
on_abandon = "pause"
[upstream]
proxy = "http://proxy.example:3128"
ca_bundle = "HERE/file"
[access]
allow_hosts = ["a.example"]
clients = ["10.0.0.0/8"]
token = "***"
token_file = "HERE/token"
hosts = ["cache.example"]
[server]
workers = 2
header_size = "16KiB"
header_timeout = "5s"
idle_timeout = "60s"
connections = 100
stop_timeout = "3s"
tls_cert = "HERE/cert.pem"
tls_key = "HERE/key.pem"
[fleet]
advertise = "http://10.0.0.5:8642"
parents = ["https://cache-1.example", "http://10.0.0.5:8642"]
token = "***"
timeout = "2s"
[lease]
redis = "redis://10.0.0.6:6379/1"
timeout = "0.25s"
[s3]
url = "s3://images/a"
endpoint = "http://127.0.0.1:9000"
region = "eu-central-1"
timeout = "1s"
access_key_id = "***"
secret_access_key = "***"
[log]
level = "warning"
access = false
[[mirror]]
name = "m"
upstreams = ["https://m.example/a/"]
immutable = ['/\d{8}/']
moving = ["/latest/"]
ttl = "7m"
negative_ttl = "3s"
stale_if_error = "2d"
checksums = ["SHA256SUMS"]
verify = "warn"
ignore_query = true
rewrite = ["/x.json$"]
connections = 3
forward_authorization = false
headers = {X-Key = "***"}
netrc = "HERE/file"
"""
"""What is secret is *** already, as it is shown as that. HERE is a directory with an empty `file`, and a `token`."""


@pytest.mark.parametrize("text", ["", AWKWARD, EVERY_KEY], ids=["defaults", "awkward", "every key"])
def test_config_show_loads_to_the_same_settings(cli, tmp_path, monkeypatch, text):
    for name in [name for name in os.environ if name.startswith("FETCHONCE_")]:
        monkeypatch.delenv(name)
    (tmp_path / "file").touch()
    (tmp_path / "token").write_text("t")
    cli.config.write_text(text.replace("HERE", str(tmp_path)))
    shown = cli("config", "show", "--cache-dir", str(cli.cache_dir)).out
    again = tmp_path / "elsewhere" / "fetchonce.toml"
    again.parent.mkdir()
    again.write_text(shown)
    before, after = load(str(cli.config), {"cache": {"dir": str(cli.cache_dir)}}), load(str(again))
    assert after.mirrors == before.mirrors
    sections = zip(before.file.mirror, before.mirrors, strict=True)
    # An upstream is shown as it is asked: "https://a.example/x" as "https://a.example/x/".
    mirrors = tuple(replace(section, upstreams=mirror.upstreams) for section, mirror in sections)
    assert after.file == replace(before.file, mirror=mirrors)


def test_a_variable_that_sets_nothing_is_told_of_if_it_looks_like_one_that_does(cli, tmp_path):
    meant = {
        "FETCHONCE_WORKERS": "FETCHONCE_SERVER_WORKERS",
        "FETCHONCE_CACHEDIR": "FETCHONCE_CACHE_DIR",
        "FETCHONCE_TOKEN": "FETCHONCE_ACCESS_TOKEN or FETCHONCE_FLEET_TOKEN",
    }
    others = ["FETCHONCE_PORT", "FETCHONCE_SERVICE_PORT", "FETCHONCE_PORT_8642_TCP_ADDR"]
    told = cli("config", "check", env={name: "1" for name in [*meant, *others]}).err
    assert told == "".join(f"{name}: ignored; did you mean {meant[name]}?\n" for name in sorted(meant))
    nowhere = f"unix:{tmp_path}/missing/socket"
    told = cli("serve", "--listen", nowhere, env={"FETCHONCE_WORKERS": "2"}, code=2).err
    assert 'config.variable_ignored name=FETCHONCE_WORKERS hint="did you mean FETCHONCE_SERVER_WORKERS?"' in told


def test_every_key_has_each_key_and_none_of_the_defaults(tmp_path):
    """Or else the test above could not see that `config show` forgets one."""
    (tmp_path / "file").touch()
    (tmp_path / "token").write_text("t")
    path = tmp_path / "fetchonce.toml"
    path.write_text(EVERY_KEY.replace("HERE", str(tmp_path)))
    file = load(str(path)).file
    for given, default in [
        (file, File()),
        *((getattr(file, name), each) for name, each in asdict(File()).items() if isinstance(each, Section)),
        (file.mirror[0], MirrorSection(name="", upstreams=())),
    ]:
        defaults = asdict(default)
        assert [name for name, value in asdict(given).items() if value == defaults[name]] == []


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
    fleet = '[fleet]\ntoken = "s3cret"\n'
    fleet += 'advertise = "http://a"\n[lease]\nredis = "redis://me:s3cret@c.example/0"\n'
    cli.config.write_text(f'{fleet}[access]\ntoken = "s3cret"\n[upstream]\nproxy = "http://me:s3cret@b.example:1"\n{mirror}')
    shown = cli("config", "show").out
    assert "s3cret" not in shown
    assert "bWU6" not in shown  # Basic
    told = tomllib.loads(shown)
    assert cli("config", "show", "--json").json() == told
    assert (told["access"]["token"], told["upstream"]["proxy"]) == ("***", "http://***@b.example:1")
    mirror = next(each for each in told["mirror"] if each["name"] == "v")
    assert mirror["upstreams"] == ["https://a.example/"]
    assert mirror["headers"] == {"X-Key": "***", "Authorization": "***"}


@pytest.mark.parametrize(
    "url", ["unix:///run/redis.sock?db=1&password=s3cret&x=1", "redis://c.example/0?username=me&password=s3cret"]
)
def test_config_show_does_not_show_a_password_at_the_end_of_an_address(cli, url):
    cli.config.write_text(f'[fleet]\nadvertise = "http://a"\n[lease]\nredis = "{url}"\n')
    assert tomllib.loads(cli("config", "show").out)["lease"]["redis"] == url.replace("s3cret", "***")


@pytest.mark.parametrize("address", [":s3/cret@c.example", ":s3#cret@c.example", "c.example:x", "c.example:65536"])
def test_a_malformed_address_of_redis_is_told_without_its_password(cli, address):
    cli.config.write_text(f'[fleet]\nadvertise = "http://a"\n[lease]\nredis = "redis://{address}/0"\n')
    told = cli("config", "check", code=2)
    assert f"{cli.config}:4: lease.redis: " in told.err
    assert "s3" not in told.err + told.out


def test_a_token_file_holds_the_token_and_is_read_again(cli, tmp_path):
    token = tmp_path / "token"
    cli.config.write_text(f'[access]\ntoken = "old"\ntoken_file = "{token}"\n')
    for text, word in [(None, "cannot be read"), ("\n", "it is empty"), ("a b", "expected printable ASCII")]:
        if text is not None:
            token.write_text(text)
        err = cli("config", "check", code=2).err
        assert word in err
        assert f"{cli.config}:" in err
    for text in ("s3cret\n", "other"):
        token.write_text(text)
        assert load(str(cli.config)).access.token == text.strip()
    assert "other" not in cli("config", "show").out


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        ("127.0.0.1", "expected HOST:PORT such as 127.0.0.1:8642"),
        ("0.0.0.0:8642", "is reachable from the network, and nobody there may ask"),
    ],
)
def test_config_check_refuses_an_address_that_serve_would_refuse(cli, listen, said):
    cli.config.write_text(f'listen = ["unix:/run/x.sock", "{listen}"]\n')
    assert said in cli("config", "check", code=2).err
