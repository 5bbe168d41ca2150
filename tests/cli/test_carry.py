"""`export` and `import`: a cache as one file."""

import asyncio
import os
import pty
import signal
import subprocess
import tarfile

import pytest

from tests.cli.commands import BIG, BODY, FRESH, QUICK_SECONDS, Cli, blob_of
from tests.harness import until

VOLATILE = {"age", "cache-status", "date", "via"}


@pytest.fixture
def there(cli, tmp_path):
    """The commands on another machine: with the same mirrors, and an empty cache."""
    other = Cli(tmp_path / "there", cli.config)
    yield other
    for process in other.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def pipe(there):
    """An import that reads from a pipe, and the pipe's other end."""
    reading, writing = os.pipe()
    process = there.start("import", "-", fds={"stdin": reading})
    os.close(reading)
    with open(writing, "wb", buffering=0) as file:
        yield process, file


def archived(cli, tmp_path, *patterns):
    path = tmp_path / "carried.tar"
    cli("export", str(path), *patterns)
    return path


def middle(archive, size):
    """An offset in the middle of the body of that size."""
    with tarfile.open(archive) as tar:
        return next(info.offset_data + size // 2 for info in tar if info.size == size)


async def answers(proxy, urls):
    """What a client sees, without what belongs to the moment."""
    found = {}
    for url in urls:
        for method in ("GET", "HEAD"):
            answer = await proxy.get(f"/u{url}", {"Accept-Language": "de"}, method=method)
            kept = {name: value for name, value in answer.headers.items() if name not in VOLATILE}
            found[method, url] = answer.status, kept, answer.body
    return found


async def test_what_was_exported_is_served_elsewhere_without_a_network(origin, cli, there, proxy_factory, tmp_path):
    sums = "".join(f"{'0' * 64}  {name}\n" for name in ("x", "y")).encode()
    urls = {
        "/noble.img": origin.body("/noble.img", BODY).headers(etag='"upstream"'),
        "/same.img": origin.body("/same.img", BODY).headers(cache_control=FRESH),
        "/no-tag.img?x=1": origin.body("/no-tag.img?x=1", BODY[:9]).headers(etag=None, last_modified=None),
        "/vary.txt": origin.body("/vary.txt", b"de").headers(vary="Accept-Language", content_type="text/plain"),
        "/SHA256SUMS": origin.body("/SHA256SUMS", sums),
        "/empty.img": origin.body("/empty.img", b""),
    }
    here = proxy_factory(cache_dir=cli.cache_dir)
    await answers(here, urls)  # brings them in
    await here.wait_stored(len(urls))
    before = await answers(here, urls)
    cli("pin", "*same*")
    path = archived(cli, tmp_path)
    here.terminate()
    asked = origin.requests

    ran = there("import", str(path))
    assert ran.out == f"imported {len(urls)} URLs (1.0 MB)\n"
    far = proxy_factory("--offline", cache_dir=there.cache_dir)
    assert await answers(far, urls) == before
    tag = before["GET", "/no-tag.img?x=1"][1]["etag"]
    assert (await far.get("/u/no-tag.img?x=1", {"If-None-Match": tag})).status == 304
    assert origin.requests == asked
    told = {"url", "mirror", "size", "digest", "verified", "state", "pinned", "stored_at", "validated_at", "headers"}
    both = [{url: {name: each[name] for name in told} for url, each in cli.ls().items()} for cli in (cli, there)]
    assert both[0] == both[1]
    assert [url for url, each in both[1].items() if each["pinned"]] == [origin.url("/same.img")]


def test_patterns_are_those_of_ls_and_urls_in_any_spelling(origin, cli, tmp_path):
    for path in ("/noble/a.img", "/noble/a.iso", "/jammy/a.img"):
        origin.body(path, BODY)
    cli("prefetch", "/u/noble/a.img", "/u/noble/a.iso", "/u/jammy/a.img")
    given = {
        (): ["/jammy/a.img", "/noble/a.img", "/noble/a.iso"],
        ("noble",): ["/noble/a.img", "/noble/a.iso"],
        ("*.img", "jammy"): ["/jammy/a.img", "/noble/a.img"],
        ("/u/noble/a.iso",): ["/noble/a.iso"],
    }
    lines = [
        ["export", "--json", str(tmp_path / f"{len(each)}{''.join(each)[:3].strip('/*')}.tar"), *each] for each in given
    ]
    for expected, ran in zip(given.values(), cli.together(*lines), strict=True):
        assert [each["url"] for each in ran.json()] == [origin.url(path) for path in expected]
    path = tmp_path / "some.tar"
    ran = cli("export", str(path), "jammy", "focal", code=1)
    assert ran.out == f"exported 1 URL (1.0 MB) to {path}\n"
    assert "matches focal" in ran.err
    before = path.read_bytes()
    said = cli("export", str(path), "focal", "noble-2", code=1).err
    assert said == (
        f"fetchonce: nothing whole that matches focal or noble-2 is stored in {cli.cache_dir}. {path} was not written\n"
    )
    assert path.read_bytes() == before


def test_from_standard_output_to_standard_input(origin, cli, there):
    origin.body("/a.img", BODY)
    cli("prefetch", "/u/a.img")
    reading, writing = os.pipe()
    out = cli.start("export", "-", fds={"stdout": writing})
    into = there.start("import", "--json", "-", fds={"stdin": reading})
    os.close(reading)
    os.close(writing)
    assert cli.end(out).err.splitlines()[-1] == "exported 1 URL (1.0 MB) to standard output"
    assert [each["url"] for each in there.end(into).json()] == [origin.url("/a.img")]
    assert blob_of(there, origin.url("/a.img")).read_bytes() == BODY


def test_an_archive_is_whole_or_not_there(origin, cli, tmp_path):
    origin.body("/a.img", BODY)
    cli("prefetch", "/u/a.img")
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "x.tar"
    path.write_bytes(b"the old one")
    limited = ["sh", "-c", 'ulimit -f 500; exec "$@"', "sh", *cli.command("export", str(path))]
    ran = subprocess.run(limited, env=cli.env(None), capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert f"{path} was not written: File too large" in ran.stderr
    assert [each.name for each in path.parent.iterdir()] == ["x.tar"]
    assert path.read_bytes() == b"the old one"
    link = tmp_path / "link.tar"
    link.symlink_to(path)
    cli("export", str(link))
    assert link.is_symlink()
    assert tarfile.is_tarfile(path)
    assert [each.name for each in path.parent.iterdir()] == ["x.tar"]
    cli("export", "/dev/null")
    assert os.path.exists("/dev/null")
    assert not os.path.isfile("/dev/null")


def test_what_is_damaged_is_left_out_and_said(origin, cli, there, tmp_path):
    for name in "ab":
        origin.body(f"/{name}.img", os.urandom(1000))
    cli("prefetch", "/u/a.img", "/u/b.img")
    blob_of(cli, origin.url("/a.img")).write_bytes(bytes(1000))
    path = tmp_path / "x.tar"
    ran = cli("export", str(path), code=1)
    assert f"not exported: {origin.url('/a.img')}: expected sha256:" in ran.err
    assert [each["url"] for each in there("import", "--json", str(path)).json()] == [origin.url("/b.img")]


# -- beside a running server -------------------------------------------------------------------------------------------


async def test_a_server_has_at_once_what_is_imported(origin, cli, there, proxy_factory, tmp_path):
    origin.body("/a.img", BODY).headers(cache_control=FRESH)
    cli("prefetch", "/u/a.img")
    path = archived(cli, tmp_path)
    far = proxy_factory("--offline", cache_dir=there.cache_dir)
    assert (await far.get("/u/a.img")).status == 504
    there("import", str(path))
    answer = await far.get("/u/a.img")
    assert (answer.headers["cache-status"], answer.body) == ("fetchonce; hit", BODY)


async def test_an_import_leaves_a_running_fill_alone(origin, cli, there, proxy_factory, tmp_path):
    for name in "ab":
        origin.body(f"/{name}.img", os.urandom(1000)).headers(cache_control=FRESH)
    cli("prefetch", "/u/a.img", "/u/b.img")
    path = archived(cli, tmp_path)
    origin.body("/a.img", BODY).headers(cache_control=FRESH).stall_at(400_000)
    far = proxy_factory(cache_dir=there.cache_dir)
    client = await far.stream("/u/a.img")
    await client.read(400_000)
    ran = there("import", str(path), code=1)
    assert f"not imported: {origin.url('/a.img')}: it is being fetched or imported right now" in ran.err
    assert list(there.ls()) == [origin.url("/b.img")]
    origin.release()
    assert await client.rest() == BODY[400_000:]
    await far.wait_idle()
    assert "/a.img, and newer" in there("import", str(path)).err
    assert blob_of(there, origin.url("/a.img")).read_bytes() == BODY


async def test_who_asks_for_what_is_being_imported_gets_it_from_there(
    origin, cli, there, proxy_factory, pipe, tmp_path
):
    origin.body("/big.img", BIG).headers(cache_control=FRESH)
    cli("prefetch", "/u/big.img")
    path = archived(cli, tmp_path)
    process = await half_imported(there, pipe, path)
    far = proxy_factory(cache_dir=there.cache_dir)
    asking = asyncio.create_task(far.get("/u/big.img"))
    await until(lambda: far.fills("/big.img"))
    with pipe[1] as writing:
        await asyncio.to_thread(writing.write, path.read_bytes()[middle(path, len(BIG)) :])
    assert (await asking).body == BIG
    assert origin.count("/big.img") == 1
    assert "imported 1 URL" in there.end(process).out


async def half_imported(there, pipe, path):
    """The process, once it has read the first half of BIG and waits for more."""
    process, writing = pipe
    await asyncio.to_thread(writing.write, path.read_bytes()[: middle(path, len(BIG))])
    (part,) = await until(lambda: list(there.cache_dir.glob("partial/*.part")))
    await until(lambda: part.stat().st_size)
    return process


# -- stopped -----------------------------------------------------------------------------------------------------------


async def test_killed_in_the_middle_it_goes_on_the_next_time(origin, cli, there, pipe, tmp_path):
    origin.body("/a.img", BODY)
    origin.body("/big.img", BIG)
    cli("prefetch", "/u/a.img", "/u/big.img")
    path = archived(cli, tmp_path)
    process = await half_imported(there, pipe, path)
    process.kill()
    process.wait()
    assert list(there.ls()) == [origin.url("/a.img")]
    assert not list(there.cache_dir.glob("partial/*"))
    ran = there("import", str(path))
    assert ran.out == "imported 1 URL (24.0 MB), 1 were here\n"
    assert blob_of(there, origin.url("/big.img")).read_bytes() == BIG


async def test_stopped_while_it_waits_for_a_pipe_it_ends_at_once(origin, cli, there, pipe, tmp_path):
    origin.body("/big.img", BIG)
    cli("prefetch", "/u/big.img")
    path = archived(cli, tmp_path)
    process = await half_imported(there, pipe, path)
    ran = there.end(process, signal.SIGINT, code=130, within=QUICK_SECONDS)
    assert ran.err == "stopped; what came is kept, and the next import goes on with the rest\n"
    assert not list(there.cache_dir.glob("partial/*"))
    # An export into a pipe that nobody reads.
    reading, out = os.pipe()
    process = cli.start("export", "-", fds={"stdout": out})
    os.close(out)
    await until(lambda: os.read(reading, 1))
    assert "nothing was written" in cli.end(process, signal.SIGTERM, code=130, within=QUICK_SECONDS).err
    os.close(reading)


# -- what is said ------------------------------------------------------------------------------------------------------


def test_an_archive_for_which_there_is_no_room(origin, cli, there, tmp_path):
    origin.body("/big.img", BIG)
    cli("prefetch", "/u/big.img")
    path = archived(cli, tmp_path)
    ran = there("import", str(path), code=1, env={"FETCHONCE_CACHE_MAX_SIZE": "20MB"})
    assert f"no space for {path}: it needs 24.0 MB" in ran.err
    assert "cache.max_size is 20.0 MB: raise it" in ran.err
    assert not there.ls()


def test_what_no_mirror_here_serves_is_stored_and_said(origin, cli, there, tmp_path):
    for name in "ab":
        origin.body(f"/{name}.img", BODY)
    cli("prefetch", "/u/a.img", "/u/b.img")
    path = archived(cli, tmp_path)
    there.config = tmp_path / "other.toml"
    there.config.write_text("shipped_mirrors = false\n")
    ran = there("import", str(path))
    said = (
        f"no mirror here has what is below {origin.url('/')} (2 imported): fetchonce serve --mirror u={origin.url('/')}"
    )
    assert ran.err.splitlines()[-1] == said
    assert len(there.ls()) == 2
    # The name counts, not where its mirror is.
    there.config.write_text('shipped_mirrors = false\n[[mirror]]\nname = "u"\nupstreams = ["https://u.example/"]\n')
    assert "no mirror" not in there("import", str(path)).err


def test_what_cannot_be_done(origin, cli, there, tmp_path):
    origin.body("/a.img", BODY)
    cli("prefetch", "/u/a.img")
    path = archived(cli, tmp_path)
    (tmp_path / "short.tar").write_bytes(path.read_bytes()[:5000])
    failed = {
        f"nothing whole is stored in {there.cache_dir}": [there, "export", str(tmp_path / "x.tar")],
        f"{tmp_path} was not written: Is a directory": [cli, "export", str(tmp_path)],
        "/none.tar cannot be read: No such file": [there, "import", str(tmp_path / "none.tar")],
        "short.tar ends too early. 0 URLs": [there, "import", str(tmp_path / "short.tar")],
        "standard input ends too early": [there, "import", "-"],
    }
    started = {said: (where, where.start(*args)) for said, (where, *args) in failed.items()}
    for said, (where, process) in started.items():
        assert said in where.end(process, code=1).err
    master, slave = pty.openpty()
    wrong = {
        cli.start("export", "--json", "-"): "--json prints there",
        cli.start("export", "-", fds={"stdout": slave}): "it is a terminal",
        cli.start("import", "-", fds={"stdin": slave}): "it is a terminal",
    }
    for process, said in wrong.items():
        assert said in cli.end(process, code=2).err
    os.close(master)
    os.close(slave)


def test_bars_show_bytes_and_rate(origin, cli, there, terminal, tmp_path):
    origin.body("/a.img", BODY)
    cli("prefetch", "/u/a.img")
    process = cli.start("export", str(tmp_path / "x.tar"), fds={"stderr": terminal.fd})
    shown = terminal.read_until(None)
    cli.end(process)
    assert "1.0/1.0 MB" in shown
    assert f"exported {origin.url('/a.img')} (1.0 MB)" in shown
