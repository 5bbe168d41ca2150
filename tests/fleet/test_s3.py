"""A bucket that servers share: what one has stored, another gets from there and not from upstream."""

import os

import pytest


SMALL, BIG = os.urandom(20_000), os.urandom(3_000_000)
FRESH = "max-age=600"


@pytest.mark.parametrize("body", [b"", SMALL, BIG], ids=["empty", "small", "big"])
async def test_a_wiped_disk_gets_it_back_without_upstream(origin, proxy_factory, bucket, body):
    origin.body("/noble.img", body).headers(cache_control=FRESH, etag='"1"')
    first = proxy_factory(config_text=bucket.config())
    before = await first.fetch("/u/noble.img")
    await bucket.wait(1)
    second = proxy_factory(config_text=bucket.config())
    again = await second.get("/u/noble.img")
    assert again.body == before.body == body
    assert origin.count("/noble.img") == 1
    for name in ("etag", "last-modified", "content-type", "content-length", "accept-ranges"):
        assert again.headers.get(name) == before.headers.get(name)
