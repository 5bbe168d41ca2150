"""Validators and digest fields as real servers send them, and what becomes of them on the way."""

import os

import pytest

from tests.harness import until

BODY = os.urandom(1_500_000)
STALE = "max-age=0"


async def at_rest(proxy):
    async def is_at_rest():
        return not (await proxy.status())["fills"]

    await until(is_at_rest)


async def test_an_etag_that_is_no_entity_tag_is_sent_believed_and_handed_on(origin, proxy):
    origin.body("/a.img", BODY).headers(etag="3b1f0a4d55a8", cache_control=STALE)
    assert (await proxy.get("/u/a.img")).headers["etag"] == "3b1f0a4d55a8"
    await at_rest(proxy)
    for _ in range(2):
        answer = await proxy.get("/u/a.img")
        assert (answer.body, answer.headers["cache-status"]) == (BODY, "fetchonce; fwd=stale; fwd-status=304")
    assert [request.status for request in origin.log] == [200, 304, 304]
    assert origin.log[-1].headers["if-none-match"] == "3b1f0a4d55a8"
    # The client's own copy is as good, and it says so as upstream taught it to.
    assert (await proxy.get("/u/a.img", {"If-None-Match": "3b1f0a4d55a8"})).status == 304


async def test_a_body_whose_etag_is_no_entity_tag_is_resumed_by_its_date(origin, proxy):
    origin.body("/a.img", BODY).headers(etag="3b1f0a4d55a8").close_at(700_000, times=1)
    assert (await proxy.get("/u/a.img")).body == BODY
    assert [request.status for request in origin.log] == [200, 206]


@pytest.mark.parametrize("etag", ["", '""', 'W/""'])
async def test_an_empty_etag_is_none(origin, proxy, etag):
    origin.body("/a.img", BODY).headers(etag=etag, cache_control=STALE)
    first = await proxy.get("/u/a.img")
    assert first.headers["etag"].startswith('"fetchonce-')
    await at_rest(proxy)
    assert (await proxy.get("/u/a.img")).headers["cache-status"] == "fetchonce; fwd=stale; fwd-status=304"
    assert "if-none-match" not in origin.log[-1].headers


async def test_digests_of_the_whole_content_do_not_stand_on_parts_nor_are_replaced_by_those_of_a_304(origin, proxy):
    """RFC 9530 §2, §3: Content-Digest is of the bytes in the message, Repr-Digest of the whole."""
    image = origin.body("/a.img", BODY)
    of_content = {"content-digest": "sha-256=:d2hvbGU=:", "content-md5": "d2hvbGU="}
    of_whole = {"repr-digest": "sha-256=:d2hvbGU=:"}
    image.headers({**of_content, **of_whole}, cache_control=STALE)
    whole = await proxy.get("/u/a.img")
    await at_rest(proxy)
    image.headers(dict.fromkeys([*of_content, *of_whole], "sha-256=:ZW1wdHk=:"))
    for range_ in ("bytes=0-9", "bytes=0-9,20-29"):
        part = await proxy.get("/u/a.img", {"Range": range_})
        assert part.status == 206
        assert part.headers["cache-status"] == "fetchonce; fwd=stale; fwd-status=304"
        assert not part.headers.keys() & of_content.keys()
        assert {name: part.headers[name] for name in of_whole} == of_whole
    unchanged = await proxy.get("/u/a.img", {"If-None-Match": whole.headers["etag"]})
    assert unchanged.status == 304
    assert not unchanged.headers.keys() & of_content.keys()
    for method in ("GET", "HEAD"):
        again = await proxy.get("/u/a.img", method=method)
        for name, value in {**of_content, **of_whole}.items():
            assert whole.headers[name] == again.headers[name] == value
