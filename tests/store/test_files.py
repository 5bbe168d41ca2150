"""Files that are written whole under their names, and locks on them."""

import os
import shutil
import subprocess
import sys

import pytest

from proxy.store.files import publish, publishing
from proxy.store.locks import Lock, Ring, is_locked, try_lock
from proxy.store.placing import _copy
from tests.store.test_store import open_files


def test_a_published_file_takes_the_place_of_the_old_one_in_one_step(tmp_path):
    path = tmp_path / "x"
    publish(path, b"old")
    with publishing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_published_file_has_the_mode_it_was_given_whatever_the_umask(tmp_path, mode):
    before = os.umask(0o027)
    try:
        with publishing(tmp_path / "x", mode) as file:
            assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode


def test_an_error_leaves_the_old_file_and_no_other_trace(tmp_path):
    def fail():
        with publishing(tmp_path / "x") as file:
            file.write(b"half")
            raise InterruptedError

    publish(tmp_path / "x", b"old")
    with pytest.raises(InterruptedError):
        fail()
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_the_first_file_stays_where_that_is_asked_for(tmp_path):
    for content in (b"first", b"second"):
        with publishing(tmp_path / "x", keep_first=True) as file:
            file.write(content)
    assert (tmp_path / "x").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["x"]


def test_a_lock_lasts_until_it_is_closed_and_may_be_closed_twice(tmp_path):
    path = tmp_path / "x"
    assert not is_locked(path)
    assert not path.exists()
    with try_lock(path) as lock:
        assert is_locked(path)
        assert try_lock(path) is None
        lock.close()
        assert not is_locked(path)
    with try_lock(path):
        lock.close()  # its number may be another file's by now
        assert is_locked(path)


def test_the_lock_of_an_open_file_outlives_the_descriptor_it_was_made_of(tmp_path):
    path = tmp_path / "x"
    with publishing(path) as file:
        lock = Lock.of_file(file.fileno())
    assert is_locked(path)
    lock.close()
    assert not is_locked(path)


def test_a_copy_leaves_a_file_that_is_there_already(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"theirs")
    with open(__file__, "rb") as body, pytest.raises(FileExistsError):
        _copy(body.fileno(), path)
    assert path.read_bytes() == b"theirs"

COMPETING = """
import os, sys
from pathlib import Path
from proxy.store.locks import Ring

directory, rounds = Path(sys.argv[1]), int(sys.argv[2])
ring, taken = Ring(directory / "locks"), 0
ring.try_lock("of this one alone" + str(os.getpid()))
while taken < rounds:
    if lock := ring.try_lock("key"):
        fd = os.open(directory / "held", os.O_CREAT | os.O_EXCL)  # fails if anybody else holds it too
        os.close(fd)
        os.unlink(directory / "held")
        lock.close()
        taken += 1
ring.close()
"""


def test_of_many_processes_one_holds_a_lock_whose_file_comes_and_goes(tmp_path):
    (tmp_path / "locks").mkdir()
    command = [sys.executable, "-c", COMPETING, tmp_path, "500"]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(6)]
    killed = subprocess.Popen([*command[:-1], "1000000"], stderr=subprocess.PIPE)
    assert [each.communicate(timeout=60)[1] for each in running] == [b""] * 6
    killed.kill()
    killed.communicate()
    (tmp_path / "held").unlink(missing_ok=True)
    with try_lock(tmp_path / "locks" / "key"):
        pass
    Ring(tmp_path / "locks").sweep()
    left = {path.name for path in (tmp_path / "locks").iterdir()}
    assert left == {f"of this one alone{each.pid}" for each in (*running, killed)}
    for name in left:
        with try_lock(tmp_path / "locks" / name):
            pass
    assert [*(tmp_path / "locks").iterdir()] == []


def test_locks_of_one_process_are_names_of_one_file_and_leave_none(tmp_path):
    ring, other = Ring(tmp_path), Ring(tmp_path)
    for _ in range(2):
        before = len(os.listdir("/dev/fd"))
        locks = [ring.try_lock(str(number)) for number in range(50)]
        assert len({(tmp_path / str(number)).stat().st_ino for number in range(50)}) == 1
        assert len(os.listdir("/dev/fd")) <= before + 1
        assert is_locked(tmp_path / "7")
        assert ring.try_lock("7") is other.try_lock("7") is try_lock(tmp_path / "7") is None
        locks[7].close()
        assert not is_locked(tmp_path / "7")
        with other.try_lock("7"):
            assert ring.try_lock("7") is None
        for lock in locks:
            lock.close()
        assert len([*tmp_path.iterdir()]) == 2
    ring.close()
    other.close()
    assert [*tmp_path.iterdir()] == []


KILLED = """
import os, sys
from pathlib import Path
from proxy.store.locks import Ring

ring = Ring(Path(sys.argv[1]))
locks = [ring.try_lock(name) for name in "abc"]
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("kind", [Ring, None], ids=["ring", "file"])
def test_locks_of_a_killed_process_are_free_each_for_itself(tmp_path, kind):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path])
    assert {path.stat().st_nlink for path in tmp_path.iterdir()} == {4}
    ring = Ring(tmp_path)
    take = ring.try_lock if kind else lambda name: try_lock(tmp_path / name)
    first, second = take("a"), take("b")
    assert first
    assert second
    assert not is_locked(tmp_path / "c")
    assert try_lock(tmp_path / "a") is try_lock(tmp_path / "b") is None
    first.close()
    second.close()
    with take("c"):
        ring.sweep()
    ring.close()
    assert [*tmp_path.iterdir()] == []


def test_a_lock_whose_name_somebody_removed_stays_the_processs_own(tmp_path):
    ring = Ring(tmp_path)
    first = ring.try_lock("key")
    for path in tmp_path.iterdir():
        path.unlink()
    assert ring.try_lock("key") is None
    second = ring.try_lock("other")
    first.close()
    with ring.try_lock("key"):
        assert try_lock(tmp_path / "key") is None
    second.close()
    ring.close()
    assert [*tmp_path.iterdir()] == []


def test_of_a_ring_in_a_directory_that_is_none_any_more_nothing_stays_open(tmp_path):
    directory = tmp_path / "locks"
    directory.mkdir()
    ring = Ring(directory)
    ring.try_lock("key").close()
    shutil.rmtree(directory)
    directory.touch()
    with pytest.raises(NotADirectoryError):
        ring.try_lock("key")
    ring.close()
    assert open_files(tmp_path) == []


def test_a_lock_whose_file_somebody_removed_is_not_released_for_its_next_holder(tmp_path):
    path = tmp_path / "key"
    first = try_lock(path)
    path.unlink()
    second = try_lock(path)
    first.close()
    assert try_lock(path) is None
    second.close()
    assert not path.exists()


CLOSING = """
import os, sys, threading
from proxy.store.files import BIG_BYTES, close_body

started = set()
threading.setprofile(lambda *_: started.add(threading.get_ident()))
for size, is_removed in ((BIG_BYTES, False), (BIG_BYTES - 1, True), (BIG_BYTES, True)):
    fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
    os.truncate(fd, size)
    if is_removed:
        os.unlink(sys.argv[1])
    close_body(fd)
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join()
    assert not os.path.exists(f"/dev/fd/{fd}"), (size, is_removed)
    print(len(started))
"""


def test_only_a_big_removed_body_is_closed_in_a_thread(tmp_path):
    command = [sys.executable, "-c", CLOSING, tmp_path / "body"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True)
    assert lines.stdout.split() == ["0", "0", "1"]
