"""`serve`: how it starts, and how it ends."""

import os
import signal
import socket
import stat
import tempfile

import httpx
import pytest

from tests.cli.commands import BIG, BODY, FRESH, QUICK_SECONDS, started
from tests.harness import Truncated


@pytest.mark.parametrize("args", [[], ["--log-level", "debug"]], ids=["alone", "with its options"])
def test_serve_is_the_default_command_and_sigterm_ends_it_well(cli, args):
    server = cli.start(*args, env={"FETCHONCE_LISTEN": "127.0.0.1:0"}, new_python=True)
    address = started(server)
    assert httpx.get(f"http://{address}/-/healthz", trust_env=False).json() == {"status": "ok"}
    assert "server.stopped" in cli.end(server, signal.SIGTERM).err


def test_ctrl_c_ends_it_well(cli):
    server = cli.start("--listen", "127.0.0.1:0")
    started(server)
    cli.end(server, signal.SIGINT)


def test_it_listens_in_several_places_and_a_dead_servers_socket_is_no_obstacle(origin, cli):
    origin.body("/noble.img", BODY).headers(cache_control=FRESH)
    with tempfile.TemporaryDirectory(prefix="fo") as directory:  # tmp_path may be too long for a socket's name
        path = f"{directory}/s"
        for end in (signal.SIGKILL, signal.SIGTERM):
            server = cli.start("--listen", "127.0.0.1:0", "--listen", f"unix:{path}")
            address = started(server)
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            with httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client:
                assert client.get("http://localhost/u/noble.img").content == BODY
            assert httpx.get(f"http://{address}/u/noble.img", trust_env=False).content == BODY
            cli.end(server, end, code=-9 if end == signal.SIGKILL else 0)


def test_the_commands_reach_a_server_that_has_only_a_unix_socket(origin, cli):
    origin.body("/noble.img", BODY)
    with tempfile.TemporaryDirectory(prefix="fo") as directory:
        server = cli.start("--listen", f"unix:{directory}/s")
        started(server)
        assert f"unix:{directory}/s" in cli("status").out
        cli("prefetch", "/u/noble.img")
        assert "fill.complete" in cli.end(server, signal.SIGTERM).err


async def test_mirror_and_allow_add_to_the_configuration(origin, cli, proxy_factory):
    origin.body("/noble.img", BODY)
    proxy = proxy_factory(
        "--allow",
        "images.example",
        "--allow",
        "*.mirrors.example",
        mirrors={"v": origin.url()},
        config_text=cli.config.read_text(),
    )
    assert (await proxy.get("/u/noble.img")).body == (await proxy.get("/v/noble.img")).body == BODY
    asked = {"Cache-Control": "only-if-cached"}  # whether it may be asked, without asking it
    statuses = {
        host: (await proxy.get(f"/{host}/x", asked)).status
        for host in ("images.example", "a.mirrors.example", "mirrors.example", "other.example")
    }
    assert statuses == {
        "images.example": 504,
        "a.mirrors.example": 504,
        "mirrors.example": 403,
        "other.example": 403,
    }


async def test_offline_serves_what_a_prefetch_brought_in(origin, cli, proxy_factory):
    origin.body("/noble.img", BODY)  # may be asked again at once, but for --offline
    cli("prefetch", "/u/noble.img")
    origin.stop()
    proxy = proxy_factory("--offline", cache_dir=cli.cache_dir)
    assert (await proxy.get("/u/noble.img")).body == BODY
    assert (await proxy.get("/u/other.img")).status == 504


REFUSED = {
    "0.0.0.0:0 is reachable from the network, and nobody there may ask. say who, by a line below [access]: clients": [
        "--listen",
        "0.0.0.0:0",
    ],
    "[::]:0 is reachable from the network": ["--listen", "[::]:0"],
    "127.0.0.1.example:0 is reachable from the network": ["--listen", "127.0.0.1.example:0"],
    "cannot listen on 8642: expected HOST:PORT": ["--listen", "8642"],
    "cache.max_size: 'much': expected a size": ["--max-size", "much"],
    '--mirror "v": expected NAME=URL[,URL...]': ["--mirror", "v"],
    "mirror[http].name: ": ["--mirror", "http=http://a.example/"],
    'allow_hosts: "a b": expected HOST': ["--allow", "a b"],
    "/nowhere/f.toml: no such configuration file": ["--config", "/nowhere/f.toml"],
}


def test_it_does_not_start_with_what_makes_no_sense(cli):
    lines = (["serve", "--listen", "127.0.0.1:0", *args] for args in REFUSED.values())
    for said, ran in zip(REFUSED, cli.together(*lines, code=2), strict=True):
        assert said in ran.err
        assert "server.started" not in ran.err
    wrong = {"FETCHONCE_FILL_CONNECTIONS": "many"}
    assert cli("serve", code=2, env=wrong).err.startswith("fetchonce: FETCHONCE_FILL_CONNECTIONS: ")


def test_a_port_in_use_is_exit_2(cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = cli("serve", "--listen", f"127.0.0.1:{port}", code=2)
    assert f"port {port} is in use" in ran.err


def test_a_wrong_configuration_names_file_and_line(cli):
    cli.config.write_text("[fill]\n\nconections = 3\n")
    for ran in cli.together(["serve"], ["config", "check"], code=2):
        assert f"{cli.config}:3: fill.conections: unknown key; did you mean connections?" in ran.err
        assert not ran.out


def test_an_unusable_cache_directory_is_exit_2(cli, tmp_path):
    (tmp_path / "file").write_text("")
    commands = (["serve", "--listen", "127.0.0.1:0"], ["ls"], ["prefetch", "/u/a"])
    directory = str(tmp_path / "file")
    for ran in cli.together(*([*command, "--cache-dir", directory] for command in commands), code=2):
        assert f"the cache directory {directory} cannot be used" in ran.err


async def test_sigterm_lets_a_slow_reader_finish(origin, proxy):
    origin.body("/big.img", BIG)
    slow = await proxy.stream("/u/big.img")
    await slow.read(1000)
    proxy.send_signal(signal.SIGTERM)
    await proxy.wait_refusing()
    assert await slow.rest() == BIG[1000:]
    assert await proxy.exited(QUICK_SECONDS) == 0


async def test_sigterm_waits_no_longer_than_stop_timeout(origin, proxy_factory):
    proxy = proxy_factory(config_text='[server]\nstop_timeout = "300ms"\n')
    origin.body("/big.img", BIG)
    slow = await proxy.stream("/u/big.img")
    await slow.read(1000)
    proxy.send_signal(signal.SIGTERM)
    assert await proxy.exited(QUICK_SECONDS) == 0
    await proxy.wait_log("server.stop_cut")
    with pytest.raises(Truncated):
        await slow.rest()


async def test_no_end_waits_for_an_upstream_that_does_not_answer(origin, cli, proxy_factory):
    proxy = proxy_factory(config_text='[server]\nstop_timeout = "100ms"\n')
    origin.body("/noble.img", BODY).delay_headers_until_released()
    connection = await proxy.connect()
    await connection.send(b"GET /u/noble.img HTTP/1.1\r\nHost: localhost\r\n\r\n")
    prefetch = cli.start("prefetch", "/u/noble.img")  # on a cache directory of its own
    await origin.requested(2)
    proxy.send_signal(signal.SIGTERM)
    cli.end(prefetch, signal.SIGINT, code=130, within=QUICK_SECONDS)
    assert await proxy.exited(QUICK_SECONDS) == 0


async def test_sighup_switches_the_access_log(origin, proxy):
    origin.body("/noble.img", BODY)
    await proxy.get("/u/noble.img?logged")
    await proxy.wait_log("path=/u/noble.img?logged")
    proxy.config.write_text("[log]\naccess = false\n")
    proxy.send_signal(signal.SIGHUP)
    await proxy.wait_log("config.reloaded")
    await proxy.get("/u/noble.img?unseen")
    assert proxy.terminate() == 0
    assert not [line for line in proxy.log if "unseen" in line and "access " in line]
