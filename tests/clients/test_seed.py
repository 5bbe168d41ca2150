"""`seed` and templates with the real Lima: it finds what is seeded, and agrees about what a template wants."""

import asyncio
import hashlib
import json
import re

import pytest

from proxy.tools.wanted import Choice, read
from tests.cli.commands import CONFIG
from tests.harness import fetchonce
from tests.origin import pattern_bytes

pytestmark = pytest.mark.timeout(600)  # limactl is built once

BODY = pattern_bytes(3 << 20, 5)
SHA256, SHA512 = (f"{name}:{hashlib.new(name, BODY).hexdigest()}" for name in ("sha256", "sha512"))
ARCHES = ("x86_64", "aarch64")


@pytest.fixture
def home(origin, lima, homes):
    """The home of somebody whose template:ubuntu, and whose nerdctl, come from the origin."""
    newest = (lima.templates / "_images" / "ubuntu.yaml").resolve()
    text = newest.read_text().replace("https://cloud-images.ubuntu.com/", origin.url("/"))
    newest.write_text(re.sub("sha256:[0-9a-f]{64}", SHA256, text))
    for path in {url.removeprefix(origin.url("")) for url in re.findall(r"http://[^\"\s]+", text)}:
        origin.body(path, BODY)
    origin.body("/nerdctl.tgz", BODY)
    archives = [{"location": origin.url("/nerdctl.tgz"), "arch": arch, "digest": SHA512} for arch in ARCHES]
    home = homes / "home"
    (home / ".lima" / "_config").mkdir(parents=True)
    (home / ".lima" / "_config" / "default.yaml").write_text(json.dumps({"containerd": {"archives": archives}}))
    return home


@pytest.fixture
def seed(origin, tmp_path, lima):
    """`fetchonce seed lima` of somebody with that home; the lines it prints."""
    config = tmp_path / "fetchonce.toml"
    config.write_text(CONFIG.format(origin=origin.url()))

    def seed(home, template):
        ours = {"FETCHONCE_CONFIG": str(config), "FETCHONCE_CACHE_DIR": str(tmp_path / "cache")}
        ran = fetchonce("seed", "lima", template, env={**lima.env(home), **ours})
        assert "limactl info" not in ran.stderr  # it could be asked
        return [line.split()[0] for line in ran.stdout.splitlines()]

    return seed


@pytest.mark.parametrize("is_running", [True, False], ids=["beside a server", "alone"])
async def test_what_is_seeded_lima_asks_nobody_for(origin, proxy_factory, lima, home, seed, tmp_path, is_running):
    if is_running:
        proxy_factory(cache_dir=tmp_path / "cache")
    assert seed(home, "template:ubuntu") == ["seeded", "seeded"]
    asked = origin.requests
    origin.stop()
    _, said = await lima.create(home, "template:ubuntu")
    assert (said.count("Using cache"), said.count("Downloaded")) == (2, 0)
    assert list(lima.downloaded(home).values()) == [BODY, BODY]
    assert origin.requests == asked == 2
    assert seed(home, "template:ubuntu") == ["present", "present"]


async def test_without_a_digest_lima_asks_once_and_keeps_what_is_seeded(origin, lima, seed, homes):
    url = origin.url("/noble.img")
    origin.body("/noble.img", BODY)
    vm = homes / "vm.yaml"
    vm.write_text(json.dumps({"images": [{"location": url, "arch": arch} for arch in ARCHES], "plain": True}))
    assert seed(homes, vm) == ["seeded"]
    _, said = await lima.create(homes, vm)
    assert "Using cache" in said
    assert [request.method for request in origin.log] == ["GET", "HEAD"]


async def test_what_templates_want_is_what_lima_makes_of_them(lima, tmp_path, monkeypatch):
    """All templates can be read, by their links too; and of some, Lima itself says what their images are."""
    monkeypatch.setenv("LIMA_TEMPLATES_PATH", str(lima.templates))
    files = sorted(lima.templates.rglob("*.yaml"))
    names = [str(file.relative_to(lima.templates).with_suffix("")) for file in files]
    assert {"ubuntu", "_images/ubuntu-lts", "docker", "experimental/vnc"} <= set(names)
    assert len(names) > 90
    for name in names:
        if name.startswith("_default/"):
            continue
        found = read(f"template:{name}", Choice(all_arch=True))
        if name == "experimental/fedora-rawhide":  # its images are made by a plug-in of Lima's
            assert "its base fedora-rawhide:" in found.troubles[0]
        else:
            assert not found.troubles
            assert found.wanted

    async def agrees(name):
        _, said = await lima(tmp_path / "home", "template", "yq", f"template:{name}", "[.images[].location]")
        locations = re.findall(r"https?://[^\"\s]+", said)
        found = read(f"template:{name}", Choice(all_arch=True)).wanted
        assert {turn.url for each in found for turn in each.all()} == set(locations)

    some = ["ubuntu", "default", "k8s", "alpine", "macos", "experimental/opensuse-tumbleweed"]
    await asyncio.gather(*map(agrees, some))
