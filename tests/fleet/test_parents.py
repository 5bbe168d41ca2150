"""Parents: other servers of ours that are asked before upstream."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import threading
import time

import pytest

from tests.fleet.conftest import FRESH
from tests.fleet.test_s3 import wait_quiet
from tests.harness import free_port, until
from tests.origin import pattern_bytes

BODY = os.urandom(2_000_000)
SMALL = os.urandom(2_000)
OURS = {"cache-status": "fetchonce; hit; confirmed=0"}
LOGIN = {"Authorization": "Basic YWxpY2U6eA=="}


def base(proxy) -> str:
    return proxy.url("").rstrip("/")


async def test_a_parent_is_asked_and_streams_while_it_fills(origin, server):
    parent = server()
    child = server(base(parent))
    origin.body("/x.img", BODY).headers(cache_control=FRESH).stall_at(1_000_000)
    first = await child.stream("/u/x.img")
    assert await first.read(1_000_000) == BODY[:1_000_000]
    origin.release()
    assert await first.rest() == BODY[1_000_000:]
    for each in (parent, child):
        await each.wait_stored()
    assert origin.count("/x.img") == 1
    there, here = await parent.get("/u/x.img"), await child.get("/u/x.img")
    for name in ("etag", "last-modified", "content-type", "content-length", "cache-control", "date", "accept-ranges"):
        assert here.headers[name] == there.headers[name]
    assert here.headers["cache-status"] == there.headers["cache-status"] == "fetchonce; hit"
    assert here.body == there.body == BODY


@pytest.mark.parametrize("path", ["/u/a b.img".replace(" ", "%20"), "/u/x.img?v=1&w=%2F", "/u/d//e.img"])
async def test_the_parent_is_asked_for_the_same_bytes_of_a_path(origin, server, path):
    parent = server()
    child = server(base(parent))
    origin.body(path.removeprefix("/u"), SMALL).headers(cache_control=FRESH)
    assert (await child.fetch(path)).body == SMALL
    assert [request.path for request in origin.log] == [path.removeprefix("/u")]
    assert (await parent.get(path)).headers["cache-status"] == "fetchonce; hit"


async def test_a_reader_far_ahead_is_served_by_the_parent_too(origin, server):
    parent = server()
    child = server(base(parent))
    size = 48_000_000
    image = origin.pattern("/x.img", size).headers(cache_control=FRESH).stall_at(1_000_000)
    async with await child.stream("/u/x.img") as first:
        await first.read(900_000)
        last = await child.get("/u/x.img", {"Range": "bytes=-1000"})
        assert (last.status, len(last.body)) == (206, 1000)
        image.release()
        assert await first.drain() == size - 900_000
    assert origin.bytes_sent("/x.img") <= 1.05 * size


async def test_a_question_about_what_is_stored_goes_to_the_parent(origin, server):
    parent = server()
    child = server(base(parent))
    origin.body("/x.img", BODY).headers(cache_control="no-cache")
    for _ in range(2):
        assert (await child.fetch("/u/x.img")).body == BODY
    assert [request.status for request in origin.log] == [200, 304]
    assert (await child.get("/u/x.img")).headers["cache-status"] == "fetchonce; fwd=stale; fwd-status=304"


async def test_no_cache_goes_through_to_upstream(origin, server):
    parent = server()
    child = server(base(parent))
    image = origin.body("/x.img", BODY).headers(cache_control=FRESH)
    await child.fetch("/u/x.img")
    image.generation(SMALL)
    assert (await child.get("/u/x.img")).body == BODY
    assert (await child.get("/u/x.img", {"Cache-Control": "no-cache"})).body == SMALL


async def test_head_is_asked_of_the_parent(origin, server):
    parent = server()
    child = server(base(parent))
    origin.body("/x.img", BODY).headers(cache_control=FRESH)
    await parent.fetch("/u/x.img")
    answer = await child.get("/u/x.img", method="HEAD")
    assert (answer.status, answer.headers["content-length"]) == (200, str(len(BODY)))
    assert (await child.status())["peers"] == {base(parent): "answers"}
    assert (await child.get("/u/none.img", method="HEAD")).status == 404
    assert [(request.method, request.path) for request in origin.log] == [("GET", "/x.img"), ("HEAD", "/none.img")]


async def test_with_a_digest_the_parent_gives_what_it_has_of_the_url_without_asking(origin, server):
    path = f"/sha256:{hashlib.sha256(BODY).hexdigest()}/u/x.img"
    parent = server()
    child = server(base(parent))
    image = origin.body("/x.img", BODY).headers(cache_control="max-age=0")
    await parent.fetch("/u/x.img")
    image.generation(SMALL)
    assert (await child.fetch(path)).body == BODY
    assert origin.requests == 1
    assert (await child.fetch("/u/x.img")).body == SMALL


async def test_what_the_parent_has_of_another_url_is_not_stored_as_that_of_this_one(origin, server):
    """It has the digest, and nobody knows whether it is what the URL names."""
    path = f"/sha256:{hashlib.sha256(BODY).hexdigest()}/u/elsewhere.img"
    parent = server()
    children = [server(base(parent)) for _ in range(2)]
    for name in ("/x.img", "/elsewhere.img"):
        origin.body(name, BODY).headers(cache_control=FRESH)
    await parent.fetch("/u/x.img")
    for child in children:
        assert (await child.fetch(path)).body == BODY
    assert origin.count("/elsewhere.img") == 1
    assert (await parent.get(path)).headers["cache-status"] == "fetchonce; hit"  # for its own clients
    origin.body("/other.img", SMALL).headers(cache_control=FRESH)
    assert (await children[0].get(path.replace("elsewhere", "other"))).headers["cache-status"] == "fetchonce; hit"
    third = server(base(parent))
    async with await third.stream(path.replace("elsewhere", "other")) as stream:
        await stream.broken()
    await third.wait_idle()
    assert (await third.get("/u/other.img")).body == SMALL


async def test_lists_of_files_come_as_upstream_has_them(origin, server, proxy_factory):
    config = f'[[mirror]]\nname = "j"\nupstreams = ["{origin.url()}"]\nrewrite = ["json$"]\n'
    parent = server(config=config, mirrors={})
    child = server(base(parent), config=config, mirrors={})
    listed = origin.url("/x.img")
    origin.body("/list.json", json.dumps({"url": listed}).encode()).headers(cache_control=FRESH)
    for each in (parent, child):
        given = (await each.get("/j/list.json")).json()["url"]
        assert given.startswith(base(each))
    assert origin.count("/list.json") == 1


# -- freshness ---------------------------------------------------------------------------------------------------------


async def test_the_age_of_a_parents_answer_counts(origin, other, server):
    child = server(other.url())
    other.body(f"/http/127.0.0.1:{origin.port}/x.img", SMALL).headers(OURS, cache_control="max-age=120", age="100")
    await child.fetch("/u/x.img")
    assert 100 <= int((await child.get("/u/x.img")).headers["age"]) < 120
    other.body(f"/http/127.0.0.1:{origin.port}/y.img", SMALL).headers(OURS, cache_control="max-age=120", age="121")
    await child.fetch("/u/y.img")
    assert "fwd=stale" in (await child.get("/u/y.img")).headers["cache-status"]
    assert origin.requests == 0


async def test_what_moves_is_as_old_as_the_parents_question(origin, other, server):
    mirror = f'[[mirror]]\nname = "m"\nupstreams = ["{origin.url()}"]\nmoving = ["/daily/"]\nttl = "300s"\n'
    child = server(other.url(), config=mirror, mirrors={})
    for name, ago in (("a", 200), ("b", 301)):
        place = f"/http/127.0.0.1:{origin.port}/daily/{name}.img"
        # A cache before the mirror has had it for a day: that is not for the parent, nor for us, to count.
        status = {"cache-status": f"fetchonce; hit; confirmed={ago}", "age": str(86400 + ago)}
        other.body(place, SMALL).headers(status)
        await child.fetch(f"/m/daily/{name}.img")
    a, b = sorted(child.entries(), key=lambda entry: entry["url"])
    assert 200 <= time.time() - a["validated_at"] < 250
    assert "hit" in (await child.get("/m/daily/a.img")).headers["cache-status"]
    assert int((await child.get("/m/daily/a.img")).headers["age"]) >= 86600
    assert "fwd=stale" in (await child.get("/m/daily/b.img")).headers["cache-status"]
    assert not any(line[0] == "cache-status" for line in b["head"]["headers"])


async def test_a_server_says_to_another_how_long_ago_upstream_has_confirmed(origin, proxy):
    origin.body("/x.img", SMALL).headers(cache_control=FRESH, age="50")
    await proxy.fetch("/u/x.img")
    plain = await proxy.get("/u/x.img")
    asked = await proxy.get("/u/x.img", {"Via": "1.1 fetchonce-0123abcd"})
    assert "confirmed" not in plain.headers["cache-status"]
    assert re.fullmatch(r"fetchonce; hit; confirmed=\d; open", asked.headers["cache-status"])  # and not the 50 s before


async def test_a_parent_does_not_give_what_is_stale_while_upstream_may_answer_us(origin, other, server):
    """The parent cannot reach its mirror, and we can reach ours."""
    down = other.body("/x.img", SMALL).headers(cache_control="max-age=0")
    config = f'[[mirror]]\nname = "m"\nupstreams = ["{other.url()}", "{origin.url()}"]\n'
    parent = server(mirrors={"m": other.url()})
    await parent.fetch("/m/x.img")
    down.status(503)
    child = server(base(parent), config=config, mirrors={})
    origin.body("/x.img", BODY)
    assert (await child.get("/m/x.img")).body == BODY
    assert (await parent.get("/m/x.img")).body == SMALL  # stale, to its own clients


async def test_what_is_stale_at_the_parent_is_better_than_nothing(origin, server):
    origin.body("/x.img", BODY).headers(cache_control="max-age=0")
    parent = server()
    child = server(base(parent))
    await parent.fetch("/u/x.img")
    origin.stop()
    answer = await child.get("/u/x.img")
    assert (answer.status, answer.body) == (200, BODY)
    await child.wait_idle()
    assert (await child.status())["totals"]["peer_bytes"] == len(BODY)
    assert (await child.get("/u/x.img")).body == BODY
    assert (await child.get("/u/none.img")).status == 502


# -- parents that are of no help ---------------------------------------------------------------------------------------


async def test_a_parent_that_is_off_is_left_alone_for_a_while(origin, server):
    child = server(f"http://127.0.0.1:{free_port()}")
    for name in ("/x.img", "/y.img"):
        origin.body(name, SMALL)
        assert (await child.get(f"/u{name}")).body == SMALL
    await child.wait_log("peer.down")
    await child.wait_log("path=/u/y.img")
    assert sum("peer.down" in line for line in child.log) == 1


async def test_the_next_parent_is_asked_and_then_upstream(origin, other, server):
    origin.body("/x.img", SMALL)
    second = server()
    dead = f"http://127.0.0.1:{free_port()}"
    child = server(dead, base(second))
    assert (await child.get("/u/x.img")).body == SMALL
    await second.wait_stored()
    assert [len(second.entries()), origin.requests] == [1, 1]


@pytest.mark.parametrize("times", [1, 2], ids=["upstream is next", "another parent is next"])
async def test_a_parent_that_dies_in_the_middle_costs_nobody_a_byte(origin, server, times):
    size = 20_000_000
    image = origin.pattern("/x.img", size).headers(cache_control=FRESH).stall_at(9_000_000)
    parents = [server() for _ in range(times)]
    child = server(*map(base, parents))
    streams = [await child.stream("/u/x.img") for _ in range(4)]
    heads = [await each.read(8_000_000) for each in streams]
    for each in parents:
        if await each.fills():
            each.kill()
            break
    image.release()
    whole = pattern_bytes(size, 0)
    for head, each in zip(heads, streams, strict=True):
        assert head + await each.rest() == whole
    await child.wait_idle()
    assert (await child.get("/u/x.img")).headers["cache-status"] == "fetchonce; hit"
    # The rest is asked of upstream, or of a parent that has nothing and gets it all, the rest first.
    assert origin.count("/x.img") == 1 + times


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        *((status, OURS) for status in (206, 304, 400, 401, 403, 407, 416, 421, 429, 500, 502, 503, 504, 507, 508)),
        (404, OURS),  # of its own, and not upstream's
        *((status, {}) for status in (200, 206, 301, 404, 502)),  # something else listens there
    ],
)
async def test_a_parents_own_trouble_is_no_answer(origin, other, server, status, fields):
    origin.body("/x.img", SMALL)
    where = f"/http/127.0.0.1:{origin.port}/x.img"
    other.body(where, BODY).status(status, {**fields, "location": origin.url("/y")}, b"not what was asked for")
    child = server(other.url())
    answer = await child.get("/u/x.img")
    assert (answer.status, answer.body) == (200, SMALL)
    assert [other.count(where), origin.requests] == [1, 1]


async def test_half_a_body_of_a_parent_is_made_whole_by_upstream(origin, other, server):
    origin.body("/x.img", BODY).headers(etag='"e"')
    where = f"/http/127.0.0.1:{origin.port}/x.img"
    other.body(where, BODY).headers(OURS, etag='"e"').close_at(1_500_000)
    child = server(other.url())
    assert (await child.get("/u/x.img")).body == BODY
    assert origin.bytes_sent("/x.img") <= 600_000  # the rest, and a little to compare
    assert other.count(where) == 1


async def test_a_parent_that_gives_other_bytes_is_found_out(origin, other, server):
    origin.body("/x.img", BODY).headers(etag='"e"')
    where = f"/http/127.0.0.1:{origin.port}/x.img"
    other.body(where, BODY).headers(OURS, etag='"e"').corrupt_at(1_490_000).close_at(1_500_000)
    child = server(other.url())
    async with await child.stream("/u/x.img") as stream:
        await stream.broken()
    assert (await child.get("/u/x.img")).body == BODY


async def test_a_parent_without_an_answer_is_left_for_upstream(origin, other, server):
    origin.body("/x.img", SMALL)
    where = f"/http/127.0.0.1:{origin.port}/x.img"
    other.body(where, SMALL).headers(OURS).delay_headers_until_released()
    child = server(other.url(), timeout="1s")
    assert (await child.get("/u/x.img")).body == SMALL
    assert "did not answer in time" in await child.wait_log("peer.down")


async def test_one_parent_that_hangs_is_waited_for_however_many_do(origin, server):
    origin.body("/x.img", SMALL)
    with contextlib.ExitStack() as stack:
        hang = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        child = server(*(f"http://127.0.0.1:{each.getsockname()[1]}" for each in hang), timeout="1s")
        assert (await child.get("/u/x.img")).body == SMALL
        asked = 0
        for each in hang:
            each.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                each.accept()[0].close()
                asked += 1
        assert asked == 1


async def test_a_parent_whose_answer_never_ends_to_begin_is_left_for_upstream(origin, server):
    """Each byte of its head comes in time."""
    origin.body("/x.img", SMALL)
    over = threading.Event()

    def drip(listener):
        with contextlib.suppress(OSError), listener.accept()[0] as sock:
            sock.sendall(b"HTTP/1.1 200 OK\r\n")
            while not over.wait(0.1):
                sock.sendall(b"a: b\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        dripping = threading.Thread(target=drip, args=(listener,))
        dripping.start()
        try:
            child = server(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout="1s")
            assert (await child.get("/u/x.img")).body == SMALL
            assert "did not answer in time" in await child.wait_log("peer.down")
        finally:
            over.set()
            dripping.join()


async def test_a_parent_that_stalls_in_the_middle_is_left_for_upstream_once_a_mirror_would_be(origin, other, server):
    origin.body("/x.img", BODY).headers(etag='"e"')
    where = f"/http/127.0.0.1:{origin.port}/x.img"
    other.body(where, BODY).headers(OURS, etag='"e"').stall_at(1_500_000)
    child = server(other.url(), timeout="1s", read_timeout="1s")
    assert (await child.get("/u/x.img")).body == BODY
    assert 0 < origin.bytes_sent("/x.img") <= 600_000
    assert other.count(where) >= 2


async def test_a_parent_whose_upstream_stalls_is_waited_for(origin, server):
    """It answers when it is asked for the rest, and upstream is asked by nobody else."""
    parent = server()
    child = server(base(parent), timeout="3s")
    image = origin.body("/x.img", BODY).headers(cache_control=FRESH, etag='"e"').stall_at(1_500_000)
    async with await child.stream("/u/x.img") as stream:
        assert await stream.read(1_500_000) == BODY[:1_500_000]

        async def has_asked_again():
            return (await child.fills())[0]["resumes"] >= 2

        await until(has_asked_again)
        image.release()
        assert await stream.rest() == BODY[1_500_000:]
    assert origin.count("/x.img") == 1
    origin.body("/y.img", SMALL)
    await child.fetch("/u/y.img")
    await parent.wait_stored(2)
    assert not any("peer.down" in line for line in child.log)


async def test_a_parent_that_is_paused_in_the_middle_is_left_for_upstream(origin, server):
    parent = server()
    child = server(base(parent), timeout="3s")
    origin.body("/x.img", BODY).headers(cache_control=FRESH, etag='"e"').stall_at(1_500_000, times=1)
    async with await child.stream("/u/x.img") as stream:
        head = await stream.read(1_400_000)
        parent.send_signal(signal.SIGSTOP)
        try:
            assert head + await stream.rest() == BODY
        finally:
            parent.send_signal(signal.SIGCONT)
            origin.release()
    assert origin.count("/x.img") == 2


async def test_a_wrong_digest_is_no_reason_to_leave_the_parent_alone(origin, server):
    parent = server()
    child = server(base(parent))
    origin.body("/x.img", BODY).headers(cache_control=FRESH)
    async with await child.stream(f"/sha256:{'0' * 64}/u/x.img") as stream:
        await stream.broken()
    await child.wait_idle()
    origin.body("/y.img", SMALL).headers(cache_control=FRESH)
    await child.fetch("/u/y.img")
    await until(lambda: len(parent.accesses("GET", "/y.img")) == 1)


async def test_a_404_of_a_parent_that_has_another_mirror_or_no_login_is_not_ours(origin, other, server):
    """It asks one of our two mirrors; and where we log in it is told that there is nothing, as GitHub does it."""
    parent = server()
    two = f'[[mirror]]\nname = "m"\nupstreams = ["{origin.url()}", "{other.url()}"]\n'
    login = f'[[mirror]]\nname = "m"\nupstreams = ["{origin.url()}"]\nheaders = {{x-key = "secret"}}\n'
    other.body("/x.img", SMALL)
    for config in (two, login):
        child = server(base(parent), config=config, mirrors={})
        for method in ("HEAD", "GET"):
            answer = await child.get("/m/x.img", method=method)
            assert (answer.status, answer.headers["content-length"]) == (200, str(len(SMALL)))
        origin.body("/x.img", SMALL)
    assert origin.log[-1].headers["x-key"] == "secret"


@pytest.mark.parametrize("login", ["", 'headers = {x-key = "secret"}'], ids=["", "a login"])
async def test_a_404_of_a_parent_that_asks_as_we_do_is(origin, other, server, login):
    config = f'[[mirror]]\nname = "m"\nupstreams = ["{origin.url()}", "{other.url()}"]\n{login}\n'
    parent = server(config=config, mirrors={})
    children = [server(base(parent), config=config, mirrors={}) for _ in range(2)]
    grandchild = server(base(children[0]), config=config, mirrors={})
    for each in (*children, grandchild, grandchild):
        assert (await each.get("/m/none.img")).status == 404
    assert [origin.requests, other.requests] == [1, 1]


async def test_a_parent_without_the_mirror_is_no_help_and_no_harm(origin, server):
    parent = server(mirrors={})
    child = server(base(parent))
    origin.body("/x.img", SMALL)
    assert (await child.get("/u/x.img")).body == SMALL
    assert (await child.get("/u/none.img")).status == 404
    assert [(request.path, request.status) for request in origin.log] == [("/x.img", 200), ("/none.img", 404)]


async def test_upstreams_404_is_taken_from_the_parent_and_remembered_as_long_as_there(origin, server):
    parent = server()
    child = server(base(parent))
    for _ in range(2):
        answer = await child.get("/u/none.img")
        assert answer.status == 404
        assert answer.json()["message"].startswith(f"{origin.url('/none.img')} answered 404")
    assert origin.requests == 1
    assert (await child.get("/u/none.img")).headers["cache-status"].endswith("detail=negative")
    await until(lambda: len(parent.accesses("GET", "/none.img")) == 1)


@pytest.mark.parametrize(
    "fields", [{"cache-control": "no-store"}, {"vary": "accept"}, {"cache-control": "max-age=60", "age": "60"}]
)
async def test_a_404_that_is_not_to_be_remembered_is_not_remembered_behind_parents_either(origin, server, fields):
    child = server(base(server(base(server()))))
    origin.body("/x.img", SMALL).status(404, fields, times=1)
    assert (await child.get("/u/x.img")).status == 404
    assert (await child.get("/u/x.img")).body == SMALL


# -- what is not for everybody -----------------------------------------------------------------------------------------


async def test_what_a_login_opens_is_asked_of_upstream_alone(origin, server):
    parent = server()
    child = server(base(parent))
    origin.body("/x.img", SMALL)
    assert (await child.get("/u/x.img", LOGIN)).body == SMALL
    assert origin.log[0].headers["authorization"] == LOGIN["Authorization"]
    assert parent.accesses("GET", "/x.img") == []


async def test_what_is_chosen_by_fields_that_the_parent_may_not_know_is_asked_of_upstream(origin, server):
    """A parent that has lost its answer, and so what Vary said, would not send them on."""
    parent = server()
    child = server(base(parent))
    origin.body("/x.img", SMALL).headers(cache_control=FRESH, vary="x-key")
    await child.fetch("/u/x.img")
    assert (await child.get("/u/x.img", {"X-Key": "1"})).body == SMALL
    assert [request.headers.get("x-key") for request in origin.log] == [None, "1"]
    await until(lambda: len(parent.accesses("GET", "/x.img")) == 1)


async def test_what_is_private_comes_through_and_is_kept_nowhere(origin, server):
    parent = server()
    child = server(base(parent))
    origin.body("/x.img", BODY).headers(cache_control="private")
    for _ in range(2):
        assert (await child.get("/u/x.img")).body == BODY
    assert parent.entries() == child.entries() == []


async def test_what_a_login_of_the_parents_opens_stays_out_of_the_bucket(origin, other, server, bucket):
    """Also where it comes to a server that has no login for it, from one that has it from another."""
    config = f'[[mirror]]\nname = "m"\nupstreams = ["{origin.url()}"]\nheaders = {{x-key = "secret"}}\n'
    origin.body("/x.img", BODY).headers(cache_control=FRESH)
    parent = server(config=config, mirrors={})
    child = server(base(parent))
    grandchild = server(base(child), mirrors={"u": origin.url(), "o": other.url()})
    for each in (child, grandchild):
        await each.fetch("/u/x.img")
    assert origin.count("/x.img") == 1
    other.body("/y.img", SMALL).headers(cache_control=FRESH)
    await grandchild.fetch("/o/y.img")
    await grandchild.wait_stored(2)
    grandchild.config.write_text(bucket.config())
    grandchild.restart()  # it looks through what is stored
    await bucket.wait(1)
    await wait_quiet(grandchild)
    assert len(bucket.files("blobs/*/*")) == 1


async def test_a_parent_without_our_login_gives_what_is_not_ours_and_is_not_made_to_fetch_it(origin, server):
    config = f'[[mirror]]\nname = "m"\nupstreams = ["{origin.url()}"]\nheaders = {{x-key = "secret"}}\n'
    parent = server()
    first, second = (server(*parents, config=config, mirrors={}) for parents in ([base(parent)], []))
    third = server(base(second), config=config, mirrors={})
    origin.body("/x.img", SMALL).headers(cache_control=FRESH)
    for each in (first, second, third):
        assert (await each.get("/m/x.img", method="HEAD")).status == 200
        assert (await each.fetch("/m/x.img")).body == SMALL
    asked = [request.headers.get("x-key") for request in origin.log if request.method == "GET"]
    assert asked == ["secret", "secret"]
    await parent.fetch("/u/x.img")
    assert (await first.get("/m/x.img", {"Cache-Control": "no-cache"})).body == SMALL
    asked = [request.headers.get("x-key") for request in origin.log if request.method == "GET"]
    assert asked == ["secret", "secret", None, "secret"]


async def test_a_parent_without_our_login_does_not_confirm_what_is_ours(origin, server):
    config = f'[[mirror]]\nname = "m"\nupstreams = ["{origin.url()}"]\nheaders = {{x-key = "secret"}}\n'
    child = server(base(server()), config=config, mirrors={})
    origin.body("/x.img", SMALL).headers(cache_control="no-cache")
    for _ in range(2):
        assert (await child.fetch("/m/x.img")).body == SMALL
    asked = [request.status for request in origin.log if request.headers.get("x-key")]
    assert asked == [200, 304]


async def test_a_parent_without_our_login_does_not_keep_us_from_the_bucket(origin, server, bucket):
    config = f'[[mirror]]\nname = "m"\nupstreams = ["{origin.url()}"]\nheaders = {{x-key = "secret"}}\n'
    origin.body("/x.img", BODY).headers(cache_control=FRESH)
    parent = server(config=bucket.config())
    await parent.fetch("/u/x.img")
    await bucket.wait(1)
    child = server(base(parent), config=config + bucket.config(), mirrors={})
    assert (await child.get(f"/sha256:{hashlib.sha256(BODY).hexdigest()}/m/x.img")).body == BODY
    assert origin.requests == 1


async def test_the_token_opens_the_parent_and_goes_no_further(origin, server):
    origin.body("/x.img", SMALL)
    config = '[access]\nclients = ["192.0.2.1"]\ntoken = "t0ken"\n'
    parent = server(config=config)
    child = server(base(parent), token="t0ken")
    assert (await child.get("/u/x.img")).body == SMALL
    await until(lambda: len(parent.accesses("GET", "/x.img")) == 1)
    for request in origin.log:
        assert "t0ken" not in str(request.headers)


@pytest.mark.parametrize("clients", ["192.0.2.1", "127.0.0.1"])
async def test_a_parent_with_another_token(origin, server, clients):
    """It refuses, or does without; in no case does the token go on to the mirror."""
    origin.body("/x.img", SMALL)
    parent = server(config=f'[access]\nclients = ["{clients}"]\ntoken = "other"\n')
    child = server(base(parent), token="t0ken")
    assert (await child.get("/u/x.img")).body == SMALL
    await child.wait_log("path=/u/x.img")
    is_refused = any("peer.down" in line for line in child.log)
    assert is_refused == (clients != "127.0.0.1")
    for request in origin.log:
        assert "t0ken" not in str(request.headers)
    assert "t0ken" not in "".join(child.log)


async def test_the_name_that_is_advertised_is_ours(origin, proxy_factory):
    proxy = proxy_factory(config_text='[fleet]\nadvertise = "http://cache-1.example:8642"\n')
    origin.body("/x.img", SMALL)
    assert (await proxy.get("/u/x.img", {"host": "cache-1.example:8642"})).body == SMALL
    assert (await proxy.get("/u/x.img", {"host": "cache-2.example:8642"})).status == 421


async def test_the_way_to_a_server_of_ours_is_not_told_to_upstream(origin, fleet):
    origin.body("/x.img", SMALL)
    for each in fleet(2):
        await each.fetch("/u/x.img")
    assert all("(" not in request.headers["via"] for request in origin.log)


# -- no way leads in a circle ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lists_itself", [True, False])
async def test_a_fleet_asks_upstream_once_for_each_url(origin, fleet, lists_itself):
    servers = fleet(3, lists_itself=lists_itself)
    names = [f"/{number}.img" for number in range(12)]
    for name in names:
        origin.body(name, SMALL).headers(cache_control=FRESH)
    await asyncio.gather(*(each.get(f"/u{name}") for name in names for each in servers))
    for each in servers:
        await each.wait_idle()
        assert (await each.get("/u/0.img")).body == SMALL
        assert not any("peer.down" in line for line in each.log)
    assert {name: origin.count(name) for name in names} == dict.fromkeys(names, 1)


async def test_parents_that_name_themselves_without_knowing_it(origin, server):
    port = free_port()
    proxy = server(f"http://127.0.0.1:{port}", listen=f"127.0.0.1:{port}")
    origin.body("/x.img", SMALL)
    assert (await proxy.get("/u/x.img")).body == SMALL
    assert origin.requests == 1


async def test_a_chain_of_servers_asks_upstream_once(origin, server):
    region = server()
    site = server(base(region))
    host = server(base(site))
    origin.body("/x.img", BODY).headers(cache_control=FRESH)
    assert (await host.fetch("/u/x.img")).body == BODY
    for each in (region, site, host):
        await each.wait_stored()
    assert origin.requests == 1


async def test_a_killed_child_goes_on_where_it_was(origin, server):
    parent = server()
    child = server(base(parent))
    size = 12_000_000
    image = origin.pattern("/x.img", size).headers(cache_control=FRESH).stall_at(8_000_000)
    async with await child.stream("/u/x.img") as stream:
        await stream.read(8_000_000)
        await child.wait_begun(8_000_000)
        child.kill()
    image.release()
    await parent.wait_idle()
    child.start()
    assert (await child.get("/u/x.img")).status == 200
    await child.wait_log("fill.resumed")
    assert origin.count("/x.img") == 1
    await until(lambda: len(child.entries()) == 1)
