"""Files mapped into memory: their bytes alone are sent, nothing stays mapped, what cannot be read is an error."""

import collections
import errno
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from proxy.serving.sendfile import is_near
from proxy.serving.windows import KEPT, WINDOW_BYTES, OpenFile, Windows
from tests.harness import until
from tests.origin import pattern_sha256
from tests.serving.site import mapped
from tests.tracing import needs_strace, traced

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="used on Linux only")

MB = 1024**2
SIZE = 2 * WINDOW_BYTES + 5000


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "body"
    path.write_bytes(bytes(range(256)) * (SIZE // 256 + 1))
    os.truncate(path, SIZE)
    return path


@pytest.fixture
def file(path):
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def opened(file):
    return OpenFile.of(file)


@pytest.fixture
def windows():
    windows = Windows()
    windows.begin()
    return windows


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


@pytest.mark.parametrize("offset", [0, 4097, WINDOW_BYTES - 10, WINDOW_BYTES, SIZE - 10])
def test_the_bytes_asked_for_are_written(windows, opened, path, pair, offset):
    ours, theirs = pair
    assert windows.write(ours.fileno(), opened, offset, 10) == 10
    assert theirs.recv(100) == path.read_bytes()[offset : offset + 10]
    windows.end()


def test_a_full_socket_takes_a_part_and_then_says_so(windows, opened, path, pair):
    ours, theirs = pair
    sent = windows.write(ours.fileno(), opened, 0, WINDOW_BYTES)
    assert 0 < sent < WINDOW_BYTES
    with pytest.raises(BlockingIOError):
        windows.write(ours.fileno(), opened, sent, WINDOW_BYTES - sent)
    ours.close()
    with theirs.makefile("rb") as body:
        assert body.read() == path.read_bytes()[:sent]
    windows.end()


def test_a_few_windows_are_kept_and_none_after_that(windows, file, opened, path, pair):
    ours, _ = pair
    os.truncate(file, (KEPT + 1) * WINDOW_BYTES)
    for _ in range(3):
        for number in range(KEPT + 1):
            windows.write(ours.fileno(), opened, number * WINDOW_BYTES, 10)
    assert mapped(path) == KEPT
    windows.begin()  # another job
    windows.end()
    assert mapped(path) == KEPT
    windows.end()
    assert mapped(path) == 0


def test_what_is_mapped_is_known(windows, file, opened, pair):
    ours, _ = pair
    os.truncate(file, WINDOW_BYTES + 1000)
    assert not windows.have(opened, WINDOW_BYTES, 10)
    windows.write(ours.fileno(), opened, WINDOW_BYTES, 10)
    assert windows.have(opened, WINDOW_BYTES + 990, 10)
    assert not windows.have(opened, WINDOW_BYTES + 990, 11)  # it was the end of the file
    assert not windows.have(opened, WINDOW_BYTES - 10, 10)
    windows.end()
    assert not windows.have(opened, WINDOW_BYTES, 10)


async def test_what_nobody_uses_is_let_go(windows, opened, path, pair):
    ours, _ = pair
    windows.write(ours.fileno(), opened, 0, 10)
    assert windows.are_mapped

    def is_let_go():
        windows.forget_unused()
        return mapped(path) == 0

    await until(is_let_go)
    assert not windows.are_mapped


def test_a_window_in_use_stays_mapped_until_its_last_writer_is_done(windows, file, opened, path, pair):
    ours, theirs = pair
    os.truncate(file, (KEPT + 1) * WINDOW_BYTES)
    ours.setblocking(True)
    with ThreadPoolExecutor(1) as thread, open(os.devnull, "wb") as elsewhere:
        writing = thread.submit(windows.write, ours.fileno(), opened, 0, WINDOW_BYTES)
        data = bytearray(theirs.recv(1))
        for number in range(1, KEPT + 1):
            windows.write(elsewhere.fileno(), opened, number * WINDOW_BYTES, 10)
        windows.end()
        assert mapped(path) == 1
        while len(data) < WINDOW_BYTES:
            data += theirs.recv(WINDOW_BYTES)
        assert writing.result() == WINDOW_BYTES
    assert mapped(path) == 0
    assert data == path.read_bytes()[:WINDOW_BYTES]


def test_a_file_that_has_grown_is_mapped_anew(windows, file, opened, path, pair):
    ours, theirs = pair
    windows.write(ours.fileno(), opened, SIZE - 10, 10)
    with pytest.raises(OSError, match="ends before"):
        windows.write(ours.fileno(), opened, 3 * WINDOW_BYTES, 10)
    os.pwrite(file, b"more bytes", SIZE)
    windows.write(ours.fileno(), opened, SIZE - 10, 20)
    assert theirs.recv(100) == path.read_bytes()[SIZE - 10 : SIZE] + path.read_bytes()[SIZE - 10 :]
    windows.end()


def test_a_file_that_was_cut_is_an_error_and_kills_nobody(windows, file, opened, pair):
    ours, _ = pair
    windows.write(ours.fileno(), opened, WINDOW_BYTES, 10)
    os.truncate(file, 0)
    with pytest.raises(OSError, match="Bad address") as caught:
        windows.write(ours.fileno(), opened, WINDOW_BYTES + 8192, 10)
    assert caught.value.errno == errno.EFAULT
    windows.end()


async def test_a_file_that_is_cut_while_it_is_being_mapped_is_an_error_too(windows, file, opened):
    os.truncate(file, WINDOW_BYTES)
    is_over = threading.Event()

    def cut():
        while not is_over.is_set():
            os.truncate(file, 4096)
            os.truncate(file, WINDOW_BYTES)

    def map_often():
        for _ in range(200):
            windows.write(elsewhere.fileno(), opened, 0, 10)  # of the 4096 that are always there
            windows.end()  # which unmaps it
            windows.begin()

    with ThreadPoolExecutor(1) as thread, open(os.devnull, "wb") as elsewhere:
        thread.submit(cut)
        try:
            with pytest.raises(OSError, match="ends before"):
                await until(map_often)
        finally:
            is_over.set()
    windows.end()


def test_a_client_on_this_machine_is_near(pair):
    assert is_near(pair[0])
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        with accepted:
            assert is_near(accepted)
        assert not is_near(server)


@needs_strace
async def test_what_a_socket_takes_costs_little_but_the_write(origin, proxy, tmp_path):
    size = 64 * MB
    origin.pattern("/big.img", size, 1).headers(cache_control="max-age=600")
    await proxy.fetch("/u/big.img")
    calls = "epoll_ctl,fstat,newfstatat,preadv2,write"
    with traced(proxy.pid, calls, tmp_path / "strace") as made:
        stream = await proxy.stream("/u/big.img")
        assert (await stream.sha256())[0] == pattern_sha256(size, 1)
    found = collections.Counter(call.name for call in made if call.name != "write")
    writes = [call for call in made if call.name == "write" and int(call.text.rpartition("= ")[2].split()[0]) > MB // 8]
    assert len(writes) > 40
    windows = size // WINDOW_BYTES
    # For each window its size and whether it is in memory, mapped once or twice; and what the answer itself takes.
    assert max(found.values()) < 2 * windows + 20, found
