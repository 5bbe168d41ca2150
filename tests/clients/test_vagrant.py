"""`vagrant box add` through us. It runs curl: HEAD with `Accept: application/json`, by whose Content-Type it tells
metadata from a box, then GET; it goes on with the half of a box that a broken run has left in its home."""

import asyncio
import hashlib
import io
import json
import os
import re
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.clients.tools import needs, run
from tests.harness import REPOSITORY, until

pytestmark = needs("vagrant")
DISK = os.urandom(4 << 20)
PATH = "/acme/boxes/web/versions/1.0.0/providers/virtualbox.box"


def packed():
    box = io.BytesIO()
    with tarfile.open(fileobj=box, mode="w") as tar:
        for name, data in (("metadata.json", b'{"provider": "virtualbox"}'), ("disk.img", DISK)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return box.getvalue()


BOX = packed()


def metadata(url):
    digest = {"checksum_type": "sha256", "checksum": hashlib.sha256(BOX).hexdigest()}
    versions = [{"version": "1.0.0", "providers": [{"name": "virtualbox", "url": url, **digest}]}]
    return json.dumps({"name": "acme/web", "versions": versions}).encode()


async def box_add(home, *arguments):
    """`vagrant box add`; the disk must be in the box that it has added."""
    env = {"VAGRANT_HOME": str(home), "VAGRANT_NO_PLUGINS": "1", "VAGRANT_CHECKPOINT_DISABLE": "1"}
    await run("vagrant", "box", "add", *arguments, env=env)
    (disk,) = home.glob("boxes/*/*/virtualbox/disk.img")
    assert disk.read_bytes() == DISK


def partial(home, url):
    """Where it keeps what has come of the box at `url`."""
    return home / "tmp" / f"box{hashlib.sha1(url.encode()).hexdigest()}"


@pytest.fixture
def box(origin):
    return origin.body(PATH, BOX).headers(cache_control="max-age=600")


async def test_vagrant_adds_a_box_by_its_metadata_and_two_at_once_are_one_fetch(origin, proxy, box, tmp_path):
    url = proxy.url(f"/u{PATH}")
    origin.body("/acme/web", metadata(url)).headers(content_type="application/json", cache_control="max-age=600")
    box.stall_at(len(BOX) // 2)
    both = asyncio.gather(*(box_add(tmp_path / str(number), proxy.url("/u/acme/web")) for number in range(2)))
    halves = [partial(tmp_path / str(number), url) for number in range(2)]
    await until(lambda: all(half.exists() and half.stat().st_size > 1 << 20 for half in halves), 60)
    box.release()
    await both
    assert origin.count(PATH, None) == origin.count("/acme/web") == 1
    origin.stop()
    await box_add(tmp_path / "third", proxy.url("/u/acme/web"))


async def test_the_class_of_the_readme_sends_boxes_through_us(origin, proxy, box, tmp_path):
    host = f"127.0.0.1:{origin.port}"  # speaks no TLS: nobody gets anything from it but by way of us
    origin.body("/acme/web", metadata(f"https://{host}{PATH}")).headers(content_type="application/json")
    (ruby,) = re.findall(r"```ruby\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    ruby = ruby.replace("8642", proxy.url("").rpartition(":")[2]).replace(r"vagrantcloud\.com", re.escape(host))
    (tmp_path / "Vagrantfile").write_text(ruby)
    await box_add(tmp_path, f"https://{host}/acme/web")
    assert origin.count(PATH) == 1
    assert proxy.accesses("GET", PATH)


async def test_vagrant_goes_on_with_its_half_of_a_box(origin, proxy, box, tmp_path):
    url = proxy.url(f"/u{PATH}")
    half = partial(tmp_path, url)
    half.parent.mkdir()
    half.write_bytes(BOX[: len(BOX) // 2])
    await box_add(tmp_path, "--name", "acme/web", url)
    (line,) = proxy.accesses("GET", PATH)
    assert "status=206" in line
    assert origin.count(PATH) == 1


class Negotiating(BaseHTTPRequestHandler):
    """A page for people and metadata for Vagrant at one URL, as Vagrant Cloud has it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        kind = "application/json" if self.headers["Accept"] == "application/json" else "text/html"
        body = self.server.json if kind == "application/json" else b"<!doctype html>"
        etag = f'"{kind}"'
        is_known = self.headers["If-None-Match"] == etag
        self.server.seen.append((self.command, kind))
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


async def test_vagrant_gets_metadata_where_a_browser_gets_a_page(origin, proxy_factory, box, cloud, tmp_path):
    proxy = proxy_factory(mirrors={"u": origin.url(), "cloud": f"http://127.0.0.1:{cloud.server_port}/"})
    cloud.json = metadata(proxy.url(f"/u{PATH}"))
    for number in range(2):
        page = await proxy.get("/cloud/acme/web", {"Accept": "text/html"})
        assert (page.headers["content-type"], page.body) == ("text/html", b"<!doctype html>")
        await box_add(tmp_path / str(number), proxy.url("/cloud/acme/web"))
    assert ("GET", "application/json") in cloud.seen
    assert origin.count(PATH) == 1
