"""The two names of an object."""

import pytest

from proxy.config import load
from proxy.rules.digests import Digest
from proxy.rules.links import Links
from proxy.rules.mirrors import MirrorTable

LINKS = Links(MirrorTable(load().mirrors, ["images.example"]), "http://127.0.0.1:8642")
UPSTREAM = [
    "https://cloud-images.ubuntu.com/releases/noble/release/ubuntu-24.04-server-cloudimg-amd64.img",
    "https://images.linuxcontainers.org/images/a/20260319_07%3A42/disk.qcow2?x=1&y=%2F",
    "http://ftp-archive.freebsd.org/pub/FreeBSD-Archive/old-releases/VM-IMAGES/x.raw.xz",
    "https://images.example/a",
]


@pytest.mark.parametrize("url", UPSTREAM)
@pytest.mark.parametrize("digest", [None, Digest("sha256", "ab" * 32)])
def test_the_proxied_form_leads_back(url, digest):
    ours = LINKS.proxied(url, digest)
    assert ours.startswith("http://127.0.0.1:8642/")
    assert LINKS.original(ours) == url
    assert LINKS.mirrors.resolve(ours.removeprefix(LINKS.base)).digest == digest


@pytest.mark.parametrize("url", ["https://other.example/a", "ftp://cloud-images.ubuntu.com/a", "/a", "", "https://"])
def test_no_other_url_is_ours(url):
    assert LINKS.proxied(url) is None
    assert LINKS.original(url) is None


def test_a_mirrors_name_leads_to_its_first_upstream():
    assert LINKS.original(f"{LINKS.base}/ubuntu/noble/x.img") == "https://cloud-images.ubuntu.com/noble/x.img"
    assert LINKS.original(f"{LINKS.base}/nobody/x.img") is None
