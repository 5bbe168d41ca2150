"""Who gets what: redirect chains, logins, HEAD. What somebody was told is told to nobody for whom it was not meant."""

import asyncio
import os

import pytest

from proxy.config import load
from tests.harness import until
from tests.test_policy_live import told

BODY = os.urandom(50_000)
OTHER = os.urandom(50_000)
ALICE, BOB = {"Authorization": "Basic YWxpY2U6eA=="}, {"Authorization": "Basic Ym9iOng="}
CHALLENGE = 'Basic realm="corp"'


def leads(origin, path, target, *, times=None, **fields):
    """`path` redirects to `target`, with further fields."""
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return origin.body(path, b"").status(302, {"Location": target, **named}, times=times)


# -- a chain counts as a whole -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["private", "no-store", "no-store, must-understand"])
async def test_what_a_redirect_forbids_to_keep_is_not_kept(origin, proxy, said):
    leads(origin, "/x.img", "/middle", cache_control=said)
    leads(origin, "/middle", "/there")
    origin.body("/there", BODY).headers(cache_control="public, max-age=1000")
    answer = await proxy.get("/u/x.img")
    assert answer.body == BODY
    await proxy.wait_idle()
    answer = await proxy.get("/u/x.img")
    assert (answer.body, "hit" in told(answer)) == (BODY, "must-understand" in said)
    # Another cache may stand between us and the client.
    assert ("private" in answer.headers["cache-control"]) == ("must-understand" not in said)


async def test_a_login_that_opens_a_redirect_opens_it_to_nobody_else(origin, proxy):
    image = origin.body("/x.img", b"")
    origin.body("/signed", BODY).headers(cache_control="public, max-age=1000")
    image.status(302, {"Location": "/signed"}, times=1)
    assert (await proxy.get("/u/x.img", ALICE)).body == BODY
    await proxy.wait_idle()
    image.status(401, {"WWW-Authenticate": CHALLENGE}, times=1)
    assert (await proxy.get("/u/x.img")).status == 401
    image.status(302, {"Location": "/signed", "Cache-Control": "public"}, times=1)
    assert (await proxy.get("/u/x.img", ALICE)).body == BODY
    await proxy.wait_idle()
    assert told(await proxy.get("/u/x.img")) == "hit"  # every answer has said that it is for everybody


async def test_a_redirect_selects_by_the_fields_that_it_names(origin, proxy):
    box = leads(origin, "/x", "/box", vary="Accept", times=1)
    box.status(302, {"Location": "/json", "Vary": "Accept"}, times=1)
    origin.body("/box", BODY).headers(cache_control="max-age=1000")
    origin.body("/json", OTHER).headers(cache_control="max-age=1000")
    answer = await proxy.get("/u/x")
    assert (answer.body, answer.headers["vary"]) == (BODY, "accept")
    await proxy.wait_idle()
    answer = await proxy.get("/u/x", {"Accept": "application/json"})
    assert (answer.body, told(answer)) == (OTHER, "fwd=vary-miss; fwd-status=200; stored")
    await proxy.wait_idle()
    assert told(await proxy.get("/u/x", {"Accept": "application/json"})) == "hit"


async def test_an_answer_that_a_login_selects_is_for_that_login(origin, proxy):
    image = origin.body("/x.img", BODY).headers(cache_control="public, max-age=1000", vary="Authorization")
    assert (await proxy.get("/u/x.img", ALICE)).body == BODY
    await proxy.wait_idle()
    for somebody, body in ((BOB, OTHER), ({}, BODY), (ALICE, OTHER)):
        image.generation(body)
        assert (await proxy.get("/u/x.img", somebody)).body == body
        await proxy.wait_idle()
    hit = await proxy.get("/u/x.img")
    assert (hit.body, told(hit)) == (BODY, "hit")  # it was fetched without a login, for those without one


async def test_also_while_it_comes(origin, proxy):
    """Who asks while another's answer is on its way does not get that one."""
    image = origin.body("/x.img", BODY).headers(cache_control="public", vary="Authorization").stall_at(100)
    async with await proxy.stream("/u/x.img") as first:
        assert await first.read(100) == BODY[:100]
        asking = asyncio.create_task(proxy.get("/u/x.img", ALICE))
        await origin.stalled("/x.img")
        image.generation(OTHER)
        origin.release()
        assert await first.rest() == BODY[100:]
        assert (await asking).body == OTHER
    assert [request.headers.get("authorization") for request in origin.log] == [None, ALICE["Authorization"]]


async def test_a_confirmation_for_a_login_makes_nothing_fresh_for_the_others(origin, proxy):
    image = origin.body("/x.img", BODY).headers(cache_control="max-age=0")
    await proxy.get("/u/x.img")
    await proxy.wait_idle()
    image.headers(cache_control="max-age=1000")
    assert told(await proxy.get("/u/x.img", ALICE)) == "fwd=stale; fwd-status=304"
    image.status(401, {"WWW-Authenticate": CHALLENGE})
    assert (await proxy.get("/u/x.img")).status == 401


async def test_no_login_is_written_to_disk(origin, proxy):
    origin.body("/x.img", BODY).headers(cache_control="public, max-age=1000")
    await proxy.get("/u/x.img", ALICE)
    await proxy.wait_idle()
    assert told(await proxy.get("/u/x.img")) == "hit"
    secret = ALICE["Authorization"].removeprefix("Basic ").encode()
    files = [path for path in proxy.cache_dir.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret in path.read_bytes()]


# -- who has a login ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "name"), [(401, "WWW-Authenticate"), (407, "Proxy-Authenticate")])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_client_learns_which_login_is_wanted(origin, proxy, status, name, method):
    leads(origin, "/x.img", "/there")
    origin.body("/there", BODY).status(status, {name: f'Negotiate, {CHALLENGE}, Digest realm="a", nonce="b"'})
    answer = await proxy.get("/u/x.img", method=method)
    told_of = answer.headers[name.lower()]
    assert (answer.status, told_of) == (status, f'Negotiate, {CHALLENGE}, Digest realm="a", nonce="b"')
    origin.body("/x.img", BODY).status(403, {name: CHALLENGE})
    assert name.lower() not in (await proxy.get("/u/x.img")).headers


@pytest.mark.parametrize("status", [404, 410, 401])
async def test_what_is_hidden_from_one_may_be_there_for_another(origin, proxy, status):
    image = origin.body("/x.img", BODY).headers(cache_control="private")
    image.status(status, times=1)
    assert (await proxy.get("/u/x.img")).status == status
    assert (await proxy.get("/u/x.img", ALICE)).body == BODY
    assert (await proxy.get("/u/x.img", BOB)).body == BODY
    image.status(status, times=1)
    assert (await proxy.get("/u/x.img", BOB)).status == status
    assert (await proxy.get("/u/x.img", BOB)).body == BODY
    assert origin.count("/x.img") == 5
    if status != 401:
        assert (await proxy.get("/u/x.img")).status == status  # that is known for a while
        assert origin.count("/x.img") == 5


@pytest.mark.parametrize("refused", [{"status": 404}, {"status": 401}, {"page": True}])
@pytest.mark.parametrize(("first", "second"), [({}, ALICE), (ALICE, {}), (ALICE, BOB)])
async def test_also_while_both_wait(origin, proxy, refused, first, second):
    image = origin.body("/x.img", BODY).delay_headers_until_released(times=1)
    if "page" in refused:
        image.status(200, {"Content-Type": "text/html"}, b"<p>Log in", times=1)
    else:
        image.status(refused["status"], times=1)
    asking = [asyncio.create_task(proxy.get("/u/x.img", first))]
    await origin.requested(1)
    asking.append(asyncio.create_task(proxy.get("/u/x.img", second)))
    await until(lambda: _readers(proxy, 2))
    origin.release()
    answers = [await each for each in asking]
    assert [answer.status for answer in answers] == [refused.get("status", 502), 200]
    assert origin.count("/x.img") == 2


async def _readers(proxy, count):
    return [fill for fill in (await proxy.status())["fills"] if fill["readers"] == count]


async def test_a_mirror_may_be_told_no_login(origin, proxy_factory):
    """Some tools send a token to every URL on 127.0.0.1."""
    text = f'[[mirror]]\nname = "m"\nupstreams = ["{origin.url()}"]\n'
    proxy = proxy_factory(mirrors={}, config_text=text + "forward_authorization = false\n")
    origin.body("/x.img", BODY)
    assert (await proxy.get("/m/x.img", ALICE)).body == BODY
    await proxy.wait_idle()
    assert told(await proxy.get("/m/x.img", BOB)) == "hit"
    assert "authorization" not in origin.log[0].headers
    proxy = proxy_factory(mirrors={}, config_text=text)
    assert (await proxy.get("/m/x.img", ALICE)).body == BODY
    assert origin.log[1].headers["authorization"] == ALICE["Authorization"]


def test_the_mirrors_that_come_with_us_are_told_none(tmp_path):
    config = tmp_path / "fetchonce.toml"
    config.write_text('[[mirror]]\nname = "m"\nupstreams = ["https://example.org/"]\n')
    settings = load(str(config), {"mirror": [{"name": "c", "upstreams": ["https://example.net/"]}]})
    assert {mirror.name for mirror in settings.mirrors if mirror.forward_authorization} == {"m", "c"}
    assert len(settings.mirrors) > 20


# -- HEAD is not GET ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410, 500, 501])
async def test_what_head_says_is_not_held_against_get(origin, proxy, status):
    origin.body("/x.img", BODY).refuse_head(status)
    told_head = await proxy.get("/u/x.img", method="HEAD")
    assert told_head.status == (status if status in (404, 410) else 502 if status == 500 else 200)
    answer = await proxy.get("/u/x.img")
    assert (answer.status, answer.body) == (200, BODY)
    await proxy.wait_idle()
    assert (await proxy.get("/u/x.img", method="HEAD")).headers["content-length"] == str(len(BODY))
    assert origin.count("/x.img") == 1


async def test_concurrent_heads_of_one_url_are_one_question(origin, proxy):
    origin.body("/x.img", BODY).delay_headers_until_released()
    origin.body("/last.img", BODY)
    waiting = [await proxy.connect() for _ in range(23)]
    for number, connection in enumerate(waiting):
        login = f"Authorization: {ALICE['Authorization']}\r\n" if number >= 20 else ""
        await connection.send(f"HEAD /u/x.img HTTP/1.1\r\nHost: localhost\r\n{login}\r\n".encode())
    await proxy.get("/u/last.img", method="HEAD")  # the others came before it, and wait for their answer by now
    await origin.requested(2, "/x.img")
    waiting.pop(0).close()  # who has asked first leaves
    origin.release()
    assert {(await connection.answer("HEAD")).status for connection in waiting} == {200}
    for connection in waiting:
        connection.close()
    assert origin.count("/x.img", "HEAD") == 2  # one of them for those with a login


# -- what goes upstream ------------------------------------------------------------------------------------------------


async def test_upstream_does_not_learn_that_a_client_takes_metalinks(origin, proxy):
    origin.body("/x.iso", BODY).headers(vary="Accept", cache_control="max-age=1000")
    aria2 = {"Accept": "*/*,application/metalink4+xml, Application/Metalink+XML;q=0.5"}
    assert (await proxy.get("/u/x.iso", aria2)).body == BODY
    await proxy.wait_idle()
    assert told(await proxy.get("/u/x.iso", aria2)) == told(await proxy.get("/u/x.iso")) == "hit"
    await proxy.get("/u/x.iso", {"Accept": "application/metalink4+xml", "Cache-Control": "no-cache"})
    assert [request.headers["accept"] for request in origin.log] == ["*/*", "*/*"]
