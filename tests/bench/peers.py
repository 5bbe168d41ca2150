"""The proxies that are compared: how each is started, and what it cannot do."""

import hashlib
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from proxy.rules.mirrors import cache_key
from proxy.store.sidecars import Sidecars
from proxy.version import VERSION
from tests.bench.origins import Upstream, filled_in, program
from tests.bench.processes import Server
from tests.forks import FETCHONCE, REPOSITORY
from tests.harness import clean_environment

VARNISH_OPTIONS = (
    "thread_pool_min=100",
    "fetch_chunksize=1m",
    "timeout_idle=300",
    "send_timeout=600",
    "idle_send_timeout=600",
    "listen_depth=4096",
)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a proxy is to run."""

    port: int
    upstream: Upstream
    ca: Path
    """Of an https upstream."""
    cache: Path
    run: Path
    """For its configuration and logs."""


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    version: Callable[[], str]
    """Raises Missing if it is not installed."""
    command: Callable[[Site], list[str]] | None
    """None: the clients ask the origin itself."""
    prefix: str = ""
    """Before each path of the origin."""
    lacks: frozenset[str] = frozenset()
    """Groups of cases in which it takes no part."""
    worker: str = ""
    """The title of its processes among which the kernel spreads the connections. That may leave one without any."""
    multiply: Callable[[Path, int], None] | None = None
    """Makes that many entries of the one in its cache, while it does not run. None: they are asked for, one by one."""

    def server(self, site: Site) -> Server:
        assert self.command
        env = {
            **clean_environment(),
            "FETCHONCE_CONFIG": str(site.run / "fetchonce.toml"),
            "FETCHONCE_UPSTREAM_CA_BUNDLE": str(site.ca),
            "PYTHONPATH": str(REPOSITORY),
        }
        return Server(self.command(site), site.port, site.run / "said", env)


def _fetchonce(site: Site) -> list[str]:
    # An empty configuration: the defaults, and not what this user has set.
    (site.run / "fetchonce.toml").touch()
    host = "localhost" if site.upstream.scheme == "https" else "127.0.0.1"  # as the certificate says
    mirror = f"bench={site.upstream.scheme}://{host}:{site.upstream.port}/"
    listen = "--listen", f"127.0.0.1:{site.port}"
    return [*FETCHONCE, "serve", *listen, "--cache-dir", str(site.cache), "--mirror", mirror]


def _nginx(site: Site, slice_directives: str = "") -> list[str]:
    config = filled_in(
        "nginx.conf",
        site.run / "nginx.conf",
        RUN=site.run,
        CACHE=site.cache,
        PORT=site.port,
        SCHEME=site.upstream.scheme,
        ORIGIN_PORT=site.upstream.port,
        CA=site.ca,
        SLICE=slice_directives,
    )
    nginx = program("nginx", "nginx-light")
    return [nginx, "-p", str(site.run), "-c", str(config), "-e", str(site.run / "nginx.error")]


def _nginx_slice(site: Site) -> list[str]:
    return _nginx(site, "slice 4m; proxy_set_header Range $slice_range; proxy_cache_key $uri$slice_range;")


def _varnish(site: Site, storage: str = "malloc,8G") -> list[str]:
    config = filled_in("varnish.vcl", site.run / "varnish.vcl", ORIGIN_PORT=site.upstream.port)
    options = [word for option in VARNISH_OPTIONS for word in ("-p", option)]
    command = [program("varnishd", "varnish"), "-j", "none", "-F", "-n", str(site.run / "varnish")]
    return [*command, "-a", f"127.0.0.1:{site.port}", "-f", str(config), "-s", f"main={storage}", *options]


def _varnish_file(site: Site) -> list[str]:
    return _varnish(site, f"file,{site.cache / 'store'},12G")


def _nginx_version() -> str:
    said = subprocess.run([program("nginx", "nginx-light"), "-v"], capture_output=True, text=True)
    return "nginx " + "".join(re.findall(r"nginx/([\d.]+)", said.stderr))


def _varnish_version() -> str:
    said = subprocess.run([program("varnishd", "varnish"), "-V"], capture_output=True, text=True)
    return "Varnish " + "".join(re.findall(r"varnish-([\d.]+)", said.stderr)[:1])


def _multiply(cache: Path, count: int) -> None:
    """Sidecars and bodies are the truth of our cache; the next start takes them into its index."""
    sidecars = Sidecars(cache / "blobs")
    (path,) = sidecars.directory.glob("*/*.json")
    entry, _ = sidecars.read(path)
    for number in range(1, count):
        body = b"%d" % number * 100
        below = f"multiplied/{number}"
        other = replace(
            entry,
            key=cache_key(entry.mirror, below, ""),
            url=f"{entry.url.rpartition('/')[0]}/{below}",
            head=replace(entry.head, length=len(body), generation=f"{number:032x}"),
            sha256=hashlib.sha256(body).hexdigest(),
            verified=None,
        )
        blob = sidecars.blob(other.sha256)
        blob.parent.mkdir(mode=0o700, exist_ok=True)
        sidecars.path(other).write_bytes(msgspec.json.encode(other))
        blob.write_bytes(body)


OURS = Peer("fetchonce", lambda: f"fetchonce {VERSION}", _fetchonce, "/bench", multiply=_multiply)
DIRECT = Peer("no proxy", lambda: "", None, lacks=frozenset({"stored", "unseen", "tls", "restart", "big"}))
# Varnish speaks no https to a backend, and forgets everything as it ends; without a file it keeps bodies in memory.
PEERS = (
    Peer("nginx", _nginx_version, _nginx, worker="nginx: worker"),
    Peer("nginx-slice", _nginx_version, _nginx_slice, worker="nginx: worker"),
    Peer("varnish", _varnish_version, _varnish, lacks=frozenset({"tls", "restart", "big"})),
    Peer("varnish-file", _varnish_version, _varnish_file, lacks=frozenset({"tls", "restart"})),
)
