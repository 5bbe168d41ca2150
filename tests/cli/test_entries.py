"""`url`, `ls`, `show` and `rm`."""

import os
import re
import threading
import time

from proxy.store.servers import running
from tests.cli.commands import BIG, BODY, FRESH
from tests.harness import until

# -- url ---------------------------------------------------------------------------------------------------------------


def test_url_prints_the_proxied_form_of_every_spelling(origin, cli):
    http = f"http://127.0.0.1:8642/http/{origin.url('/a.img').removeprefix('http://')}"
    https = "http://127.0.0.1:8642/images.example/pub/a.img?x=1"
    given = {
        origin.url("/a.img"): http,
        "/u/a.img": http,
        http: http,
        "https://images.example/pub/a.img?x=1": https,
        "/https-one/a.img?x=1": https,
        "/HTTPS///images.example/pub/a.img?x=1": https,
    }
    printed = [ran.out for ran in cli.together(*(["url", url] for url in given))]
    assert printed == [f"{form}\n" for form in given.values()]


async def test_url_names_the_running_server_and_its_url_is_served(origin, cli, server):
    origin.body("/noble.img", BODY)
    printed = cli("url", origin.url("/noble.img")).out.strip()
    assert printed.startswith(server.url("/"))
    assert (await server.get(printed.removeprefix(server.url("")))).body == BODY


def test_url_takes_several(origin, cli):
    one, other = ([each, cli("url", each).out.strip()] for each in ("/u/a.img", origin.url("/b.img")))
    assert cli("url", one[0], other[0]).out.splitlines() == [one[1], other[1]]
    assert [each["proxied"] for each in cli("url", "--json", one[0], other[0]).json()] == [one[1], other[1]]
    assert cli("url", one[0], "https://other.example/x", code=1).out == ""


def test_url_json_and_what_is_no_url(origin, cli):
    plain, told = cli.together(["url", "/u/a.img"], ["url", "--json", "/u/a.img"])
    assert told.json() == {"url": origin.url("/a.img"), "mirror": "u", "proxied": plain.out.strip()}
    assert "--allow other.example" in cli("url", "https://other.example/x", code=1).err
    # Of a server that listens everywhere it names the address that this machine can use.
    cli.config.write_text('listen = ["https://[::]:9443", "0.0.0.0:9000"]\n' + cli.config.read_text())
    assert cli("url", "/u/a.img").out.startswith("http://127.0.0.1:9000/")


# -- ls, show ----------------------------------------------------------------------------------------------------------


async def test_ls_lists_what_is_whole_and_what_was_begun(origin, cli, server):
    origin.body("/noble.img", BODY).headers(cache_control=FRESH)
    origin.body("/begun.img", BODY).stall_at(400_000)
    await server.get("/u/noble.img")
    await server.wait_log("fill.complete")
    for _ in range(2):
        await server.get("/u/noble.img")
    begun = await server.stream("/u/begun.img")
    await begun.read(400_000)
    begun.close()
    server.terminate()

    objects = cli.ls()
    noble, begun = objects[origin.url("/noble.img")], objects[origin.url("/begun.img")]
    keys = {"url", "mirror", "size", "digest", "state", "hits", "pinned", "stored_at", "used_at"}
    assert keys <= noble.keys()
    assert keys <= begun.keys()
    assert (noble["mirror"], noble["size"], noble["state"], noble["pinned"]) == ("u", len(BODY), "complete", False)
    assert noble["hits"] == 2
    assert noble["stored_at"] <= noble["used_at"] <= time.time()
    assert re.fullmatch("sha256:[0-9a-f]{64}", noble["digest"])
    assert (begun["size"], begun["state"], begun["digest"]) == (400_000, "partial", None)

    header, *rows = cli("ls").out.splitlines()
    assert header.split() == ["SIZE", "AGE", "USED", "HITS", "STATE", "URL"]
    assert [row.split()[-2:] for row in rows] == [
        ["partial", origin.url("/begun.img")],
        ["complete", origin.url("/noble.img")],
    ]
    assert rows[1].split()[:2] == ["1.0", "MB"]


async def test_ls_tells_what_has_come_of_a_body_that_comes_and_after_a_kill(origin, cli, server):
    origin.body("/big.img", BIG).stall_at(20_000_000)
    reader = await server.stream("/u/big.img")
    await server.wait_begun()
    await until(lambda: cli.ls()[origin.url("/big.img")]["size"] == 20_000_000)
    server.kill()
    assert cli.ls()[origin.url("/big.img")]["size"] == 20_000_000
    reader.close()


def test_ls_takes_a_part_of_the_url_or_a_glob_over_it(origin, cli):
    for path in ("/noble/a.img", "/noble/a.iso", "/jammy/a.img"):
        origin.body(path, BODY)
    cli("prefetch", *(f"/u{path}" for path in ("/noble/a.img", "/noble/a.iso", "/jammy/a.img")))
    found = {
        "noble": ["/noble/a.img", "/noble/a.iso"],
        "*.img": ["/jammy/a.img", "/noble/a.img"],
        "http://*/a.is?": ["/noble/a.iso"],
    }
    for paths, ran in zip(found.values(), cli.together(*(["ls", "--json", each] for each in found)), strict=True):
        assert [each["url"] for each in ran.json()] == [origin.url(path) for path in paths]
    ran = cli("ls", "nowhere")
    assert (ran.out, ran.err) == ("", f"nothing stored in {cli.cache_dir} matches nowhere\n")


def test_ls_of_nothing_makes_nothing(cli):
    assert cli("ls", "--json").json() == []
    assert cli("ls").err == f"nothing is stored in {cli.cache_dir} yet\n"
    assert not cli.cache_dir.exists()


def test_show_tells_all_about_one(origin, cli):
    origin.body("/noble.img", BODY).headers(cache_control=FRESH)
    cli("prefetch", "/u/noble.img")
    told, shown = cli.together(
        ["show", "--json", origin.url("/noble.img")], ["show", "http://127.0.0.1:8642/u/noble.img"]
    )
    told = told.json()
    assert ["cache-control", FRESH] in told["headers"]
    fields = dict(line.split(maxsplit=1) for line in shown.out.splitlines())
    assert fields["url"] == origin.url("/noble.img")
    assert (fields["size"], fields["digest"]) == (str(len(BODY)), told["digest"])
    assert (fields["pinned"], fields["used_at"]) == ("no", "never")
    assert fields["cache-control:"] == FRESH
    assert cli("show", "/u/other.img", code=1).err == f"{origin.url('/other.img')} is not stored\n"


# -- rm ----------------------------------------------------------------------------------------------------------------


def test_rm_removes_several_and_says_which_it_does_not_know(origin, cli):
    for path in ("/a.img", "/b.img", "/c.img"):
        origin.body(path, os.urandom(1000))
    cli("prefetch", "/u/a.img", "/u/b.img", "/u/c.img")
    assert "neither a path nor" in cli("rm", "/u/a.img", "a.img", code=1).err  # a slip removes nothing
    ran = cli("rm", "/u/a.img", "/u/none.img", origin.url("/b.img"), code=1)
    assert ran.out.splitlines() == [
        *(f"removed {origin.url(path)} (1.0 kB)" for path in ("/a.img", "/b.img")),
        "removed 2 URLs (2.0 kB)",
    ]
    assert ran.err == f"{origin.url('/none.img')} is not stored\n"
    assert [each["url"] for each in cli("rm", "--json", "/u/c.img").json()] == [origin.url("/c.img")]
    assert not cli.ls()
    assert not [path for path in cli.cache_dir.glob("blobs/*/*")]


def test_rm_takes_patterns_as_ls_does(origin, cli):
    body = os.urandom(1000)
    stored = ("/a.img", "/b.img", "/c.iso", "/star*.img", "/get?x=1", "/get/x=1")
    for path in stored:
        origin.body(path, body if path in ("/a.img", "/b.img") else os.urandom(1000))
    cli("prefetch", *(f"/u{path}" for path in stored))
    # What is a stored URL, in any spelling, is no glob.
    assert cli("rm", origin.url("/star*.img")).out == f"removed {origin.url('/star*.img')} (1.0 kB)\n"
    assert cli("rm", "/u/get?x=1").out == f"removed {origin.url('/get?x=1')} (1.0 kB)\n"
    ran = cli("rm", "*.img", origin.url("/a.img"))
    assert ran.out.splitlines() == [
        *(f"removed {origin.url(path)} (1.0 kB)" for path in ("/a.img", "/b.img")),
        "removed 2 URLs (1.0 kB)",  # of one body
    ]
    assert list(cli.ls()) == [origin.url("/c.iso"), origin.url("/get/x=1")]
    ran = cli("rm", "*.img", f"{origin.url('/c.is')}?", "/u/get*.x", code=1)
    assert ran.out == f"removed {origin.url('/c.iso')} (1.0 kB)\n"
    assert ran.err.splitlines() == ["nothing stored matches *.img", f"{origin.url('/get*.x')} is not stored"]
    assert list(cli.ls()) == [origin.url("/get/x=1")]


def test_pin_and_unpin_take_patterns_too(origin, cli):
    for path in ("/a.img", "/b.img", "/c.iso"):
        origin.body(path, os.urandom(1000))
    cli("prefetch", "/u/a.img", "/u/b.img", "/u/c.iso")
    assert [each["url"] for each in cli("pin", "--json", "*.img").json()] == [
        origin.url("/a.img"),
        origin.url("/b.img"),
    ]
    assert {url: each["pinned"] for url, each in cli.ls().items()} == {
        origin.url("/a.img"): True,
        origin.url("/b.img"): True,
        origin.url("/c.iso"): False,
    }
    ran = cli("unpin", "*a.im?", "*.qcow2", code=1)
    assert ran.out == f"unpinned {origin.url('/a.img')} (1.0 kB)\n"
    assert ran.err == "nothing stored matches *.qcow2\n"
    assert [url for url, each in cli.ls().items() if each["pinned"]] == [origin.url("/b.img")]


async def test_rm_is_in_force_at_once_and_who_reads_reads_on(origin, cli, server):
    origin.body("/big.img", BIG).headers(cache_control=FRESH)
    cli("prefetch", "/u/big.img")
    assert (await server.get("/u/big.img", {"Range": "bytes=0-9"})).headers["cache-status"] == "fetchonce; hit"
    reader = await server.stream("/u/big.img")
    await reader.read(1000)
    cli("rm", "/u/big.img")
    answer = await server.get("/u/big.img", {"Range": "bytes=0-9"})
    assert answer.headers["cache-status"] == "fetchonce; fwd=uri-miss; stored"
    assert await reader.rest() == BIG[1000:]
    assert origin.count("/big.img") == 2


async def test_rm_of_what_was_begun_and_of_what_is_being_fetched(origin, cli, server):
    origin.body("/begun.img", BODY).stall_at(400_000)
    begun = await server.stream("/u/begun.img")
    await begun.read(400_000)
    begun.close()
    assert "is being fetched right now" in cli("rm", "/u/begun.img", code=1).err
    server.terminate()
    assert cli("rm", "/u/begun.img").out == f"removed the unfinished {origin.url('/begun.img')} (400.0 kB)\n"
    assert not cli.ls()
    assert not list((cli.cache_dir / "partial").iterdir())


async def test_what_ls_prints_can_be_shown_and_removed_though_only_the_server_knows_its_host(
    origin, cli, proxy_factory
):
    cli.config.write_text("shipped_mirrors = false\n")
    origin.body("/a.img", BODY)
    proxy = proxy_factory(cache_dir=cli.cache_dir)  # with --mirror
    await proxy.get("/u/a.img")
    await proxy.wait_log("fill.complete")
    (url,) = cli.ls()
    assert cli("show", "--json", url).json()["url"] == url
    cli("rm", url)
    assert not cli.ls()


async def test_commands_know_what_the_server_on_the_directory_was_given(origin, cli, proxy_factory):
    cli.config.write_text("shipped_mirrors = false\n")
    origin.body("/a.img", BODY)
    own = f'shipped_mirrors = false\n[[mirror]]\nname = "own"\nupstreams = ["{origin.url("/own/")}"]\n'
    proxy = proxy_factory("--allow", "allowed.example", cache_dir=cli.cache_dir, config_text=own)  # and with --mirror u
    assert cli("url", "https://allowed.example/x").out == f"{proxy.url('/allowed.example/x')}\n"
    cli("prefetch", "--pin", "/u/a.img")
    assert "unpinned" in cli("unpin", proxy.url("/u/a.img")).out
    assert "removed" in cli("rm", "/u/a.img").out
    assert 'no mirror is called "own"' in cli("url", "/own/x", code=1).err  # a file that it names itself comes first
    assert cli("url", "/own/x", env={"FETCHONCE_CONFIG": ""}).out.endswith("/own/x\n")
    proxy.config.unlink()
    assert cli("ls", env={"FETCHONCE_CONFIG": ""}).out == ""
    proxy.terminate()
    assert "--allow allowed.example" in cli("url", "https://allowed.example/x", code=1).err


async def test_a_configuration_that_came_through_a_pipe_is_read_by_the_server_alone(cli, proxy_factory):
    pipe = cli.config.with_name("pipe")
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_text, args=("shipped_mirrors = true\n",), daemon=True).start()
    proxy_factory("--config", str(pipe), cache_dir=cli.cache_dir)
    (found,) = running(cli.cache_dir)
    assert found.config == ""  # a command would wait there for ever, or read its own standard input
    assert cli("ls", env={"FETCHONCE_CONFIG": ""}).out == ""
