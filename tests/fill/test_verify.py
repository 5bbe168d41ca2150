"""Bodies and their digests: no client ever gets a complete file that is wrong."""

import asyncio
import hashlib
import json
import os
import random

import pytest

from tests.harness import until
from tests.origin import Origin, pattern_bytes

BODY = random.Random(1).randbytes(
    1_500_000
)  # fixed: its digest is in the names of tests, which must be the same in every worker
OTHER = os.urandom(1_500_000)
BIG = os.urandom(6_000_000)  # enough for another process to see it, and to be resumed
SHA256, SHA512 = hashlib.sha256(BODY).hexdigest(), hashlib.sha512(BODY).hexdigest()
WRONG = "0" * 64
FRESH = "max-age=600"
PATIENCE_SECONDS = 0.3  # for what must not happen


def mirror(*origins, checksums=("SHA256SUMS",), **more):
    """A configuration with mirror `m`, which has checksum files."""
    tables = {"name": "m", "upstreams": [origin.url() for origin in origins], "checksums": list(checksums), **more}
    return "shipped_mirrors = false\n[[mirror]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in tables.items())


def sums(body=BODY, name="noble.img", algorithm="sha256"):
    return f"{hashlib.new(algorithm, body).hexdigest()} *{name}\n".encode()


# Checksum files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checksums", "path", "text", "verified"),
    [
        (["SHA256SUMS"], "/SHA256SUMS", sums(), f"sha256:{SHA256} (SHA256SUMS)"),
        (["SHA512SUMS"], "/SHA512SUMS", sums(algorithm="sha512"), f"sha512:{SHA512} (SHA512SUMS)"),
        (["{file}.sha256"], "/noble.img.sha256", SHA256.encode(), f"sha256:{SHA256} (noble.img.sha256)"),
        (["{file}.sha512", "{file}.sha256"], "/noble.img.sha256", sums(), f"sha256:{SHA256} (noble.img.sha256)"),
        (["SHA256SUMS"], "/SHA256SUMS", sums(name="another.img"), None),
        (["SHA256SUMS"], "/elsewhere", b"", None),
    ],
)
async def test_the_entry_says_by_what_it_was_verified(origin, proxy_factory, checksums, path, text, verified):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin, checksums=checksums))
    origin.body("/noble.img", BODY)
    origin.body(path, text)
    assert (await proxy.get("/m/noble.img")).body == BODY
    entry = await proxy.entry("noble.img")
    assert entry["verified"] == verified
    assert (entry["sha512"] is not None) is (verified or "").startswith("sha512")
    shown = json.loads(proxy.run("show", origin.url("/noble.img"), "--json").stdout)
    assert shown["verified"] == verified
    listed = {each["url"]: each["verified"] for each in json.loads(proxy.run("ls", "--json").stdout)}
    assert listed[origin.url("/noble.img")] == verified


async def test_the_checksum_file_is_fetched_once_and_shared_with_clients(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    for name in ("a.img", "b.img"):
        origin.body("/" + name, BODY)
    origin.body("/SHA256SUMS", sums(name="a.img") + sums(name="b.img")).headers(cache_control=FRESH)
    await asyncio.gather(*(proxy.get(f"/m/{name}") for name in ("a.img", "b.img", "SHA256SUMS")))
    assert (await proxy.entry("a.img"))["verified"]
    assert (await proxy.entry("b.img"))["verified"]
    assert origin.count("/SHA256SUMS") == 1


async def test_a_wrong_body_is_never_complete_for_any_of_eight_readers(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    origin.body("/noble.img", BODY).corrupt_at(700_000).stall_at(900_000)
    origin.body("/SHA256SUMS", sums())
    readers = [await proxy.stream("/m/noble.img") for _ in range(7)]
    readers.append(await proxy.stream("/m/noble.img", {"Range": "bytes=1000000-"}))
    origin.release()
    partials = await asyncio.gather(*(reader.broken() for reader in readers))
    assert {len(each) for each in partials[:7]} <= set(range(900_000, len(BODY)))
    assert partials[7] == BODY[1_000_000 : 1_000_000 + len(partials[7])]
    assert await proxy.entry("noble.img") is None
    line = await proxy.wait_log("fill.mismatch")
    assert SHA256 in line
    failed = await proxy.wait_log("fill.failed")
    assert f"digest mismatch for {origin.url('/noble.img')}" in failed
    assert f"expected sha256:{SHA256}" in failed
    assert "nothing was stored" in failed
    assert not [path for path in (proxy.cache_dir / "partial").iterdir()]


async def test_a_wrong_body_of_unknown_length_breaks_off_too(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    origin.body("/noble.img", BODY).corrupt_at(700_000).chunked()
    origin.body("/SHA256SUMS", sums())
    partial = await (await proxy.stream("/m/noble.img")).broken()
    assert len(partial) < len(BODY)
    assert await proxy.entry("noble.img") is None


async def test_the_last_byte_waits_for_the_checksum_file(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    origin.body("/noble.img", BODY)
    origin.body("/SHA256SUMS", sums()).delay_headers_until_released()
    reader = await proxy.stream("/m/noble.img")
    assert await reader.read(len(BODY) - 1) == BODY[:-1]
    last = asyncio.create_task(reader.rest())
    await asyncio.wait([last], timeout=PATIENCE_SECONDS)
    assert not last.done()
    # An answer without the last byte does not wait.
    assert (await proxy.get("/m/noble.img", {"Range": "bytes=5-9"})).body == BODY[5:10]
    origin.release()
    assert await last == BODY[-1:]
    assert (await proxy.entry("noble.img"))["verified"]


async def test_a_checksum_file_that_does_not_come_is_waited_for_as_long_as_configured(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin) + '[fill]\nchecksum_timeout = "100ms"\n')
    origin.body("/noble.img", BODY)
    origin.body("/SHA256SUMS", sums()).delay_headers_until_released()
    assert (await proxy.get("/m/noble.img")).body == BODY
    await proxy.wait_log("fill.unverified")
    origin.release()
    assert (await proxy.entry("noble.img"))["verified"] is None


@pytest.mark.parametrize("status", [404, 403, 500])
async def test_an_unreachable_checksum_file_is_no_expectation(origin, proxy_factory, status):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    origin.body("/noble.img", BODY)
    origin.body("/SHA256SUMS", b"").status(status)
    assert (await proxy.get("/m/noble.img")).body == BODY
    assert (await proxy.entry("noble.img"))["verified"] is None


async def test_small_bodies_and_texts_are_not_worth_a_request(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    origin.body("/small.img", BODY[:1000])
    origin.body("/index.json", BODY)
    origin.body("/SHA256SUMS", sums())
    await proxy.get("/m/small.img")
    await proxy.get("/m/index.json")
    assert origin.count("/SHA256SUMS") == 0


async def test_a_stale_checksum_file_is_fetched_anew_once(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    listed = origin.body("/SHA256SUMS", sums(OTHER)).headers(cache_control=FRESH)
    await proxy.get("/m/SHA256SUMS")
    await proxy.entry("SHA256SUMS")
    listed.generation(sums(BODY))
    origin.body("/noble.img", BODY)
    assert (await proxy.get("/m/noble.img")).body == BODY
    assert (await proxy.entry("noble.img"))["verified"] == f"sha256:{SHA256} (SHA256SUMS)"
    assert origin.count("/SHA256SUMS") == 2
    assert origin.log[-1].headers["cache-control"] == "no-cache"


async def test_a_checksum_file_that_stays_wrong_is_fetched_anew_once_only(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    origin.body("/SHA256SUMS", sums(OTHER)).headers(cache_control=FRESH)
    origin.body("/noble.img", BODY)
    await (await proxy.stream("/m/noble.img")).broken()
    assert await proxy.entry("noble.img") is None
    assert origin.count("/SHA256SUMS") == 2


async def test_a_moving_image_and_its_checksum_file_change_together(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin, moving=["/current/"], ttl="0s"))
    image = origin.body("/current/noble.img", BODY)
    listed = origin.body("/current/SHA256SUMS", sums(BODY))
    assert (await proxy.get("/m/current/noble.img")).body == BODY
    await proxy.entry("noble.img")
    image.generation(OTHER)
    listed.generation(sums(OTHER))
    assert (await proxy.get("/m/current/noble.img")).body == OTHER
    assert (await proxy.entry("noble.img"))["sha256"] == hashlib.sha256(OTHER).hexdigest()
    assert "fill.mismatch" not in "\n".join(proxy.log)
    assert (await proxy.entry("SHA256SUMS"))["sha256"] == hashlib.sha256(sums(OTHER)).hexdigest()


async def test_warn_stores_and_says_so(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin, verify="warn"))
    origin.body("/noble.img", BODY)
    origin.body("/SHA256SUMS", sums(OTHER))
    assert (await proxy.get("/m/noble.img")).body == BODY
    assert "stored=yes" in await proxy.wait_log("fill.mismatch")
    assert (await proxy.entry("noble.img"))["verified"] is None


async def test_off_fetches_no_checksum_file(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin, verify="off"))
    origin.body("/noble.img", BODY)
    origin.body("/SHA256SUMS", sums(OTHER))
    assert (await proxy.get("/m/noble.img")).body == BODY
    assert (await proxy.entry("noble.img"))["verified"] is None
    assert origin.count("/SHA256SUMS") == 0


# Several processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_right", [True, False])
async def test_who_follows_another_process_waits_for_its_verdict(origin, proxy_factory, is_right):
    config = mirror(origin)
    leader = proxy_factory(mirrors={}, config_text=config)
    other = proxy_factory(mirrors={}, config_text=config, cache_dir=leader.cache_dir)
    image = origin.body("/noble.img", BIG).stall_at(900_000)
    if not is_right:
        image.corrupt_at(1_000_000)
    origin.body("/SHA256SUMS", sums(BIG))
    first = await leader.stream("/m/noble.img")
    await first.read(900_000)
    await leader.wait_begun()
    second = await other.stream("/m/noble.img")
    assert await second.read(900_000) == BIG[:900_000]
    origin.release()
    if is_right:
        assert await first.rest() == await second.rest() == BIG[900_000:]
    else:
        for stream in (first, second):
            assert len(await stream.broken()) < len(BIG) - 900_000
    assert origin.count("/noble.img") == 1
    assert (await other.entry("noble.img") is not None) is is_right


async def test_who_follows_another_process_asks_for_its_own_digest(origin, proxy, proxy_factory):
    other = proxy_factory(cache_dir=proxy.cache_dir)
    origin.body("/noble.img", BIG).stall_at(900_000).headers(cache_control=FRESH)
    first = await proxy.stream("/u/noble.img")
    await first.read(900_000)
    await proxy.wait_begun()
    second = await other.stream(f"/sha512:{WRONG * 2}/u/noble.img")
    await second.read(900_000)
    origin.release()
    assert await first.rest() == BIG[900_000:]
    assert await second.broken() == BIG[900_000:-1]
    assert (await other.get(f"/sha512:{hashlib.sha512(BIG).hexdigest()}/u/noble.img")).body == BIG
    assert origin.count("/noble.img") == 1


async def test_a_body_that_was_whole_when_its_process_died_is_verified_by_the_next(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    origin.body("/noble.img", BIG).corrupt_at(10)
    origin.body("/SHA256SUMS", sums(BIG)).delay_headers_until_released()
    reader = await proxy.stream("/m/noble.img")
    await reader.read(len(BIG) - 1)
    await proxy.wait_begun(len(BIG))
    proxy.kill()
    origin.release()
    proxy.start()
    assert len(await (await proxy.stream("/m/noble.img")).broken()) == len(BIG) - 1
    assert await proxy.entry("noble.img") is None


# Several mirrors ------------------------------------------------------------------------------------------------------


async def test_after_a_corrupt_mirror_the_next_one_is_tried_from_zero(origin, proxy_factory):
    with Origin() as good:
        proxy = proxy_factory(mirrors={}, config_text=mirror(origin, good))
        origin.body("/noble.img", BODY).corrupt_at(10)
        origin.body("/SHA256SUMS", sums())
        good.body("/noble.img", BODY)
        await (await proxy.stream("/m/noble.img")).broken()
        assert good.url("/noble.img") in await proxy.wait_log("fill.failed")
        await proxy.wait_idle()
        assert (await proxy.get("/m/noble.img")).body == BODY
        assert (await proxy.entry("noble.img"))["verified"]
        assert (origin.count("/noble.img"), good.count("/noble.img")) == (1, 1)
        assert good.log[0].range is None


async def test_prefetch_goes_from_the_corrupt_mirror_to_the_good_one_by_itself(origin, proxy_factory):
    with Origin() as good:
        proxy = proxy_factory(mirrors={}, config_text=mirror(origin, good))
        origin.body("/noble.img", BODY).corrupt_at(10)
        origin.body("/SHA256SUMS", sums())
        good.body("/noble.img", BODY)
        await asyncio.to_thread(proxy.run, "prefetch", origin.url("/noble.img"))
        assert (await proxy.entry("noble.img"))["sha256"] == SHA256


async def test_each_mirror_is_tried_once_before_giving_up(origin, proxy_factory):
    with Origin() as second:
        proxy = proxy_factory(mirrors={}, config_text=mirror(origin, second))
        for each in (origin, second):
            each.body("/noble.img", BODY).corrupt_at(10)
        origin.body("/SHA256SUMS", sums())
        ran = await asyncio.to_thread(proxy.run, "prefetch", origin.url("/noble.img"), code=1)
        assert "digest mismatch for" in ran.stderr
        assert (origin.count("/noble.img"), second.count("/noble.img")) == (1, 1)
        assert await proxy.entry("noble.img") is None


# A digest that the client names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("digest", [f"sha256:{SHA256}", f"sha512:{SHA512}", f"sha256:{SHA256.upper()}"])
async def test_the_digest_form_is_answered_from_what_is_stored_with_upstream_gone(origin, proxy, digest):
    origin.body("/noble.img", BODY)
    plain = await proxy.get("/u/noble.img")
    await proxy.entry("noble.img")
    origin.stop()
    hit = await proxy.get(f"/{digest}/u/noble.img", {"Cache-Control": "no-cache"})
    assert (hit.status, hit.body) == (200, BODY)
    assert hit.headers["cache-status"] == "fetchonce; hit"
    assert hit.headers["etag"] == plain.headers["etag"]


@pytest.mark.parametrize("digest", [f"sha256:{SHA256}", f"sha512:{SHA512}"])
async def test_the_digest_form_finds_the_body_under_another_url(origin, proxy, digest):
    origin.body("/old/noble.img", BODY)
    await proxy.get(f"/{digest}/u/old/noble.img")
    assert (await proxy.entry("noble.img"))["verified"] == f"{digest} (as asked for)"
    proxy.restart()
    origin.stop()
    answer = await proxy.get(f"/{digest}/u/moved/renamed.img", {"Range": "bytes=-3"})
    assert (answer.status, answer.body) == (206, BODY[-3:])


async def test_sha512_of_a_stored_body_is_computed_once_and_kept(origin, proxy):
    origin.body("/noble.img", BODY)
    await proxy.get("/u/noble.img")
    assert (await proxy.entry("noble.img"))["sha512"] is None
    await asyncio.gather(*(proxy.get(f"/sha512:{SHA512}/u/noble.img") for _ in range(4)))
    assert (await proxy.entry("noble.img"))["sha512"] == SHA512
    assert (await proxy.get(f"/sha512:{SHA512}/u/gone.img")).body == BODY
    assert origin.requests == 1


async def test_removing_the_body_ends_its_digest_form(origin, proxy):
    origin.body("/noble.img", BODY)
    await proxy.get(f"/sha512:{SHA512}/u/noble.img")
    await proxy.entry("noble.img")
    proxy.run("rm", origin.url("/noble.img"))
    for digest in (f"sha256:{SHA256}", f"sha512:{SHA512}"):
        assert (await proxy.get(f"/{digest}/u/gone.img")).status == 404


@pytest.mark.parametrize("body", [BODY, BODY[:1]], ids=len)
@pytest.mark.parametrize("digest", [f"sha256:{WRONG}", f"sha512:{WRONG * 2}"])
async def test_the_digest_form_never_gives_another_body(origin, proxy, digest, body):
    origin.body("/noble.img", body)
    partial = await (await proxy.stream(f"/{digest}/u/noble.img")).broken()
    assert partial == body[: len(partial)]
    assert await proxy.entry("noble.img") is None
    assert "is it the digest of this very file" in await proxy.wait_log("fill.failed")


async def test_of_an_empty_body_with_another_digest_not_even_the_head_goes_out(origin, proxy):
    origin.body("/noble.img", b"")
    answer = await proxy.get(f"/sha256:{WRONG}/u/noble.img")
    assert answer.status == 502
    assert f"expected sha256:{WRONG}  got sha256:{hashlib.sha256().hexdigest()}" in answer.json()["message"]
    assert await proxy.entry("noble.img") is None
    assert (await proxy.get(f"/sha256:{hashlib.sha256().hexdigest()}/u/noble.img")).status == 200


@pytest.mark.parametrize("first", ["", f"/sha256:{hashlib.sha256().hexdigest()}"], ids=["plain", "the right one"])
async def test_nor_where_somebody_else_has_begun_it(origin, proxy, first):
    origin.body("/noble.img", b"").delay_headers_until_released()
    plain = asyncio.create_task(proxy.get(f"{first}/u/noble.img"))
    await asyncio.to_thread(origin.wait_requests, 1)
    wrong = asyncio.create_task(proxy.get(f"/sha256:{WRONG}/u/noble.img"))

    async def has_joined():
        return [fill["readers"] for fill in (await proxy.status())["fills"]] == [2]

    await until(has_joined)
    origin.release()
    assert ((await plain).status, (await wrong).status) == (200, 502)
    assert origin.requests == 1


async def test_head_of_the_digest_form_fetches_no_body(origin, proxy):
    origin.body("/noble.img", BODY)
    answer = await proxy.get(f"/sha256:{SHA256}/u/noble.img", method="HEAD")
    assert (answer.status, answer.headers["content-length"]) == (200, str(len(BODY)))
    assert [request.method for request in origin.log] == ["HEAD"]


async def test_what_is_stored_with_another_digest_is_fetched_again_and_stays_where_that_is_wrong(origin, proxy):
    image = origin.body("/noble.img", OTHER).headers(cache_control=FRESH)
    await proxy.get("/u/noble.img")
    await proxy.entry("noble.img")
    await (await proxy.stream(f"/sha256:{SHA256}/u/noble.img")).broken()
    assert (await proxy.entry("noble.img"))["sha256"] == hashlib.sha256(OTHER).hexdigest()
    image.generation(BODY)
    assert (await proxy.get(f"/sha256:{SHA256}/u/noble.img")).body == BODY
    assert (await proxy.entry("noble.img"))["sha256"] == SHA256
    assert (await proxy.get("/u/noble.img")).body == BODY


async def test_a_wrong_digest_hurts_only_the_one_who_names_it(origin, proxy):
    origin.body("/noble.img", BODY).stall_at(500_000)
    plain = await proxy.stream("/u/noble.img")
    right = await proxy.stream(f"/sha512:{SHA512}/u/noble.img")
    wrong = await proxy.stream(f"/sha256:{WRONG}/u/noble.img")
    origin.release()
    assert await plain.rest() == await right.rest() == BODY
    assert await wrong.broken() == BODY[:-1]
    assert (await proxy.entry("noble.img"))["sha512"] == SHA512
    assert origin.requests == 1


@pytest.mark.parametrize("listed", [None, BODY, OTHER], ids=["unlisted", "right", "wrong"])
async def test_who_begins_with_a_wrong_digest_hurts_no_one_else(origin, proxy_factory, listed):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    origin.body("/noble.img", BODY).stall_at(500_000)
    if listed:
        origin.body("/SHA256SUMS", sums(listed))
    wrong = await proxy.stream(f"/sha256:{WRONG}/m/noble.img")
    right = await proxy.stream(f"/sha512:{SHA512}/m/noble.img")
    plain = await proxy.stream("/m/noble.img")
    origin.release()
    assert await wrong.broken() == BODY[:-1]
    if listed is OTHER:  # for those without a word in it the checksum file decides
        assert await plain.broken() == await right.broken() == BODY[:-1]
    else:
        assert await plain.rest() == await right.rest() == BODY
    assert await proxy.entry("noble.img") is None
    assert origin.count("/noble.img") == 1


async def test_who_follows_another_process_with_a_wrong_digest_hurts_no_one_else(origin, proxy, proxy_factory):
    other = proxy_factory(cache_dir=proxy.cache_dir)
    origin.body("/noble.img", BIG).stall_at(900_000).headers(cache_control=FRESH)
    first = await proxy.stream("/u/noble.img")
    await first.read(900_000)
    await proxy.wait_begun()
    wrong = await other.stream(f"/sha512:{WRONG * 2}/u/noble.img")
    await wrong.read(900_000)
    plain = await other.stream("/u/noble.img")
    origin.release()
    assert await first.rest() == BIG[900_000:]
    assert await wrong.broken() == BIG[900_000:-1]
    assert await plain.rest() == BIG
    assert origin.count("/noble.img") == 1


async def test_offline_the_digest_form_gives_what_has_it_and_nothing_else(origin, proxy, proxy_factory):
    origin.body("/noble.img", BODY)
    await proxy.get("/u/noble.img")
    await proxy.entry("noble.img")
    offline = proxy_factory("--offline", cache_dir=proxy.cache_dir)
    assert (await offline.get(f"/sha256:{SHA256}/u/x.img")).body == BODY
    assert (await offline.get(f"/sha256:{WRONG}/u/noble.img")).status == 504


async def test_prefetch_with_a_digest(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    origin.body("/noble.img", BODY)
    url = origin.url("/noble.img")
    for running in (True, False):
        if not running:
            proxy.terminate()
        wrong = await asyncio.to_thread(proxy.run, "prefetch", url, "--digest", f"sha256:{WRONG}", code=1)
        assert "digest mismatch" in wrong.stderr, wrong.stderr
        await asyncio.to_thread(proxy.run, "prefetch", url, "--digest", f"sha512:{SHA512}")
    proxy.start()
    assert (await proxy.entry("noble.img"))["verified"] == f"sha512:{SHA512} (as asked for)"
    assert "sha256:" in proxy.run("prefetch", url, "--digest", "md5:00", code=2).stderr
    proxy.run("prefetch", url, url + "2", "--digest", f"sha256:{SHA256}", code=2)


async def test_a_big_body_is_hashed_while_it_comes(origin, proxy):
    size = 100_000_000
    digest = hashlib.sha512(pattern_bytes(size, 5)).hexdigest()
    origin.pattern("/big.img", size, seed=5)
    stream = await proxy.stream(f"/sha512:{digest}/u/big.img")
    assert (await stream.sha256())[1] == size
    assert (await proxy.entry("big.img"))["sha512"] == digest
