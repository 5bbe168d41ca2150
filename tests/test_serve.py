"""The main job: one upstream fetch, every reader at once, hits from disk."""

import asyncio
import hashlib
import os
import re
import signal

import pytest

from tests.harness import Truncated, until
from tests.origin import pattern_sha256

BODY = os.urandom(1_000_000)


async def test_second_client_follows_the_first_fill(origin, proxy):
    origin.body("/noble.img", BODY).stall_at(400_000)
    first, second = await proxy.stream("/u/noble.img"), await proxy.stream("/u/noble.img")
    assert await first.read(400_000) == await second.read(400_000) == BODY[:400_000]  # before the fill is whole
    origin.release()
    assert await first.rest() == await second.rest() == BODY[400_000:]
    assert origin.requests == 1
    assert first.headers["cache-status"] == "fetchonce; fwd=uri-miss; stored"
    assert second.headers["cache-status"] == "fetchonce; fwd=uri-miss; collapsed"


async def test_a_hundred_requests_at_once_are_one_upstream_request(origin, proxy):
    origin.body("/noble.img", BODY).delay_headers_until_released()
    asked = [asyncio.create_task(proxy.get("/u/noble.img")) for _ in range(100)]
    await origin.requested(1)
    await proxy.wait_readers(100)
    origin.release()
    answers = await asyncio.gather(*asked)
    assert {answer.body for answer in answers} == {BODY}
    assert origin.requests == 1


async def test_a_hit_comes_from_disk_with_upstream_gone(origin, proxy):
    origin.body("/noble.img", BODY).headers(cache_control="max-age=600")
    await proxy.get("/u/noble.img")
    await proxy.wait_stored()
    origin.stop()
    hit = await proxy.get("/u/noble.img")
    assert hit.body == BODY
    assert hit.headers["cache-status"] == "fetchonce; hit"


async def test_everything_complete_is_served_after_a_restart(origin, proxy):
    origin.body("/noble.img", BODY).headers(cache_control="max-age=600")
    before = await proxy.get("/u/noble.img")
    await proxy.wait_stored()
    proxy.restart()
    origin.stop()
    after = await proxy.get("/u/noble.img")
    assert after.body == BODY
    assert after.headers["cache-status"] == "fetchonce; hit"
    for name in ("etag", "last-modified", "content-type", "date"):
        assert after.headers[name] == before.headers[name]


async def test_everything_complete_is_served_after_sigkill(origin, proxy):
    origin.body("/noble.img", BODY).headers(cache_control="max-age=600")
    await proxy.get("/u/noble.img")
    await proxy.wait_stored()
    proxy.kill()
    proxy.start()
    assert (await proxy.get("/u/noble.img")).body == BODY
    assert origin.requests == 1


@pytest.mark.parametrize(
    "spelling",
    [
        "/{host}/noble.img",
        "/u/noble.img",
        "/http/{host}/noble.img",
        "/https/{host}/noble.img",
        "/http://{host}/noble.img",
        "/HTTPS///{host}/noble.img",
        "http://{host}/noble.img",
        "http://127.0.0.1:{port}/u/noble.img",
        "http://localhost:{port}/http/{host}/noble.img",
    ],
)
async def test_every_spelling_is_one_entry(origin, proxy, spelling):
    origin.body("/noble.img", BODY).headers(cache_control="max-age=600")
    await proxy.get("/u/noble.img")
    host, port = origin.url().split("/")[2], proxy.url().split(":")[2].strip("/")
    answer = await proxy.get(spelling.format(host=host, port=port))
    assert (answer.status, answer.body) == (200, BODY)
    assert origin.requests == 1


async def test_the_path_goes_upstream_byte_for_byte(origin, proxy):
    path = "/a%20b/~x//%7Ey/%zz;p=1,(2)'!*[3]{4}|5\"<>^`"
    origin.body(path, BODY)
    assert (await proxy.get("/u" + path)).body == BODY
    assert origin.log[0].path == path


async def test_an_unknown_host_is_403_and_says_what_allows_it(proxy):
    answer = await proxy.get("/example.org/x.img")
    assert answer.status == 403
    assert "--allow example.org" in answer.json()["message"]
    assert "[[mirror]]" in answer.json()["message"]


async def test_a_client_that_leaves_changes_nothing(origin, proxy):
    origin.body("/noble.img", BODY).stall_at(400_000)
    leaver = await proxy.stream("/u/noble.img")
    await leaver.read(1000)
    stayer = await proxy.stream("/u/noble.img")
    leaver.close()
    await proxy.wait_readers(1)
    origin.release()
    assert await stayer.rest() == BODY
    assert origin.requests == 1


async def test_the_fill_finishes_when_all_clients_have_left(origin, proxy):
    origin.body("/noble.img", BODY).stall_at(400_000).headers(cache_control="max-age=600")
    async with await proxy.stream("/u/noble.img") as only:
        await only.read(1000)
    await proxy.wait_readers(0)
    origin.release()
    await proxy.wait_stored()
    assert (await proxy.get("/u/noble.img")).body == BODY
    assert origin.requests == 1


async def test_on_abandon_pause_stops_the_fill_and_the_next_client_goes_on_with_it(origin, proxy_factory):
    proxy = proxy_factory(config_text='[fill]\non_abandon = "pause"\n')
    origin.body("/noble.img", BODY).stall_at(400_000, times=1)
    async with await proxy.stream("/u/noble.img") as only:
        await only.read(400_000)
    await proxy.wait_idle()
    assert (await proxy.get("/u/noble.img")).body == BODY
    assert [request.range for request in origin.log] == [None, "bytes=400000-"]


async def test_a_stopped_server_goes_on_where_it_was(origin, proxy):
    origin.body("/noble.img", BODY).stall_at(400_000, times=1)
    async with await proxy.stream("/u/noble.img") as only:
        await only.read(400_000)
    proxy.restart()
    assert (await proxy.get("/u/noble.img")).body == BODY
    assert [request.range for request in origin.log] == [None, "bytes=400000-"]


async def test_a_changed_object_is_not_mixed_with_its_old_partial(origin, proxy):
    new = os.urandom(900_000)
    resource = origin.body("/noble.img", BODY).stall_at(400_000, times=1)
    async with await proxy.stream("/u/noble.img") as only:
        await only.read(400_000)
    proxy.terminate()
    resource.generation(new)
    proxy.start()
    assert (await proxy.get("/u/noble.img")).body == new


async def test_a_broken_transfer_is_taken_up_unseen(origin, proxy):
    origin.body("/noble.img", BODY).reset_at(300_000, times=1).close_at(600_000, times=1)
    assert (await proxy.get("/u/noble.img")).body == BODY
    assert origin.count("/noble.img") == 3


async def test_a_body_that_cannot_be_completed_breaks_the_connection(origin, proxy):
    origin.body("/noble.img", BODY).close_at(400_000).headers(etag=None, last_modified=None)
    with pytest.raises(Truncated) as broken:
        await proxy.get("/u/noble.img")
    assert BODY.startswith(broken.value.partial)
    assert len(broken.value.partial) == 400_000
    await proxy.wait_idle()
    assert proxy.files("blobs/*/*") == []


async def test_a_truncated_chunked_body_breaks_the_connection(origin, proxy):
    origin.body("/list.json", BODY).chunked_truncated_at(400_000)
    with pytest.raises(Truncated):
        await proxy.get("/u/list.json")


async def test_a_chunked_body_is_streamed_and_stored_with_its_length(origin, proxy):
    origin.body("/list.json", BODY).chunked().headers(cache_control="max-age=600")
    miss = await proxy.get("/u/list.json")
    assert miss.body == BODY
    assert "content-length" not in miss.headers
    await proxy.wait_stored()
    hit = await proxy.get("/u/list.json", {"Range": "bytes=10-19"})
    assert (hit.status, hit.body) == (206, BODY[10:20])
    assert hit.headers["content-range"] == f"bytes 10-19/{len(BODY)}"


async def test_a_range_of_a_chunked_fill_waits_for_the_length(origin, proxy):
    origin.body("/list.json", BODY).chunked().stall_at(400_000)
    async with await proxy.stream("/u/list.json") as first:
        await first.read(1000)
        asked = asyncio.create_task(proxy.get("/u/list.json", {"Range": "bytes=-10"}))
        await proxy.wait_readers(2)
        origin.release()
        assert (await asked).body == BODY[-10:]


async def test_no_store_is_streamed_and_not_kept(origin, proxy):
    origin.body("/token", BODY).headers(cache_control="no-store").stall_at(400_000)
    first = await proxy.stream("/u/token")
    await first.read(1000)
    origin.release()
    await first.rest()
    await proxy.wait_idle()
    assert (await proxy.get("/u/token")).body == BODY
    assert origin.requests == 2
    assert proxy.files("blobs/*/*") == []


async def test_upstream_404_is_404_with_a_message(origin, proxy):
    answer = await proxy.get("/u/none.img")
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/json"
    assert origin.url("/none.img") in answer.json()["message"]


async def test_upstream_500_is_502_and_503_stays(origin, proxy):
    origin.body("/a", BODY).status(500)
    origin.body("/b", BODY).status(503, {"Retry-After": "7"})
    assert (await proxy.get("/u/a")).status == 502
    answer = await proxy.get("/u/b")
    assert (answer.status, answer.headers["retry-after"]) == (503, "7")


async def test_the_next_upstream_is_asked_when_the_first_is_down(origin, proxy_factory):
    proxy = proxy_factory(mirrors={"u": f"http://127.0.0.1:9/,{origin.url()}"})
    origin.body("/noble.img", BODY)
    assert (await proxy.get("/u/noble.img")).body == BODY


async def test_an_upstream_that_is_down_is_502_with_the_cause(proxy_factory):
    proxy = proxy_factory(mirrors={"u": "http://127.0.0.1:9/"})
    answer = await proxy.get("/u/noble.img")
    assert answer.status == 502
    assert "refused" in answer.json()["message"]


async def test_redirects_are_followed_inside(origin, proxy):
    origin.body("/real.img", BODY).headers(cache_control="max-age=600")
    origin.body("/latest.img", b"").redirect(origin.url("/hop.img"))
    origin.body("/hop.img", b"").redirect("/real.img", 307)
    assert (await proxy.get("/u/latest.img")).body == BODY
    assert (await proxy.get("/u/latest.img")).headers["cache-status"] == "fetchonce; hit"
    assert origin.requests == 3


async def test_a_redirect_loop_is_502(origin, proxy):
    origin.body("/loop", b"").redirect("/loop")
    answer = await proxy.get("/u/loop")
    assert answer.status == 502
    assert "redirects more than" in answer.json()["message"]


async def test_a_moving_object_is_revalidated_and_not_fetched_again(origin, proxy_factory):
    proxy = proxy_factory(
        mirrors={},
        config_text=f'[[mirror]]\nname = "u"\nupstreams = ["{origin.url()}"]\nmoving = ["/latest/"]\nttl = "0s"\n',
    )
    resource = origin.body("/latest/noble.img", BODY).headers(cache_control="max-age=600")
    await proxy.get("/u/latest/noble.img")
    await proxy.wait_stored()
    again = await proxy.get("/u/latest/noble.img")
    assert again.body == BODY
    assert again.headers["cache-status"] == "fetchonce; fwd=stale; fwd-status=304"
    assert [request.status for request in origin.log] == [200, 304]
    new = os.urandom(500_000)
    resource.generation(new)
    assert (await proxy.get("/u/latest/noble.img")).body == new


async def test_a_stale_object_is_served_when_upstream_is_gone(origin, proxy_factory):
    proxy = proxy_factory(
        mirrors={},
        config_text=f'[[mirror]]\nname = "u"\nupstreams = ["{origin.url()}"]\nmoving = ["/latest/"]\nttl = "0s"\n',
    )
    origin.body("/latest/noble.img", BODY)
    await proxy.get("/u/latest/noble.img")
    await proxy.wait_stored()
    origin.stop()
    stale = await proxy.get("/u/latest/noble.img")
    assert stale.body == BODY
    assert stale.headers["cache-status"].startswith("fetchonce; fwd=stale")


async def test_no_cache_asks_upstream_and_only_if_cached_never_does(origin, proxy):
    origin.body("/noble.img", BODY).headers(cache_control="max-age=600")
    refused = await proxy.get("/u/noble.img", {"Cache-Control": "only-if-cached"})
    assert (refused.status, origin.requests) == (504, 0)
    await proxy.get("/u/noble.img")
    await proxy.wait_stored()
    await proxy.get("/u/noble.img", {"Pragma": "no-cache"})
    assert [request.status for request in origin.log] == [200, 304]
    assert (await proxy.get("/u/noble.img", {"Cache-Control": "only-if-cached"})).body == BODY


async def test_offline_serves_what_is_there_and_504s_the_rest(origin, proxy_factory, tmp_path):
    online = proxy_factory(cache_dir=tmp_path / "cache")
    origin.body("/noble.img", BODY)
    await online.get("/u/noble.img")
    await online.wait_stored()
    online.terminate()
    offline = proxy_factory("--offline", cache_dir=tmp_path / "cache")
    assert (await offline.get("/u/noble.img")).body == BODY
    answer = await offline.get("/u/other.img")
    assert (answer.status, origin.requests) == (504, 1)
    assert "offline" in answer.json()["message"]


async def test_two_hundred_clients_that_stand_still_cost_little_and_hold_up_nobody(origin, proxy):
    size = 64 << 20
    origin.pattern("/big.img", size, seed=1)
    first = await proxy.stream("/u/big.img")
    await first.sha256()
    before = proxy.memory_bytes()
    standing = [await proxy.stream("/u/big.img") for _ in range(200)]
    for stream in standing:
        await stream.read(1000)
    assert (await (await proxy.stream("/u/big.img")).sha256())[0] == pattern_sha256(size, 1)
    await until(lambda: (proxy.memory_bytes() - before) / len(standing) < 50_000)
    for stream in standing:
        stream.close()
    await until(lambda: proxy.fds() < 100)


async def test_memory_stays_flat_with_64_readers_of_a_big_fill(origin, proxy):
    size = 60 << 20  # over one connection: each byte is sent once
    origin.pattern("/big.img", size, seed=2).stall_at(1000)
    readers = [await proxy.stream("/u/big.img") for _ in range(64)]
    for reader in readers:
        await reader.read(1000)
    before = proxy.memory_bytes()
    origin.release()
    slow, *quick = readers  # one that reads nothing more while the others read everything
    assert set(await asyncio.gather(*(reader.drain() for reader in quick))) == {size - 1000}
    await until(lambda: proxy.memory_bytes() - before < size / 2)
    assert await slow.drain() == size - 1000
    assert origin.bytes_sent("/big.img") == size


async def test_the_access_log_has_one_line_a_request(origin, proxy):
    origin.body("/noble.img", BODY)
    await proxy.get("/u/noble.img", {"Range": "bytes=0-9"})
    line = await proxy.wait_log("access method=GET")
    fields = dict(re.findall(r'(\w+)=("[^"]*"|\S+)', line))
    assert fields["path"] == "/u/noble.img"
    assert (fields["status"], fields["bytes"], fields["cache"]) == ("206", "10", "MISS")
    assert fields["client"] == "127.0.0.1"
    assert fields["mirror"] == "u"


async def test_status_and_healthz(origin, proxy):
    assert (await proxy.get("/-/healthz")).json() == {"status": "ok"}
    origin.body("/noble.img", BODY).stall_at(400_000)
    async with await proxy.stream("/u/noble.img") as stream:
        await stream.read(400_000)
        (fill,) = await proxy.fills()
        assert (fill["bytes"], fill["length"], fill["readers"]) == (400_000, len(BODY), 1)
        assert fill["url"] == origin.url("/noble.img")
        origin.release()
        await stream.rest()

    async def is_counted():
        totals = (await proxy.status())["totals"]
        return totals["fetched_bytes"] == totals["sent_bytes"] == len(BODY)

    await until(is_counted)


async def test_sighup_reads_the_configuration_again_and_keeps_the_old_one_if_it_is_wrong(origin, proxy_factory):
    proxy = proxy_factory(config_text="")
    config = proxy.config
    origin.body("/noble.img", BODY)
    assert (await proxy.get("/v/noble.img")).status == 403
    config.write_text(f'[[mirror]]\nname = "v"\nupstreams = ["{origin.url()}"]\n')
    proxy.send_signal(signal.SIGHUP)
    await proxy.wait_log("config.reloaded")
    assert (await proxy.get("/v/noble.img")).body == BODY
    config.write_text("[fill]\nconnections = 'many'\n")
    proxy.send_signal(signal.SIGHUP)
    line = await proxy.wait_log("config.refused")
    assert f"{config}:2" in line
    assert (await proxy.get("/v/noble.img")).body == BODY


async def test_a_read_timeout_is_a_break_and_is_resumed(origin, proxy_factory):
    proxy = proxy_factory(config_text='[fill]\nread_timeout = "500ms"\n')
    origin.body("/noble.img", BODY).stall_at(400_000, times=1)
    assert (await proxy.get("/u/noble.img")).body == BODY
    assert "bytes=400000-" in [request.range for request in origin.log]


async def test_equal_bodies_are_stored_once(origin, proxy):
    for path in ("/a.img", "/b.img"):
        origin.body(path, BODY)
        await proxy.get(f"/u{path}")
    await proxy.wait_stored(2)
    blobs = [path for path in (proxy.cache_dir / "blobs").glob("*/*") if path.suffix != ".json"]
    assert [path.name for path in blobs] == [hashlib.sha256(BODY).hexdigest()]


async def test_an_abandoned_get_for_its_redirect_leaves_no_poison(origin, proxy):
    origin.body("/noble.img", BODY).stall_at(0)
    for _ in range(5):
        (await proxy.stream("/u/noble.img")).close()
    origin.release()
    assert (await proxy.get("/u/noble.img")).body == BODY
    assert origin.requests == 1
