"""SIGUSR2: a new process takes over, and no client notices."""

import asyncio
import os
import signal
import socket
import ssl
import tempfile
from hashlib import sha256

import pytest
import trustme

from proxy.store.servers import running
from proxy.upstream.local import LocalServer
from tests.harness import Truncated, until
from tests.origin import pattern_bytes
from tests.serving.lineage import lineages

SIZE = 12 << 20
SEED = 7
HALF = SIZE // 2
FRESH = {"cache_control": "max-age=600"}
UPGRADES = 5

lineage = pytest.fixture(lineages)


@pytest.mark.parametrize("workers", [1, 2])
async def test_sixteen_downloads_and_those_that_come_later_survive_five_upgrades(origin, lineage, workers):
    # It never ends before the last upgrade, and brings bytes all the time.
    origin.pattern("/x.img", SIZE, SEED).throttle(2 << 20).stall_at(SIZE - 1000).headers(**FRESH)
    server = lineage("--workers", str(workers))

    async def begun():
        """A download that has its first bytes."""
        stream = await server.proxy.stream("/u/x.img")
        assert await stream.read(1000) == pattern_bytes(SIZE, SEED, 0, 1000)
        return asyncio.create_task(rest(stream))

    async def rest(stream):
        async with stream:
            return await stream.sha256()

    downloads = await asyncio.gather(*(begun() for _ in range(16)))
    for _ in range(UPGRADES):
        await server.upgrade()
        downloads += await asyncio.gather(*(begun() for _ in range(4)))
    assert len(set(server.pids)) == UPGRADES + 1
    origin.release()
    whole = sha256(pattern_bytes(SIZE, SEED, 1000)).hexdigest()
    assert set(await asyncio.gather(*downloads)) == {(whole, SIZE - 1000)}
    assert (origin.count("/x.img"), origin.bytes_sent("/x.img")) == (1, SIZE)
    await server.ended(UPGRADES)
    assert (await server.proxy.get("/u/x.img", {"Range": "bytes=0-9"})).headers["cache-status"] == "fetchonce; hit"
    (worker,) = {tuple(each["listen"]) for each in (await server.proxy.status())["workers"]}
    assert worker == (f"{server.proxy.client.host}:{server.proxy.client.port}",)


async def test_no_request_is_lost_while_the_number_of_workers_changes(origin, lineage):
    origin.body("/x", b"12345").headers(**FRESH)
    server = lineage(config_text="[server]\nworkers = 3\n")
    await server.proxy.get("/u/x")
    is_over = False

    async def ask():
        count = 0
        while not is_over:
            assert (await server.proxy.get("/u/x")).body == b"12345"
            count += 1
        return count

    asking = [asyncio.create_task(ask()) for _ in range(2)]
    for workers in (1, 2, 4):
        server.proxy.config.write_text(f"[server]\nworkers = {workers}\n")
        await server.upgrade()
        await until(lambda: len([each for each in running(server.proxy.cache_dir) if each.listen]) == workers)  # noqa: B023
    is_over = True
    assert all(await asyncio.gather(*asking))
    await server.ended(3)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_new_version_that_cannot_start_changes_nothing(origin, lineage, workers):
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF).headers(**FRESH)
    server = lineage("--workers", str(workers))
    stream = await server.proxy.stream("/u/x.img")
    await stream.read(1000)
    good = server.proxy.config.read_text()
    server.proxy.config.write_text("[fill]\nconections = 3\n")
    os.kill(server.pid, signal.SIGUSR2)
    failed = await server.proxy.wait_log("upgrade.failed", 30)
    assert "code=2" in failed
    assert "the old process goes on" in failed
    assert any("fill.conections: unknown key" in line for line in server.proxy.log)
    assert (await server.proxy.get("/-/readyz")).status == 200
    assert len(running(server.proxy.cache_dir)) == workers

    server.proxy.config.write_text(good)
    await server.upgrade()
    origin.release()
    assert await stream.rest() == pattern_bytes(SIZE, SEED, 1000)
    stream.close()
    await server.ended(1)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_signal_is_no_second_upgrade_whoever_gets_it(lineage, workers):
    server = lineage("--workers", str(workers))
    for _ in range(2):
        os.kill(server.pid, signal.SIGUSR2)
    await server.proxy.wait_log("upgrade.started")
    os.killpg(server.pid, signal.SIGUSR2)  # the workers and the process that comes up, too
    await server.upgraded()
    await server.ended(1)
    assert len(server.said("upgrade.started")) == 1
    assert (await server.proxy.get("/-/healthz")).status == 200


async def test_a_server_that_is_stopped_takes_the_one_that_comes_up_with_it(lineage):
    server = lineage()
    os.kill(server.pid, signal.SIGUSR2)
    await server.proxy.wait_log("upgrade.started")
    os.kill(server.pid, signal.SIGTERM)
    assert await server.proxy.exited() == 0
    assert server.said("upgrade.done") == []
    await until(lambda: running(server.proxy.cache_dir) == [])  # what is killed ends a moment later


async def test_open_connections_get_one_more_answer(origin, lineage):
    origin.body("/x", b"12345").headers(**FRESH)
    server = lineage()
    request = b"GET /u/x HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with await server.proxy.connect() as used, await server.proxy.connect() as fresh:
        await used.send(request)
        assert await (await used.answer()).rest() == b"12345"
        await fresh.send(request[:10])
        await server.upgrade()
        await until(lambda: any(not each.listen for each in running(server.proxy.cache_dir)))
        await used.send(request)
        await fresh.send(request[10:])
        for connection in (used, fresh):
            answer = await connection.answer()
            assert answer.headers["connection"] == "close"
            assert await answer.rest() == b"12345"
            assert await connection.rest() == b""
    await server.ended(1)


async def test_unix_and_https_listeners_go_over_too_and_a_handshake_is_finished(origin, lineage, tmp_path):
    origin.body("/x", b"12345").headers(**FRESH)
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    with tempfile.TemporaryDirectory() as directory:  # short, because such a path may have 104 bytes on macOS
        path = f"{directory}/s"
        listen = ("--listen", f"unix:{path}", "--listen", "https://127.0.0.1:0")
        server = lineage(*listen, config_text=f'[server]\ntls_cert = "{tmp_path}/both.pem"\n')
        (secure,) = (each for each in running(server.proxy.cache_dir)[0].listen if each.startswith("https://"))
        context = ssl.create_default_context()
        authority.configure_trust(context)
        early = socket.create_connection(("127.0.0.1", int(secure.rpartition(":")[2])))
        early.setblocking(False)

        async def ask(**place):
            reader, writer = await asyncio.open_connection(**place, ssl=context, server_hostname="127.0.0.1")
            writer.write(b"GET /u/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).endswith(b"12345")
            writer.transport.abort()

        later = {"host": "127.0.0.1", "port": int(secure.rpartition(":")[2])}
        await ask(**later)  # so the one before it has been accepted too
        await server.upgrade()
        inode = os.stat(path).st_ino
        async with LocalServer(f"unix:{path}") as local:
            assert server.pid in {each["pid"] for each in (await local.get_json("/-/status"))["workers"]}
        assert running(server.proxy.cache_dir)[0].listen[-1] == secure
        await ask(**later)
        await ask(sock=early)
        await server.ended(1)
        assert os.stat(path).st_ino == inode


async def test_the_status_tells_of_both_and_commands_go_to_the_new_one(origin, lineage):
    origin.pattern("/x.img", SIZE, SEED).stall_at(HALF).headers(**FRESH)
    origin.body("/y", b"12345").headers(**FRESH)
    server = lineage()
    stream = await server.proxy.stream("/u/x.img")
    await stream.read(1000)
    await server.upgrade()
    await until(lambda: any(not each.listen for each in running(server.proxy.cache_dir)))
    (fill,) = await server.proxy.fills()
    assert (fill["readers"], fill["is_following"], fill["source"]) == (1, False, origin.url("/x.img"))
    shown = server.proxy.run("status").stdout
    assert f"server on {server.proxy.client.host}:{server.proxy.client.port}, up " in shown
    assert f"process {server.pids[0]}, from before the upgrade, ends what it has begun" in shown
    server.proxy.run("prefetch", "/u/y")
    assert [each["mirror"] for each in server.proxy.entries()] == ["u"]
    assert running(server.proxy.cache_dir)[0].pid == server.pid
    origin.release()
    assert await stream.rest() == pattern_bytes(SIZE, SEED, 1000)
    stream.close()
    await server.ended(1)


@pytest.mark.parametrize("workers", [1, 2])
async def test_one_that_leaves_can_be_stopped_and_a_fill_that_nobody_reads_ends_first(origin, lineage, workers):
    origin.pattern("/read.img", SIZE, SEED).stall_at(HALF).headers(**FRESH)
    origin.pattern("/unread.img", SIZE, SEED).stall_at(HALF).headers(**FRESH)
    server = lineage("--workers", str(workers), config_text='[server]\nstop_timeout = "300ms"\n')
    unread, read = await server.proxy.stream("/u/unread.img"), await server.proxy.stream("/u/read.img")
    unread.close()
    await server.proxy.wait_readers(0)
    await server.upgrade()
    origin.release("/unread.img")
    await until(lambda: len(server.proxy.entries()) == 1)
    assert origin.count("/unread.img") == 1
    assert server.said("server.stopped") == []
    os.kill(server.pids[0], signal.SIGTERM)
    with pytest.raises(Truncated):
        await read.rest()
    await server.ended(1)
    assert (await server.proxy.get("/-/readyz")).status == 200
    assert {len(each.listen) for each in running(server.proxy.cache_dir)} == {1}
