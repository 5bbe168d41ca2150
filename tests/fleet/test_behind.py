"""The queue of what goes into the bucket, alone."""

import hashlib
import time

import pytest

from proxy.config import load
from proxy.fill.behind import UPLOADS, Behind
from proxy.rules.entry import Entry, Head
from proxy.rules.mirrors import cache_key
from proxy.stats import Stats
from proxy.store.store import Store
from proxy.upstream.objects import Bucket
from tests.harness import until


@pytest.fixture
async def store(tmp_path):
    store = Store(tmp_path / "cache")
    await store.start()
    yield store
    await store.close()


async def keep(store, number):
    path, body, now = f"{number}", f"{number}".encode(), time.time()
    key, url = cache_key("a", path, ""), f"https://a.example/{path}"
    head = Head((("cache-control", "max-age=600"),), len(body), "a")
    sha256 = hashlib.sha256(body).hexdigest()
    return await store.keep(Entry(key, url, "a", head, sha256, stored_at=now, validated_at=now), body)


async def test_what_a_full_queue_could_not_take_is_found_and_goes_there_too(bucket, store, tmp_path):
    config = tmp_path / "fetchonce.toml"
    config.write_text(bucket.config())
    stats, room, count = Stats(), 4, 30
    behind = Behind(store, stats, time.time, {}, room)
    behind.use(Bucket(load(str(config)).file.s3), ())
    bucket.wire.hold(r"PUT ")
    behind.start()
    try:
        for number in range(count):
            behind.push(await keep(store, number))
        await until(lambda: bucket.wire.count(r"PUT ") == UPLOADS)
        assert stats.bucket_uploads["late",] >= count - room - UPLOADS
        assert behind.waiting <= room + UPLOADS
        bucket.wire.heal()
        await bucket.wait(count)
        await until(lambda: behind.waiting == 0)
        assert stats.bucket_uploads["stored",] == count  # none twice
    finally:
        bucket.wire.heal()
        await behind.close()
