"""`prefetch`, alone and by a running server."""

import hashlib
import json
import re
import signal

import pytest

from tests.cli.commands import BODY, FRESH, QUICK_SECONDS

SHA256, WRONG = f"sha256:{hashlib.sha256(BODY).hexdigest()}", f"sha256:{'0' * 64}"
UNKNOWN = {"location": "https://other.example/fw"}


def test_prefetch_without_a_server_says_plain_lines_and_fetches_once(origin, cli):
    origin.body("/noble.img", BODY).headers(cache_control=FRESH)
    ran = cli("prefetch", origin.url("/noble.img"))
    digest = cli.ls()[origin.url("/noble.img")]["digest"]
    assert re.sub(r"in \d+s", "in 0s", ran.err).splitlines() == [
        f"fetching {origin.url('/noble.img')}",
        f"stored   {origin.url('/noble.img')} (1.0 MB in 0s, {digest})",
    ]
    assert not ran.out
    assert cli("prefetch", "/u/noble.img").err == "cached   /u/noble.img (1.0 MB)\n"
    assert origin.requests == 1


async def test_commands_show_the_token_to_the_running_server(origin, cli, proxy_factory):
    proxy_factory(cache_dir=cli.cache_dir, config_text='[access]\nclients = []\ntoken = "s3cret"\n')
    origin.body("/x.img", BODY)
    refused = cli("prefetch", origin.url("/x.img"), code=1)
    assert "must show the token" in refused.err
    assert "fills" in cli("status", "--json", env={"FETCHONCE_ACCESS_TOKEN": "s3cret"}).json()
    cli("prefetch", origin.url("/x.img"), env={"FETCHONCE_ACCESS_TOKEN": "s3cret"})
    assert origin.requests == 1


async def test_prefetch_and_a_client_of_the_running_server_share_one_get(origin, cli, server):
    origin.body("/noble.img", BODY).stall_at(400_000)
    client = await server.stream("/u/noble.img")
    prefetch = cli.start("prefetch", server.url("/u/noble.img"))
    await server.wait_readers(2)
    origin.release()
    assert "stored " in cli.end(prefetch).err
    assert await client.rest() == BODY
    assert origin.requests == 1


def test_j_is_how_many_at_once(origin, cli):
    paths = [f"/{name}.img" for name in "abcd"]
    for path in paths:
        origin.body(path, BODY).stall_at(1000)
    prefetch = cli.start("prefetch", "-j", "3", *(f"/u{path}" for path in paths))
    origin.wait_for(lambda: len([request for request in origin.log if request.status == 200]) == 3)
    assert cli("ls").err.startswith("nothing is stored")  # far longer than it would take the fourth to be asked for
    assert origin.requests == 3
    origin.release(next(request.path for request in origin.log))
    origin.wait_requests(4)  # while the other two stand
    origin.release()
    cli.end(prefetch)
    assert set(cli.ls()) == {origin.url(path) for path in paths}


@pytest.mark.parametrize("with_server", [False, True], ids=["alone", "with a server"])
def test_one_that_fails_is_exit_1_and_the_others_are_in(origin, cli, proxy_factory, with_server):
    if with_server:
        proxy_factory(cache_dir=cli.cache_dir)
    origin.body("/a.img", BODY)
    origin.body("/b.img", BODY)
    ran = cli("prefetch", "/u/a.img", "/u/none.img", "https://other.example/x", "u/no-slash", "/u/b.img", code=1)
    failed = [line for line in ran.err.splitlines() if line.startswith("failed ")]
    assert len(failed) == 3
    assert any("/u/none.img: " in line and "answered 404" in line for line in failed)
    assert any("https://other.example/x: " in line and "--allow other.example" in line for line in failed)
    assert set(cli.ls()) == {origin.url("/a.img"), origin.url("/b.img")}


def test_what_may_not_be_stored_is_not_in(origin, cli):
    origin.body("/token", BODY).headers(cache_control="no-store")
    assert "is not to be kept" in cli("prefetch", "/u/token", code=1).err
    assert not cli.ls()


@pytest.mark.parametrize("with_server", [False, True], ids=["alone", "with a server"])
def test_prefetch_json_has_one_object_for_each_url_in_their_order(origin, cli, proxy_factory, with_server):
    if with_server:
        proxy_factory(cache_dir=cli.cache_dir)
    origin.body("/a.img", BODY).headers(cache_control=FRESH)
    ran = cli("prefetch", "--json", "/u/none.img", origin.url("/a.img"), "/u/none.img", code=1)
    none, stored = ran.json()
    assert not ran.err
    digest = cli.ls()[origin.url("/a.img")]["digest"]
    assert stored == {
        "url": origin.url("/a.img"),
        "state": "complete",
        "bytes": len(BODY),
        "length": len(BODY),
        "digest": digest,
        "message": None,
    }
    assert (none["url"], none["state"], none["digest"]) == ("/u/none.img", "failed", None)
    assert "404" in none["message"]
    assert cli("prefetch", "--json", "/u/a.img").json()[0]["state"] == "cached"


def test_on_a_terminal_it_draws_bars(origin, cli, terminal):
    origin.body("/noble.img", BODY).stall_at(400_000)
    prefetch = cli.start("prefetch", "/u/noble.img", fds={"stderr": terminal.fd})
    terminal.read_until("400.0 kB of 1.0 MB (40%)")
    assert "noble.img" in terminal.shown
    assert "━" in terminal.shown
    assert "fetching" not in terminal.shown  # the bar says it
    origin.release()
    assert "stored   /u/noble.img (1.0 MB" in terminal.read_until(None)
    assert not cli.end(prefetch).out


@pytest.mark.parametrize("with_server", [True, False], ids=["with a server", "alone"])
def test_a_transfer_that_goes_on_is_told(origin, cli, proxy_factory, with_server):
    if with_server:
        proxy_factory(cache_dir=cli.cache_dir)
    origin.body("/noble.img", BODY).throttle(600_000).close_at(400_000, times=1)
    said = cli("prefetch", "/u/noble.img").err
    assert re.search("^goes on  /u/noble.img: .* broke off at byte 400000 ", said, re.MULTILINE)


def test_json_draws_no_bars_on_a_terminal(origin, cli, terminal):
    origin.body("/noble.img", BODY)
    prefetch = cli.start("prefetch", "--json", "/u/noble.img", fds={"stderr": terminal.fd})
    assert terminal.read_until(None) == ""
    assert json.loads(cli.end(prefetch).out)[0]["state"] == "complete"


def test_ctrl_c_ends_prefetch_and_the_next_one_goes_on(origin, cli):
    origin.body("/noble.img", BODY).stall_at(400_000)
    prefetch = cli.start("prefetch", "/u/noble.img")
    assert prefetch.stderr.readline() == "fetching /u/noble.img\n"
    assert "goes on with it" in cli.end(prefetch, signal.SIGINT, code=130, within=QUICK_SECONDS).err
    origin.release()
    cli("prefetch", "/u/noble.img")
    assert cli.ls()[origin.url("/noble.img")]["state"] == "complete"


async def test_ctrl_c_leaves_the_servers_fill_alone(origin, cli, server):
    origin.body("/noble.img", BODY).stall_at(400_000)
    prefetch = cli.start("prefetch", "/u/noble.img")
    assert prefetch.stderr.readline() == "fetching /u/noble.img\n"
    assert "the server goes on fetching" in cli.end(prefetch, signal.SIGINT, code=130, within=QUICK_SECONDS).err
    await server.wait_readers(0)
    origin.release()
    await server.wait_log("fill.complete")
    assert cli.ls()[origin.url("/noble.img")]["size"] == len(BODY)
    assert origin.requests == 1


def test_a_server_that_dies_fails_every_prefetch_it_had(origin, cli, server):
    for path in ("/a.img", "/b.img"):
        origin.body(path, BODY).stall_at(400_000)
    prefetch = cli.start("prefetch", "/u/a.img", "/u/b.img")
    said = {prefetch.stderr.readline() for _ in range(2)}
    assert said == {"fetching /u/a.img\n", "fetching /u/b.img\n"}
    server.kill()
    ran = cli.end(prefetch, code=1, within=QUICK_SECONDS)
    assert ran.err.count("the server went away") == 2


# -- templates and lists -----------------------------------------------------------------------------------------------


def template(path, *images, **more):
    """A Lima template for this test's machine, whatever it is."""
    path.write_text(json.dumps({"images": list(images), "plain": True, **more}))
    return str(path)


@pytest.mark.parametrize("with_server", [False, True], ids=["alone", "with a server"])
def test_of_a_template_what_its_tool_would_take_by_its_digests(origin, cli, proxy_factory, tmp_path, with_server):
    if with_server:
        proxy_factory(cache_dir=cli.cache_dir)
    for path in ("/kernel", "/a.img", "/b.img"):
        origin.body(path, BODY).headers(cache_control=FRESH)
    own = f"http://127.0.0.1:8642/http/{origin.url('/a.img').removeprefix('http://')}"
    vm = template(
        tmp_path / "my vm.yaml",
        {"location": origin.url("/gone.img"), "digest": SHA256},
        {"location": own, "digest": SHA256, "kernel": {"location": origin.url("/kernel"), "digest": WRONG}},
        {"location": origin.url("/a.img"), "digest": SHA256},
        {"location": origin.url("/b.img")},
    )
    image, kernel = cli("prefetch", "--json", vm, code=1).json()
    assert (image["url"], image["state"], image["digest"]) == (origin.url("/a.img"), "complete", SHA256)
    assert (kernel["url"], kernel["state"]) == (origin.url("/kernel"), "failed")
    assert WRONG in kernel["message"]
    assert [request.path for request in origin.log if request.path.endswith(".img")] == ["/gone.img", "/a.img"]
    ran = cli("prefetch", template(tmp_path / "vm.yaml", {"location": origin.url("/gone.img")}, {"location": own}))
    assert [line.split()[0] for line in ran.err.splitlines()] == ["failed", "instead", "cached"]


def test_of_a_template_written_for_another_port_the_originals_are_fetched(origin, cli, tmp_path):
    origin.body("/a.img", BODY)
    template = tmp_path / "vm.yaml"
    ours = f"http://127.0.0.1:1/http/{origin.url('/a.img').removeprefix('http://')}"
    template.write_text(f"plain: true\nimages: [{{location: '{ours}'}}]\n")
    cli("prefetch", str(template))
    assert list(cli.ls()) == [origin.url("/a.img")]


def test_a_list_from_standard_input_beside_urls_and_files(origin, cli, tmp_path):
    for name in "abc":
        origin.body(f"/{name}.img", BODY).headers(cache_control=FRESH)
    (tmp_path / "list.txt").write_text(f"/u/b.img {SHA256}\n{origin.url('/a.img')}\n")
    listed = f"# ours\r\n{origin.url('/a.img')}\r\n"
    ran = cli("prefetch", "--json", "-", str(tmp_path / "list.txt"), "/u/c.img", stdin=listed)
    assert [each["url"] for each in ran.json()] == [origin.url("/a.img"), origin.url("/b.img"), "/u/c.img"]
    assert set(cli.ls()) == {origin.url(f"/{name}.img") for name in "abc"}


def test_what_cannot_be_read_fails_and_the_others_are_in(origin, cli, tmp_path):
    origin.body("/a.img", BODY).headers(cache_control=FRESH)
    vm = template(
        tmp_path / "vm.yaml", {"location": origin.url("/a.img")}, base=["gone.yaml"], firmware={"images": [UNKNOWN]}
    )
    ran = cli("prefetch", str(tmp_path / "none.yaml"), "template:none", vm, "h.example/x.img", code=1)
    failed = [line.removeprefix("failed   ") for line in ran.err.splitlines() if line.startswith("failed ")]
    assert f"there is no file {tmp_path}/none.yaml" in failed
    assert len(failed) == 5
    assert any("template:none" in line for line in failed)
    assert any(line.startswith(f"{vm}: its base gone.yaml is left out") for line in failed)
    assert any(line.startswith("https://other.example/fw: no mirror is configured") for line in failed)
    assert any("a URL begins with https://" in line for line in failed)
    assert set(cli.ls()) == {origin.url("/a.img")}


def test_what_a_file_says_does_not_act_on_the_terminal(cli, tmp_path):
    (tmp_path / "list.txt").write_text("/u/none.img\n/u/\x07\n\x07 é\n")
    ran = cli("prefetch", str(tmp_path / "list.txt"), code=1)
    assert '"/u/\\x07": expected a URL' in ran.err
    assert '"\\x07 é": expected a URL' in ran.err
    assert "\x07" not in ran.out + ran.err


def test_usage_of_prefetch(cli, tmp_path):
    vm = template(tmp_path / "vm.yaml", {"location": "https://h/a.img"})
    for arguments, told in (
        (["--digest", SHA256, vm], "--digest is for one URL"),
        (["--arch", "vax", vm], "expected one of aarch64, armv7l"),
    ):
        assert told in cli("prefetch", *arguments, code=2).err
