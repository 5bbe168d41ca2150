"""`pin`, `prune` and `verify`."""

import hashlib
import os
import re
import time

import pytest

from proxy.cli.space import Pruning, chosen
from proxy.rules.eviction import Candidate
from tests.cli.commands import BIG, BODY, FRESH, blob_of, brought_in
from tests.cli.test_prefetch import template


def test_pin_and_unpin_take_every_spelling_and_say_what_they_do_not_know(origin, cli):
    urls = brought_in(origin, cli, "a", "b")
    ran = cli("pin", "/u/a.img", urls["b"], "/u/none.img", code=1)
    assert ran.out == f"pinned {urls['a']} (100.0 kB)\npinned {urls['b']} (100.0 kB)\n"
    assert ran.err == f"{origin.url('/none.img')} is not stored: fetchonce prefetch --pin URL\n"
    assert [each["pinned"] for each in cli.ls().values()] == [True, True]
    assert cli("unpin", "--json", "/u/a.img").json() == [{"url": urls["a"], "pinned": False, "size": 100_000}]
    assert [each["pinned"] for each in cli.ls().values()] == [False, True]


@pytest.mark.parametrize("with_server", [False, True], ids=["alone", "with a server"])
def test_prefetch_pin_pins_what_it_fetches_and_what_is_there(origin, cli, proxy_factory, with_server):
    if with_server:
        proxy_factory(cache_dir=cli.cache_dir)
    urls = brought_in(origin, cli, "a")
    origin.body("/b.img", BODY).headers(cache_control=FRESH)
    cli("prefetch", "--pin", "/u/a.img", "/u/b.img")
    assert {url: each["pinned"] for url, each in cli.ls().items()} == {urls["a"]: True, origin.url("/b.img"): True}


async def test_a_pin_is_in_force_in_the_running_server_and_outlives_a_new_generation(origin, cli, proxy_factory):
    server = proxy_factory("--max-size", "250KB", cache_dir=cli.cache_dir)
    for name in "ab":
        origin.body(f"/{name}.img", os.urandom(100_000))
        await server.fetch(f"/u/{name}.img")
    cli("pin", "/u/a.img")
    new = os.urandom(100_000)
    origin.body("/a.img", new)
    assert (await server.get("/u/a.img", {"Cache-Control": "no-cache"})).body == new
    origin.body("/c.img", os.urandom(100_000))
    await server.get("/u/c.img")
    await server.wait_log(f"evicted url={origin.url('/b.img')}")
    assert cli.ls()[origin.url("/a.img")]["pinned"]


def test_prune_to_size_takes_the_least_recently_used_and_says_the_sum(origin, cli):
    urls = brought_in(origin, cli, "a", "b", "c", "d")
    cli("pin", "/u/a.img")
    dry = cli("prune", "--to-size", "250KB", "--dry-run", "--json").json()
    assert [each["url"] for each in dry["removed"]] == [urls["b"], urls["c"]]
    assert (dry["freed"], dry["dry_run"]) == (200_000, True)
    assert len(cli.ls()) == 4
    ran = cli("prune", "--to-size", "250KB")
    assert re.fullmatch(
        rf"100.0 kB  used \w+ ago +{urls['b']}\n100.0 kB  used \w+ ago +{urls['c']}\nfreed 200.0 kB\n", ran.out
    )
    assert set(cli.ls()) == {urls["a"], urls["d"]}
    assert cli("prune", "--to-size", "0").out.endswith("freed 100.0 kB\n")
    assert set(cli.ls()) == {urls["a"]}


def test_prune_older_than_and_without_options(origin, cli):
    urls = brought_in(origin, cli, "a", "b")
    assert cli("prune", "--older-than", "1h").out == "freed 0 bytes\n"
    assert cli("prune").out == "freed 0 bytes\n"
    limited = {"FETCHONCE_CACHE_MAX_SIZE": "150KB"}
    assert [each["url"] for each in cli("prune", "--json", "--dry-run", env=limited).json()["removed"]] == [urls["a"]]
    cli("pin", "/u/b.img")
    assert urls["a"] in cli("prune", "--older-than", "0").out
    assert set(cli.ls()) == {urls["b"]}


async def test_prune_beside_a_running_server(origin, cli, server):
    urls = brought_in(origin, cli, "a", "b")
    origin.body("/big.img", BIG).headers(cache_control=FRESH)
    slow = await server.stream("/u/big.img")
    await slow.read(1000)
    await server.wait_stored(3)
    assert (await server.get("/u/a.img")).headers["cache-status"] == "fetchonce; hit"
    assert {each["url"] for each in cli("prune", "--to-size", "0", "--json").json()["removed"]} == {
        *urls.values(),
        origin.url("/big.img"),
    }
    assert await slow.rest() == BIG[1000:]
    assert (await server.get("/u/a.img", {"Cache-Control": "only-if-cached"})).status == 504


def test_verify_of_a_whole_cache(origin, cli):
    assert cli("verify").out == "0 ok (0 bytes), 0 not\n"
    urls = brought_in(origin, cli, "a", "b")
    ran = cli("verify")
    assert ran.out == "2 ok (200.0 kB), 0 not\n"
    assert ran.err == "".join(f"ok       {url} (100.0 kB)\n" for url in urls.values())
    assert [each["url"] for each in cli("verify", "/u/b.img", "--json").json()] == [urls["b"]]
    (missing,) = cli("verify", "/u/c.img", "--json", code=1).json()
    assert (missing["url"], missing["state"]) == (origin.url("/c.img"), "missing")


async def test_verify_finds_a_flipped_byte_and_repair_has_it_fetched_anew(origin, cli, server):
    urls = brought_in(origin, cli, "a", "b")
    whole = (await server.get("/u/a.img")).body
    blob = blob_of(cli, urls["a"])
    with open(blob, "r+b") as file:
        file.seek(50_000)
        byte = file.read(1)
        file.seek(50_000)
        file.write(bytes([byte[0] ^ 1]))
    ran = cli("verify", code=1)
    assert re.search(rf"^damaged  {urls['a']}: expected sha256:\w+, got sha256:\w+$", ran.err, re.MULTILINE)
    assert "verify --repair" in ran.err
    assert ran.out == "1 ok (100.0 kB), 1 not\n"
    assert len(cli.ls()) == 2
    damaged, fine = cli("verify", "--repair", "--json", code=1).json()
    assert (damaged["url"], damaged["state"], fine["state"]) == (urls["a"], "damaged", "ok")
    assert blob.name in {path.name for path in (cli.cache_dir / "damaged").iterdir()}
    before = origin.requests
    assert (await server.get("/u/a.img")).body == whole
    assert origin.requests == before + 1
    await server.wait_idle()
    assert cli("verify").out == "2 ok (200.0 kB), 0 not\n"
    assert "kB" in cli("prune").out
    assert not list((cli.cache_dir / "damaged").iterdir())


async def test_a_truncated_body_is_fetched_again_by_the_server_itself(origin, cli, server):
    urls = brought_in(origin, cli, "a")
    os.truncate(blob_of(cli, urls["a"]), 1000)
    assert len((await server.get("/u/a.img")).body) == 100_000
    await server.wait_log("store.damaged")
    assert [request.path for request in origin.log] == ["/a.img"] * 2


def test_verify_draws_a_bar_on_a_terminal(origin, cli, terminal):
    brought_in(origin, cli, "a")
    verify = cli.start("verify", fds={"stderr": terminal.fd})
    shown = terminal.read_until(None)
    cli.end(verify)
    assert "verifying" in shown
    assert "━" in shown


def test_prune_keeps_what_templates_and_lists_refer_to(origin, cli, tmp_path):
    cli.config.write_text(cli.config.read_text().replace('name = "u"', 'name = "u"\nchecksums = ["SUMS"]'))
    urls = brought_in(origin, cli, *"abcdef")
    origin.body("/SUMS", b"of a.img").headers(cache_control=FRESH)
    cli("prefetch", "/u/SUMS")
    digest = cli.ls()[urls["f"]]["digest"]
    cli("pin", "/u/e.img")
    other = hashlib.sha512(b"g").hexdigest()
    origin.body("/g.img", b"g").headers(cache_control=FRESH)
    cli("prefetch", "--digest", f"sha512:{other}", "/u/g.img")
    images = [
        {"location": urls["a"], "arch": "riscv64"},
        {"location": f"http://127.0.0.1:8642/http/{urls['b'].partition('//')[2]}", "arch": "riscv64"},
        {"location": "https://other.example/elsewhere.img", "digest": digest, "arch": "s390x"},
        {"location": "https://other.example/g.img", "digest": f"sha512:{other}", "arch": "s390x"},
    ]
    vm = template(tmp_path / "vm.yaml", *images)
    (tmp_path / "list.txt").write_text("/u/c.img\n")
    keep = ["prune", "--keep-referred", vm, str(tmp_path / "list.txt")]
    ran = cli(*keep, str(tmp_path / "none.yaml"), code=1)
    reason = f"there is no file {tmp_path}/none.yaml"
    assert ran.err.endswith(f"nothing was removed, as what is referred to is not known:\n{reason}\n")
    (tmp_path / "open.pkr.hcl").write_text('source "qemu" "a" { iso_urls = [var.open, "/u/d.img"] }\n')
    assert "${var.open}" in cli(*keep, str(tmp_path / "open.pkr.hcl"), code=1).err
    assert [each["url"] for each in cli(*keep, "--dry-run", "--json").json()["removed"]] == [urls["d"]]
    assert len(cli.ls()) == 8
    assert re.fullmatch(rf"100.0 kB  used \w+ ago  {urls['d']}\nfreed 100.0 kB\n", cli(*keep).out)
    assert set(cli.ls()) == {origin.url("/SUMS"), origin.url("/g.img"), *(urls[name] for name in "abcef")}
    both = cli(*keep, "--to-size", "350KB", "--json").json()  # in addition
    assert [each["url"] for each in both["removed"]] == [urls["a"], urls["b"]]


def test_of_many_bodies_those_to_go_are_found_at_once():
    bodies = [Candidate(f"{number}", "", f"{number}", 1, float(number)) for number in range(20_000)]
    began = time.process_time()
    gone = chosen(bodies, Pruning(older_than=10_000.0, to_size=5_000, kept=None, dry_run=True), 20_000.0)
    assert gone == bodies[:15_000]
    assert time.process_time() - began < 5


def test_usage_of_keep_referred(cli):
    assert "--keep-referred needs templates" in cli("prune", "--keep-referred", code=2).err
    assert "templates are for prune --keep-referred" in cli("prune", "vm.yaml", code=2).err
