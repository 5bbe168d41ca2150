"""The real limactl: images through a running fetchonce, and `fetchonce lima`."""

import asyncio
import json

import pytest

from tests.clients.tools import SEED, SIZE
from tests.origin import pattern_bytes, pattern_sha256

pytestmark = pytest.mark.timeout(600)  # limactl is built once


def template(path, url, digest=None):
    """A template with one image; `plain` wants no nerdctl."""
    image = {"location": url, "digest": digest} if digest else {"location": url}
    path.write_text(json.dumps({"images": [{**image, "arch": arch} for arch in ("x86_64", "aarch64")], "plain": True}))
    return path


async def test_eight_limas_with_eight_caches_are_one_fetch(origin, proxy, image, tmp_path, lima):
    url = proxy.url("/u/images/noble.img")
    vm = template(tmp_path / "vm.yaml", url, f"sha256:{pattern_sha256(SIZE, SEED)}")
    homes = [tmp_path / str(number) for number in range(8)]
    for _, said in await asyncio.gather(*(lima.create(home, vm) for home in homes)):
        assert "Downloaded the image" in said
    for home in homes:
        assert lima.downloaded(home) == {url: pattern_bytes(SIZE, SEED)}
    assert origin.count("/images/noble.img") == 1
    assert origin.bytes_sent("/images/noble.img") == SIZE


async def test_lima_does_not_fetch_a_digestless_image_again(origin, proxy, image, tmp_path, lima):
    vm = template(tmp_path / "vm.yaml", proxy.url("/u/images/noble.img"))
    _, first = await lima.create(tmp_path, vm, name="a")
    assert "Downloaded the image" in first
    _, second = await lima.create(tmp_path, vm, name="b")
    assert "Using cache" in second
    assert origin.count("/images/noble.img", None) == 1  # its HEAD was answered here
    assert len(proxy.accesses("HEAD", "/images/noble.img")) == 1
    origin.stop()
    await lima.create(tmp_path, vm, name="c")


async def test_lima_tells_a_wrong_digest_and_shows_our_messages(origin, proxy, image, tmp_path, lima):
    wrong = template(tmp_path / "wrong.yaml", proxy.url("/u/images/noble.img"), f"sha256:{'0' * 64}")
    code, said = await lima.create(tmp_path, wrong, check=False)
    assert code == 1
    assert f"got `sha256:{pattern_sha256(SIZE, SEED)}`" in said
    unknown = template(tmp_path / "unknown.yaml", proxy.url("/example.org/x.img"))
    code, said = await lima.create(tmp_path, unknown, name="other", check=False)
    assert code == 1
    assert "--allow example.org" in said
