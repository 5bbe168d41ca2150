"""Checksum files that do not come as plain text: read where they can be, and never taken for ones that name nothing."""

import gzip
import hashlib
import json
import os
import zlib

import pytest

from tests.harness import Truncated

BODY = os.urandom(1_500_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
SUMS = f"{SHA256} *noble.img\n".encode()


def mirror(origin, checksums=("SHA256SUMS",), **more):
    tables = {"name": "m", "upstreams": [origin.url()], "checksums": list(checksums), **more}
    return "shipped_mirrors = false\n[[mirror]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in tables.items())


async def verified(proxy):
    """By what the image was verified, once its fill is over; None: by nothing."""
    return (await proxy.entry("noble.img"))["verified"]


@pytest.mark.parametrize("cache_control", ["max-age=600", "no-store"])
@pytest.mark.parametrize(
    ("coding", "text"),
    [
        ("gzip", gzip.compress(SUMS)),
        ("deflate", zlib.compress(SUMS)),
        ("x-gzip", SUMS),
        (None, SUMS.decode().encode("utf-16")),
    ],
    ids=["gzip", "deflate", "not-coded", "utf-16"],
)
async def test_a_coded_checksum_file_is_read(origin, proxy_factory, coding, text, cache_control):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    origin.body("/noble.img", BODY)
    origin.body("/SHA256SUMS", text).headers(content_encoding=coding, cache_control=cache_control)
    assert (await proxy.get("/m/noble.img")).body == BODY
    assert await verified(proxy) == f"sha256:{SHA256} (SHA256SUMS)"
    # What a client gets of it is upstream's, byte for byte.
    assert (await proxy.get("/m/SHA256SUMS")).body == text


UNREADABLE = [
    ("br", b"\x0b" + SUMS, "Content-Encoding is br"),
    ("gzip", gzip.compress(SUMS)[:-4], "cut short"),
    (None, b"a\0", "not text"),
]


@pytest.mark.parametrize(("coding", "text", "why"), UNREADABLE, ids=["br", "cut", "binary"])
async def test_one_that_cannot_be_read_withholds_the_body_and_says_so(origin, proxy_factory, coding, text, why):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin))
    origin.body("/noble.img", BODY)
    sums = origin.body("/SHA256SUMS", text).headers(content_encoding=coding)
    with pytest.raises(Truncated) as broken:
        await (await proxy.stream("/m/noble.img")).rest()
    assert broken.value.partial == BODY[:-1]
    line = await proxy.wait_log("fill.failed")
    assert all(each in line for each in (origin.url("/noble.img"), origin.url("/SHA256SUMS"), "cannot be read", why))
    assert await proxy.entry("noble.img") is None
    # Once it can be read the body is given, and not fetched again for it.
    sums.generation(SUMS).headers(content_encoding=None)
    assert (await proxy.get("/m/SHA256SUMS", {"Cache-Control": "no-cache"})).body == SUMS
    assert (await proxy.get("/m/noble.img")).body == BODY
    assert await verified(proxy)
    assert origin.bytes_sent("/noble.img") == len(BODY)


@pytest.mark.parametrize(("coding", "text", "why"), UNREADABLE[:1], ids=["br"])
async def test_another_checksum_file_will_do_as_well(origin, proxy_factory, coding, text, why):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin, ["SHA256SUMS", "{file}.sha256"]))
    origin.body("/noble.img", BODY)
    origin.body("/SHA256SUMS", text).headers(content_encoding=coding)
    origin.body("/noble.img.sha256", SUMS)
    assert (await proxy.get("/m/noble.img")).body == BODY
    assert await verified(proxy) == f"sha256:{SHA256} (noble.img.sha256)"


async def test_warn_does_without_one_that_cannot_be_read(origin, proxy_factory):
    proxy = proxy_factory(mirrors={}, config_text=mirror(origin, verify="warn"))
    origin.body("/noble.img", BODY)
    origin.body("/SHA256SUMS", SUMS).headers(content_encoding="br")
    assert (await proxy.get("/m/noble.img")).body == BODY
    assert await verified(proxy) is None
    assert "SHA256SUMS" in await proxy.wait_log("checksums.unreadable")
