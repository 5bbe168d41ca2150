"""`status`."""

import re
import signal

from proxy.cli.watch import Lines
from tests.cli.commands import BODY, FRESH, served
from tests.harness import until


def test_status_without_a_server(cli):
    assert cli("status", "--json").json() == {"fills": [], "totals": {}, "failures": [], "workers": []}


async def test_status_tells_of_fills_and_totals(origin, cli, server):
    assert "nothing is being fetched" in cli("status").out
    origin.body("/noble.img", BODY).stall_at(400_000)
    client = await server.stream("/u/noble.img")
    await client.read(400_000)
    shown = cli("status").out
    assert re.search(rf"server on 127\.0\.0\.1:{server.client.port}, up \d+s\n", shown)
    assert origin.url("/noble.img") in shown
    assert "no request has ended yet" in shown
    stored = r"^40\d\.\d kB stored of at most 50\.0 GB, 59\d\.\d kB to come, .* free on disk$"
    assert re.search(stored, shown, re.MULTILINE)
    assert re.search(r"streaming: 400\.0 kB of 1\.0 MB \(40%\), .*/s, .* left, 1 reader$", shown, re.MULTILINE)

    told = cli("status", "--json").json()
    (fill,), (worker,) = told["fills"], told["workers"]
    assert (
        fill.items()
        >= {
            "url": origin.url("/noble.img"),
            "mirror": "u",
            "state": "streaming",
            "bytes": 400_000,
            "length": len(BODY),
            "readers": 1,
            "source": origin.url("/noble.img"),
        }.items()
    )
    assert fill["rate"] > 0
    assert fill["eta"] > 0
    assert (worker["pid"], worker["listen"]) == (server.pid, [f"127.0.0.1:{server.client.port}"])
    assert told["totals"]["fetched_bytes"] == 400_000
    origin.release()
    await client.rest()


async def test_status_tells_what_went_wrong_and_what_is_removed_no_longer_counts(origin, cli, server):
    origin.body("/noble.img", BODY).headers(cache_control=FRESH)
    await server.get("/u/noble.img")
    await server.wait_log("fill.complete")
    assert "1.0 MB stored of at most 50.0 GB, " in cli("status").out
    cli("rm", "/u/noble.img")  # by another process
    await server.get("/u/none.img")
    said = cli("status").out
    assert "\n0 bytes stored of at most 50.0 GB, " in said
    assert re.search(rf"^failed \d+s ago: {origin.url('/none.img')} answered 404", said, re.MULTILINE)


async def test_status_is_of_all_servers_on_the_directory_and_of_no_dead_one(origin, cli, server, proxy_factory):
    second = proxy_factory(cache_dir=cli.cache_dir)
    origin.body("/noble.img", BODY).headers(cache_control=FRESH)
    for number, each in enumerate((server, second), 1):
        await each.get("/u/noble.img")
        await until(lambda each=each, number=number: served(each, number * len(BODY)))
    told = cli("status", "--json").json()
    assert {worker["pid"] for worker in told["workers"]} == {server.pid, second.pid}
    assert told["totals"]["sent_bytes"] == 2 * len(BODY)
    assert cli("status").out.count("server on 127.0.0.1:") == 2
    second.kill()
    assert [worker["pid"] for worker in cli("status", "--json").json()["workers"]] == [server.pid]
    server.kill()
    assert "no server runs" in cli("status").out


async def test_status_watch_goes_on_until_ctrl_c(origin, cli, server, terminal):
    origin.body("/noble.img", BODY).stall_at(400_000)
    watch = cli.start("status", "--watch", fds={"stdout": terminal.fd})
    terminal.read_until("nothing is being fetched")
    client = await server.stream("/u/noble.img")
    terminal.read_until("400.0 kB of 1.0 MB (40%)")
    origin.release()
    await client.rest()
    terminal.read_until("1.0 MB fetched, 1.0 MB served (1 MISS)")
    cli.end(watch, signal.SIGINT)


def test_watch_says_in_lines_what_came_in_and_what_did_not():
    lines, url = Lines(), "https://u.example/a"
    fill = {"url": f"{url}?x", "key": "k", "bytes": 10, "length": 20, "started_at": 100.0}
    fill |= {"state": "streaming", "readers": 1, "resumes": 0, "source": url}
    earlier, now = ({"url": url, "at": at, "message": "it is down"} for at in (99.0, 101.0))

    def told(fills, failures=(), workers=("one",)):
        looks = {"fills": fills, "failures": list(failures), "workers": workers}
        return [line.split()[0] for line in lines.changes(looks)]

    assert told([fill]) == ["fetching"]
    assert told([], [earlier]) == ["in"]
    for failures, workers in (([now, earlier], ("one",)), ([], ())):  # it has failed; the server is gone
        assert told([fill]) == ["fetching"]
        assert told([], failures, workers) == []
