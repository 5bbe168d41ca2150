"""A bucket that servers share: what one has stored, another gets from there and not from upstream."""

import asyncio
import hashlib
import json
import os

import pytest

from tests.fleet.s3 import PATIENT
from tests.harness import until

SMALL, BIG = os.urandom(20_000), os.urandom(3_000_000)
HUGE_BYTES = 40_000_000  # more than a single upload takes
FRESH = "max-age=600"
BLOB = r"GET .*/blobs/"
ENTRY = r"GET .*/urls/"


def flip(path, offset=-10):
    """Change one bit of a file, as a disk may."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    with open(path, "r+b") as file:  # the same file: its attributes are the object's
        file.write(data)


async def wait_quiet(proxy):
    """Wait until nothing is on its way into the bucket."""

    async def is_quiet():
        return (await proxy.status())["s3"]["waiting"] == 0

    await proxy.wait_idle()
    await until(is_quiet)


@pytest.fixture
def server(proxy_factory, bucket):
    """Starts servers that share the bucket, each with a disk of its own."""

    def make(*args, config_text="", timeout=PATIENT, **keys):
        return proxy_factory(*args, config_text=bucket.config(timeout=timeout) + config_text, **keys)

    return make


@pytest.fixture
async def filled(origin, server, bucket):
    """The body BIG of /u/noble.img is in the bucket, and nowhere else but at the origin."""
    resource = origin.body("/noble.img", BIG).headers(cache_control=FRESH, etag='"1"')
    first = server()
    await first.fetch("/u/noble.img")
    await bucket.wait(1)
    first.terminate()
    assert origin.count("/noble.img") == 1
    bucket.wire.asked.clear()
    return resource


@pytest.mark.parametrize("body", [b"", SMALL, BIG], ids=["empty", "small", "big"])
async def test_a_wiped_disk_gets_it_back_without_upstream(origin, server, bucket, body):
    origin.body("/noble.img", body).headers(cache_control=FRESH, etag='"1"')
    before = await server().fetch("/u/noble.img")
    await bucket.wait(1)
    second = server()
    head = await second.get("/u/noble.img", method="HEAD")
    again = await second.get("/u/noble.img")
    assert again.body == before.body == body
    assert origin.requests == 1
    for name in ("etag", "last-modified", "content-type", "content-length", "accept-ranges"):
        assert again.headers.get(name) == before.headers.get(name) == head.headers.get(name)
    stored = await second.entry("noble.img")
    assert stored["sha256"] == hashlib.sha256(body).hexdigest()
    assert "hit" in (await second.get("/u/noble.img")).headers["cache-status"]
    assert not bucket.wire.matching(r"GET .*(list-type|delimiter)=")


async def test_a_large_body_goes_in_parts_and_comes_back_for_readers_anywhere(origin, server, bucket):
    origin.pattern("/huge.img", HUGE_BYTES, 3).headers(cache_control=FRESH, etag='"1"')
    first = server()
    expected = hashlib.sha256((await first.get("/u/huge.img")).body).hexdigest()
    await bucket.wait(1)
    assert bucket.wire.count(r"PUT .*partNumber=") == 8
    second = server()
    whole, tail = await asyncio.gather(
        second.get("/u/huge.img"), second.get("/u/huge.img", {"Range": f"bytes={HUGE_BYTES - 1000}-"})
    )
    assert hashlib.sha256(whole.body).hexdigest() == expected
    assert tail.body == whole.body[-1000:]
    assert origin.count("/huge.img") == 1


async def test_what_is_stale_there_is_confirmed_and_comes_from_there(origin, server, bucket, filled):
    text = json.loads(bucket.files("urls/*.json")[0].read_text())
    text["validated_at"] -= 3600
    bucket.rewrite_entry(text)
    second = server()
    answer = await second.get("/u/noble.img")
    assert answer.body == BIG
    assert int(answer.headers.get("age", 0)) < 60
    (_, asked) = origin.log
    assert (asked.status, asked.headers["if-none-match"], asked.bytes_sent) == (304, '"1"', 0)


async def test_what_was_confirmed_by_a_clock_that_is_ahead_is_asked_for_again(origin, server, bucket, filled):
    text = json.loads(bucket.files("urls/*.json")[0].read_text())
    text["validated_at"] += 3600
    bucket.rewrite_entry(text)
    assert (await server().get("/u/noble.img")).body == BIG
    assert [each.status for each in origin.log] == [200, 304]


async def test_a_new_generation_upstream_wins_and_goes_there(origin, server, bucket, filled):
    text = json.loads(bucket.files("urls/*.json")[0].read_text())
    text["validated_at"] -= 3600
    bucket.rewrite_entry(text)
    origin.body("/noble.img", SMALL).headers(cache_control=FRESH, etag='"2"')
    second = server()
    assert (await second.fetch("/u/noble.img")).body == SMALL
    await wait_quiet(second)
    assert (await server().get("/u/noble.img")).body == SMALL
    assert origin.count("/noble.img") == 2


async def test_a_server_with_an_old_generation_takes_the_new_one_from_there(origin, server, bucket):
    origin.body("/noble.img", SMALL).headers(cache_control="max-age=0", etag='"1"')
    first = server()
    await first.fetch("/u/noble.img")
    await bucket.wait(1)
    origin.body("/noble.img", BIG).headers(cache_control=FRESH, etag='"2"')
    second = server()
    await second.fetch("/u/noble.img")
    await wait_quiet(second)
    assert (await first.get("/u/noble.img")).body == BIG
    assert origin.count("/noble.img") == 2


async def test_upstream_is_gone_and_what_is_stale_there_is_served(origin, server, bucket, filled):
    text = json.loads(bucket.files("urls/*.json")[0].read_text())
    text["validated_at"] -= 3600
    bucket.rewrite_entry(text)
    origin.stop()
    assert (await server().get("/u/noble.img")).body == BIG


async def test_no_cache_asks_upstream_all_the_same(origin, server, bucket, filled):
    assert (await server().get("/u/noble.img", {"Cache-Control": "no-cache"})).body == BIG
    assert [each.status for each in origin.log] == [200, 304]


async def test_a_digest_finds_a_body_whose_url_has_another_one_now(origin, server, bucket, filled):
    old = hashlib.sha256(BIG).hexdigest()
    (page,) = bucket.files("urls/*.json")
    page.unlink()
    origin.body("/noble.img", SMALL).headers(cache_control=FRESH, etag='"2"')
    second = server()
    for method in ("HEAD", "GET", "GET"):
        answer = await second.get(f"/sha256:{old}/u/noble.img", method=method)
        assert (answer.status, answer.headers["content-length"]) == (200, str(len(BIG)))
    assert answer.body == BIG
    assert origin.count("/noble.img") == 1
    assert (await second.fetch("/u/noble.img")).body == SMALL  # nobody else gets the old one
    assert (await second.get(f"/sha256:{old}/u/noble.img")).body == BIG
    assert bucket.wire.count(BLOB) == 1


# -- what is wrong with the bucket -----------------------------------------------------------------------------------


async def test_a_flipped_bit_is_never_whole_and_is_repaired(origin, server, bucket, filled):
    (blob,) = bucket.files("blobs/*/*")
    flip(blob)
    second = server()
    broken = await (await second.stream("/u/noble.img")).broken()
    assert len(broken) < len(BIG)
    await second.wait_idle()
    assert second.entries() == []
    assert (await second.fetch("/u/noble.img")).body == BIG
    assert origin.count("/noble.img") == 2
    await bucket.wait(1)
    assert bucket.files("blobs/*/*")[0].read_bytes() == BIG
    assert (await server().get("/u/noble.img")).body == BIG
    assert origin.count("/noble.img") == 2


async def test_another_process_that_reads_along_does_not_give_a_wrong_body_either(origin, server, bucket, tmp_path):
    size = 12_000_000
    origin.pattern("/noble.img", size, 3).headers(cache_control=FRESH, etag='"1"')
    filler = server()
    await filler.fetch("/u/noble.img")
    await bucket.wait(1)
    flip(bucket.files("blobs/*/*")[0], 1000)
    bucket.wire.stall_body(BLOB, 8_000_000, times=1)
    leader, follower = (server(cache_dir=tmp_path / "one") for _ in range(2))
    streams = [await leader.stream("/u/noble.img")]
    await streams[0].read(6_000_000)
    await leader.wait_begun()
    streams.append(await follower.stream("/u/noble.img"))
    await streams[1].read(6_000_000)
    bucket.wire.heal()
    for stream in streams:
        assert len(await stream.broken()) < size - 6_000_000
    whole = await follower.get("/u/noble.img")
    assert hashlib.sha256(whole.body).hexdigest() == filler.entries()[0]["sha256"]


async def test_a_wrong_beginning_from_there_is_not_completed_by_a_mirror(origin, server, bucket):
    image = origin.pattern("/huge.img", HUGE_BYTES, 3).headers(cache_control=FRESH, etag='"1"')
    first = server()
    await first.fetch("/u/huge.img")
    await bucket.wait(1)
    flip(bucket.files("blobs/*/*")[0], 1000)
    bucket.wire.stall_body(BLOB, 12_000_000, times=1)
    image.delay_headers_until_released()  # which is asked after some seconds
    second = server()
    await (await second.stream("/u/huge.img")).read(11_000_000)
    await second.wait_begun(11_000_000)
    second.kill()
    bucket.wire.cut()
    origin.release()
    second.start()
    assert len(await (await second.stream("/u/huge.img")).broken()) < HUGE_BYTES
    assert second.entries() == []
    assert hashlib.sha256((await second.get("/u/huge.img")).body).hexdigest() == first.entries()[0]["sha256"]


async def test_a_wrong_small_body_is_not_noticed_by_anybody(origin, server, bucket):
    origin.body("/x", SMALL).headers(cache_control=FRESH)
    await server().fetch("/u/x")
    await bucket.wait(1)
    flip(bucket.files("blobs/*/*")[0])
    second = server()
    assert (await second.fetch("/u/x")).body == SMALL
    await until(lambda: [path.read_bytes() for path in bucket.files("blobs/*/*")] == [SMALL])


def cut_short(bucket):
    (blob,) = bucket.files("blobs/*/*")
    os.truncate(blob, len(BIG) // 2)


def remove(bucket):
    bucket.files("blobs/*/*")[0].unlink()


def scribble(bucket):
    bucket.rewrite_entry("{}")


def another(bucket):
    text = json.loads(bucket.files("urls/*.json")[0].read_text())
    bucket.rewrite_entry({**text, "url": text["url"] + "x"})


def swell(bucket):
    bucket.rewrite_entry(" " * 600_000)


@pytest.mark.parametrize("damage", [cut_short, remove, scribble, another, swell])
async def test_what_is_missing_or_damaged_there_is_a_miss_and_is_repaired(origin, server, bucket, filled, damage):
    damage(bucket)
    second = server()
    assert (await second.fetch("/u/noble.img")).body == BIG
    assert origin.count("/noble.img") == 2
    await until(lambda: [path.read_bytes() for path in bucket.files("blobs/*/*")] == [BIG])
    await wait_quiet(second)
    assert (await server().get("/u/noble.img")).body == BIG
    assert origin.count("/noble.img") == 2


async def test_a_bucket_that_breaks_off_is_gone_on_with_at_the_gap(origin, server, bucket, filled):
    bucket.wire.cut_body(BLOB, 1_000_000, times=1)
    bucket.wire.fail(BLOB, 500)
    assert (await server().get("/u/noble.img")).body == BIG
    upstream = origin.log[1:]
    assert upstream
    assert all(each.headers["if-range"] == '"1"' for each in upstream)
    assert sum(each.bytes_sent for each in upstream) < len(BIG)


async def test_a_bucket_that_breaks_off_once_is_asked_for_the_rest(origin, server, bucket, filled):
    bucket.wire.cut_body(BLOB, 1_000_000, times=1)
    assert (await server().get("/u/noble.img")).body == BIG
    assert origin.count("/noble.img") == 1


async def test_a_bucket_that_stalls_in_the_middle_is_not_waited_for(origin, server, bucket, filled):
    bucket.wire.stall_body(BLOB, 1_000_000, times=1)
    bucket.wire.fail(BLOB, 500)
    assert (await server().get("/u/noble.img")).body == BIG
    assert 0 < origin.log[-1].bytes_sent < len(BIG)


async def test_a_slow_upstream_is_not_waited_for_where_what_is_there_may_be_served(origin, server, bucket, filled):
    text = json.loads(bucket.files("urls/*.json")[0].read_text())
    text["validated_at"] -= 3600
    bucket.rewrite_entry(text)
    filled.delay_headers_until_released()
    proxy = server(config_text='[fill]\nstale_after = "0.2s"\n')
    assert (await proxy.get("/u/noble.img")).body == BIG
    origin.release()


@pytest.mark.parametrize("after", [0, 200_000])
async def test_a_bucket_that_breaks_off_each_time_is_left_for_upstream(origin, server, bucket, filled, after):
    bucket.wire.cut_body(BLOB, after)
    proxy = server(config_text='[fill]\nretries = 2\nconnections = 1\n')
    assert (await proxy.get("/u/noble.img")).body == BIG
    assert bucket.wire.count(BLOB) <= 2 * 3  # asked twice, and obstore tries three times
    assert origin.count("/noble.img") == 2


async def test_a_slow_upstream_is_waited_for_where_the_body_is_missing_there(origin, server, bucket, filled):
    text = json.loads(bucket.files("urls/*.json")[0].read_text())
    text["validated_at"] -= 3600
    bucket.rewrite_entry(text)
    remove(bucket)
    filled.delay_headers_until_released()
    proxy = server(config_text='[fill]\nstale_after = "0.1s"\n')
    getting = asyncio.create_task(proxy.get("/u/noble.img"))
    await until(lambda: getting.done() or [each for each in origin.log[1:] if "if-none-match" not in each.headers])
    origin.release()
    answer = await getting
    assert (answer.status, answer.body) == (200, BIG)


@pytest.mark.parametrize("status", [500, 503, 403])
async def test_a_bucket_that_fails_costs_nobody_anything_and_is_left_alone(origin, server, bucket, status):
    for number in range(6):
        origin.body(f"/{number}", SMALL).headers(cache_control=FRESH)
    bucket.wire.fail(r"\w", status)
    proxy = server()
    for number in range(6):
        assert (await proxy.get(f"/u/{number}")).body == SMALL
    await proxy.wait_stored(6)
    asked = bucket.wire.count(ENTRY)
    assert asked <= 3 * 3  # each question is asked three times at most
    assert (await proxy.status())["s3"]["absent"] == 1
    await proxy.wait_log("path=/u/5")  # comes behind what the bucket has done
    assert sum("bucket.absent" in line for line in proxy.log) == 1
    assert origin.requests == 6


async def test_a_bucket_that_does_not_answer_holds_nobody_up_for_long(origin, server, bucket):
    for number in range(5):
        origin.body(f"/{number}", SMALL).headers(cache_control=FRESH)
    bucket.wire.hold(r"\w")
    proxy = server(timeout="0.5s")
    for number in range(5):
        assert (await proxy.get(f"/u/{number}")).body == SMALL
    await proxy.wait_log("bucket.absent")
    assert bucket.wire.count(ENTRY) <= 3
    bucket.wire.heal()


async def test_a_bucket_that_is_not_there(origin, server, bucket):
    origin.body("/x", SMALL).headers(cache_control=FRESH)
    bucket.wire.cut()
    proxy = server()
    assert (await proxy.fetch("/u/x")).body == SMALL
    bucket.wire.restore()
    proxy.restart()  # which looks again what is missing
    await bucket.wait(1)


# -- what goes there -------------------------------------------------------------------------------------------------


async def test_what_is_not_for_everybody_never_goes_there(origin, proxy_factory, bucket):
    origin.body("/public", SMALL).headers(cache_control=FRESH)
    origin.body("/private", SMALL + b"1").headers(cache_control="private, max-age=600")
    origin.body("/no-store", SMALL + b"2").headers(cache_control="no-store")
    origin.body("/shared", SMALL + b"3").headers(cache_control="public, max-age=600")
    origin.body("/v/x", SMALL + b"4").headers(cache_control=FRESH)
    mirror = f'[[mirror]]\nname = "v"\nupstreams = ["{origin.url("/v/")}"]\nheaders = {{X-Key = "s3cret"}}\n'
    proxy = proxy_factory(config_text=bucket.config() + mirror)
    await proxy.get("/u/private")
    await proxy.get("/u/no-store")
    await proxy.fetch("/v/x")
    assert (await proxy.get("/u/shared", {"Authorization": "Basic eDp5"})).status == 200
    await proxy.fetch("/u/public")
    await proxy.wait_stored(3)
    await bucket.wait(1)
    await wait_quiet(proxy)
    assert [path.read_bytes() for path in bucket.files("blobs/*/*")] == [SMALL]
    proxy.restart()
    await wait_quiet(proxy)
    assert len(bucket.files("urls/*")) == 1
    everything = b"".join(path.read_bytes() for path in bucket.files("urls/*"))
    assert b"s3cret" not in everything


@pytest.mark.parametrize("is_killed", [False, True], ids=["SIGTERM", "SIGKILL"])
async def test_a_queue_that_was_full_is_emptied_after_a_restart(origin, server, bucket, is_killed):
    bodies = {f"/{number}": os.urandom(30_000 + number) for number in range(8)}
    for path, body in bodies.items():
        origin.body(path, body).headers(cache_control=FRESH)
    bucket.wire.hold(r"PUT ")
    proxy = server()
    for path in bodies:
        await proxy.get(f"/u{path}")
    await proxy.wait_stored(8)
    await until(lambda: bucket.wire.count(r"PUT "))
    assert (await proxy.status())["s3"]["waiting"] == 8
    proxy.kill() if is_killed else proxy.terminate()
    bucket.wire.cut()
    bucket.wire.heal()
    bucket.wire.restore()
    proxy.start()
    await bucket.wait(8)
    assert {path.read_bytes() for path in bucket.files("blobs/*/*")} == set(bodies.values())
    assert origin.requests == 8


async def test_a_restart_sends_nothing_again(origin, server, bucket):
    origin.body("/x", BIG).headers(cache_control=FRESH)
    proxy = server()
    await proxy.fetch("/u/x")
    await bucket.wait(1)
    await wait_quiet(proxy)
    bucket.wire.asked.clear()
    proxy.restart()
    origin.body("/y", SMALL).headers(cache_control=FRESH)
    await proxy.fetch("/u/y")
    await bucket.wait(2)
    assert not bucket.wire.matching(hashlib.sha256(BIG).hexdigest())
    # Even where the note of it is lost with the index:
    proxy.terminate()
    for path in proxy.files("index/*"):
        path.unlink()
    bucket.wire.asked.clear()
    proxy.start()
    await until(lambda: bucket.wire.count(r"HEAD ") == 2)
    await wait_quiet(proxy)
    assert not bucket.wire.matching(r"PUT ")


async def test_an_upload_in_parts_that_fails_is_taken_back_and_done_again(origin, server, bucket):
    origin.pattern("/huge.img", HUGE_BYTES, 3).headers(cache_control=FRESH)
    bucket.wire.fail(r"PUT .*partNumber=2", 400, times=1)
    await server().fetch("/u/huge.img")
    await bucket.wait(1)
    assert bucket.wire.count(r"DELETE .*uploadId=") == 1
    assert not [path for path in bucket.folder.rglob("*") if "multipart" in path.name and list(path.rglob("1"))]


async def test_a_stop_in_the_middle_of_an_upload_takes_its_parts_back(origin, server, bucket):
    origin.pattern("/huge.img", HUGE_BYTES, 3).headers(cache_control=FRESH)
    bucket.wire.hold(r"PUT .*partNumber=3", times=1)
    proxy = server()
    await proxy.fetch("/u/huge.img")
    await until(lambda: bucket.wire.count(r"PUT .*partNumber=3"))
    proxy.terminate()
    assert bucket.wire.count(r"DELETE .*uploadId=") == 1
    bucket.wire.heal()
    proxy.start()
    await bucket.wait(1)


async def test_two_servers_that_send_the_same_at_once(origin, server, bucket):
    origin.body("/x", BIG).headers(cache_control=FRESH, etag='"1"')
    bucket.wire.hold(r"PUT .*/blobs/", times=2)
    first, second = server(), server()
    await first.fetch("/u/x")
    await second.fetch("/u/x")
    await until(lambda: bucket.wire.count(r"PUT .*/blobs/") == 2)
    assert all(each.headers.get("if-none-match") == "*" for each in bucket.wire.matching(r"PUT .*/blobs/"))
    bucket.wire.heal()
    await bucket.wait(1)
    for proxy in (first, second):
        await wait_quiet(proxy)
    assert sorted(each.status for each in bucket.wire.matching(r"PUT .*/blobs/")) == [200, 412]


async def test_409_is_no_success(origin, server, bucket):
    origin.body("/x", BIG).headers(cache_control=FRESH)
    bucket.wire.fail(r"PUT .*/blobs/", 409, times=2)
    await server().fetch("/u/x")
    await bucket.wait(1)


async def test_what_is_used_counts_as_new_once_a_day(origin, server, bucket, filled):
    files = bucket.files("*/*") + bucket.files("*/*/*")
    for path in files:
        os.utime(path, (1, 1))
    second = server()
    assert (await second.fetch("/u/noble.img")).body == BIG
    await until(lambda: all(path.stat().st_mtime > 1000 for path in files))
    assert bucket.files("renewed/*") == []
    bucket.wire.asked.clear()
    assert (await server().fetch("/u/noble.img")).body == BIG
    await until(lambda: bucket.wire.count("HEAD "))
    assert not bucket.wire.matching("PUT ")


async def test_a_bucket_that_does_not_copy_is_written_to_all_the_same(origin, server, bucket, filled):
    for path in bucket.files("blobs/*/*"):
        os.utime(path, (1, 1))
    bucket.wire.fail(r"PUT .*/renewed/", 501)
    second = server()
    await second.fetch("/u/noble.img")
    await until(lambda: bucket.wire.count(r"PUT .*/renewed/"))
    await wait_quiet(second)
    assert (await second.status())["s3"]["uploads"] == {"present": 1}


async def test_what_a_login_of_ours_opened_stays_here_once_none_is_needed(origin, proxy_factory, bucket):
    origin.body("/v/x", SMALL).headers(cache_control=FRESH)
    origin.body("/public", BIG).headers(cache_control=FRESH)
    mirror = f'[[mirror]]\nname = "v"\nupstreams = ["{origin.url("/v/")}"]\n'
    proxy = proxy_factory(config_text=mirror + 'headers = {X-Key = "s3cret"}\n')
    await proxy.fetch("/v/x")
    await proxy.fetch("/u/public")
    proxy.terminate()
    proxy.config.write_text(bucket.config() + mirror)
    proxy.start()
    await until(lambda: bucket.files("urls/*.json"))
    await wait_quiet(proxy)
    assert [path.read_bytes() for path in bucket.files("blobs/*/*")] == [BIG]


# -- around it ----------------------------------------------------------------------------------------------------


async def test_status_and_metrics_tell_of_it(origin, server, bucket, filled):
    proxy = server()
    await proxy.fetch("/u/noble.img")
    await proxy.get("/u/none")
    await wait_quiet(proxy)
    told = (await proxy.status())["s3"]
    assert told["lookups"] == {"hit": 1, "miss": 1}
    assert told["bytes"] == {"read": len(BIG)}
    assert (told["absent"], told["waiting"], told["uploads"]) == (0, 0, {"present": 1})
    assert (await proxy.status())["totals"]["fetched_bytes"] == 0
    metrics = (await proxy.get("/-/metrics")).body.decode()
    assert 'fetchonce_bucket_lookups_total{result="hit"} 1.0' in metrics
    assert "fetchonce_bucket_absent 0.0" in metrics
    assert "bucket: 1 hits" in proxy.run("status").stdout


async def test_no_credentials_in_the_log_or_in_what_config_shows(origin, server, bucket):
    origin.body("/x", SMALL).headers(cache_control=FRESH)
    proxy = server("--log-level", "debug")
    await proxy.fetch("/u/x")
    await bucket.wait(1)
    bucket.wire.fail(r"\w", 403)
    await proxy.get("/u/none")
    shown = proxy.run("config", "show").stdout + proxy.run("s3", "check", code=1).stdout
    for text in ("\n".join(proxy.log), shown):
        assert "testsecret" not in text
        assert "testkey" not in text


async def test_several_workers_share_it(origin, server, bucket):
    bodies = {f"/{number}": os.urandom(100_000) for number in range(6)}
    for path, body in bodies.items():
        origin.body(path, body).headers(cache_control=FRESH)
    first = server("--workers", "2")
    for path, body in bodies.items():
        assert (await first.get(f"/u{path}")).body == body
    await bucket.wait(6)
    second = server("--workers", "2")
    for path, body in bodies.items():
        assert (await second.get(f"/u{path}")).body == body
    assert origin.requests == 6


async def test_a_reload_takes_another_bucket(origin, proxy_factory, bucket):
    origin.body("/x", SMALL).headers(cache_control=FRESH)
    proxy = proxy_factory()
    await proxy.fetch("/u/x")
    proxy.config.write_text(bucket.config())
    proxy.send_signal(1)
    await bucket.wait(1)


async def test_no_room_here_and_it_comes_from_there_all_the_same(origin, server, bucket, filled):
    second = server("--max-size", "1MB")
    assert (await second.get("/u/noble.img")).body == BIG
    assert origin.count("/noble.img") == 1
    flip(bucket.files("blobs/*/*")[0])
    assert len(await (await second.stream("/u/noble.img")).broken()) < len(BIG)


async def test_a_fill_that_was_killed_goes_on_from_there(origin, server, bucket):
    origin.pattern("/huge.img", HUGE_BYTES, 3).headers(cache_control=FRESH, etag='"1"')
    first = server()
    await first.fetch("/u/huge.img")
    await bucket.wait(1)
    bucket.wire.asked.clear()
    bucket.wire.cut_body(BLOB, 12_000_000, times=1)
    bucket.wire.hold(BLOB)
    second = server()
    stream = await second.stream("/u/huge.img")
    await stream.read(11_000_000)
    await second.wait_begun(11_000_000)
    second.kill()
    bucket.wire.heal()
    second.start()
    assert hashlib.sha256((await second.get("/u/huge.img")).body).hexdigest() == first.entries()[0]["sha256"]
    assert origin.count("/huge.img") == 1
    assert any(each.headers["range"] != f"bytes=0-{HUGE_BYTES - 1}" for each in bucket.wire.matching(BLOB)[1:])


@pytest.mark.parametrize("is_there", [True, False])
async def test_what_a_mirror_has_begun_is_not_mixed_with_what_is_there(origin, server, proxy_factory, bucket, is_there):
    """Another process that reads along would not know that the body must have a digest."""
    image = origin.pattern("/huge.img", HUGE_BYTES, 3).headers(cache_control=FRESH, etag='"1"')
    first = server()
    await first.fetch("/u/huge.img")
    await bucket.wait(1)
    image.stall_at(12_000_000)
    second = proxy_factory()
    await (await second.stream("/u/huge.img")).read(11_000_000)
    await second.wait_begun(11_000_000)
    second.kill()
    origin.release()
    if not is_there:
        remove(bucket)
    second.config.write_text(bucket.config())
    second.start()
    sent = len(origin.log)
    assert hashlib.sha256((await second.get("/u/huge.img")).body).hexdigest() == first.entries()[0]["sha256"]
    if is_there:
        assert (await second.status())["s3"]["bytes"]["read"] == HUGE_BYTES
    else:
        assert 0 < sum(each.bytes_sent for each in origin.log[sent:]) < HUGE_BYTES


async def test_a_new_checksum_file_makes_what_is_there_stale(origin, server, bucket):
    def publish(body):
        origin.body("/current/noble.img", body)
        origin.body("/current/SHA256SUMS", f"{hashlib.sha256(body).hexdigest()}  noble.img\n".encode())

    keys = 'moving = ["/current/"]\nchecksums = ["SHA256SUMS"]\nttl = "1d"\n'
    mirror = f'[[mirror]]\nname = "m"\nupstreams = ["{origin.url("/")}"]\n{keys}'
    publish(BIG)
    first = server(config_text=mirror)
    await first.fetch("/m/current/noble.img")
    await until(lambda: bucket.files("urls/*.json"))
    await wait_quiet(first)
    publish(SMALL)
    second = server(config_text=mirror)
    sums = await second.get("/m/current/SHA256SUMS", {"Cache-Control": "no-cache"})
    await second.wait_idle()
    image = await second.get("/m/current/noble.img")
    assert sums.body.split()[0].decode() == hashlib.sha256(image.body).hexdigest()
