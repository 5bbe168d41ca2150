"""Archives: what goes out of one store, and what of it comes into another."""

import asyncio
import contextlib
import hashlib
import io
import json
import os
import random
import resource
import sqlite3
import subprocess
import tarfile
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.config import CacheSection
from proxy.errors import OutOfSpace
from proxy.rules.entry import Entry, Head
from proxy.rules.headers import stored_headers
from proxy.rules.mirrors import cache_key
from proxy.store import archive
from proxy.store.archive import CHUNK_BYTES, Carried, Importer, Kept, Left, Watch, export
from proxy.store.janitor import Janitor
from proxy.store.partial import PartialRecord
from proxy.store.store import Store
from proxy.store.tar import TarReader, TarWriter

NOW = 1_700_000_000.0
BODY = os.urandom(30_000)
UNLIMITED = CacheSection(max_size=0, min_free=0)


def entry_of(name, body, *, at=NOW - 100, **changes):
    head = Head((("etag", f'"{at}"'),), len(body), hashlib.sha256(f"{name}{at}".encode()).hexdigest()[:16])
    digest = hashlib.sha256(body).hexdigest()
    return replace(Entry(cache_key("a", name, ""), f"http://a/{name}", "a", head, digest, at, at), **changes)


async def put(store, name, body, **changes):
    entry = entry_of(name, body, **changes)
    with contextlib.closing(await store.create(entry.key, entry.head.generation)) as partial:
        partial.write(0, memoryview(body))
        stored = await store.commit(partial, entry)
    return await store.pin(stored.key) if entry.pinned else stored


@pytest.fixture
def opened(tmp_path):
    @contextlib.asynccontextmanager
    async def opened(name="there", **options):
        store = Store(tmp_path / name, **options)
        await store.start()
        await store.count()  # once what a kill has left is in order
        try:
            yield store
        finally:
            await store.close()

    return opened


class Pipe(io.RawIOBase):
    """A file that cannot seek."""

    def __init__(self, data=b""):
        self.file = io.BytesIO(data)

    def readable(self):
        return True

    def writable(self):
        return True

    def readinto(self, buffer):
        return self.file.readinto(buffer[: random.randint(1, len(buffer))])

    def write(self, data):
        return self.file.write(data)


async def exported(store, *names, out=None):
    """The archive of these entries (of all, if none is named), and what was left out."""
    told, out = [], io.BytesIO() if out is None else out
    entries = sorted((record.entry for record in await store.records()), key=lambda entry: entry.url)
    chosen = [entry for entry in entries if not names or entry.url.removeprefix("http://a/") in names]
    await export(store, chosen, TarWriter(out), Watch(told.append, lambda done, size: None))
    return (out.file if isinstance(out, Pipe) else out).getvalue(), [each for each in told if isinstance(each, Left)]


async def imported(store, data, limits=UNLIMITED):
    """What was told: names of what was carried and kept, and reasons by name of what was left out."""
    told = []
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    watch = Watch(told.append, lambda done, size: None)
    await Importer(store, Janitor(store, limits), TarReader(source), "the archive", watch).run(NOW)
    assert not list((store.root / "partial").iterdir())
    names = {
        kind: [each.entry.url.removeprefix("http://a/") for each in told if isinstance(each, kind)]
        for kind in (Carried, Kept)
    }
    return (
        names[Carried],
        names[Kept],
        {each.name.removeprefix("http://a/"): each.why for each in told if isinstance(each, Left)},
    )


async def contents(store):
    """Bodies by name; each is what its digest says."""
    found = {}
    for record in await store.records():
        entry = await store.lookup(record.entry.key)
        body = store.read(entry)
        assert hashlib.sha256(body).hexdigest() == entry.sha256
        found[entry.url.removeprefix("http://a/")] = body
    return found


async def entries(store):
    return {record.entry.key: record.entry for record in await store.records()}


def members(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {info.name: (info.offset_data, info.size) for info in tar}


def flipped(data, name, at=0):
    """The archive with one bit of a member changed."""
    offset, _ = members(data)[name]
    changed = bytearray(data)
    changed[offset + at] ^= 1
    return bytes(changed)


def blob(body):
    digest = hashlib.sha256(body).hexdigest()
    return f"blobs/{digest[:2]}/{digest}"


def page(name):
    return f"urls/{cache_key('a', name, '')}.json"


# -- both ways ---------------------------------------------------------------------------------------------------------

NAMES = ["etag", "last-modified", "content-type", "vary", "cache-control", "x-a"]
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=20)
HEADERS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=4).map(stored_headers)
ENTRIES = st.lists(
    st.tuples(
        st.text("ab/_-%", min_size=1, max_size=12).map(lambda name: f"{name.replace('%', '%2B')}.img"),
        st.sampled_from([b"", b"x", BODY, BODY[:511], BODY[:512], BODY[:513]]),
        st.booleans(),
        st.floats(0, NOW),
        HEADERS,
    ),
    max_size=6,
    unique_by=lambda each: each[0],
)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(generated=ENTRIES, is_pipe=st.booleans())
def test_what_is_exported_is_imported_as_it_was(tmp_path_factory, generated, is_pipe):
    async def main():
        here, there = (Store(tmp_path_factory.mktemp("store")) for _ in range(2))
        await here.start()
        await there.start()
        try:
            for name, body, pinned, at, headers in generated:
                entry = entry_of(name, body, at=at, pinned=pinned)
                await put(here, name, body, at=at, pinned=pinned, head=replace(entry.head, headers=headers))
            data, left = await exported(here, out=Pipe() if is_pipe else None)
            carried, kept, lost = await imported(there, Pipe(data) if is_pipe else data)
            assert (left, kept, lost) == ([], [], {})
            assert len(carried) == len(generated)
            assert await entries(there) == await entries(here)
            assert await contents(there) == await contents(here)
        finally:
            await here.close()
            await there.close()

    asyncio.run(main())


async def test_tar_lists_and_unpacks_it_and_sha256sum_agrees(opened, tmp_path):
    async with opened() as store:
        for name, body in {"a": BODY, "b": BODY, "empty": b"", "text": b"hello\n"}.items():
            await put(store, name, body)
        data, _ = await exported(store)
    (tmp_path / "x.tar").write_bytes(data)
    listed = subprocess.run(["tar", "tf", tmp_path / "x.tar"], check=True, capture_output=True, text=True)
    assert listed.stderr == ""
    assert listed.stdout.splitlines() == [
        *("manifest.json", page("a"), page("b"), blob(BODY), page("empty"), blob(b""), page("text"), blob(b"hello\n")),
    ]
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "x.tar", "-C", tmp_path / "out"], check=True)
    for path in (tmp_path / "out").glob("blobs/*/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert json.loads((tmp_path / "out" / page("b")).read_text())["content"]["url"] == "http://a/b"
    assert len(data) % 10240 == 0


async def test_the_same_entries_make_the_same_archive(opened):
    async with opened() as store:
        await put(store, "a", BODY)
        await put(store, "b", b"b")
        assert (await exported(store))[0] == (await exported(store))[0]


async def test_a_body_of_several_chunks_and_one_beyond_8_gib(opened, tmp_path):
    body = os.urandom(3 * CHUNK_BYTES + 1)
    async with opened() as store, opened("here") as other:
        await put(store, "a", body)
        data, _ = await exported(store)
        assert (await imported(other, data))[0] == ["a"]
        assert await contents(other) == {"a": body}
    # Its size does not fit into a plain header.
    out = io.BytesIO()
    TarWriter(out).begin("big", 9 * 1024**3, NOW)
    member = TarReader(io.BytesIO(out.getvalue())).next()
    assert (member.name, member.size) == ("big", 9 * 1024**3)


# -- export ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", [None, Pipe], ids=["file", "pipe"])
async def test_a_damaged_body_is_left_out_and_the_archive_is_whole(opened, out):
    async with opened() as store, opened("here") as other:
        for name, body in {"a": BODY[:9000], "b": BODY, "c": BODY, "d": b"d"}.items():
            await put(store, name, body)
        path = store.root / blob(BODY)
        path.write_bytes(flip(path.read_bytes(), 20_000))
        data, left = await exported(store, out=out and out())
        assert [each.name for each in left] == ["http://a/b", "http://a/c"]
        assert "expected sha256:" in left[0].why
        assert set(members(data)) == {"manifest.json", page("a"), blob(BODY[:9000]), page("d"), blob(b"d")}
        assert not any(data[-1024:])
        assert await imported(other, data) == (["a", "d"], [], {})


def flip(data, at):
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


async def test_what_changes_while_it_is_exported(opened):
    async with opened() as store, opened("here") as other:
        for name in "abcd":
            await put(store, name, name.encode())
        before = [record.entry for record in await store.records()]
        await store.remove(entry_of("b", b"").key)
        await put(store, "a", b"new", at=NOW - 1)
        out, told = io.BytesIO(), []
        await export(store, before, TarWriter(out), Watch(told.append, lambda done, size: None))
        assert [each.name for each in told if isinstance(each, Left)] == ["http://a/b"]
        await imported(other, out.getvalue())
        assert await contents(other) == {"a": b"new", "c": b"c", "d": b"d"}


async def test_a_body_that_is_evicted_while_it_is_written_is_written_to_its_end(opened):
    async with opened() as store, opened("here") as other:
        body = os.urandom(2 * CHUNK_BYTES)
        await put(store, "a", body)
        gone = []

        def progress(done, size):
            if not gone:
                gone.append((store.root / blob(body)).unlink())

        out, told = io.BytesIO(), []
        await export(store, [entry_of("a", body)], TarWriter(out), Watch(told.append, progress))
        assert gone
        assert (await imported(other, out.getvalue()))[0] == ["a"]


# -- import: what is here already --------------------------------------------------------------------------------------


async def test_a_second_import_copies_nothing(opened):
    async with opened() as store, opened("here") as other:
        await put(store, "a", BODY)
        await put(store, "b", BODY, pinned=True)
        data, _ = await exported(store)
        await imported(other, data)
        inode = (other.root / blob(BODY)).stat().st_ino
        await other.pin(entry_of("b", b"").key, pinned=False)
        assert await imported(other, data) == ([], ["a", "b"], {})
        assert (other.root / blob(BODY)).stat().st_ino == inode
        assert (await entries(other)) == await entries(store)  # pinned again
        await other.remove(entry_of("a", b"").key)
        assert await imported(other, data) == (["a"], ["b"], {})
        assert (other.root / blob(BODY)).stat().st_ino == inode


@pytest.mark.parametrize("pinned", ["there", "here"])
@pytest.mark.parametrize(("at", "comes"), [(NOW - 50, True), (NOW - 150, False), (NOW + 1e6, False)])
async def test_the_newer_generation_wins_and_a_pin_holds(opened, at, comes, pinned):
    async with opened() as store, opened("here") as other:
        await put(store, "a", b"theirs", at=at, pinned=pinned == "there")
        await put(other, "a", b"ours", at=NOW - 100, pinned=pinned == "here")
        data, _ = await exported(store)
        assert await imported(other, data) == ((["a"], [], {}) if comes else ([], ["a"], {}))
        assert await contents(other) == {"a": b"theirs" if comes else b"ours"}
        (entry,) = (await entries(other)).values()
        assert entry.pinned
        assert len(list((other.root / "blobs").glob("*/*"))) == 2


async def test_what_was_confirmed_later_there_is_as_fresh_here_and_keeps_its_tag(opened):
    async with opened() as store, opened("here") as other:
        theirs = await put(store, "a", BODY, at=NOW - 10)
        ours = await put(other, "a", BODY, at=NOW - 1000)
        data, _ = await exported(store)
        assert await imported(other, data) == ([], ["a"], {})
        found = await other.lookup(ours.key)
        assert (found.validated_at, found.head.headers) == (theirs.validated_at, theirs.head.headers)
        assert found.head.generation == ours.head.generation


async def test_what_is_being_fetched_is_left_to_who_fetches_it(opened):
    async with opened() as store, opened("here") as other:
        for name in "abc":
            await put(store, name, BODY)
        data, _ = await exported(store)
        with other.try_lock(entry_of("a", b"").key):
            carried, _, left = await imported(other, data)
        assert carried == ["b", "c"]  # the body comes with another of its URLs
        assert list(left) == ["a"]
        assert "being fetched or imported right now" in left["a"]
        assert await imported(other, data) == (["a"], ["b", "c"], {})


async def test_an_unfinished_body_is_not_written_into(opened):
    async with opened() as store, opened("here") as other:
        entry = await put(store, "a", BODY)
        data, _ = await exported(store)
        for generation, stays in ((entry.head.generation, False), ("other", True)):
            head = replace(entry.head, generation=generation)
            with contextlib.closing(await other.create(entry.key, generation)) as partial:
                partial.write(0, memoryview(BODY[:100]))
                partial.extents.add(0, 100)
                record = PartialRecord(entry.key, entry.url, entry.mirror, entry.url, head, list(partial.extents))
                await other.save(partial, record)
            told, pages = [], set()
            bad = flipped(data, blob(BODY), 50)
            watch = Watch(told.append, lambda done, size, pages=pages: pages.update(other.root.glob("partial/*.json")))
            await Importer(other, Janitor(other, UNLIMITED), TarReader(io.BytesIO(bad)), "x", watch).run(NOW)
            assert [type(each) for each in told] == [Left]
            assert len(pages) == len(await other.unfinished()) == stays
            await other.forget_partial(entry.key)


# -- import: damaged and hostile archives ------------------------------------------------------------------------------


async def three(store):
    """The archive of a, b and c, which it puts into the store."""
    for name, body in {"a": BODY, "b": BODY[::-1], "c": b"c"}.items():
        await put(store, name, body)
    return (await exported(store))[0]


async def test_one_bit_costs_one_entry(opened):
    async with opened() as store, opened("here") as other:
        data = await three(store)
        _, size = members(data)[page("b")]
        for member, at, lost in [
            (blob(BODY[::-1]), 0, "b"),
            (blob(BODY[::-1]), 29_999, "b"),
            (page("b"), size // 2, page("b")),
            (page("b"), size - 30, page("b")),
            ("manifest.json", 90, "manifest.json"),
        ]:
            carried, _, left = await imported(other, flipped(data, member, at))
            assert list(left) == [lost], member
            assert carried == [name for name in "abc" if name not in (lost, "b" if lost == page("b") else "")]
            await contents(other)
            for entry in (await entries(other)).values():
                await other.remove(entry.key)
        assert not list((other.root / "blobs").glob("*/*"))


async def test_of_a_truncated_archive_what_was_whole_is_in(opened):
    async with opened() as store, opened("here") as other:
        data = await three(store)
        places = sorted(members(data).values())
        seen = set()
        for end in sorted(
            {*(offset for offset, _ in places), *(offset + size - 1 for offset, size in places if size), 0, 1, 600}
        ):
            for source in (data[:end], Pipe(data[:end])):
                carried, kept, left = await imported(other, source)
                assert "the archive" in left, end
                assert "ends too early" in left["the archive"]
                assert set(await contents(other)) == {*carried, *kept}
                assert not {*carried, *kept} & left.keys()
                seen.add(len([*carried, *kept]))
        assert seen == {0, 1, 2}
        assert (await imported(other, data))[2] == {}


async def test_what_is_kept_does_not_need_the_body_that_is_cut_off(opened):
    async with opened() as store, opened("here") as other:
        await put(store, "a", BODY)
        await put(store, "b", BODY)
        await put(other, "a", b"newer", at=NOW - 1)
        data, _ = await exported(store)
        offset, _ = members(data)[blob(BODY)]
        carried, kept, left = await imported(other, data[: offset + 9])
        assert (carried, kept, set(left)) == ([], ["a"], {"b", "the archive"})


async def test_a_damaged_header_ends_it(opened):
    async with opened() as store, opened("here") as other:
        data = await three(store)
        offset, _ = members(data)[page("b")]
        carried, _, left = await imported(other, flip(data, offset - 512 + 10))
        assert carried == ["a"]
        assert left == {"the archive": f"the archive is damaged at byte {offset - 512}. 2 URLs were still to come"}


def written(*pairs):
    out = io.BytesIO()
    tar = TarWriter(out)
    for name, content in pairs:
        tar.add(name, content, 0)
    tar.close()
    return out.getvalue()


def manifest(*bodies, **changes):
    sizes = {hashlib.sha256(body).hexdigest(): len(body) for body in bodies}
    return archive._page(
        archive.Manifest(**{"version": 1, "urls": len(bodies), "bytes": 9, "bodies": sizes, **changes})
    )


async def test_names_are_never_paths_and_what_is_unknown_is_passed_over(opened, tmp_path):
    entry = entry_of("a", BODY)
    text = archive._page(entry)
    hostile = [
        ("manifest.json", manifest(BODY)),
        ("../../escaped", BODY),
        ("/etc/escaped", BODY),
        ("blobs/../escaped", BODY),
        ("urls/../../escaped.json", text),
        (f"urls/{'0' * 64}.json", text),
        ("urls/\x1b[2J.json", b"{}"),
        ("damaged/x", b"x"),
        (blob(b"nobody's"), b"nobody's"),
        (page("a"), text),
        (blob(BODY), BODY),
    ]
    async with opened("here") as store:
        before = sorted(tmp_path.rglob("*"))
        carried, _, left = await imported(store, written(*hostile))
        assert carried == ["a"]
        assert set(left) == {"urls/../../escaped.json", f"urls/{'0' * 64}.json", "urls/\\x1b[2J.json"}
        new = {path.relative_to(store.root).parts[0] for path in tmp_path.rglob("*") if path not in before}
        assert new <= {"blobs", "locks", "committed", "index"}
        assert not (tmp_path.parent / "escaped").exists()


async def test_links_directories_and_devices_are_passed_over(opened):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:

        def add(name, content=b"", **changes):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in changes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))

        add("manifest.json", manifest(BODY))
        add("blobs/aa", type=tarfile.DIRTYPE)
        add(page("a"), type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("x", type=tarfile.LNKTYPE, linkname="manifest.json")
        add("x" * 300, b"long")
        add("fifo", type=tarfile.FIFOTYPE)
        add(page("a"), archive._page(entry_of("a", BODY)))
        add(blob(BODY), BODY)
    async with opened("here") as store:
        assert await imported(store, out.getvalue()) == (["a"], [], {})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ends too early"),
        (b"x" * 600, "is no tar"),
        (b"\x1f\x8b" + bytes(600), "gzip -dc"),
        (bytes(1024), "was not written by fetchonce export"),
        (written(("a", b"a")), "was not written by fetchonce export"),
        (written(("manifest.json", manifest(version=2))), "version 2"),
    ],
    ids=["empty", "no-tar", "compressed", "no-member", "another-tar", "another-version"],
)
async def test_what_is_no_archive_of_ours(opened, data, said):
    async with opened("here") as store:
        carried, kept, left = await imported(store, data)
        assert (carried, kept, list(left)) == ([], [], ["the archive"])
        assert said in left["the archive"]
        assert "nothing was imported" in left["the archive"]


async def test_sizes_that_lie_take_no_memory_and_no_room(opened):
    entry = entry_of("a", BODY)
    out = io.BytesIO()
    tar = TarWriter(out)
    tar.add("manifest.json", manifest(BODY), 0)
    begun = tar.offset
    tar.begin(page("a"), 2**40, 0)
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**33 - 1
    async with opened("here") as store:
        _, _, left = await imported(store, out.getvalue())
        assert "it has 1099511627776 bytes" in left[page("a")]
        _, _, left = await imported(store, out.getvalue()[:begun] + info.tobuf(tarfile.USTAR_FORMAT))
        assert "extended header of 8589934591 bytes" in left["the archive"]
        # The header says less, or more, than the entry.
        for size in (len(BODY) - 1, len(BODY) + 1):
            data = written(
                ("manifest.json", manifest(BODY)), (page("a"), archive._page(entry)), (blob(BODY), bytes(size))
            )
            _, _, left = await imported(store, data)
            assert left["a"] == f"its body has {size} bytes instead of {len(BODY)}"


async def test_a_size_that_no_file_can_have_is_damage(opened):
    info = tarfile.TarInfo("x")
    info.size = 2**80
    data = written(("manifest.json", manifest(BODY)))[:-10240] + info.tobuf(tarfile.GNU_FORMAT)
    async with opened("here") as store:
        _, _, left = await imported(store, data)
        assert "is damaged at byte" in left["the archive"]


@pytest.mark.parametrize("content", [b"[" * 100_000 + b"]" * 100_000, b'"\xff"'], ids=["deep", "no UTF-8"])
async def test_a_page_that_breaks_a_parser_is_left_out(opened, content):
    broken = b'{"sha256":' + content + b',"content":' + content + b"}"
    entry = archive._page(entry_of("b", BODY))
    data = written(("manifest.json", manifest(BODY)), (page("a"), broken), (page("b"), entry), (blob(BODY), BODY))
    async with opened("here") as store:
        carried, _, left = await imported(store, data)
        assert (carried, list(left)) == (["b"], [page("a")])


async def test_a_body_may_have_more_urls_than_a_process_descriptors(opened):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    pages = [(page(f"{number}"), archive._page(entry_of(f"{number}", BODY))) for number in range(200)]
    data = written(("manifest.json", manifest(BODY)), *pages, (blob(BODY), BODY))
    async with opened("here") as store:
        await store.survey()
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 40, limits[1]))
        try:
            carried, _, left = await imported(store, data)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert (len(carried), left) == (200, {})


async def test_entries_without_a_body_do_not_pile_up(opened):
    headers = tuple(("x", "y" * 1000) for _ in range(400))
    pages = []
    for number in range(50):
        entry = entry_of(f"{number}", BODY)
        pages.append((page(f"{number}"), archive._page(replace(entry, head=replace(entry.head, headers=headers)))))
    async with opened("here") as store:
        data = written(("manifest.json", manifest(BODY)), *pages, (blob(BODY), BODY))
        carried, _, left = await imported(store, data)
        assert len(carried) + len(left) == 50
        assert 5 < len(left) < 15
        assert set(left.values()) == {"too many URLs have its body"}


async def test_a_digest_that_only_the_archive_says_is_not_believed(opened):
    lie = hashlib.sha512(b"lie").hexdigest()
    verified = f"sha512:{lie} (SHA512SUMS)"
    data = written(
        ("manifest.json", manifest(BODY)),
        (page("a"), archive._page(entry_of("a", BODY, sha512=lie, verified=verified))),
        (page("b"), archive._page(entry_of("b", BODY, sha512=lie))),
        (blob(BODY), BODY),
    )
    async with opened("here") as store:
        await imported(store, data)
        found = await entries(store)
        assert {entry.sha512 for entry in found.values()} == {hashlib.sha512(BODY).hexdigest()}
        assert {entry.verified for entry in found.values()} == {None}
        await store.remove(entry_of("b", b"").key)
        await imported(store, data)  # the body is not read again
        assert (await store.lookup(entry_of("b", b"").key)).sha512 is None


# -- import: room ------------------------------------------------------------------------------------------------------


async def test_without_room_for_all_of_it_nothing_is_brought_in_or_evicted(opened):
    async with opened() as store, opened("here") as other:
        data = await three(store)
        await put(other, "old", BODY[:20_000])
        with pytest.raises(OutOfSpace, match=r"no space for the archive: it needs 60.0 KB.*max_size is 50.0 KB"):
            await imported(other, data, CacheSection(max_size=50_000, min_free=0))
        assert set(await contents(other)) == {"old"}
        # What is here already needs no room.
        await imported(other, (await exported(store, "a"))[0])
        limits = CacheSection(max_size=65_000, min_free=0)
        pinned = await put(other, "pinned", BODY[:10_000], pinned=True)
        with pytest.raises(OutOfSpace, match=r"needs 30.0 KB"):  # what is here of it may not go for the rest
            await imported(other, data, limits)
        await other.remove(pinned.key)
        assert await imported(other, data, limits) == (["b", "c"], ["a"], {})
        assert set(await contents(other)) == {"a", "b", "c"}


async def test_the_least_recently_used_goes_for_it_and_what_is_imported_counts_as_used(opened):
    async with opened() as store, opened("here") as other:
        data = await three(store)
        await put(other, "old", BODY[:20_000], at=NOW - 50)  # stored after those in the archive
        await put(other, "pinned", BODY[:10_000], at=NOW - 50, pinned=True)
        limits = CacheSection(max_size=75_000, min_free=0)
        assert await imported(other, data, limits) == (["a", "b", "c"], [], {})
        assert set(await contents(other)) == {"pinned", "a", "b", "c"}
        uses = {record.entry.url: (record.usage.hits, record.usage.used_at) for record in await other.records()}
        assert uses["http://a/a"] == (0, NOW)


async def test_what_others_evict_meanwhile_is_said(opened):
    async with opened() as store, opened("here") as other:
        data = await three(store)
        told = []

        def tell(outcome):
            told.append(outcome)
            if isinstance(outcome, Carried) and outcome.entry.url == "http://a/a":
                other.blobs.sidecars.path(outcome.entry).unlink()

        watch = Watch(tell, lambda done, size: None)
        await Importer(other, Janitor(other, UNLIMITED), TarReader(io.BytesIO(data)), "x", watch).run(NOW)
        assert told[-1] == Left("http://a/a", "it was removed or replaced again meanwhile")


async def test_a_manifest_that_says_too_little_takes_no_more_than_there_is(opened):
    async with opened("here") as store:
        await put(store, "pinned", BODY, pinned=True)
        data = written(
            ("manifest.json", manifest()),
            (page("a"), archive._page(entry_of("a", BODY[1:]))),
            (blob(BODY[1:]), BODY[1:]),
            (page("b"), archive._page(entry_of("b", b"b"))),
            (blob(b"b"), b"b"),
        )
        carried, _, left = await imported(store, data, CacheSection(max_size=40_000, min_free=0))
        assert carried == ["b"]
        assert "no space for http://a/a" in left["a"]


async def test_a_url_that_shares_a_body_leaves_no_trace_where_its_records_cannot_be_written(opened):
    async with opened() as store, opened("here", busy_seconds=0.1) as other:
        await put(store, "a", BODY)
        await put(store, "b", BODY)
        await put(other, "a", BODY)
        data, _ = await exported(store, "b")
        with contextlib.closing(sqlite3.connect(other.root / "index" / "cache.db", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            carried, _, left = await imported(other, data)
        assert carried == []
        assert "kept the index of" in left["b"]
        assert [path.name.split(".")[1] for path in other.root.glob("blobs/*/*.json")] == [entry_of("a", b"").key]
        assert await imported(other, data) == (["b"], [], {})
