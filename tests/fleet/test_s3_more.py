"""What goes wrong with the bucket in rarer ways: damaged bodies of ours, keys, and what is too slow."""

import asyncio
import hashlib
import os
import signal

import pytest

from proxy.config import S3Section, UpstreamSection, load
from proxy.errors import BucketError
from proxy.fill.behind import TRIES
from proxy.rules.bucket import TRIAL_PATH
from proxy.upstream.objects import Bucket
from tests.fleet.test_s3 import BIG, BLOB, FRESH, HUGE_BYTES, SMALL, flip, wait_quiet
from tests.fleet.test_s3 import filled as filled
from tests.fleet.test_s3 import server as server
from tests.harness import until


@pytest.mark.parametrize("size", [200_000, HUGE_BYTES], ids=["single", "parts"])
async def test_a_body_that_is_damaged_here_does_not_go_there(origin, proxy_factory, bucket, size):
    origin.pattern("/x", size, 3).headers(cache_control=FRESH)
    proxy = proxy_factory()
    await proxy.fetch("/u/x")
    proxy.terminate()
    (blob,) = [path for path in proxy.files("blobs/*/*") if not path.suffix]
    flip(blob)
    proxy.config.write_text(bucket.config())
    proxy.start()
    await until(lambda: any("bucket.put_aside" in line and "verify --repair" in line for line in proxy.log))
    await wait_quiet(proxy)
    assert bucket.files("*/*") == bucket.files("*/*/*") == []


async def test_bodies_that_hang_there_are_waited_for_three_times(origin, server, bucket):
    for number in range(6):
        origin.body(f"/{number}", BIG + bytes([number])).headers(cache_control=FRESH)
    first = server()
    for number in range(6):
        await first.fetch(f"/u/{number}")
    await bucket.wait(6)
    first.terminate()
    bucket.wire.asked.clear()
    bucket.wire.hold(BLOB)
    second = server(timeout="0.5s")
    for number in range(6):
        assert (await second.get(f"/u/{number}")).body == BIG + bytes([number])
    assert bucket.wire.count(BLOB) <= 3
    bucket.wire.heal()


async def test_a_body_that_it_never_takes_is_put_aside_until_a_reload(origin, server, bucket):
    origin.body("/x", BIG).headers(cache_control=FRESH)
    origin.body("/y", SMALL).headers(cache_control=FRESH)
    x = f"/{hashlib.sha256(BIG).hexdigest()}"
    bucket.wire.fail(rf"PUT .*{x}", 403)
    proxy = server()
    await proxy.fetch("/u/x")

    async def is_aside():
        return (await proxy.status())["s3"]["aside"] == 1

    await until(is_aside)
    assert bucket.wire.count(rf"PUT .*{x}") == TRIES
    await proxy.fetch("/u/y")
    await bucket.wait(1)
    assert (await proxy.status())["s3"]["waiting"] == 0
    assert sum("bucket.put_aside" in line and "403" in line for line in proxy.log) == 1
    assert not any("bucket.not_written" in line for line in proxy.log)
    assert bucket.files("check/*") == []
    assert "1 put aside" in proxy.run("status").stdout
    assert "fetchonce_bucket_aside 1.0" in (await proxy.get("/-/metrics")).body.decode()
    bucket.wire.heal()
    proxy.send_signal(signal.SIGHUP)
    await bucket.wait(2)


async def test_a_bucket_that_takes_nothing_has_nothing_put_aside(origin, server, bucket):
    origin.body("/x", SMALL).headers(cache_control=FRESH)
    bucket.wire.fail(r"PUT ", 403)
    proxy = server()
    await proxy.fetch("/u/x")
    await until(lambda: bucket.wire.count(f"PUT .*/{TRIAL_PATH}"))
    await until(lambda: any("bucket.not_written" in line for line in proxy.log))
    told = (await proxy.status())["s3"]
    assert (told["aside"], told["waiting"]) == (0, 1)


async def test_keys_that_somebody_renews_in_the_profile_are_used_soon(bucket, tmp_path, monkeypatch):
    keys, config = tmp_path / "credentials", tmp_path / "fetchonce.toml"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    config.write_text(bucket.config(access_key_id="", secret_access_key=""))
    lines = "[default]\naws_access_key_id = testkey\naws_secret_access_key = "
    keys.write_text(f"{lines}expired\n")
    store = Bucket(load(str(config)).file.s3)

    async def takes():
        try:
            return await store.write("check/x", b"x")
        except BucketError:
            return False

    with pytest.raises(BucketError, match="SignatureDoesNotMatch"):
        await store.write("check/x", b"x")
    keys.write_text(f"{lines}testsecret\n")
    await until(takes)


@pytest.mark.parametrize(("endpoint", "given", "in_environment", "is_asked"), [
    (True, "env", "", False),
    (True, "env", "{proxy}", True),
    (True, "", "{proxy}", False),
    (True, "{proxy}", "", False),  # it is a way to the internet, and not into our network
    (False, "{proxy}", "", True),
    (False, "env", "{proxy}", True),
])  # fmt: skip
async def test_by_which_proxy_it_is_asked(bucket, monkeypatch, endpoint, given, in_environment, is_asked):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    asked = []

    async def answer(reader, writer):
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        proxy = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, in_environment.format(proxy=proxy))
        keys = {"access_key_id": "testkey", "secret_access_key": "testsecret"}
        section = S3Section(
            url=f"s3://{bucket.name}", endpoint=f"http://127.0.0.1:{bucket.wire.port}" if endpoint else "", **keys
        )
        store = Bucket(section, UpstreamSection(proxy=given.format(proxy=proxy)))
        if is_asked:
            with pytest.raises(BucketError):
                await store.look("check/x")
        else:
            assert await store.look("check/x") is None
        assert bool(asked) is is_asked


async def test_one_body_of_two_urls_counts_as_new_with_both(origin, server, bucket):
    for path in ("/x", "/y"):
        origin.body(path, BIG).headers(cache_control=FRESH)
    first = server()
    for path in ("/x", "/y"):
        await first.fetch(f"/u{path}")
    await bucket.wait(1, 2)
    first.terminate()
    files = bucket.files("urls/*") + bucket.files("blobs/*/*")
    for path in files:
        os.utime(path, (1, 1))
    second = server()
    for path in ("/x", "/y"):
        await second.fetch(f"/u{path}")
    await until(lambda: all(path.stat().st_mtime > 1000 for path in files))
    assert origin.requests == 2


@pytest.mark.parametrize("mirror", ["up", "down", "changed"])
async def test_a_bucket_that_is_slow_is_left_for_a_mirror_that_gives_the_rest(origin, server, bucket, filled, mirror):
    bucket.wire.slow_body(BLOB, 200_000)
    proxy = server(config_text="[fill]\nretries = 1\n")
    if mirror == "down":
        filled.status(503)
    if mirror == "changed":
        origin.body("/noble.img", SMALL).headers(etag='"2"')
    getting = asyncio.create_task(proxy.get("/u/noble.img"))
    await until(lambda: origin.count("/noble.img") > 1)
    if mirror != "up":  # it is of no help, and a slow bucket is better than none
        await until(lambda: bucket.wire.count(BLOB) == 2)
        bucket.wire.heal()
    assert (await getting).body == BIG
    assert origin.log[1].headers["if-range"] == '"1"'
    assert bucket.wire.count(BLOB) == (1 if mirror == "up" else 2)
    assert (await proxy.status())["s3"]["absent"] == 0


async def test_what_is_to_be_forgotten_everywhere_is_asked_of_upstream(origin, server, bucket):
    origin.body("/x", BIG).headers(cache_control=FRESH)
    mirror = f'[[mirror]]\nname = "m"\nupstreams = ["{origin.url("/")}"]\n'
    proxy = server(config_text=mirror)
    await proxy.fetch("/m/x")
    await bucket.wait(1)
    await wait_quiet(proxy)
    assert "s3 rm" in proxy.run("rm", "/m/x").stderr
    assert (await proxy.fetch("/m/x")).body == BIG
    assert origin.count("/x") == 1
    await wait_quiet(proxy)
    assert proxy.run("s3", "rm", "/m/x").stdout == f"removed {origin.url('/x')}\n"
    assert bucket.files("urls/*") == []
    assert "was not there" in proxy.run("s3", "rm", "/m/x").stdout
    proxy.run("rm", "/m/x")
    origin.body("/x", SMALL)
    assert (await proxy.fetch("/m/x")).body == SMALL
