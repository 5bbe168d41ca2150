"""What programs can ask and do at /-/api/, and /-/events."""

import json
import signal

import pytest

from tests.harness import until

FRESH = {"cache_control": "max-age=600"}
JSON = {"Content-Type": "application/json"}
SIZES = {"a.img": 3000, "b.img": 1000, "c.txt": 2000}


@pytest.fixture
async def stored(origin, proxy):
    """Three small objects; their keys by name."""
    for name, size in SIZES.items():
        origin.body(f"/{name}", b"x" * size).headers(**FRESH)
        await proxy.get(f"/u/{name}")
    await until(lambda: len(proxy.entries()) == 3)
    return {each["url"].rpartition("/")[2]: each["key"] for each in proxy.entries()}


async def listed(proxy, query=""):
    answer = await proxy.get(f"/-/api/entries?{query}")
    assert answer.status == 200, answer.body
    return answer.json()


def names(told):
    return [each["url"].rpartition("/")[2] for each in told["entries"]]


async def post(proxy, path, body, headers=JSON):
    return await asks(proxy, "POST", path, json.dumps(body).encode(), headers)


async def asks(proxy, method, path, body=b"", headers=()):
    """Status and JSON of a request with a body."""
    host = f"{proxy.client.host}:{proxy.client.port}"
    fields = {"Host": host, "Connection": "close", "Content-Length": len(body), **dict(headers)}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    answer = await proxy.raw("\r\n".join(lines).encode() + body)
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


async def test_entries_are_searched_sorted_and_paged(proxy, stored):
    told = await listed(proxy)
    assert (names(told), told["total"], told["bytes"]) == (["a.img", "b.img", "c.txt"], 3, 6000)
    for query, expected in {
        "sort=size": ["b.img", "c.txt", "a.img"],
        "sort=size&order=desc&limit=2": ["a.img", "c.txt"],
        "sort=size&order=desc&offset=2&limit=2": ["b.img"],
        "q=.img": ["a.img", "b.img"],
        "q=*/b.*": ["b.img"],
        "q=nothing": [],
        "limit=0": [],
    }.items():
        assert names(await listed(proxy, query)) == expected, query
    assert (await listed(proxy, "q=.img&limit=1"))["total"] == 2
    long = f"limit={'9' * 5000}"
    for query in ("sort=colour", "order=up", "limit=-1", "limit=1001", long, "offset=x", "limit=%C2%B2"):
        answer = await proxy.get(f"/-/api/entries?{query}")
        assert answer.status == 400, query
        assert "expected" in answer.json()["message"]


async def test_an_entry_is_pinned_verified_and_removed(proxy, stored):
    key = stored["a.img"]
    entry = (await proxy.get(f"/-/api/entries/{key}")).json()
    assert (entry["size"], entry["pinned"], entry["state"]) == (3000, False, "complete")
    for pinned in (True, False):
        status, told = await post(proxy, f"/-/api/entries/{key}/pin", {"pinned": pinned})
        assert (status, told["pinned"]) == (200, pinned)
        assert (await proxy.get(f"/-/api/entries/{key}")).json()["pinned"] is pinned
    assert (await post(proxy, f"/-/api/entries/{key}/verify", {}))[1]["state"] == "ok"
    (blob,) = [path for path in proxy.cache_dir.glob("blobs/*/*") if path.name == entry["digest"].partition(":")[2]]
    blob.chmod(0o600)
    blob.write_bytes(b"y" * 3000)
    status, told = await post(proxy, f"/-/api/entries/{key}/verify", {})
    assert (status, told["state"]) == (200, "damaged")
    assert (await proxy.get("/u/a.img")).body == b"x" * 3000  # it was fetched again
    assert (await asks(proxy, "DELETE", f"/-/api/entries/{stored['b.img']}"))[1]["removed"] == ["complete"]
    assert "b.img" not in names(await listed(proxy))


async def test_what_is_not_stored_or_being_fetched_is_told(origin, proxy, stored):
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/pin"), ("POST", "/verify")):
        body = b'{"pinned": true}' if method == "POST" else b""
        status, told = await asks(proxy, method, f"/-/api/entries/{'0' * 64}{path}", body, JSON)
        assert (status, "nothing is stored" in told["message"]) == (404, True)
    origin.pattern("/slow.img", 100_000, 1).stall_at(1000)
    async with await proxy.stream("/u/slow.img") as stream:
        await stream.read(1000)
        ((fill,), coming) = await proxy.fills("/slow.img"), await listed(proxy, "q=slow")
        assert coming["entries"] == []
        status, told = await asks(proxy, "DELETE", f"/-/api/entries/{fill['key']}")
        assert (status, "being fetched" in told["message"]) == (409, True)
        origin.release()
        await stream.rest()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"pinned": 1}', b"[" * 100_000])
async def test_a_body_that_says_nothing_clear_changes_nothing(proxy, stored, body):
    status, told = await asks(proxy, "POST", f"/-/api/entries/{stored['a.img']}/pin", body, JSON)
    assert (status, "expected" in told["message"]) == (400, True)


async def test_a_page_of_another_site_changes_nothing(proxy, stored):
    path = f"/-/api/entries/{stored['a.img']}"
    for method, where, headers in (
        ("DELETE", path, {"Origin": "https://evil.example"}),
        ("DELETE", path, {"Sec-Fetch-Site": "cross-site"}),
        ("POST", f"{path}/pin", JSON | {"Origin": "null"}),
        ("POST", f"{path}/pin", {"Content-Type": "text/plain"}),
        ("POST", f"{path}/verify", JSON | {"Sec-Fetch-Site": "same-site"}),
    ):
        status, _ = await asks(proxy, method, where, b'{"pinned": true}', headers)
        assert status == 403, (method, headers)
    assert not any(each["pinned"] for each in (await listed(proxy))["entries"])
    assert (await listed(proxy))["total"] == 3


async def test_a_change_by_one_worker_is_seen_by_all(origin, proxy_factory):
    proxy = proxy_factory("--workers", "3")
    origin.body("/x.img", b"x" * 1000).headers(**FRESH)
    for _ in range(12):
        await proxy.get("/u/x.img")
    await proxy.wait_stored()
    (entry,) = proxy.entries()
    assert (await asks(proxy, "DELETE", f"/-/api/entries/{entry['key']}"))[0] == 200
    for _ in range(12):
        assert (await proxy.get("/u/x.img", {"Cache-Control": "only-if-cached"})).status == 504


async def test_events_tell_of_a_fill_from_its_begin_to_its_end_and_end_with_the_server(origin, proxy):
    origin.pattern("/x.img", 100_000, 1).headers(**FRESH).stall_at(60_000)
    events = await proxy.stream("/-/events")
    assert events.headers["content-type"].startswith("text/event-stream")

    async def status(is_wanted):
        """The next event that is wanted."""
        while True:
            event = b""
            while not event.endswith(b"\n\n"):
                event += await events.read(1)
            assert event.startswith(b"event: status\ndata: ")
            told = json.loads(event.partition(b"data: ")[2])
            if is_wanted(told):
                return told

    await status(lambda told: told["fills"] == [])
    stream = await proxy.stream("/u/x.img")
    told = await status(lambda told: told["fills"] and told["fills"][0]["bytes"] == 60_000)
    assert (told["fills"][0]["length"], told["fills"][0]["readers"]) == (100_000, 1)
    origin.release()
    await stream.rest()
    told = await status(lambda told: not told["fills"])
    assert told["totals"]["fills"] == {"complete": 1}
    proxy.send_signal(signal.SIGTERM)
    await events.drain()
    assert await proxy.exited() == 0
