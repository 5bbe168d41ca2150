"""A disk that is really full: a small file system of its own, and fetchonce on it."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys

import pytest

from proxy.errors import OutOfSpace
from proxy.store.partial import Partial
from tests.harness import Truncated, until

FRESH = "max-age=600"
MB = 1_000_000
NO_LIMITS = '[cache]\nmax_size = "0"\nmin_free = "0"\n[fill]\nretries = 0\n'


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request, tmp_path):
    """A directory on a file system of 12 MiB."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("mounting a file system takes root on Linux")
    directory = tmp_path / "disk"
    directory.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=12m", "none", directory]
    else:
        if not shutil.which("mkfs.ext4"):
            pytest.skip("mkfs.ext4 (e2fsprogs) is not installed")
        image = tmp_path / "disk.img"
        with open(image, "wb") as file:
            file.truncate(12 * 1024**2)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=True)
        command = ["mount", "-o", "loop", image, directory]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting {request.param} is not permitted: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", directory], check=True)


@pytest.fixture
def proxy(proxy_factory, small_disk):
    proxy = proxy_factory(cache_dir=small_disk / "cache", config_text=NO_LIMITS)
    yield proxy
    proxy.close()  # before its disk goes


def leave_free(disk, count):
    """Fill the disk with something that is not ours, until so many bytes are free."""
    with open(disk / "other", "ab", buffering=0) as file, contextlib.suppress(OSError):
        while (free := free_bytes(disk) - count) > 0:
            file.write(b"o" * min(free, 65536))


def free_bytes(disk):
    stat = os.statvfs(disk)
    return stat.f_bavail * stat.f_frsize


def stored(proxy, count):
    return lambda: len([line for line in proxy.log if "fill.complete" in line]) == count


def nothing_is_left_of_it(proxy):
    blobs = [path for path in (proxy.cache_dir / "blobs").rglob("*") if path.is_file() and path.suffix != ".json"]
    return not list((proxy.cache_dir / "partial").iterdir()) and len(blobs)


async def test_a_known_length_that_does_not_fit_is_passed_on_and_nothing_is_written(origin, proxy):
    body = os.urandom(20 * MB)
    origin.body("/large", body).headers(cache_control=FRESH)
    answers = await asyncio.gather(*(proxy.get("/u/large") for _ in range(4)))
    assert {answer.body for answer in answers} == {body}
    assert {answer.headers["cache-status"] for answer in answers} == {
        "fetchonce; fwd=uri-miss; stored=?0; detail=no-space"
    }
    message = await proxy.wait_log("fill.not_kept")
    assert "it needs 20.0 MB" in message
    assert "remove other files there" in message
    part = await proxy.get("/u/large", {"Range": "bytes=19000000-19000009"})
    assert (part.status, part.body) == (206, body[19 * MB : 19 * MB + 10])
    assert nothing_is_left_of_it(proxy) == 0


async def test_room_is_made_on_the_disk_for_what_comes(origin, proxy):
    bodies = {name: os.urandom(5 * MB) for name in "abcde"}
    for number, (name, body) in enumerate(bodies.items(), 1):
        origin.body(f"/{name}", body).headers(cache_control=FRESH)
        assert (await proxy.get(f"/u/{name}")).body == body
        await until(stored(proxy, number))
    for name, status in zip("abcde", [504, 504, 504, 200, 200], strict=True):
        assert (await proxy.get(f"/u/{name}", {"Cache-Control": "only-if-cached"})).status == status


async def test_a_body_without_a_length_pushes_out_what_is_old(origin, proxy):
    old, new = os.urandom(6 * MB), os.urandom(9 * MB)
    origin.body("/old", old).headers(cache_control=FRESH)
    origin.body("/new", new).headers(cache_control=FRESH).chunked()
    await proxy.get("/u/old")
    await until(stored(proxy, 1))
    assert (await proxy.get("/u/new")).body == new
    await proxy.wait_log(f"evicted url={origin.url('/old')} bytes=6000000")
    await until(stored(proxy, 2))
    assert (await proxy.get("/u/new")).headers["cache-status"] == "fetchonce; hit"


async def test_a_body_without_a_length_and_without_room_breaks_its_readers_off(origin, proxy):
    origin.body("/endless", os.urandom(20 * MB)).chunked()
    origin.body("/small", b"small").headers(cache_control=FRESH)
    first, slow = await proxy.stream("/u/endless"), await proxy.stream("/u/endless")
    with pytest.raises(Truncated):
        await first.rest()
    failed = await proxy.wait_log("fill.failed")
    assert "No space left on device" in failed
    with pytest.raises(Truncated):
        await slow.rest()
    await until(lambda: nothing_is_left_of_it(proxy) == 0)
    assert (await proxy.get("/u/small")).body == b"small"
    assert (await proxy.get("/u/small")).headers["cache-status"] == "fetchonce; hit"


async def test_a_disk_that_others_fill_meanwhile(origin, proxy, small_disk):
    body, old = os.urandom(6 * MB), os.urandom(2 * MB)
    origin.body("/old", old).headers(cache_control=FRESH)
    await proxy.get("/u/old")
    await until(stored(proxy, 1))
    origin.body("/image", body).headers(cache_control=FRESH).stall_at(1 * MB)
    reader = await proxy.stream("/u/image")
    await reader.read(1 * MB)
    leave_free(small_disk, 4 * MB)
    origin.release()
    assert await reader.rest() == body[1 * MB :]  # old made room for it
    await proxy.wait_log("evicted url=")
    await until(stored(proxy, 2))
    assert (await proxy.get("/u/image")).headers["cache-status"] == "fetchonce; hit"


async def test_where_nothing_can_be_evicted_readers_get_the_rest_past_the_disk(origin, proxy, small_disk):
    body = os.urandom(6 * MB)
    origin.body("/image", body).headers(cache_control=FRESH).stall_at(1 * MB, times=1)
    readers = [await proxy.stream("/u/image") for _ in range(3)]
    for reader, start in zip(readers, (1 * MB, 1 * MB, 1000), strict=True):  # the last one is behind
        assert await reader.read(start) == body[:start]
    leave_free(small_disk, 2 * MB)
    origin.release()
    await proxy.wait_log("fill.failed")
    await until(lambda: nothing_is_left_of_it(proxy) == 0)
    for reader, start in zip(readers, (1 * MB, 1 * MB, 1000), strict=True):
        assert await reader.rest() == body[start:]
    assert (await proxy.get("/u/image")).body == body
    (small_disk / "other").unlink()
    assert (await proxy.get("/u/image")).headers["cache-status"] == "fetchonce; fwd=uri-miss; stored"


async def test_a_disk_without_a_single_byte_left(origin, proxy, small_disk):
    """Hits are served, misses passed on, and room is found again by evicting, though no row can be written at first."""
    old = os.urandom(2 * MB)
    origin.body("/old", old).headers(cache_control=FRESH)
    origin.body("/new", old[:MB]).headers(cache_control=FRESH)
    origin.body("/large", old * 6)
    await proxy.get("/u/old")
    await until(stored(proxy, 1))
    leave_free(small_disk, 0)
    large = await proxy.get("/u/large")
    assert (large.body, "stored=?0" in large.headers["cache-status"]) == (old * 6, True)
    hit = await proxy.get("/u/old")
    assert (hit.body, hit.headers["cache-status"]) == (old, "fetchonce; hit")
    assert (await proxy.get("/u/new")).body == old[:MB]
    await until(stored(proxy, 2))
    assert (await proxy.get("/u/new")).headers["cache-status"] == "fetchonce; hit"


async def test_it_starts_and_stops_on_a_full_disk(origin, proxy, small_disk):
    body = os.urandom(2 * MB)
    origin.body("/image", body).headers(cache_control=FRESH)
    await proxy.get("/u/image")
    await until(stored(proxy, 1))
    leave_free(small_disk, 0)
    assert (await proxy.get("/u/image")).body == body
    assert proxy.terminate() == 0
    assert "Traceback" not in "\n".join(proxy.log)
    (small_disk / "other").unlink()
    proxy.start()
    assert (await proxy.get("/u/image")).headers["cache-status"] == "fetchonce; hit"


@pytest.mark.parametrize("is_served", [True, False])
async def test_commands_see_and_remove_what_is_stored_on_a_full_disk(origin, proxy, small_disk, is_served):
    """They take an index that cannot grow for no broken one: a server would lose it with them."""
    for name in ("image", "kept"):
        origin.body(f"/{name}", os.urandom(2 * MB)).headers(cache_control=FRESH)
        await proxy.get(f"/u/{name}")
    await until(stored(proxy, 2))
    if not is_served:
        proxy.terminate()
    leave_free(small_disk, 0)
    assert origin.url("/image") in proxy.run("ls").stdout
    if is_served:
        assert (await proxy.get("/u/image")).headers["cache-status"] == "fetchonce; hit"
    assert "removed" in proxy.run("rm", origin.url("/image")).stdout
    assert is_served or free_bytes(small_disk) >= 2 * MB
    assert [each["url"] for each in proxy.entries()] == [origin.url("/kept")]
    assert not proxy.files("index.broken*")


async def test_a_write_is_tried_once_more_and_only_once(small_disk):
    partial = Partial(small_disk, "key", "g1")
    leave_free(small_disk, 4096)
    asked = []

    def make_room(count):
        asked.append(count)
        os.truncate(small_disk / "other", os.stat(small_disk / "other").st_size - 500_000)
        return True

    partial.reserve(300_000, make_room)
    data = os.urandom(300_000)
    with contextlib.closing(partial):
        partial.write(0, memoryview(data))
        assert partial.read(0, 300_000) == data
        assert len(asked) == 1
        assert 0 < asked[0] <= 300_000
        with pytest.raises(OutOfSpace, match="No space left"):
            partial.write(300_000, memoryview(bytes(5_000_000)))
        assert len(asked) == 2
