"""Clients that live on ranges: nbdkit with its curl plugin, as KubeVirt imports disks; zsync, as quickget has it."""

import os

import pytest

from tests.clients.tools import SEED, SIZE, needs, run, sha256
from tests.harness import until
from tests.origin import pattern_bytes, pattern_sha256

PATH = "/images/noble.img"


@needs("nbdkit")
@needs("nbdcopy")
@pytest.mark.parametrize("filled", [False, True], ids=["nothing cached", "from disk"])
async def test_nbdkit_serves_the_image_as_a_disk(origin, proxy, image, tmp_path, filled):
    if filled:
        await (await proxy.stream(f"/u{PATH}")).sha256()
        await proxy.wait_idle()
    nbdkit = ("nbdkit", "-r", "-U", "-", "--filter=retry", "curl", f"url={proxy.url(f'/u{PATH}')}")
    await run(*nbdkit, "--run", f'nbdcopy --requests=4 "$uri" {tmp_path}/out.img')
    assert sha256(tmp_path / "out.img") == pattern_sha256(SIZE, SEED)
    ranges = await until(lambda: proxy.accesses("GET", PATH)[filled + 100 :] and proxy.accesses("GET", PATH)[filled:])
    assert all("status=206" in line for line in ranges)
    await proxy.wait_idle()
    assert origin.bytes_sent(PATH) < SIZE * 1.5


@needs("zsync")
@needs("zsyncmake")
@pytest.mark.parametrize("filled", [False, True], ids=["nothing cached", "from disk"])
async def test_zsync_fetches_only_what_has_changed(origin, proxy, image, tmp_path, filled):
    """It asks for several ranges in one request, and does so for ever if the answer is not quite like Apache's."""
    old, new = bytearray(pattern_bytes(SIZE, SEED)), tmp_path / "noble.img"
    new.write_bytes(old)
    for place in range(1 << 19, SIZE, 4 << 20):
        old[place : place + 5000] = os.urandom(5000)
    (tmp_path / "old.img").write_bytes(old)
    await run("zsyncmake", "-u", "noble.img", "-f", "noble.img", "-o", tmp_path / "control", new)
    origin.body(f"{PATH}.zsync", (tmp_path / "control").read_bytes())
    if filled:
        await (await proxy.stream(f"/u{PATH}")).sha256()
        await proxy.wait_idle()
    zsync = ("timeout", "60", "zsync", "-q", "-i", tmp_path / "old.img", "-o", tmp_path / "out.img")
    await run(*zsync, proxy.url(f"/u{PATH}.zsync"), cwd=tmp_path)
    assert sha256(tmp_path / "out.img") == pattern_sha256(SIZE, SEED)
    await until(lambda: any("status=206" in line for line in proxy.accesses("GET", PATH)))
    await proxy.wait_idle()
    assert origin.bytes_sent(PATH) < SIZE * 1.5
