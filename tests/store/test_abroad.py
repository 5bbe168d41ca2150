"""Which entries the bucket is to be told of."""

import hashlib

import pytest

from proxy.rules.entry import Entry, Head
from proxy.store.abroad import PAGE_ENTRIES
from proxy.store.store import Store

DAY = 86400.0


def entry(number, generation="a"):
    body = f"{number} {generation}".encode()
    key = hashlib.sha256(str(number).encode()).hexdigest()
    head = Head((), len(body), generation)
    url = f"https://a.example/{number}"
    return Entry(key, url, "a", head, hashlib.sha256(body).hexdigest(), stored_at=1.0, validated_at=1.0), body


@pytest.fixture
async def store(tmp_path):
    store = Store(tmp_path / "cache")
    await store.start()
    yield store
    await store.close()


async def due(store, bucket="b"):
    keys, after = [], ""
    while after is not None:
        page, after = await store.abroad.page(after, bucket, DAY)
        keys += page
    return keys


async def test_those_that_it_has_not_got_or_that_were_used_long_after(store):
    one, _ = await keep(store, 1)
    two, _ = await keep(store, 2)
    assert set(await due(store)) == {one.key, two.key}
    await store.abroad.note(one.key, "b", "a", 1000.0)
    assert await due(store) == [two.key]
    assert set(await due(store, "another")) == {one.key, two.key}
    store.touch(one.key, 1000.0 + DAY)
    await store.flush()
    assert await due(store) == [two.key]  # a use does not take the note away
    store.touch(one.key, 1001.0 + DAY)
    await store.flush()
    assert set(await due(store)) == {one.key, two.key}
    await store.abroad.note(one.key, "b", "a", 1001.0 + DAY)
    await keep(store, 1, "other")
    assert set(await due(store)) == {one.key, two.key}


async def keep(store, number, generation="a"):
    new, body = entry(number, generation)
    return await store.keep(new, body), body


async def test_all_pages_are_read_and_each_entry_comes_once(store):
    count = PAGE_ENTRIES + 3
    await store._do(store.blobs.ground.current_index().set_all, [entry(number)[0] for number in range(count)])
    keys = await due(store)
    assert keys == sorted({entry(number)[0].key for number in range(count)})


async def test_a_note_about_what_was_removed_leaves_nothing(store):
    one, _ = await keep(store, 1)
    await store.remove(one.key)
    await store.abroad.note(one.key, "b", "a", 1000.0)
    await keep(store, 1)
    assert await due(store) == [one.key]
