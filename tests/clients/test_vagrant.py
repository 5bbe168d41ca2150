"""The real Vagrant, by the hook of `fetchonce vagrant install` and by VAGRANT_SERVER_URL.

`vagrant box add` runs curl: HEAD with `Accept: application/json`, by whose Content-Type it tells metadata from a box,
then GET. It goes on with the half of a box that a broken run has left in its home."""

import asyncio
import hashlib
import io
import json
import os
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.clients.tools import needs, run
from tests.harness import until

pytestmark = needs("vagrant")
DISK = os.urandom(4 << 20)
PATH = "/acme/boxes/web/versions/{}/providers/virtualbox.box"
NOWHERE = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}


def packed():
    box = io.BytesIO()
    with tarfile.open(fileobj=box, mode="w") as tar:
        for name, data in (("metadata.json", b'{"provider": "virtualbox"}'), ("disk.img", DISK)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return box.getvalue()


BOX = packed()


def metadata(base, *versions):
    digest = {"checksum_type": "sha256", "checksum": hashlib.sha256(BOX).hexdigest()}
    of = [
        {"version": each, "providers": [{"name": "virtualbox", "url": base + PATH.format(each), **digest}]}
        for each in versions
    ]
    return json.dumps({"name": "acme/web", "versions": of}).encode()


def environment(home, env=None):
    return {"VAGRANT_HOME": str(home), "VAGRANT_NO_PLUGINS": "1", "VAGRANT_CHECKPOINT_DISABLE": "1", **(env or {})}


async def vagrant(home, *arguments, env=None):
    """What it says; it must succeed."""
    _, out = await run("vagrant", *arguments, env=environment(home, env))
    return out.decode()


def boxes(home):
    """The versions of acme/web that are there, each with its disk."""
    found = list(home.glob("boxes/acme-VAGRANTSLASH-web/*/virtualbox/disk.img"))
    assert all(disk.read_bytes() == DISK for disk in found)
    return sorted(disk.parent.parent.name for disk in found)


def partial(home, url):
    """Where it keeps what has come of the box at `url`."""
    return home / "tmp" / f"box{hashlib.sha1(url.encode()).hexdigest()}"


OF_A_USER = b"""\
# -*- mode: ruby -*-\r
Vagrant.configure("2") do |config|\r
  config.vm.box_check_update = false\r
end\r
__END__\r
( no ruby, and no UTF-8: \xe9"""


async def test_with_the_hook_all_comes_through_us_and_what_vagrant_keeps_is_upstreams(origin, proxy_factory, tmp_path):
    config = f'[[mirror]]\nname = "u"\nupstreams = ["{origin.url()}"]\nrewrite = ["^/acme/web$"]\n'
    proxy = proxy_factory(mirrors={}, config_text=config)
    secure = f"https://127.0.0.1:{origin.port}"  # speaks no TLS: nobody gets anything from it but by way of us
    homes = [tmp_path / "one", tmp_path / "the other"]
    homes[0].mkdir()
    (homes[0] / "Vagrantfile").write_bytes(OF_A_USER)
    for home in homes:
        proxy.run("vagrant", "install", "--vagrant-home", str(home))
    web = origin.body("/acme/web", metadata(secure, "1.0.0"))
    web.headers(content_type="application/json", cache_control="max-age=0")
    box = origin.body(PATH.format("1.0.0"), BOX).headers(cache_control="max-age=600").stall_at(len(BOX) // 2)
    both = asyncio.gather(*(vagrant(home, "box", "add", f"{secure}/acme/web", env=NOWHERE) for home in homes))
    halves = [partial(home, secure + box.path) for home in homes]
    await until(lambda: both.done() or all(half.exists() and half.stat().st_size > 1 << 20 for half in halves), 60)
    box.release()
    await both
    assert origin.count(box.path, None) == 1
    kept = homes[0] / "boxes" / "acme-VAGRANTSLASH-web" / "metadata_url"
    assert [boxes(home) for home in homes] == [["1.0.0"], ["1.0.0"]]
    assert kept.read_text() == f"{secure}/acme/web"

    web.generation(metadata(secure, "1.0.0", "1.1.0"))
    origin.body(PATH.format("1.1.0"), BOX)
    said = await vagrant(homes[0], "box", "outdated", "--global", env=NOWHERE)
    assert "* 'acme/web' for 'virtualbox' is outdated! Current: 1.0.0. Latest: 1.1.0" in said
    await vagrant(homes[0], "box", "update", "--box", "acme/web", env=NOWHERE)
    assert boxes(homes[0]) == ["1.0.0", "1.1.0"]
    assert kept.read_text() == f"{secure}/acme/web"

    proxy.terminate()
    plain = origin.url("").rstrip("/")
    web.generation(metadata(plain, "1.2.0"))
    last = origin.body(PATH.format("1.2.0"), BOX)
    await vagrant(homes[0], "box", "add", f"{plain}/acme/web")
    assert boxes(homes[0]) == ["1.0.0", "1.1.0", "1.2.0"]
    assert origin.count(last.path) == 1
    proxy.run("vagrant", "remove", "--vagrant-home", str(homes[0]))
    assert (homes[0] / "Vagrantfile").read_bytes() == OF_A_USER
    proxy.run("vagrant", "remove", "--vagrant-home", str(homes[1]))
    assert not (homes[1] / "Vagrantfile").exists()


# Vagrant's own classes: what becomes of each download, as BoxAdd and Box begin it.
CASES = r"""
require "json"
require "vagrant"
require "vagrant/util/downloader"
environment = Vagrant::Environment.new(ui_class: Vagrant::UI::Silent)
environment.vagrantfile
require Vagrant.source_root.join("plugins/commands/cloud/auth/middleware/add_downloader_authentication")
VagrantPlugins::CloudCommand::AddDownloaderAuthentication.custom_host_notified! # else it waits for 5 s
found = JSON.parse(STDIN.read).map do |url, options|
  given = { headers: ["Accept: application/json"] }.merge(options.transform_keys(&:to_sym))
  download = Vagrant::Util::Downloader.new(url, "/nowhere", given)
  2.times { environment.hook(:authenticate_box_downloader, downloader: download) }
  [url, download.source, download.headers - ["Accept: application/json"], download.send(:options)[0].join(" ")]
end
puts JSON.dump(found)
"""


async def becomes(home, cases, **env):
    """For each URL its address, the added header fields, and the options for curl."""
    cases = json.dumps([each if isinstance(each, tuple) else (each, {}) for each in cases])
    process = await asyncio.create_subprocess_exec(
        *("ruby", "-e", CASES),
        env={"PATH": os.environ["PATH"], "HOME": str(home), **environment(home, env)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(cases.encode())
    assert process.returncode == 0
    return {url: (source, more, options) for url, source, more, options in json.loads(out)}


async def test_which_downloads_the_hook_leads_here(origin, proxy_factory, tmp_path):
    cloud = f"localhost:{origin.port}"
    config = f"""
        shipped_mirrors = false
        [access]
        token = "to+k/en"
        clients = ["192.0.2.1"]
        allow_hosts = ["*.allowed.example"]
        [[mirror]]
        name = "images"
        upstreams = ["https://images.example/pub/", "http://old.example:8080/"]
        [[mirror]]
        name = "cloud"
        upstreams = ["http://{cloud}/"]
        forward_authorization = false
    """
    proxy = proxy_factory(mirrors={}, config_text=config)
    own = proxy.url("").rstrip("/").replace("//", "//me:to+k%2Fen@")
    proxy.run("vagrant", "install", "--vagrant-home", str(tmp_path), "--proxy", own)
    origin.body("/public", b"{}")
    origin.body("/private", b"{}").status(404)
    leads = {
        "https://images.example/pub/a.box?b=c": f"{own}/https/images.example/pub/a.box?b=c",
        "HTTP://Images.Example/pub/A.box": f"{own}/http/images.example/pub/A.box",
        "http://old.example:8080/a": f"{own}/http/old.example:8080/a",
        "https://boxes.allowed.example/a": f"{own}/https/boxes.allowed.example/a",
        f"http://{cloud}/public": f"{own}/http/{cloud}/public",  # with a login, which stays behind
    }
    stay = [
        "https://images.example/elsewhere/a",
        "https://images.example",
        "https://images.example.evil/pub/a",
        "https://allowed.example/a",
        "https://other.example/https://images.example/pub/a",
        "file:///https://images.example/pub/a",
        "/tmp/images.example/pub/a.box",
        f"http://{cloud}/private",
        ("https://images.example/pub/1", {"auth": "me:mine"}),
        ("https://images.example/pub/2", {"client_cert": "/mine.pem"}),
    ]
    login = {"VAGRANT_SERVER_URL": f"http://{cloud}", "VAGRANT_CLOUD_TOKEN": "mine"}
    for url, (source, more, options) in (await becomes(tmp_path, [*leads, *stay], **login)).items():
        assert source == leads.get(url, url)
        theirs = ["Authorization: Bearer mine"] if url.endswith("/private") else []
        assert more == (["Cache-Control: no-transform"] if url in leads else theirs)
        assert ("--noproxy 127.0.0.1" in options) == (url in leads)
    assert origin.count("/public", None) == origin.count("/private", "HEAD") == 1

    proxy.terminate()
    urls = [*leads, "https://images.example/elsewhere/a"]
    assert {url: found[0] for url, found in (await becomes(tmp_path, urls, **login)).items()} == {
        url: url for url in urls
    }
    proxy.run("vagrant", "install", "--vagrant-home", str(tmp_path), "--proxy", own, "--no-fallback")
    found = await becomes(tmp_path, urls, **login)
    assert {url: source for url, (source, *_) in found.items()} == leads | {urls[-1]: urls[-1]}
    assert {line for _, more, _ in found.values() for line in more} == {"Cache-Control: no-transform"}


class Negotiating(BaseHTTPRequestHandler):
    """A page for people and metadata for Vagrant at one URL, as Vagrant Cloud has it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        kind = "application/json" if self.headers["Accept"] == "application/json" else "text/html"
        body = self.server.json if kind == "application/json" else b"<!doctype html>"
        etag = f'"{kind}"'
        is_known = self.headers["If-None-Match"] == etag
        self.server.seen.append((self.command, self.path, kind))
        self.send_response(304 if is_known else 200)
        fields = {"Content-Type": kind, "ETag": etag, "Vary": "Accept", "Cache-Control": "max-age=600"}
        for name, value in (fields if is_known else fields | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if not is_known and self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def cloud():
    with ThreadingHTTPServer(("127.0.0.1", 0), Negotiating) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_by_vagrant_server_url_alone_boxes_come_through_us_too(origin, proxy_factory, cloud, tmp_path):
    """And a browser gets a page where Vagrant gets metadata, and half a box that is there is gone on with."""
    config = f"""
        shipped_mirrors = false
        [[mirror]]
        name = "cloud"
        upstreams = ["http://127.0.0.1:{cloud.server_port}/"]
        rewrite = ['^/api/v2/vagrant/', '^/[^/]+/[^/]+/?$']
    """
    proxy = proxy_factory(config_text=config)
    cloud.json = metadata(f"https://127.0.0.1:{origin.port}", "1.0.0")
    box = origin.body(PATH.format("1.0.0"), BOX).headers(cache_control="max-age=600")
    half = partial(tmp_path, proxy.url(f"/127.0.0.1:{origin.port}{box.path}"))
    half.parent.mkdir()
    half.write_bytes(BOX[: len(BOX) // 2])
    page = await proxy.get("/cloud/acme/web", {"Accept": "text/html"})
    server = proxy.url(f"/127.0.0.1:{cloud.server_port}")
    await vagrant(tmp_path, "box", "add", "acme/web", env={"VAGRANT_SERVER_URL": server})
    assert boxes(tmp_path) == ["1.0.0"]
    assert origin.count(box.path) == 1
    (line,) = await until(lambda: proxy.accesses("GET", box.path))
    assert "status=206" in line
    assert ("GET", "/acme/web", "application/json") in cloud.seen
    again = await proxy.get("/cloud/acme/web", {"Accept": "text/html"})
    assert (again.headers["content-type"], again.body) == (page.headers["content-type"], page.body)
    assert page.body == b"<!doctype html>"
