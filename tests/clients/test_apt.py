"""apt and debootstrap on a small signed archive, by URL and by http_proxy.

apt asks for its indexes with `Cache-Control: max-age=0`, so each update asks the origin, on condition; what lies below
by-hash and pool is named by its content, or never changes.
"""

import asyncio
import gzip
import os
import shutil
import subprocess

import pytest

from tests.clients.tools import FORMS, needs, run, sha256, typed
from tests.harness import until

pytestmark = [needs("apt-ftparchive"), needs("dpkg-deb"), needs("gpg")]
PAYLOAD_BYTES = 8 << 20
RELEASE = "/debian/dists/stable/InRelease"


class Archive:
    """A suite `stable` of one component, signed, with by-hash indexes; publish() puts its state onto the origin."""

    def __init__(self, folder, home):
        self.folder = folder
        self.home = home
        self.key = home / "key.gpg"
        self.arch = subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()
        self.by_hash = True
        self.resources = {}

    def package(self, name, version="1", payload=b"", **fields):
        """Make it; its path in the archive and its file."""
        tree = self.folder.parent / f"{name}-{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "payload").write_bytes(payload)
        about = {"Package": name, "Version": version, "Architecture": "all", "Maintainer": "x", "Description": "x"}
        (tree / "DEBIAN/control").write_text("".join(f"{k}: {v}\n" for k, v in (about | fields).items()))
        pool = self.folder / "pool"
        pool.mkdir(parents=True, exist_ok=True)
        file = pool / f"{name}_{version}_all.deb"
        subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "-b", tree, file], check=True, capture_output=True)
        return f"/debian/pool/{file.name}", file

    def publish(self, origin):
        dist = self.folder / "dists/stable"
        packages = dist / f"main/binary-{self.arch}/Packages"
        packages.parent.mkdir(parents=True, exist_ok=True)
        packages.write_bytes(self._ftparchive("packages", "pool"))
        small = packages.with_suffix(".gz")
        small.write_bytes(gzip.compress(packages.read_bytes(), mtime=0))
        for file in (packages, small):
            named = packages.parent / "by-hash/SHA256" / sha256(file)
            named.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, named)
        about = {"Suite": "stable", "Codename": "stable", "Components": "main", "Architectures": self.arch}
        about |= {"Acquire-By-Hash": "yes"} if self.by_hash else {}
        fields = [text for k, v in about.items() for text in ("-o", f"APT::FTPArchive::Release::{k}={v}")]
        fields += ["-o", "APT::FTPArchive::Release::SHA512=no"]  # apt asks by the strongest it is told
        (dist / "Release").unlink(missing_ok=True)
        (dist / "Release").write_bytes(self._ftparchive(*fields, "release", "dists/stable"))
        gpg = ["gpg", "--batch", "--yes", "--quiet", "--homedir", self.home]
        subprocess.run([*gpg, "--clearsign", "-o", dist / "InRelease", dist / "Release"], check=True)
        for file in (file for file in self.folder.rglob("*") if file.is_file()):
            path, body = f"/debian/{file.relative_to(self.folder)}", file.read_bytes()
            if path not in self.resources:  # as the archive's own servers say it
                age = 2_592_000 if "/pool/" in path else 120
                self.resources[path] = origin.body(path, body).headers(cache_control=f"public, max-age={age}")
            else:
                self.resources[path].generation(body)

    def _ftparchive(self, *arguments):
        return subprocess.run(["apt-ftparchive", *arguments], cwd=self.folder, check=True, capture_output=True).stdout


@pytest.fixture
def archive(tmp_path, signer):
    return Archive(tmp_path / "archive", signer)


class Apt:
    """An apt of its own root, which knows nothing of this machine's."""

    def __init__(self, root, archive, base, http_proxy=None):
        self.archives = root / "var/cache/apt/archives"
        for folder in ("etc/apt/apt.conf.d", "etc/apt/preferences.d", "var/lib/dpkg", "var/lib/apt/lists/partial"):
            (root / folder).mkdir(parents=True)
        (self.archives / "partial").mkdir(parents=True)
        (root / "var/lib/dpkg/status").touch()
        (root / "etc/apt/sources.list").write_text(f"deb [signed-by={archive.key}] {base} stable main\n")
        settings = {"Dir": root, "Dir::State::status": root / "var/lib/dpkg/status", "APT::Architecture": archive.arch}
        settings |= {"APT::Sandbox::User": "root", "Acquire::Languages": "none", "Acquire::Retries": 0}
        settings |= {"Acquire::http::Proxy": http_proxy} if http_proxy else {}
        self._config = root / "apt.conf"
        self._config.write_text("".join(f'{k} "{v}";\n' for k, v in settings.items()))

    async def update(self):
        await self._get("update", "--error-on=any")

    async def fetch(self, name):
        """What `install` fetches for `name`, by file name."""
        await self._get("install", "--download-only", name)
        return {file.name: sha256(file) for file in self.archives.glob("*.deb")}

    async def _get(self, *arguments):
        await run("apt-get", "-y", *arguments, env={"APT_CONFIG": str(self._config)})


@pytest.fixture
def make_apt(tmp_path, archive, origin, proxy):
    made = iter(range(99))

    def make(form):
        base = origin.url("/debian")
        root = tmp_path / f"root-{next(made)}"
        if form == "as http_proxy":
            return Apt(root, archive, base, proxy.url())
        deb, _ = typed("apt", proxy, **{"deb.debian.org/debian": base.removeprefix("http://")})
        return Apt(root, archive, deb.split()[1])

    return make


@pytest.mark.parametrize("form", FORMS)
async def test_the_second_machine_gets_from_the_cache_what_the_first_has_fetched(
    origin, proxy, archive, make_apt, form
):
    names = [f"lib{number}" for number in range(12)]  # apt pipelines them on one connection
    made = [archive.package(name, payload=os.urandom(PAYLOAD_BYTES // 8)) for name in names]
    made.append(archive.package("once", Depends=", ".join(names)))
    archive.publish(origin)
    expected = {file.name: sha256(file) for _, file in made}
    for _ in range(2):
        apt = make_apt(form)
        await apt.update()
        assert await apt.fetch("once") == expected
    bodies = [request.path for request in origin.log if request.status == 200]
    assert len(set(bodies)) == len(bodies)  # none came twice
    assert {path for path, _ in made} < set(bodies)
    assert [request.status for request in origin.log if request.path == RELEASE] == [200, 304]
    assert any("/by-hash/SHA256/" in path for path in bodies)
    origin.stop()
    apt = make_apt(form)
    await apt.update()
    assert await apt.fetch("once") == expected


@pytest.mark.parametrize("by_hash", [True, False], ids=["by hash", "by name"])
async def test_apt_sees_a_new_release_at_once_and_its_indexes_belong_to_it(origin, proxy, archive, make_apt, by_hash):
    archive.by_hash = by_hash
    archive.package("once")
    archive.publish(origin)
    apt = make_apt("by URL")
    await apt.update()
    assert list(await apt.fetch("once")) == ["once_1_all.deb"]
    archive.package("once", "2")
    archive.publish(origin)
    await apt.update()
    assert sorted(await apt.fetch("once")) == ["once_1_all.deb", "once_2_all.deb"]
    first, second = (request for request in origin.log if request.path == RELEASE)
    assert (first.status, second.status) == (200, 200)
    assert "if-none-match" in second.headers
    assert any("/by-hash/" in request.path for request in origin.log) == by_hash
    requests = origin.requests
    await apt.update()  # nothing new: one question, and apt hears 304
    assert origin.requests == requests + 1
    await until(lambda: "status=304" in proxy.accesses("GET", "/InRelease")[-1])


async def test_apt_goes_on_with_its_half(origin, proxy, archive, make_apt):
    path, file = archive.package("once", payload=os.urandom(PAYLOAD_BYTES))
    archive.publish(origin)
    apt = make_apt("by URL")
    await apt.update()
    expected = await apt.fetch("once")
    whole = apt.archives / file.name
    half = apt.archives / "partial" / file.name
    for times in (1, 2):
        whole.rename(half)
        modified = half.stat().st_mtime  # apt's own If-Range: the Last-Modified that it has set
        os.truncate(half, PAYLOAD_BYTES // 2)
        os.utime(half, (modified, modified))
        assert await apt.fetch("once") == expected
        (line,) = await until(lambda before=times: proxy.accesses("GET", path.removeprefix("/debian"))[before:])
        assert "status=206" in line
    assert origin.count(path) == 1


@pytest.mark.parametrize("form", FORMS)
async def test_two_machines_at_once_are_one_fetch(origin, proxy, archive, make_apt, form):
    path, file = archive.package("once", payload=os.urandom(PAYLOAD_BYTES))
    archive.publish(origin)
    apts = [make_apt(form), make_apt(form)]
    await asyncio.gather(*(apt.update() for apt in apts))
    archive.resources[path].stall_at(PAYLOAD_BYTES // 2)
    both = asyncio.gather(*(apt.fetch("once") for apt in apts))
    await origin.stalled(path)
    halves = [apt.archives / "partial" / file.name for apt in apts]
    await until(lambda: all(half.exists() and half.stat().st_size > PAYLOAD_BYTES // 4 for half in halves))
    origin.release()
    assert await both == [{file.name: sha256(file)}] * 2
    assert origin.count(path) == 1
    assert origin.bytes_sent(path) == file.stat().st_size


@needs("debootstrap")
@pytest.mark.parametrize("form", FORMS)
async def test_debootstrap_gets_two_systems_from_one_fetch(origin, proxy, archive, tmp_path, form):
    made = [archive.package(name, payload=os.urandom(1 << 20), Priority="required") for name in ("dpkg", "apt")]
    archive.publish(origin)
    (_, line), env = typed("debootstrap", proxy, **{"deb.debian.org": "u"}), {}
    base = line.split()[-1]
    if form == "as http_proxy":
        base, env = origin.url("/debian"), {"http_proxy": proxy.url()}
    command = ["debootstrap", "--download-only", "--variant=minbase"]
    command += [f"--keyring={archive.key}", f"--arch={archive.arch}", "stable"]
    for number in range(2):
        await run(*command, tmp_path / f"system-{number}", base, env=env)
        got = (tmp_path / f"system-{number}/var/cache/apt/archives").glob("*.deb")
        assert sorted(map(sha256, got)) == sorted(sha256(file) for _, file in made)
    assert [origin.count(path) for path, _ in made] == [1, 1]
