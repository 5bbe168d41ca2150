"""`serve --workers N`: clients see one server, whatever happens to its processes."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from proxy.cli.serve import as_running
from proxy.config import load
from proxy.store.servers import running
from proxy.upstream.local import LocalServer
from tests.harness import REPOSITORY, Client, Truncated, until
from tests.origin import pattern_bytes, pattern_sha256

WORKERS = 4
SIZE = 16 << 20
SEED = 7
HALF = SIZE // 2
FRESH = {"cache_control": "max-age=600"}


@pytest.fixture
def proxy(proxy_factory):
    return proxy_factory("--workers", str(WORKERS))


def pids(proxy):
    return {worker.pid for worker in running(proxy.cache_dir)}


def successors(proxy, before):
    """The pids that are new since `before`, once there are WORKERS again."""
    now = pids(proxy)
    return len(now) == WORKERS and now - before


async def each_worker(proxy, path):
    """What each worker answers at its own address, by pid."""
    answers = {}
    for worker in running(proxy.cache_dir):
        host, _, port = worker.own.rpartition(":")
        answers[worker.pid] = await Client(host, int(port)).get(path)
    return answers


async def own_statuses(proxy):
    return {pid: answer.json() for pid, answer in (await each_worker(proxy, "/-/status/own")).items()}


async def test_connections_and_hits_go_to_every_worker(origin, proxy):
    origin.pattern("/x.img", 10_000, SEED).headers(**FRESH)
    await proxy.fetch("/u/x.img")  # until it is in the index, where the other workers look
    answers = await asyncio.gather(*(proxy.get("/u/x.img") for _ in range(128)))
    assert {answer.body for answer in answers} == {pattern_bytes(10_000, SEED)}
    hits = {pid: status["totals"]["requests"].get("HIT", 0) for pid, status in (await own_statuses(proxy)).items()}
    assert sum(hits.values()) == 128
    assert len(hits) == WORKERS
    # Elsewhere the workers share one socket, and the kernel does not balance.
    assert sum(count > 0 for count in hits.values()) == WORKERS or sys.platform != "linux"
    assert proxy.pid not in hits


async def test_sixty_four_readers_of_all_workers_are_one_fetch(origin, proxy):
    origin.pattern("/x.img", SIZE, SEED).throttle(64 << 20).headers(**FRESH)

    async def read():
        return (await (await proxy.stream("/u/x.img")).sha256())[0]

    assert set(await asyncio.gather(*(read() for _ in range(64)))) == {pattern_sha256(SIZE, SEED)}
    assert (origin.count("/x.img"), origin.bytes_sent("/x.img")) == (1, SIZE)


async def test_a_worker_killed_in_mid_fill_is_replaced_and_the_readers_of_the_others_notice_only_a_pause(origin, proxy):
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF, times=1).headers(**FRESH)
    before = pids(proxy)
    streams = [await proxy.stream("/u/x.img") for _ in range(32)]
    for stream in streams:
        assert await stream.read(HALF) == pattern_bytes(SIZE, SEED, 0, HALF)
    fills = {pid: fill for pid, status in (await own_statuses(proxy)).items() for fill in status["fills"]}
    (leader,) = (pid for pid, fill in fills.items() if not fill["is_following"])
    os.kill(leader, signal.SIGKILL)

    rests = await asyncio.gather(*(stream.rest() for stream in streams), return_exceptions=True)
    whole = [rest for rest in rests if not isinstance(rest, Truncated)]
    assert set(whole) == {pattern_bytes(SIZE, SEED, HALF)}
    assert len(rests) - len(whole) == fills[leader]["readers"]
    assert [request.range for request in origin.log] == [None, f"bytes={HALF}-"]

    await proxy.wait_log(f"worker.died pid={leader} signal=SIGKILL")
    (new,) = await until(lambda: successors(proxy, before))
    assert await proxy.entry("x.img")
    answer = (await each_worker(proxy, "/u/x.img"))[new]
    assert (answer.status, answer.headers["cache-status"]) == (200, "fetchonce; hit")


async def test_what_comes_while_workers_are_dead_waits_for_their_successors(origin, proxy):
    origin.pattern("/x.img", 10_000, SEED).headers(**FRESH)
    for pid in pids(proxy):
        os.kill(pid, signal.SIGKILL)
    answers = await asyncio.gather(*(proxy.get("/u/x.img") for _ in range(32)))
    assert {answer.body for answer in answers} == {pattern_bytes(10_000, SEED)}


async def test_sigterm_drains_every_worker(origin, proxy):
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF)
    streams = [await proxy.stream("/u/x.img") for _ in range(16)]
    for stream in streams:
        await stream.read(1000)
    proxy.send_signal(signal.SIGTERM)
    await proxy.wait_refusing()
    origin.release()
    for rest in await asyncio.gather(*(stream.rest() for stream in streams)):
        assert rest == pattern_bytes(SIZE, SEED, 1000)
    assert await proxy.exited() == 0
    assert running(proxy.cache_dir) == []


async def test_the_first_ctrl_c_of_a_terminal_drains_and_the_second_ends_it(origin, proxy):
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF)
    stream = await proxy.stream("/u/x.img")
    await stream.read(HALF)
    os.killpg(proxy.pid, signal.SIGINT)
    await proxy.wait_refusing()
    assert stream.connection.surplus() == b""
    await until(lambda: len(pids(proxy)) == 1)  # the others have nothing to wait for
    os.killpg(proxy.pid, signal.SIGINT)
    with pytest.raises(Truncated):
        await stream.rest()
    assert await proxy.exited() == 0


async def test_sighup_reloads_every_worker_and_a_wrong_file_none(origin, proxy):
    origin.pattern("/x.img", 10_000, SEED).headers(**FRESH)
    assert {answer.status for answer in (await each_worker(proxy, "/v/x.img")).values()} == {403}
    proxy.config.write_text(f'[[mirror]]\nname = "v"\nupstreams = ["{origin.url()}"]\n')
    proxy.send_signal(signal.SIGHUP)
    await until(lambda: sum("config.reloaded" in line for line in proxy.log) == WORKERS + 1)
    assert {answer.status for answer in (await each_worker(proxy, "/v/x.img")).values()} == {200}

    proxy.config.write_text("[fill]\nconnections = 'many'\n")
    proxy.send_signal(signal.SIGHUP)
    await proxy.wait_log("config.refused")
    before = pids(proxy)
    os.kill(min(before), signal.SIGKILL)  # its successor gets the settings in force, not those of the file
    await until(lambda: successors(proxy, before))
    assert [answer.status for answer in (await each_worker(proxy, "/v/x.img")).values()] == [200] * WORKERS
    assert sum("config.refused" in line for line in proxy.log) == 1


async def test_what_takes_a_restart_stays_as_it_is_and_is_said_once(proxy_factory):
    proxy = proxy_factory(config_text=f"[server]\nworkers = {WORKERS}\n")
    proxy.config.write_text("[server]\nworkers = 2\n")
    proxy.send_signal(signal.SIGHUP)
    await until(lambda: sum("config.reloaded" in line for line in proxy.log) == WORKERS + 1)
    assert sum("config.needs_restart" in line for line in proxy.log) == 1
    assert len(pids(proxy)) == WORKERS


def test_a_worker_that_begins_later_has_the_cache_directory_of_the_others(tmp_path):
    first, second = (tmp_path / f"{name}.toml" for name in "ab")
    first.write_text("[cache]\ndir = '/a'\n")
    second.write_text("listen = ['127.0.0.1:1']\n[cache]\ndir = '/b'\nmax_size = '1GB'\n[server]\nworkers = 9\n")
    now, fresh = load(str(first)), load(str(second))
    running_on, is_same = as_running(fresh, now)
    assert (running_on.cache_dir, running_on.file.listen, running_on.file.server.workers) == (
        now.cache_dir,
        now.file.listen,
        1,
    )
    assert running_on.file.cache.max_size == 10**9
    assert not is_same
    assert as_running(now, now) == (now, True)


async def test_a_killed_supervisor_leaves_nobody_behind(origin, proxy):
    origin.pattern("/x.img", SIZE, SEED).headers(**FRESH)
    await proxy.get("/u/x.img")
    os.kill(proxy.pid, signal.SIGKILL)
    await until(lambda: running(proxy.cache_dir) == [])
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((proxy.client.host, proxy.client.port))
        sock.listen()
    assert await proxy.exited() == -signal.SIGKILL


async def test_the_address_is_nobody_else_s(proxy, proxy_factory):
    address = f"{proxy.client.host}:{proxy.client.port}"
    with pytest.raises(AssertionError, match=rf"exit code 2[\s\S]*port {proxy.client.port} is in use"):
        proxy_factory("--workers", "2", listen=address)
    assert len(pids(proxy)) == WORKERS


async def test_workers_share_a_unix_socket_and_an_ipv6_port(proxy_factory):
    with tempfile.TemporaryDirectory() as directory:  # short, because such a path may have 104 bytes on macOS
        path = f"{directory}/s"
        proxy = proxy_factory("--workers", "2", "--listen", f"unix:{path}", "--listen", "[::1]:0")
        port = next(int(each.rpartition(":")[2]) for each in running(proxy.cache_dir)[0].listen if "[::1]" in each)
        async with LocalServer(f"unix:{path}") as server:
            told = await server.get_json("/-/status")
        assert {worker["pid"] for worker in told["workers"]} == pids(proxy)
        assert (await Client("::1", port).get("/-/healthz")).status == 200


async def test_any_worker_answers_for_all(origin, proxy):
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF)
    streams = [await proxy.stream("/u/x.img") for _ in range(16)]
    for stream in streams:
        await stream.read(1000)

    async def told_of_all():
        told = [answer.json() for answer in (await each_worker(proxy, "/-/status")).values()]
        # One that is too busy to answer within a second is left out.
        return all({worker["pid"] for worker in each["workers"]} == pids(proxy) for each in told) and told

    for told in await until(told_of_all):
        (fill,) = told["fills"]
        assert (fill["readers"], fill["is_following"], fill["source"]) == (16, False, origin.url("/x.img"))
        assert {tuple(worker["listen"]) for worker in told["workers"]} == {
            (f"{proxy.client.host}:{proxy.client.port}",)
        }
    origin.release()
    await asyncio.gather(*(stream.rest() for stream in streams))

    async def counted():
        totals = (await proxy.status())["totals"]
        return sum(totals["requests"].values()) == 16 and totals

    totals = await until(counted)
    assert (totals["sent_bytes"], totals["fetched_bytes"]) == (16 * SIZE, SIZE)
    command = [sys.executable, "-m", "proxy", "status", "--cache-dir", str(proxy.cache_dir)]
    shown = subprocess.run([*command, "--json"], cwd=REPOSITORY, capture_output=True, check=True)
    assert json.loads(shown.stdout)["totals"] == totals
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True, text=True)
    assert f"server on {proxy.client.host}:{proxy.client.port}, {WORKERS} workers, up " in shown.stdout


async def test_a_worker_that_hangs_is_left_out_of_the_status(proxy):
    hanging, *others = running(proxy.cache_dir)
    os.kill(hanging.pid, signal.SIGSTOP)
    try:
        host, _, port = others[0].own.rpartition(":")
        told = (await Client(host, int(port)).get("/-/status")).json()
        assert {worker["pid"] for worker in told["workers"]} == {worker.pid for worker in others}
    finally:
        os.kill(hanging.pid, signal.SIGCONT)


async def test_a_prefetch_lands_in_one_worker_and_is_everybody_s(origin, proxy):
    origin.pattern("/x.img", SIZE, SEED).headers(**FRESH)
    async with LocalServer(f"{proxy.client.host}:{proxy.client.port}") as server:
        steps = [step async for step in server.post_lines("/-/api/prefetch", {"url": "/u/x.img"})]
    assert steps[-1]["state"] == "complete"
    assert {answer.headers["cache-status"] for answer in (await each_worker(proxy, "/u/x.img")).values()} == {
        "fetchonce; hit"
    }
    assert origin.count("/x.img") == 1


async def test_a_worker_that_cannot_live_ends_the_server_with_a_message(proxy_factory):
    proxy = proxy_factory("--workers", "2")
    locks = proxy.cache_dir / "locks"
    locks.rename(proxy.cache_dir / "away")
    locks.touch()
    os.kill(min(pids(proxy)), signal.SIGKILL)
    assert await proxy.exited() == 1
    assert sum("cannot be used" in line for line in proxy.log) == 5
    assert any("worker.given_up" in line for line in proxy.log)
    assert running(proxy.cache_dir) == []


async def test_what_is_wrong_at_the_start_is_said_once(proxy_factory, tmp_path):
    (tmp_path / "file").touch()
    proxy = proxy_factory("--workers", "4", cache_dir=tmp_path / "file", start=False)
    with pytest.raises(AssertionError, match="exit code 2"):
        proxy.start()
    assert sum("cannot be used" in line for line in proxy.log) == 1


def test_the_number_of_workers_comes_from_the_environment_too():
    ran = subprocess.run(
        [sys.executable, "-m", "proxy", "config", "show"],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "HOME": str(Path.home()), "FETCHONCE_SERVER_WORKERS": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\nworkers = 3\n" in ran.stdout
