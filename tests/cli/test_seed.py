"""`seed`: Lima's and minikube's own caches. tests/clients/test_seed.py has the real Lima look into them."""

import fcntl
import hashlib
import os
import signal
from pathlib import Path

import pytest

from tests.cli.commands import BODY, FRESH, QUICK_SECONDS, blob_of
from tests.cli.test_prefetch import SHA256, WRONG, template

SHA512 = f"sha512:{hashlib.sha512(BODY).hexdigest()}"
CHANGED = "Wed, 15 Jul 2026 10:00:00 GMT"
PRELOAD = "preloaded-images-k8s-v18-v1.34.0-docker-overlay2-amd64.tar.lz4"


@pytest.fixture
def home(tmp_path):
    """A home, and the environment that has it. Lima's cache is in it, wherever this machine's Lima has it."""
    return {"HOME": str(tmp_path), "XDG_CACHE_HOME": "", "MINIKUBE_HOME": ""}


@pytest.fixture
def into(tmp_path):
    return tmp_path / "lima's cache"


@pytest.fixture
def seed(cli, into):
    """`seed lima` into a directory of the test's own."""

    def seed(*args, **more):
        return cli("seed", "lima", "--into", str(into), *args, **more)

    return seed


def kept(into, url) -> Path:
    return into / "download" / "by-url-sha256" / hashlib.sha256(url.encode()).hexdigest()


def files(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("with_server", [False, True], ids=["alone", "with a server"])
def test_lima_gets_what_it_would_have_downloaded(origin, cli, seed, into, proxy_factory, tmp_path, with_server):
    if with_server:
        proxy_factory(cache_dir=cli.cache_dir)
    url, plain = origin.url("/noble.img"), origin.url("/plain.img")
    for path in ("/noble.img", "/plain.img"):
        origin.body(path, BODY).headers(last_modified=CHANGED, content_type="application/x-qemu", cache_control=FRESH)
    vm = template(tmp_path / "vm.yaml", {"location": url, "digest": SHA512, "kernel": {"location": plain}})
    image, kernel = seed("--json", vm).json()
    assert (image["url"], image["state"], image["size"]) == (url, "seeded", len(BODY))
    assert image["how"] in ("reflink", "hard link")
    assert (Path(image["path"]), kernel["url"]) == (kept(into, url) / "data", plain)
    common = {"data": BODY, "time": CHANGED.encode(), "type": b"application/x-qemu"}
    assert files(kept(into, url)) == {**common, "url": url.encode(), "sha512.digest": SHA512.encode()}
    assert files(kept(into, plain)) == {**common, "url": plain.encode()}
    origin.stop()  # what Lima has is not asked for again
    again = seed(template(tmp_path / "vm.yaml", {"location": url, "digest": SHA512}))
    assert (again.out, again.err) == (f"present  {url}\n", "")
    assert origin.requests == 2


def test_by_default_it_is_where_this_machines_lima_looks(origin, cli, home, tmp_path):
    origin.body("/noble.img", BODY)
    ran = cli("seed", "lima", origin.url("/noble.img"), env=home)
    assert f"seeded   {origin.url('/noble.img')} (1.0 MB, " in ran.out
    own = [tmp_path / ".cache" / "lima", tmp_path / "Library" / "Caches" / "lima"]
    assert [kept(each, origin.url("/noble.img")).exists() for each in own].count(True) == 1


def test_the_name_of_our_own_url_is_upstreams(origin, seed, into):
    origin.body("/noble.img", BODY).headers(cache_control=FRESH)
    for spelling in ("/u/noble.img", f"http://127.0.0.1:8642/http/{origin.url('/noble.img').partition('//')[2]}"):
        seed(spelling)
    assert [path.parent.name for path in into.rglob("url")] == [kept(into, origin.url("/noble.img")).name]


def test_a_body_that_is_not_what_the_template_says_is_not_seeded(origin, seed, into, tmp_path):
    origin.body("/noble.img", BODY)
    ran = seed(template(tmp_path / "vm.yaml", {"location": origin.url("/noble.img"), "digest": WRONG}), code=1)
    assert WRONG in ran.err
    assert not ran.out
    assert not into.exists()


def test_what_lima_made_of_another_body_goes_with_it(origin, seed, into, tmp_path):
    """A newer template: another digest for the same URL. Lima would refuse what it has, or boot what it made of it."""
    url = origin.url("/noble.img")
    origin.body("/noble.img", BODY)
    old = kept(into, url)
    (old / "imgconv").mkdir(parents=True)
    for name in ("data", "sha256.digest", "sha512.digest", "imgconv/raw", "imgconv/raw.digest"):
        (old / name).write_text("old")
    seed(template(tmp_path / "vm.yaml", {"location": url, "digest": SHA256}))
    assert {path.name for path in old.iterdir()} == {"data", "url", "time", "type", "sha256.digest"}
    assert (old / "data").read_bytes() == BODY


def test_who_names_no_digest_takes_nobodys_away(origin, seed, into, tmp_path):
    url = origin.url("/noble.img")
    origin.body("/noble.img", BODY).headers(last_modified=None, cache_control=FRESH)
    seed(template(tmp_path / "vm.yaml", {"location": url, "digest": SHA256}))
    assert seed(url).out == f"present  {url}\n"
    assert "sha256.digest" in files(kept(into, url))


def test_another_file_system_gets_a_copy(origin, cli, tmp_path):
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        shm = Path("/run")
    origin.body("/noble.img", BODY)
    into = shm / f"fetchonce-test-{os.getpid()}"
    try:
        ran = cli("seed", "lima", "--into", str(into), origin.url("/noble.img"))
        assert ran.out.endswith("(1.0 MB, copy)\n")
        assert (kept(into, origin.url("/noble.img")) / "data").read_bytes() == BODY
    finally:
        for path in sorted(into.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        into.rmdir()


def test_two_at_once_wait_for_lima_and_then_for_each_other(origin, cli, into, tmp_path):
    url = origin.url("/noble.img")
    origin.body("/noble.img", BODY).headers(cache_control=FRESH)
    vm = template(tmp_path / "vm.yaml", {"location": url, "digest": SHA256})
    kept(into, url).mkdir(parents=True)
    held = os.open(kept(into, url), os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = [cli.start("seed", "lima", "--into", str(into), vm) for _ in range(3)]
        for each in waiting:
            while not (line := each.stderr.readline()).startswith("waiting"):
                assert line
            assert str(kept(into, url)) in line
        cli.end(waiting.pop(), signal.SIGINT, code=130, within=QUICK_SECONDS)
    finally:
        os.close(held)
    assert sorted(cli.end(each).out.split()[0] for each in waiting) == ["present", "seeded"]
    assert set(files(kept(into, url))) == {"data", "url", "time", "type", "sha256.digest"}
    assert origin.requests == 1


def test_a_cache_that_cannot_be_written(origin, seed, into):
    origin.body("/noble.img", BODY)
    into.write_text("a file")
    ran = seed(origin.url("/noble.img"), code=1)
    assert f"{into}/download" in ran.err
    assert "cannot be written: Not a directory" in ran.err


def test_of_several_those_that_can_be_had_are_seeded(origin, seed, into, tmp_path):
    origin.body("/noble.img", BODY)
    vm = template(tmp_path / "vm.yaml", {"location": origin.url("/gone.img")}, {"location": origin.url("/noble.img")})
    ran = seed(vm, "https://other.example/a.img", str(tmp_path / "none.yaml"), code=1)
    assert ran.out.startswith(f"seeded   {origin.url('/noble.img')} ")
    assert len(ran.out.splitlines()) == 1
    assert "no mirror is configured for other.example" in ran.err
    assert "there is no file" in ran.err
    states = [each["state"] for each in seed("--json", vm, str(tmp_path / "none.yaml"), code=1).json()]
    assert states == ["failed", "present"]


# -- minikube ----------------------------------------------------------------------------------------------------------


def test_minikube_finds_isos_and_preloads(origin, cli, home, tmp_path):
    """It uses what is at these paths without looking further, if it is not empty (pkg/minikube/download)."""
    paths = {
        f"/v18/v1.34.0/{PRELOAD}": f"preloaded-tarball/{PRELOAD}",
        "/iso/minikube-v1.37.0-arm64.iso": "iso/arm64/minikube-v1.37.0-arm64.iso",
    }
    for path in paths:
        origin.body(path, BODY).headers(cache_control=FRESH)
    urls = [origin.url(path) for path in paths]
    told = cli("seed", "minikube", "--json", *urls, env=home).json()
    cache = tmp_path / ".minikube" / "cache"
    assert [each["path"] for each in told] == [str(cache / path) for path in paths.values()]
    found = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    assert found == {cache / path: BODY for path in paths.values()}
    assert cli("seed", "minikube", *urls, env=home).out == "".join(f"present  {url}\n" for url in urls)
    preload = cache / "preloaded-tarball" / PRELOAD
    blob = blob_of(cli, urls[0])
    preload.unlink()
    preload.write_bytes(BODY[:-1] + b"?")  # half a download
    assert cli("seed", "minikube", urls[0], env={**home, "MINIKUBE_HOME": str(tmp_path)}).out.startswith("seeded ")
    assert preload.read_bytes() == blob.read_bytes() == BODY
    ran = cli("seed", "minikube", origin.url("/kubectl"), env=home, code=1)
    assert f"{origin.url('/kubectl')}: this is neither an ISO nor a preload of minikube's" in ran.err
    assert origin.requests == 2
