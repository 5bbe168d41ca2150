"""simplestreams, the way to Ubuntu's images (MAAS, Multipass, LXD, uvtool): a signed index, the products it names, an
image with its digest. Canonical's own sstream-mirror, by URL and by http_proxy (as Incus fetches images)."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.tools import FORMS, SEED, SIZE, needs, run, sha256, typed
from tests.harness import until
from tests.origin import pattern_bytes, pattern_sha256

pytestmark = needs("gpg")
IMAGE = "/releases/server/noble/20261101/noble.img"
INDEX, PRODUCTS = "/releases/streams/v1/index.sjson", "/releases/streams/v1/com.example:released.sjson"


class Streams:
    """What a tree of images says about itself, in the versions published so far."""

    def __init__(self, origin, signer):
        self._origin = origin
        self._signer = signer
        self._versions = {}
        self._resources = {}

    def publish(self, version, path, size, digest):
        item = {"ftype": "disk.img", "path": path.removeprefix("/releases/"), "size": size, "sha256": digest}
        self._versions[version] = {"items": {"disk.img": item}}
        product = {"arch": "amd64", "release": "noble", "versions": self._versions}
        about = {"datatype": "image-downloads", "format": "products:1.0", "content_id": "com.example:released"}
        self._put(PRODUCTS, about | {"products": {"com.example.server:24.04:amd64": product}})
        entry = about | {"path": PRODUCTS.removeprefix("/releases/"), "products": ["com.example.server:24.04:amd64"]}
        self._put(INDEX, {"format": "index:1.0", "index": {"com.example:released": entry}})

    def _put(self, path, said):
        gpg = ["gpg", "--batch", "--homedir", self._signer, "--clearsign"]
        body = subprocess.run(gpg, input=json.dumps(said, indent=1).encode(), capture_output=True, check=True).stdout
        if path in self._resources:
            self._resources[path].generation(body)
        else:
            self._resources[path] = self._origin.body(path, body)


@pytest.fixture
def streams(origin, signer):
    origin.pattern(IMAGE, SIZE, SEED)
    streams = Streams(origin, signer)
    streams.publish("20261101", IMAGE, SIZE, pattern_sha256(SIZE, SEED))
    return streams


@pytest.fixture
def proxy(origin, proxy_factory):
    moving = f"[[mirror]]\nname = 'm'\nupstreams = ['{origin.url()}']\nmoving = ['/streams/']\nttl = '0s'\n"
    return proxy_factory(config_text=moving, mirrors={})


@pytest.fixture
def mirror(origin, proxy, signer):
    """sstream-mirror into a folder; what images are there, by path."""

    async def mirror(form, folder):
        (line,), env = typed("sstream-mirror", proxy, **{"cloud-images.ubuntu.com": "m"}), {}
        url = line.split()[1]
        if form == "as http_proxy":
            url, env = origin.url(INDEX), {"http_proxy": proxy.url()}
        program = Path(sys.executable).with_name("sstream-mirror")
        await run(program, f"--keyring={signer / 'key.gpg'}", url, folder, env=env)
        return {f"/releases/{file.relative_to(folder)}": sha256(file) for file in folder.rglob("*.img")}

    return mirror


@pytest.mark.parametrize("form", FORMS)
async def test_two_mirrors_at_once_are_one_fetch_and_a_later_one_needs_no_upstream(
    origin, proxy, streams, mirror, tmp_path, form
):
    expected = {IMAGE: pattern_sha256(SIZE, SEED)}
    assert await asyncio.gather(*(mirror(form, tmp_path / str(number)) for number in range(2))) == [expected] * 2
    assert origin.count(IMAGE) == 1
    assert origin.bytes_sent(IMAGE) == SIZE
    assert len([request for request in origin.log if request.path == INDEX and request.status == 200]) == 1
    origin.stop()
    assert await mirror(form, tmp_path / "later") == expected


async def test_a_new_version_is_seen_at_once_and_only_that_is_fetched(origin, proxy, streams, mirror, tmp_path):
    await mirror("by URL", tmp_path / "here")
    newer = IMAGE.replace("20261101", "20261102")
    origin.pattern(newer, SIZE, SEED + 1)
    streams.publish("20261102", newer, SIZE, pattern_sha256(SIZE, SEED + 1))
    expected = {IMAGE: pattern_sha256(SIZE, SEED), newer: pattern_sha256(SIZE, SEED + 1)}
    assert await mirror("by URL", tmp_path / "here") == await mirror("by URL", tmp_path / "there") == expected
    assert origin.count(IMAGE) == origin.count(newer) == 1
    seen = [request.status for request in origin.log if request.path == PRODUCTS]
    assert seen.count(200) == 2  # one for each version
    assert set(seen) == {200, 304}


async def test_it_goes_on_with_its_half(origin, proxy, streams, mirror, tmp_path):
    half = tmp_path / f"{IMAGE.removeprefix('/releases/')}.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(pattern_bytes(SIZE, SEED, 0, SIZE // 2))
    assert await mirror("by URL", tmp_path) == {IMAGE: pattern_sha256(SIZE, SEED)}
    (line,) = await until(lambda: proxy.accesses("GET", IMAGE))
    assert "status=206" in line
