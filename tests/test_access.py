"""Who may ask, with a real server. The decision is in rules/access.py, and tested in tests/rules."""

import base64
import signal

import pytest

from tests.harness import until

BODY = b"image" * 1000
CLOSED = '[access]\nclients = ["10.0.0.0/8"]\ntoken = "s3cret"\n'
BEARER = {"Authorization": "Bearer s3cret"}
BASIC = "Basic " + base64.b64encode(b"x:s3cret").decode()


async def test_a_name_that_is_not_ours_gets_nothing(origin, proxy):
    origin.body("/x.img", BODY)
    for path in ("/u/x.img", "/", "/-/", "/-/status", "/-/healthz", "/-/no-such-page"):
        for method in ("GET", "HEAD", "POST", "DELETE"):
            answer = await proxy.get(path, {"Host": "evil.example:8642"}, method=method)
            assert (method, path, answer.status) == (method, path, 421)
            if method != "HEAD":
                assert '[access] hosts = ["evil.example"]' in answer.json()["message"]
    assert origin.requests == 0


async def test_our_names_are_answered(origin, proxy_factory):
    proxy = proxy_factory(config_text='[access]\nhosts = ["cache.example"]\n')
    origin.body("/x.img", BODY)
    for name in ("localhost", "host.lima.internal:8642", "Cache.Example:80", "127.0.0.1"):
        assert (await proxy.get("/u/x.img", {"Host": name})).body == BODY
    assert b" 200 OK" in await proxy.raw(b"GET /u/x.img HTTP/1.0\r\n\r\n")


async def test_an_absolute_form_is_judged_by_its_target(origin, proxy):
    origin.body("/x.img", BODY)
    evil = {"Host": "evil.example"}
    assert (await proxy.get(proxy.url("/u/x.img"), evil)).body == BODY
    assert (await proxy.get(origin.url("/x.img"), evil)).body == BODY
    assert (await proxy.get("http://evil.example/x.img", {"Host": "localhost"})).status == 403


async def test_with_a_token_it_must_be_shown(origin, proxy_factory):
    proxy = proxy_factory(config_text=CLOSED)
    origin.body("/x.img", BODY)
    for path in ("/u/x.img", "/-/status", "/"):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = await proxy.get(path, headers)
            assert answer.status == 401
            assert "must show the token" in answer.json()["message"]
            assert answer.headers["www-authenticate"].startswith("Basic ")
    assert origin.requests == 0
    for headers in (BEARER, {"Authorization": BASIC}):
        assert (await proxy.get("/u/x.img", headers)).body == BODY
    assert "s3cret" not in str([request.headers for request in origin.log])
    assert not any("s3cret" in line for line in proxy.log)


async def test_as_a_proxy_it_asks_for_the_token_as_one(origin, proxy_factory):
    proxy = proxy_factory(config_text=CLOSED)
    origin.body("/x.img", BODY)
    for target, method in ((origin.url("/x.img"), "GET"), ("far.example:443", "CONNECT")):
        answer = await proxy.get(target, method=method)
        assert answer.status == 407
        assert answer.headers["proxy-authenticate"].startswith("Basic ")
    assert (await proxy.get(origin.url("/x.img"), {"Proxy-Authorization": BASIC})).body == BODY
    assert not {"authorization", "proxy-authorization"} & set(origin.log[0].headers)


async def test_without_a_token_others_may_not_ask(origin, proxy_factory):
    proxy = proxy_factory(config_text='[access]\nclients = ["10.0.0.0/8"]\n')
    answer = await proxy.get("/u/x.img", BEARER)
    assert answer.status == 403
    assert '[access] clients = ["127.0.0.1"]' in answer.json()["message"]
    assert origin.requests == 0


async def test_a_reload_changes_who_may_ask(proxy_factory):
    proxy = proxy_factory(config_text=CLOSED)
    assert (await proxy.get("/-/healthz")).status == 401
    proxy.config.write_text("")
    proxy.send_signal(signal.SIGHUP)

    async def is_let_in():
        return (await proxy.get("/-/healthz")).status == 200

    await until(is_let_in)


@pytest.mark.parametrize("line", ['token = "x"', 'clients = ["127.0.0.0/8", "192.168.0.0/16"]'])
async def test_beyond_loopback_with_access(proxy_factory, line):
    proxy = proxy_factory(listen="0.0.0.0:0", config_text=f"[access]\n{line}\n")
    assert (await proxy.get("/-/healthz")).status == 200


async def test_credentials_for_the_mirror_go_there_and_the_token_does_not(origin, proxy_factory):
    proxy = proxy_factory(config_text=CLOSED)
    origin.body("/x.img", BODY)
    theirs = {"Authorization": "Bearer theirs", "Proxy-Authorization": BASIC}
    assert (await proxy.get("/u/x.img", theirs)).body == BODY
    (asked,) = origin.log
    assert asked.headers["authorization"] == "Bearer theirs"
    assert "proxy-authorization" not in asked.headers


async def test_workers_tell_each_other_in_spite_of_a_closed_door(proxy_factory):
    proxy = proxy_factory("--workers", "2", config_text=CLOSED)
    whole = (await proxy.get("/-/status", BEARER)).json()
    assert len(whole["workers"]) == 2
