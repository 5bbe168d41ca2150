"""A slow, big image, and a key to sign with."""

import subprocess

import pytest

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
