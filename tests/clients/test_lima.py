"""The real limactl: images through a running fetchonce, and `fetchonce lima`."""

import asyncio
import json
import shutil
import subprocess
import sys

import pytest

from tests.clients.lima import snapshot
from tests.clients.tools import SEED, SIZE
from tests.harness import REPOSITORY, fetchonce, until
from tests.origin import pattern_bytes, pattern_sha256

pytestmark = pytest.mark.timeout(600)  # limactl is built once


def template(path, url, digest=None):
    """A template with one image; `plain` wants no nerdctl."""
    image = {"location": url, "digest": digest} if digest else {"location": url}
    path.write_text(json.dumps({"images": [{**image, "arch": arch} for arch in ("x86_64", "aarch64")], "plain": True}))
    return path


async def test_eight_limas_with_eight_caches_are_one_fetch(origin, proxy, image, tmp_path, homes, lima):
    url = proxy.url("/u/images/noble.img")
    vm = template(tmp_path / "vm.yaml", url, f"sha256:{pattern_sha256(SIZE, SEED)}")
    eight = [homes / str(number) for number in range(8)]
    for _, said in await asyncio.gather(*(lima.create(home, vm) for home in eight)):
        assert "Downloaded the image" in said
    for home in eight:
        assert lima.downloaded(home) == {url: pattern_bytes(SIZE, SEED)}
    assert origin.count("/images/noble.img") == 1
    assert origin.bytes_sent("/images/noble.img") == SIZE


async def test_lima_does_not_fetch_a_digestless_image_again(origin, proxy, image, tmp_path, homes, lima):
    vm = template(tmp_path / "vm.yaml", proxy.url("/u/images/noble.img"))
    _, first = await lima.create(homes, vm, name="a")
    assert "Downloaded the image" in first
    _, second = await lima.create(homes, vm, name="b")
    assert "Using cache" in second
    assert origin.count("/images/noble.img", None) == 1  # its HEAD was answered here
    assert len(await until(lambda: proxy.accesses("HEAD", "/images/noble.img"))) == 1
    origin.stop()
    await lima.create(homes, vm, name="c")


async def test_lima_tells_a_wrong_digest_and_shows_our_messages(proxy, image, tmp_path, homes, lima):
    wrong = template(tmp_path / "wrong.yaml", proxy.url("/u/images/noble.img"), f"sha256:{'0' * 64}")
    code, said = await lima.create(homes, wrong, check=False)
    assert code == 1
    assert f"got `sha256:{pattern_sha256(SIZE, SEED)}`" in said
    unknown = template(tmp_path / "unknown.yaml", proxy.url("/example.org/x.img"))
    code, said = await lima.create(homes, unknown, name="other", check=False)
    assert code == 1
    assert "--allow example.org" in said


@pytest.mark.skipif(not shutil.which("unshare"), reason="namespaces are Linux's")
def test_lima_with_no_option_goes_through_fetchonce_and_back(limactl, homes):
    apart = ("unshare", "--user", "--map-root-user", "--mount", "--net")
    done = subprocess.run(
        [*apart, sys.executable, "-m", "tests.clients.lima_net", *limactl, homes],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def ours(lima, tmp_path):
    """`fetchonce lima ...` of somebody whose home directory is tmp_path/home."""
    (tmp_path / "home").mkdir()

    def run(*args, code=0, **env):
        cache = {"FETCHONCE_CACHE_DIR": str(tmp_path / "cache")}
        return fetchonce("lima", *args, code=code, env={**lima.env(tmp_path / "home"), **cache, **env})

    return run


async def test_lima_takes_every_template_of_ours_for_valid(lima, ours, tmp_path):
    home = tmp_path / "home"
    ours("install")
    shadows = sorted((home / ".lima" / "_templates").rglob("*.yaml"))
    assert len(shadows) > 40
    _, said = await lima(home, "validate", *shadows)
    assert said.count("OK") == len(shadows)
    _, info = await lima(home, "info")
    told = json.loads(info[info.index("{") :])
    assert {each["location"] for each in told["templates"]} >= set(map(str, shadows))
    own, original, *_ = told["defaultTemplate"]["containerd"]["archives"]
    assert own == {**original, "location": "http://127.0.0.1:8642/" + original["location"].removeprefix("https://")}
    _, flat = await lima(home, "template", "copy", "--fill", "template:docker", "-")
    assert "http://127.0.0.1:8642/cloud-images.ubuntu.com/" in flat


def leave_few(templates):
    """Fewer templates: a command has less to read."""
    for file in (templates / "_images").glob("*.yaml"):
        if not file.name.startswith(("ubuntu", "debian-1")):
            file.unlink()


def test_a_second_install_changes_nothing_and_status_tells(lima, ours, tmp_path):
    leave_few(lima.templates)
    where = tmp_path / "home" / ".lima"
    images = where / "_templates" / "_images"
    ran = ours("status", code=1)
    assert ("not installed" in ran.stdout, ran.stderr) == (True, "")
    assert f"{images}/ubuntu.yaml\n" in ours("install", "--dry-run").stdout
    assert not where.exists()
    assert "wrote" in ours("install").stdout
    before = snapshot(where)
    assert "nothing to change" in ours("install").stdout
    assert snapshot(where) == before
    told = json.loads(ours("status", "--json").stdout)
    assert (told["lima"], told["proxy"]) == ("2.2.0", "http://127.0.0.1:8642")
    assert {each["state"] for each in told["files"]} == {"good"}
    changed = lima.templates / "_images" / "debian-13.yaml"
    changed.write_text(changed.read_text() + "# newer\n")
    (lima.templates / "_images" / "debian-11.yaml").unlink()
    said = ours("status", code=1).stdout
    assert f"stale: {images}/debian-13.yaml: its original has changed" in said
    assert f"unwanted: {images}/debian-11.yaml: its original is gone" in said
    said = ours("install", "--no-fallback", "--proxy", "http://10.0.0.1:80/").stdout
    assert "without fallback" in said
    assert "https://cloud-images" not in (images / "ubuntu.yaml").read_text()
    assert "goes through http://10.0.0.1:80, without fallback" in ours("status").stdout
    ran = ours("status", "--proxy", "http://127.0.0.1:1", code=1)
    assert "it leads to http://10.0.0.1:80" in ran.stdout
    assert "nothing answers at http://127.0.0.1:1: until fetchonce serves there, Lima can download" in ran.stderr
    ours("remove")
    assert not where.exists()
    assert "nothing of fetchonce" in ours("remove").stdout


def test_where_lima_looks_elsewhere_it_is_told(lima, ours, tmp_path):
    own = tmp_path / "home" / ".lima" / "_templates"
    leave_few(lima.templates)
    other = tmp_path / "my templates"
    other.mkdir()
    (other / "mine.yaml").write_text("images:\n- location: https://cloud-images.ubuntu.com/x.img\n")
    said = ours("install", LIMA_TEMPLATES_PATH=str(other)).stderr
    assert f"export LIMA_TEMPLATES_PATH='{own}:{other}'" in said
    assert [each.name for each in own.glob("*.yaml")] == ["mine.yaml"]
    ours("status", LIMA_TEMPLATES_PATH=str(other), code=1)
    ours("status", LIMA_TEMPLATES_PATH=f"{own}:{other}")


def test_without_limactl_the_templates_can_be_named(lima, ours, tmp_path):
    leave_few(lima.templates)
    nowhere = {"PATH": str(tmp_path)}
    assert "limactl is not in PATH" in ours("install", code=1, **nowhere).stderr
    (tmp_path / "limactl").write_text("#!/bin/sh\necho 'must not run as the root user' >&2\nexit 1\n")
    (tmp_path / "limactl").chmod(0o755)
    assert "(must not run as the root user)" in ours("install", code=1, **nowhere).stderr
    ran = ours("install", "--templates", lima.templates, **nowhere)
    assert "nerdctl's archives are left out" in ran.stderr
    assert (tmp_path / "home" / ".lima" / "_templates" / "_images" / "ubuntu.yaml").exists()
    assert not (tmp_path / "home" / ".lima" / "_config").exists()
    assert "it is of Lima unknown" in ours("status", code=1).stdout
    assert "no template in" in ours("install", "--templates", tmp_path / "home", code=1).stderr
    nowhere = {"LIMA_TEMPLATES_PATH": str(tmp_path / "nowhere")}
    assert f"in {tmp_path / 'nowhere'} (LIMA_TEMPLATES_PATH)" in ours("install", code=1, **nowhere).stderr
    assert "expected http://HOST:PORT" in ours("install", "--proxy", "127.0.0.1:8642", code=2).stderr
