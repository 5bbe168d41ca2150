"""A slow, big image, a key to sign with, and Lima."""

import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.clients.lima import Lima, build
from tests.clients.tools import RATE, SEED, SIZE


@pytest.fixture
def image(origin):
    return origin.pattern("/images/noble.img", SIZE, SEED).throttle(RATE).headers(cache_control="max-age=600")


@pytest.fixture(scope="session")
def signer(tmp_path_factory):
    """A GnuPG home with one key."""
    home = tmp_path_factory.mktemp("gpg")
    home.chmod(0o700)
    gpg = ["gpg", "--batch", "--quiet", "--homedir", home]
    subprocess.run([*gpg, "--passphrase", "", "--quick-gen-key", "x@example.org", "default", "sign"], check=True)
    subprocess.run([*gpg, "-o", home / "key.gpg", "--export"], check=True)
    yield home
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)


@pytest.fixture(scope="session")
def limactl(tmp_path_factory):
    """The program and the templates of Lima 2.2.0, to make a Lima with."""
    return build(tmp_path_factory.mktemp("limactl"))


@pytest.fixture
def homes():
    """For home directories of Lima's users: paths of sockets below them have 104 characters at most."""
    with tempfile.TemporaryDirectory(prefix="lima-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def lima(limactl, tmp_path):
    """A newly installed Lima of its own."""
    return Lima(*limactl, tmp_path / "lima")
