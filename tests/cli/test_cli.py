"""The commands as people and scripts run them: real processes, what they print, and how they end."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import termios
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from msgspec.structs import asdict, replace

from proxy.config import File, MirrorSection, Section, load
from tests.harness import REPOSITORY, Truncated, until

BODY = os.urandom(1_000_000)
BIG = os.urandom(24_000_000)  # more than the buffers of a loopback connection take
FRESH = "max-age=600"

END_SECONDS = 30.0  # no command may take this long
QUICK_SECONDS = 8.0  # well above the three that stopped fills may take, well below a read timeout

COMMANDS = [
    *("serve", "prefetch", "ls", "show", "rm", "url", "pin", "unpin", "prune", "verify", "status"),
    *("config", "config check", "config show"),
]

CONFIG = """\
shipped_mirrors = false
[[mirror]]
name = "u"
upstreams = ["{origin}"]
[[mirror]]
name = "https-one"
upstreams = ["https://images.example/pub/"]
"""


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)


class Cli:
    """Runs fetchonce on one cache directory, with a configuration that knows the origin as mirror `u`."""

    def __init__(self, cache_dir: Path, config: Path) -> None:
        self.cache_dir, self.config = cache_dir, config
        self.started: list[subprocess.Popen[str]] = []

    def __call__(self, *args: str | bytes, code: int = 0, env: Mapping[str, str] | None = None) -> Ran:
        """Run to its end; it must end with `code`, and no command ever shows a traceback."""
        ran = subprocess.run(
            self.command(*args),
            cwd=REPOSITORY,
            env=self.env(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=END_SECONDS,
        )
        return self.judged(args, Ran(ran.returncode, ran.stdout, ran.stderr), code)

    def start(self, *args: str | bytes, env: Mapping[str, str] | None = None, fds: Mapping[str, int] | None = None):
        """Start and do not wait; `end` does. `fds`: descriptors in place of the pipes."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **(fds or {})}
        process = subprocess.Popen(self.command(*args), cwd=REPOSITORY, env=self.env(env), text=True, **pipes)
        self.started.append(process)
        return process

    def end(self, process, number: signal.Signals | None = None, *, code: int = 0, within: float = END_SECONDS) -> Ran:
        """Send a signal, or none, and wait until it has ended."""
        if number is not None:
            process.send_signal(number)
        out, err = process.communicate(timeout=within)
        return self.judged(process.args[3:], Ran(process.returncode, out or "", err or ""), code)

    def together(self, *lines: list[str | bytes], code: int = 0) -> list[Ran]:
        """Run several at once, each as by itself: most of a command's time is spent on starting it."""
        processes = [self.start(*line) for line in lines]
        return [self.end(process, code=code) for process in processes]

    def ls(self) -> dict[str, dict]:
        return {each["url"]: each for each in self("ls", "--json").json()}

    def command(self, *args: str | bytes) -> list[str | bytes]:
        return [sys.executable, "-m", "proxy", *args]

    def env(self, more: Mapping[str, str] | None) -> dict[str, str]:
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("FETCHONCE_") and not name.lower().endswith("_proxy")
        }
        ours = {"FETCHONCE_CONFIG": str(self.config), "FETCHONCE_CACHE_DIR": str(self.cache_dir)}
        return {**clean, **ours, "COLUMNS": "100", **(more or {})}

    def judged(self, args, ran: Ran, code: int) -> Ran:
        shown = f"{args} ended with {ran.code}\n--- out\n{ran.out}\n--- err\n{ran.err}"
        assert ran.code == code, shown
        assert "Traceback" not in ran.out + ran.err, shown
        return ran


class Terminal:
    """A command's standard error, or all it has, on a terminal."""

    def __init__(self) -> None:
        self._master, self.fd = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.shown = ""

    @property
    def tail(self) -> str:
        return f"shown last, and not what was waited for: {self.shown[-1000:]!r}"

    def read_until(self, text: str | None, within: float = 10) -> str:
        """Everything shown so far, once it holds `text`; None: once the command has closed the terminal."""
        if self.fd >= 0:
            os.close(self.fd)  # ours; the command has its own
            self.fd = -1
        deadline = time.monotonic() + within
        while text is None or text not in self.shown:
            assert select.select([self._master], [], [], max(0, deadline - time.monotonic()))[0], self.tail
            try:
                data = os.read(self._master, 65536)
            except OSError:  # how Linux says that nobody has the other end open
                data = b""
            if not data:
                assert text is None, self.tail
                break
            self.shown += data.decode(errors="replace")
        return self.shown

    def close(self) -> None:
        for fd in (self.fd, self._master):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def cli(origin, tmp_path) -> Iterator[Cli]:
    config = tmp_path / "fetchonce.toml"
    config.write_text(CONFIG.format(origin=origin.url()))
    cli = Cli(tmp_path / "cache", config)
    yield cli
    for process in cli.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.fixture
def server(cli, proxy_factory):
    """A server on the commands' cache directory."""
    return proxy_factory(cache_dir=cli.cache_dir)


# -- usage -------------------------------------------------------------------------------------------------------------


def test_version(cli):
    assert re.fullmatch(r"fetchonce, version \d+\.\d+\.\d+\n", cli("--version").out)


def test_help_names_every_command_and_each_has_its_own(cli):
    whole, *each = cli.together(*([*words.split(), "-h"] for words in ["", *COMMANDS]))
    for words, said in zip(COMMANDS, each, strict=True):
        assert re.search(rf"^  {words.split()[0]} ", whole.out, re.MULTILINE)
        assert said.out.startswith(f"Usage: fetchonce {words}")
        assert words == "config" or "--config FILE" in said.out


HEAVY = {
    *("httpx", "httpcore", "starlette", "uvicorn", "httptools", "truststore", "cryptography", "http_sf"),
    *("rich.console", "rich.progress", "tomli_w"),
}
QUICK = [["--help"], ["ls"], ["ls", "--json"], ["show", "/u/a"], ["rm", "/u/a"], ["url", "/u/a"]]


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
        "No such command 'sreve'": ["sreve"],
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


# -- serve -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [[], ["--log-level", "debug"]], ids=["alone", "with its options"])
def test_serve_is_the_default_command_and_sigterm_ends_it_well(cli, args):
    server = cli.start(*args, env={"FETCHONCE_LISTEN": "127.0.0.1:0"})
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
    await until(lambda: refuses(proxy))
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


# -- prefetch ----------------------------------------------------------------------------------------------------------


def test_prefetch_without_a_server_says_plain_lines_and_fetches_once(origin, cli):
    origin.body("/noble.img", BODY).headers(cache_control=FRESH)
    ran = cli("prefetch", origin.url("/noble.img"))
    digest = cli.ls()[origin.url("/noble.img")]["digest"]
    assert re.sub(r"in \d+s", "in 0s", ran.err).splitlines() == [
        f"fetching {origin.url('/noble.img')}",
        f"stored   {origin.url('/noble.img')} (1.0 MB in 0s, {digest})",
    ]
    assert not ran.out
    assert cli("prefetch", "/u/noble.img").err == "cached   /u/noble.img (1.0 MB)\n"
    assert origin.requests == 1


async def test_commands_show_the_token_to_the_running_server(origin, cli, proxy_factory):
    proxy_factory(cache_dir=cli.cache_dir, config_text='[access]\nclients = []\ntoken = "s3cret"\n')
    origin.body("/x.img", BODY)
    refused = cli("prefetch", origin.url("/x.img"), code=1)
    assert "must show the token" in refused.err
    assert "fills" in cli("status", "--json", env={"FETCHONCE_ACCESS_TOKEN": "s3cret"}).json()
    cli("prefetch", origin.url("/x.img"), env={"FETCHONCE_ACCESS_TOKEN": "s3cret"})
    assert origin.requests == 1


async def test_prefetch_and_a_client_of_the_running_server_share_one_get(origin, cli, server):
    origin.body("/noble.img", BODY).stall_at(400_000)
    client = await server.stream("/u/noble.img")
    prefetch = cli.start("prefetch", server.url("/u/noble.img"))
    await until(lambda: has_readers(server, 2))
    origin.release()
    assert "stored " in cli.end(prefetch).err
    assert await client.rest() == BODY
    assert origin.requests == 1


def test_j_is_how_many_at_once(origin, cli):
    paths = [f"/{name}.img" for name in "abcd"]
    for path in paths:
        origin.body(path, BODY).stall_at(1000)
    prefetch = cli.start("prefetch", "-j", "3", *(f"/u{path}" for path in paths))
    origin.wait_for(lambda: len([request for request in origin.log if request.status == 200]) == 3)
    assert cli("ls").err.startswith("nothing is stored")  # far longer than it would take the fourth to be asked for
    assert origin.requests == 3
    origin.release(next(request.path for request in origin.log))
    origin.wait_requests(4)  # while the other two stand
    origin.release()
    cli.end(prefetch)
    assert set(cli.ls()) == {origin.url(path) for path in paths}


@pytest.mark.parametrize("with_server", [False, True], ids=["alone", "with a server"])
def test_one_that_fails_is_exit_1_and_the_others_are_in(origin, cli, proxy_factory, with_server):
    if with_server:
        proxy_factory(cache_dir=cli.cache_dir)
    origin.body("/a.img", BODY)
    origin.body("/b.img", BODY)
    ran = cli("prefetch", "/u/a.img", "/u/none.img", "https://other.example/x", "u/no-slash", "/u/b.img", code=1)
    failed = [line for line in ran.err.splitlines() if line.startswith("failed ")]
    assert len(failed) == 3
    assert any("/u/none.img: " in line and "answered 404" in line for line in failed)
    assert any("https://other.example/x: " in line and "--allow other.example" in line for line in failed)
    assert set(cli.ls()) == {origin.url("/a.img"), origin.url("/b.img")}


def test_what_may_not_be_stored_is_not_in(origin, cli):
    origin.body("/token", BODY).headers(cache_control="no-store")
    assert "is not to be kept" in cli("prefetch", "/u/token", code=1).err
    assert not cli.ls()


@pytest.mark.parametrize("with_server", [False, True], ids=["alone", "with a server"])
def test_prefetch_json_has_one_object_for_each_url_in_their_order(origin, cli, proxy_factory, with_server):
    if with_server:
        proxy_factory(cache_dir=cli.cache_dir)
    origin.body("/a.img", BODY).headers(cache_control=FRESH)
    ran = cli("prefetch", "--json", "/u/none.img", origin.url("/a.img"), "/u/none.img", code=1)
    none, stored = ran.json()
    assert not ran.err
    digest = cli.ls()[origin.url("/a.img")]["digest"]
    assert stored == {
        "url": origin.url("/a.img"),
        "state": "complete",
        "bytes": len(BODY),
        "length": len(BODY),
        "digest": digest,
        "message": None,
    }
    assert (none["url"], none["state"], none["digest"]) == ("/u/none.img", "failed", None)
    assert "404" in none["message"]
    assert cli("prefetch", "--json", "/u/a.img").json()[0]["state"] == "cached"


def test_on_a_terminal_it_draws_bars(origin, cli, terminal):
    origin.body("/noble.img", BODY).stall_at(400_000)
    prefetch = cli.start("prefetch", "/u/noble.img", fds={"stderr": terminal.fd})
    terminal.read_until("0.4/1.0 MB")
    assert "noble.img" in terminal.shown
    assert "━" in terminal.shown
    assert "fetching" not in terminal.shown  # the bar says it
    origin.release()
    assert "stored   /u/noble.img (1.0 MB" in terminal.read_until(None)
    assert not cli.end(prefetch).out


def test_json_draws_no_bars_on_a_terminal(origin, cli, terminal):
    origin.body("/noble.img", BODY)
    prefetch = cli.start("prefetch", "--json", "/u/noble.img", fds={"stderr": terminal.fd})
    assert terminal.read_until(None) == ""
    assert json.loads(cli.end(prefetch).out)[0]["state"] == "complete"


def test_ctrl_c_ends_prefetch_and_the_next_one_goes_on(origin, cli):
    origin.body("/noble.img", BODY).stall_at(400_000)
    prefetch = cli.start("prefetch", "/u/noble.img")
    assert prefetch.stderr.readline() == "fetching /u/noble.img\n"
    assert "goes on with it" in cli.end(prefetch, signal.SIGINT, code=130, within=QUICK_SECONDS).err
    origin.release()
    cli("prefetch", "/u/noble.img")
    assert cli.ls()[origin.url("/noble.img")]["state"] == "complete"


async def test_ctrl_c_leaves_the_servers_fill_alone(origin, cli, server):
    origin.body("/noble.img", BODY).stall_at(400_000)
    prefetch = cli.start("prefetch", "/u/noble.img")
    assert prefetch.stderr.readline() == "fetching /u/noble.img\n"
    assert "the server goes on fetching" in cli.end(prefetch, signal.SIGINT, code=130, within=QUICK_SECONDS).err
    await until(lambda: has_readers(server, 0))
    origin.release()
    await server.wait_log("fill.complete")
    assert cli.ls()[origin.url("/noble.img")]["size"] == len(BODY)
    assert origin.requests == 1


def test_a_server_that_dies_fails_every_prefetch_it_had(origin, cli, server):
    for path in ("/a.img", "/b.img"):
        origin.body(path, BODY).stall_at(400_000)
    prefetch = cli.start("prefetch", "/u/a.img", "/u/b.img")
    said = {prefetch.stderr.readline() for _ in range(2)}
    assert said == {"fetching /u/a.img\n", "fetching /u/b.img\n"}
    server.kill()
    ran = cli.end(prefetch, code=1, within=QUICK_SECONDS)
    assert ran.err.count("the server went away") == 2


# -- url ---------------------------------------------------------------------------------------------------------------


def test_url_prints_the_proxied_form_of_every_spelling(origin, cli):
    http = f"http://127.0.0.1:8642/http/{origin.url('/a.img').removeprefix('http://')}"
    https = "http://127.0.0.1:8642/images.example/pub/a.img?x=1"
    given = {
        origin.url("/a.img"): http,
        "/u/a.img": http,
        http: http,
        "https://images.example/pub/a.img?x=1": https,
        "/https-one/a.img?x=1": https,
        "/HTTPS///images.example/pub/a.img?x=1": https,
    }
    printed = [ran.out for ran in cli.together(*(["url", url] for url in given))]
    assert printed == [f"{form}\n" for form in given.values()]


async def test_url_names_the_running_server_and_its_url_is_served(origin, cli, server):
    origin.body("/noble.img", BODY)
    printed = cli("url", origin.url("/noble.img")).out.strip()
    assert printed.startswith(server.url("/"))
    assert (await server.get(printed.removeprefix(server.url("")))).body == BODY


def test_url_takes_several(origin, cli):
    one, other = ([each, cli("url", each).out.strip()] for each in ("/u/a.img", origin.url("/b.img")))
    assert cli("url", one[0], other[0]).out.splitlines() == [one[1], other[1]]
    assert [each["proxied"] for each in cli("url", "--json", one[0], other[0]).json()] == [one[1], other[1]]
    assert cli("url", one[0], "https://other.example/x", code=1).out == ""


def test_url_json_and_what_is_no_url(origin, cli):
    plain, told = cli.together(["url", "/u/a.img"], ["url", "--json", "/u/a.img"])
    assert told.json() == {"url": origin.url("/a.img"), "mirror": "u", "proxied": plain.out.strip()}
    assert "--allow other.example" in cli("url", "https://other.example/x", code=1).err


# -- ls, show ----------------------------------------------------------------------------------------------------------


async def test_ls_lists_what_is_whole_and_what_was_begun(origin, cli, server):
    origin.body("/noble.img", BODY).headers(cache_control=FRESH)
    origin.body("/begun.img", BODY).stall_at(400_000)
    await server.get("/u/noble.img")
    await server.wait_log("fill.complete")
    for _ in range(2):
        await server.get("/u/noble.img")
    begun = await server.stream("/u/begun.img")
    await begun.read(400_000)
    begun.close()
    server.terminate()

    objects = cli.ls()
    noble, begun = objects[origin.url("/noble.img")], objects[origin.url("/begun.img")]
    keys = {"url", "mirror", "size", "digest", "state", "hits", "pinned", "stored_at", "used_at"}
    assert keys <= noble.keys()
    assert keys <= begun.keys()
    assert (noble["mirror"], noble["size"], noble["state"], noble["pinned"]) == ("u", len(BODY), "complete", False)
    assert noble["hits"] == 2
    assert noble["stored_at"] <= noble["used_at"] <= time.time()
    assert re.fullmatch("sha256:[0-9a-f]{64}", noble["digest"])
    assert (begun["size"], begun["state"], begun["digest"]) == (400_000, "partial", None)

    header, *rows = cli("ls").out.splitlines()
    assert header.split() == ["SIZE", "AGE", "USED", "HITS", "STATE", "URL"]
    assert [row.split()[-2:] for row in rows] == [
        ["partial", origin.url("/begun.img")],
        ["complete", origin.url("/noble.img")],
    ]
    assert rows[1].split()[:2] == ["1.0", "MB"]


def test_ls_takes_a_part_of_the_url_or_a_glob_over_it(origin, cli):
    for path in ("/noble/a.img", "/noble/a.iso", "/jammy/a.img"):
        origin.body(path, BODY)
    cli("prefetch", *(f"/u{path}" for path in ("/noble/a.img", "/noble/a.iso", "/jammy/a.img")))
    found = {
        "noble": ["/noble/a.img", "/noble/a.iso"],
        "*.img": ["/jammy/a.img", "/noble/a.img"],
        "http://*/a.is?": ["/noble/a.iso"],
    }
    for paths, ran in zip(found.values(), cli.together(*(["ls", "--json", each] for each in found)), strict=True):
        assert [each["url"] for each in ran.json()] == [origin.url(path) for path in paths]
    ran = cli("ls", "nowhere")
    assert (ran.out, ran.err) == ("", f"nothing stored in {cli.cache_dir} matches nowhere\n")


def test_ls_of_nothing_makes_nothing(cli):
    assert cli("ls", "--json").json() == []
    assert cli("ls").err == f"nothing is stored in {cli.cache_dir} yet\n"
    assert not cli.cache_dir.exists()


def test_show_tells_all_about_one(origin, cli):
    origin.body("/noble.img", BODY).headers(cache_control=FRESH)
    cli("prefetch", "/u/noble.img")
    told, shown = cli.together(
        ["show", "--json", origin.url("/noble.img")], ["show", "http://127.0.0.1:8642/u/noble.img"]
    )
    told = told.json()
    assert ["cache-control", FRESH] in told["headers"]
    fields = dict(line.split(maxsplit=1) for line in shown.out.splitlines())
    assert fields["url"] == origin.url("/noble.img")
    assert (fields["size"], fields["digest"]) == (str(len(BODY)), told["digest"])
    assert (fields["pinned"], fields["used_at"]) == ("no", "never")
    assert fields["cache-control:"] == FRESH
    assert cli("show", "/u/other.img", code=1).err == f"{origin.url('/other.img')} is not stored\n"


# -- rm ----------------------------------------------------------------------------------------------------------------


def test_rm_removes_several_and_says_which_it_does_not_know(origin, cli):
    for path in ("/a.img", "/b.img", "/c.img"):
        origin.body(path, os.urandom(1000))
    cli("prefetch", "/u/a.img", "/u/b.img", "/u/c.img")
    assert "neither a path nor" in cli("rm", "/u/a.img", "a.img", code=1).err  # a slip removes nothing
    ran = cli("rm", "/u/a.img", "/u/none.img", origin.url("/b.img"), code=1)
    assert ran.out.splitlines() == [f"removed {origin.url(path)} (1.0 kB)" for path in ("/a.img", "/b.img")]
    assert ran.err == f"{origin.url('/none.img')} is not stored\n"
    assert [each["url"] for each in cli("rm", "--json", "/u/c.img").json()] == [origin.url("/c.img")]
    assert not cli.ls()
    assert not [path for path in cli.cache_dir.glob("blobs/*/*")]


def test_rm_takes_patterns_as_ls_does(origin, cli):
    for path in ("/a.img", "/b.img", "/c.iso", "/star*.img"):
        origin.body(path, os.urandom(1000))
    cli("prefetch", "/u/a.img", "/u/b.img", "/u/c.iso", "/u/star*.img")
    assert cli("rm", origin.url("/star*.img")).out == f"removed {origin.url('/star*.img')} (1.0 kB)\n"
    ran = cli("rm", "*.img", origin.url("/a.img"))
    assert ran.out.splitlines() == [f"removed {origin.url(path)} (1.0 kB)" for path in ("/a.img", "/b.img")]
    assert list(cli.ls()) == [origin.url("/c.iso")]
    cli("rm", f"{origin.url('/')}*.img", code=1)
    assert list(cli.ls()) == [origin.url("/c.iso")]


async def test_rm_is_in_force_at_once_and_who_reads_reads_on(origin, cli, server):
    origin.body("/big.img", BIG).headers(cache_control=FRESH)
    cli("prefetch", "/u/big.img")
    assert (await server.get("/u/big.img", {"Range": "bytes=0-9"})).headers["cache-status"] == "fetchonce; hit"
    reader = await server.stream("/u/big.img")
    await reader.read(1000)
    cli("rm", "/u/big.img")
    answer = await server.get("/u/big.img", {"Range": "bytes=0-9"})
    assert answer.headers["cache-status"] == "fetchonce; fwd=uri-miss; stored"
    assert await reader.rest() == BIG[1000:]
    assert origin.count("/big.img") == 2


async def test_rm_of_what_was_begun_and_of_what_is_being_fetched(origin, cli, server):
    origin.body("/begun.img", BODY).stall_at(400_000)
    begun = await server.stream("/u/begun.img")
    await begun.read(400_000)
    begun.close()
    assert "is being fetched right now" in cli("rm", "/u/begun.img", code=1).err
    server.terminate()
    assert cli("rm", "/u/begun.img").out == f"removed the unfinished {origin.url('/begun.img')} (400.0 kB)\n"
    assert not cli.ls()
    assert not list((cli.cache_dir / "partial").iterdir())


async def test_what_ls_prints_can_be_shown_and_removed_though_only_the_server_knows_its_host(
    origin, cli, proxy_factory
):
    cli.config.write_text("shipped_mirrors = false\n")
    origin.body("/a.img", BODY)
    proxy = proxy_factory(cache_dir=cli.cache_dir)  # with --mirror
    await proxy.get("/u/a.img")
    await proxy.wait_log("fill.complete")
    (url,) = cli.ls()
    assert cli("show", "--json", url).json()["url"] == url
    cli("rm", url)
    assert not cli.ls()


# -- pin, prune, verify ------------------------------------------------------------------------------------------------


def brought_in(origin, cli, *names, size=100_000) -> dict[str, str]:
    """Upstream URLs by name; fetched one after the other, so that they are used in this order."""
    urls = {}
    for name in names:
        origin.body(f"/{name}.img", os.urandom(size)).headers(cache_control=FRESH)
        cli("prefetch", f"/u/{name}.img")
        urls[name] = origin.url(f"/{name}.img")
    return urls


def blob_of(cli, url) -> Path:
    digest = cli.ls()[url]["digest"].removeprefix("sha256:")
    return cli.cache_dir / "blobs" / digest[:2] / digest


def test_pin_and_unpin_take_every_spelling_and_say_what_they_do_not_know(origin, cli):
    urls = brought_in(origin, cli, "a", "b")
    ran = cli("pin", "/u/a.img", urls["b"], "/u/none.img", code=1)
    assert ran.out == f"pinned {urls['a']} (100.0 kB)\npinned {urls['b']} (100.0 kB)\n"
    assert ran.err == f"{origin.url('/none.img')} is not stored: fetchonce prefetch --pin URL\n"
    assert [each["pinned"] for each in cli.ls().values()] == [True, True]
    assert cli("unpin", "--json", "/u/a.img").json() == [{"url": urls["a"], "pinned": False, "size": 100_000}]
    assert [each["pinned"] for each in cli.ls().values()] == [False, True]


@pytest.mark.parametrize("with_server", [False, True], ids=["alone", "with a server"])
def test_prefetch_pin_pins_what_it_fetches_and_what_is_there(origin, cli, proxy_factory, with_server):
    if with_server:
        proxy_factory(cache_dir=cli.cache_dir)
    urls = brought_in(origin, cli, "a")
    origin.body("/b.img", BODY).headers(cache_control=FRESH)
    cli("prefetch", "--pin", "/u/a.img", "/u/b.img")
    assert {url: each["pinned"] for url, each in cli.ls().items()} == {urls["a"]: True, origin.url("/b.img"): True}


async def test_a_pin_is_in_force_in_the_running_server_and_outlives_a_new_generation(origin, cli, proxy_factory):
    server = proxy_factory("--max-size", "250KB", cache_dir=cli.cache_dir)
    for name in "ab":
        origin.body(f"/{name}.img", os.urandom(100_000))
        await server.get(f"/u/{name}.img")
        await until(lambda name=name: origin.url(f"/{name}.img") in cli.ls())
    cli("pin", "/u/a.img")
    new = os.urandom(100_000)
    origin.body("/a.img", new)
    assert (await server.get("/u/a.img", {"Cache-Control": "no-cache"})).body == new
    origin.body("/c.img", os.urandom(100_000))
    await server.get("/u/c.img")
    await server.wait_log(f"evicted url={origin.url('/b.img')}")
    assert cli.ls()[origin.url("/a.img")]["pinned"]


def test_prune_to_size_takes_the_least_recently_used_and_says_the_sum(origin, cli):
    urls = brought_in(origin, cli, "a", "b", "c", "d")
    cli("pin", "/u/a.img")
    dry = cli("prune", "--to-size", "250KB", "--dry-run", "--json").json()
    assert [each["url"] for each in dry["removed"]] == [urls["b"], urls["c"]]
    assert (dry["freed"], dry["dry_run"]) == (200_000, True)
    assert len(cli.ls()) == 4
    ran = cli("prune", "--to-size", "250KB")
    assert re.fullmatch(
        rf"100.0 kB  used \w+ ago +{urls['b']}\n100.0 kB  used \w+ ago +{urls['c']}\nfreed 200.0 kB\n", ran.out
    )
    assert set(cli.ls()) == {urls["a"], urls["d"]}
    assert cli("prune", "--to-size", "0").out.endswith("freed 100.0 kB\n")
    assert set(cli.ls()) == {urls["a"]}


def test_prune_older_than_and_without_options(origin, cli):
    urls = brought_in(origin, cli, "a", "b")
    assert cli("prune", "--older-than", "1h").out == "freed 0 bytes\n"
    assert cli("prune").out == "freed 0 bytes\n"
    limited = {"FETCHONCE_CACHE_MAX_SIZE": "150KB"}
    assert [each["url"] for each in cli("prune", "--json", "--dry-run", env=limited).json()["removed"]] == [urls["a"]]
    cli("pin", "/u/b.img")
    assert urls["a"] in cli("prune", "--older-than", "0").out
    assert set(cli.ls()) == {urls["b"]}


async def test_prune_beside_a_running_server(origin, cli, server):
    urls = brought_in(origin, cli, "a", "b")
    origin.body("/big.img", BIG).headers(cache_control=FRESH)
    slow = await server.stream("/u/big.img")
    await slow.read(1000)
    await until(lambda: origin.url("/big.img") in cli.ls())
    assert (await server.get("/u/a.img")).headers["cache-status"] == "fetchonce; hit"
    assert {each["url"] for each in cli("prune", "--to-size", "0", "--json").json()["removed"]} == {
        *urls.values(),
        origin.url("/big.img"),
    }
    assert await slow.rest() == BIG[1000:]
    assert (await server.get("/u/a.img", {"Cache-Control": "only-if-cached"})).status == 504


def test_verify_of_a_whole_cache(origin, cli):
    assert cli("verify").out == "0 ok (0 bytes), 0 not\n"
    urls = brought_in(origin, cli, "a", "b")
    ran = cli("verify")
    assert ran.out == "2 ok (200.0 kB), 0 not\n"
    assert ran.err == "".join(f"ok       {url} (100.0 kB)\n" for url in urls.values())
    assert [each["url"] for each in cli("verify", "/u/b.img", "--json").json()] == [urls["b"]]
    (missing,) = cli("verify", "/u/c.img", "--json", code=1).json()
    assert (missing["url"], missing["state"]) == (origin.url("/c.img"), "missing")


async def test_verify_finds_a_flipped_byte_and_repair_has_it_fetched_anew(origin, cli, server):
    urls = brought_in(origin, cli, "a", "b")
    whole = (await server.get("/u/a.img")).body
    blob = blob_of(cli, urls["a"])
    with open(blob, "r+b") as file:
        file.seek(50_000)
        byte = file.read(1)
        file.seek(50_000)
        file.write(bytes([byte[0] ^ 1]))
    ran = cli("verify", code=1)
    assert re.search(rf"^damaged  {urls['a']}: expected sha256:\w+, got sha256:\w+$", ran.err, re.MULTILINE)
    assert "verify --repair" in ran.err
    assert ran.out == "1 ok (100.0 kB), 1 not\n"
    assert len(cli.ls()) == 2
    damaged, fine = cli("verify", "--repair", "--json", code=1).json()
    assert (damaged["url"], damaged["state"], fine["state"]) == (urls["a"], "damaged", "ok")
    assert blob.name in {path.name for path in (cli.cache_dir / "damaged").iterdir()}
    before = origin.requests
    assert (await server.get("/u/a.img")).body == whole
    assert origin.requests == before + 1
    await until(lambda: urls["a"] in cli.ls())
    assert cli("verify").out == "2 ok (200.0 kB), 0 not\n"
    assert "kB" in cli("prune").out
    assert not list((cli.cache_dir / "damaged").iterdir())


async def test_a_truncated_body_is_fetched_again_by_the_server_itself(origin, cli, server):
    urls = brought_in(origin, cli, "a")
    os.truncate(blob_of(cli, urls["a"]), 1000)
    assert len((await server.get("/u/a.img")).body) == 100_000
    await server.wait_log("store.damaged")
    assert [request.path for request in origin.log] == ["/a.img"] * 2


def test_verify_draws_a_bar_on_a_terminal(origin, cli, terminal):
    brought_in(origin, cli, "a")
    verify = cli.start("verify", fds={"stderr": terminal.fd})
    shown = terminal.read_until(None)
    cli.end(verify)
    assert "verifying" in shown
    assert "━" in shown


# -- status ------------------------------------------------------------------------------------------------------------


def test_status_without_a_server(cli):
    assert cli("status", "--json").json() == {"fills": [], "totals": {}, "workers": []}


async def test_status_tells_of_fills_and_totals(origin, cli, server):
    assert "nothing is being fetched" in cli("status").out
    origin.body("/noble.img", BODY).stall_at(400_000)
    client = await server.stream("/u/noble.img")
    await client.read(400_000)
    shown = cli("status").out
    assert re.search(rf"server on 127\.0\.0\.1:{server.client.port}, up \d+s\n", shown)
    assert origin.url("/noble.img") in shown
    assert re.search(r"streaming: 400\.0 kB of 1\.0 MB \(40%\), .*/s, .* left, 1 reader$", shown, re.MULTILINE)

    told = cli("status", "--json").json()
    (fill,), (worker,) = told["fills"], told["workers"]
    assert (
        fill.items()
        >= {
            "url": origin.url("/noble.img"),
            "mirror": "u",
            "state": "streaming",
            "bytes": 400_000,
            "length": len(BODY),
            "readers": 1,
            "source": origin.url("/noble.img"),
        }.items()
    )
    assert fill["rate"] > 0
    assert fill["eta"] > 0
    assert (worker["pid"], worker["listen"]) == (server.pid, [f"127.0.0.1:{server.client.port}"])
    assert told["totals"]["fetched_bytes"] == 400_000
    origin.release()
    await client.rest()


async def test_status_is_of_all_servers_on_the_directory_and_of_no_dead_one(origin, cli, server, proxy_factory):
    second = proxy_factory(cache_dir=cli.cache_dir)
    origin.body("/noble.img", BODY).headers(cache_control=FRESH)
    for number, each in enumerate((server, second), 1):
        await each.get("/u/noble.img")
        await until(lambda each=each, number=number: served(each, number * len(BODY)))
    told = cli("status", "--json").json()
    assert {worker["pid"] for worker in told["workers"]} == {server.pid, second.pid}
    assert told["totals"]["sent_bytes"] == 2 * len(BODY)
    assert cli("status").out.count("server on 127.0.0.1:") == 2
    second.kill()
    assert [worker["pid"] for worker in cli("status", "--json").json()["workers"]] == [server.pid]
    server.kill()
    assert "no server runs" in cli("status").out


async def test_status_watch_goes_on_until_ctrl_c(origin, cli, server, terminal):
    origin.body("/noble.img", BODY).stall_at(400_000)
    watch = cli.start("status", "--watch", fds={"stdout": terminal.fd})
    terminal.read_until("nothing is being fetched")
    client = await server.stream("/u/noble.img")
    terminal.read_until("400.0 kB of 1.0 MB (40%)")
    origin.release()
    await client.rest()
    terminal.read_until("1.0 MB fetched, 1.0 MB served (1 MISS)")
    cli.end(watch, signal.SIGINT)


# -- config ------------------------------------------------------------------------------------------------------------

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
retries = 2
on_abandon = "pause"
[upstream]
proxy = "http://proxy.example:3128"
ca_bundle = "HERE/file"
[access]
allow_hosts = ["a.example"]
clients = ["10.0.0.0/8"]
token = "***"
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
headers = {X-Key = "***"}
netrc = "HERE/file"
"""
"""What is secret is *** already, because it is shown as that. HERE is a directory that holds an empty `file`."""


@pytest.mark.parametrize("text", ["", AWKWARD, EVERY_KEY], ids=["defaults", "awkward", "every key"])
def test_config_show_loads_to_the_same_settings(cli, tmp_path, monkeypatch, text):
    for name in [name for name in os.environ if name.startswith("FETCHONCE_")]:
        monkeypatch.delenv(name)
    (tmp_path / "file").touch()
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


def test_every_key_has_each_key_and_none_of_the_defaults(tmp_path):
    """Or else the test above could not see that `config show` forgets one."""
    (tmp_path / "file").touch()
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


# -- what they wait for ------------------------------------------------------------------------------------------------


def started(server: "subprocess.Popen[str]") -> str:
    """Where it listens first, once it does."""
    said = ""
    for line in server.stderr:
        said += line
        if found := re.search(r"server\.started listen=(?:http://|unix:)([^,\s]+)", line):
            return found[1]
    raise AssertionError(f"it did not start, and said:\n{said}")


def refuses(proxy) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((proxy.client.host, proxy.client.port)) != 0


async def has_readers(proxy, count: int) -> bool:
    fills = (await proxy.status())["fills"]
    return bool(fills) and fills[0]["readers"] == count


async def served(proxy, count: int) -> bool:
    return (await proxy.status())["totals"]["sent_bytes"] == count
