"""What is stored, and upstream hangs or fails: who waits, for how long, and how often upstream is asked."""

import asyncio
import json
import os
import re

import pytest

from tests.harness import until

BODY = os.urandom(50_000)
OTHER = os.urandom(50_000)
NO_CACHE = {"Cache-Control": "no-cache"}
PATIENCE_SECONDS = 0.3  # for what must not happen


def config(origin, **fill):
    """The mirror `m`, whose /latest/ is asked about with every request."""
    keys = {"read_timeout": "60s", **fill}
    text = "shipped_mirrors = false\n[fill]\n" + "".join(f"{key} = {json.dumps(each)}\n" for key, each in keys.items())
    return text + f'[[mirror]]\nname = "m"\nupstreams = ["{origin.url()}"]\nmoving = ["/latest/"]\nttl = "0s"\n'


async def at_rest(proxy):
    async def is_at_rest():
        return not (await proxy.status())["fills"]

    await until(is_at_rest)


def told(answer):
    return answer.headers["cache-status"].removeprefix("fetchonce; ")


async def stored(origin, proxy):
    image = origin.body("/latest/a.img", BODY)
    assert (await proxy.get("/m/latest/a.img")).body == BODY
    await at_rest(proxy)
    return image


async def takes(seconds, waiting):
    """Whether it is over within that time; it goes on otherwise."""
    return bool((await asyncio.wait([waiting], timeout=seconds))[0])


async def test_one_client_waits_for_a_slow_confirmation_and_the_others_do_not(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=config(origin, stale_after="2s"))
    image = await stored(origin, proxy)
    image.delay_headers_until_released()
    first = asyncio.create_task(proxy.get("/m/latest/a.img"))
    assert not await takes(PATIENCE_SECONDS, first)
    assert ((await first).body, told(await first)) == (BODY, "fwd=stale; detail=slow")
    for method in ("GET", "HEAD", "GET"):
        again = asyncio.create_task(proxy.get("/m/latest/a.img", method=method))
        assert await takes(1.5, again)  # as good as at once: a busy machine takes a while, too
        assert told(await again) == "fwd=stale; detail=slow"
    assert origin.requests == 2  # one question, and it goes on
    image.generation(OTHER)
    origin.release()

    async def is_new():
        return (await proxy.get("/m/latest/a.img")).body == OTHER

    await until(is_new)


@pytest.mark.parametrize("on_abandon", ["finish", "pause"])
async def test_a_question_goes_on_behind_the_stale_answer(origin, proxy_factory, on_abandon):
    proxy = proxy_factory(mirrors={}, config_text=config(origin, stale_after="0s", on_abandon=on_abandon))
    image = await stored(origin, proxy)
    image.delay_headers_until_released()
    for _ in range(3):
        assert told(await proxy.get("/m/latest/a.img")) == "fwd=stale; detail=slow"
    await origin.requested(2)
    origin.release()
    await at_rest(proxy)
    assert [request.status for request in origin.log] == [200, 304]


async def test_no_cache_waits_as_long_as_upstream_takes(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=config(origin, stale_after="0s"))
    image = await stored(origin, proxy)
    image.generation(OTHER).delay_headers_until_released()
    first = asyncio.create_task(proxy.get("/m/latest/a.img", NO_CACHE))
    assert not await takes(PATIENCE_SECONDS, first)
    origin.release()
    assert ((await first).body, told(await first)) == (OTHER, "fwd=stale; fwd-status=200; stored")


async def test_what_may_not_be_served_stale_waits_as_long_as_upstream_takes(origin, proxy_factory):
    text = config(origin, stale_after="0s") + 'stale_if_error = "0s"\n'
    proxy = proxy_factory(mirrors={}, config_text=text)
    image = await stored(origin, proxy)
    image.delay_headers_until_released()
    first = asyncio.create_task(proxy.get("/m/latest/a.img"))
    assert not await takes(PATIENCE_SECONDS, first)
    origin.release()
    assert told(await first) == "fwd=stale; fwd-status=304"


@pytest.mark.parametrize("fields", [{"Retry-After": "3600"}, {}], ids=["retry-after", "30-s"])
@pytest.mark.parametrize("status", [429, 503])
async def test_upstream_that_has_just_failed_is_left_alone(origin, proxy_factory, status, fields):
    proxy = proxy_factory(mirrors={}, config_text=config(origin))
    image = await stored(origin, proxy)
    image.status(status, fields, times=1)
    assert told(await proxy.get("/m/latest/a.img")) == f"fwd=stale; fwd-status={status}"
    await at_rest(proxy)
    for method in ("GET", "HEAD", "GET"):
        answer = await proxy.get("/m/latest/a.img", method=method)
        assert answer.status == 200
        assert re.fullmatch(r"hit; ttl=-\d+", told(answer))
    assert origin.requests == 2
    # Who insists asks, and upstream's answer ends it for everybody.
    assert told(await proxy.get("/m/latest/a.img", NO_CACHE)) == "fwd=stale; fwd-status=304"
    assert told(await proxy.get("/m/latest/a.img")) == "fwd=stale; fwd-status=304"


async def test_no_cache_falls_back_soon_where_upstream_has_just_failed(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=config(origin, stale_after="0s"))
    image = await stored(origin, proxy)
    image.status(503, times=1)
    await proxy.get("/m/latest/a.img", NO_CACHE)
    await at_rest(proxy)
    image.delay_headers_until_released()
    answer = await proxy.get("/m/latest/a.img", NO_CACHE)
    assert (answer.body, told(answer)) == (BODY, "fwd=stale; detail=slow")
    await origin.requested(3)
    origin.release()


async def test_what_never_changes_is_no_exception(origin, proxy_factory):
    text = config(origin) + 'immutable = ["/v1/"]\n'
    proxy = proxy_factory(mirrors={}, config_text=text)
    image = origin.body("/v1/a.img", BODY).headers(age="100")
    await proxy.get("/m/v1/a.img")
    await at_rest(proxy)
    image.status(503)
    for expected in ("fwd=request; fwd-status=503", "hit", "hit"):
        answer = await proxy.get("/m/v1/a.img", {"Cache-Control": "max-age=60"})
        assert (answer.body, told(answer)) == (BODY, expected)
        await at_rest(proxy)
    assert origin.requests == 2


async def test_what_is_too_old_to_be_served_stale_is_asked_for(origin, proxy_factory):
    text = config(origin).replace('ttl = "0s"', 'ttl = "0s"\nstale_if_error = "1ms"')
    proxy = proxy_factory(mirrors={}, config_text=text)
    image = await stored(origin, proxy)
    image.status(503)
    for count in (2, 3):
        assert (await proxy.get("/m/latest/a.img")).status == 503
        await at_rest(proxy)
        assert origin.requests == count


async def test_stale_while_revalidate_does_not_ask_upstream_that_has_just_failed(origin, proxy):
    image = origin.body("/a.img", BODY).headers(cache_control="max-age=0, stale-while-revalidate=600")
    await proxy.get("/u/a.img")
    await at_rest(proxy)
    image.status(503)
    for _ in range(4):
        assert (await proxy.get("/u/a.img")).body == BODY
        await at_rest(proxy)
    assert origin.requests == 2


async def test_without_anything_stored_a_failure_is_not_remembered(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=config(origin))
    image = origin.body("/latest/a.img", BODY).status(500, times=1)
    assert (await proxy.get("/m/latest/a.img")).status == 502
    assert (await proxy.get("/m/latest/a.img")).body == BODY
    assert image
