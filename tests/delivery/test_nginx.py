"""The same requests to nginx and to fetchonce give the same answers, but for those that are listed."""

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.delivery.images import (
    AFTER,
    BEFORE,
    MODIFIED,
    PATIENCE_SECONDS,
    byteranges,
    numbers,
)
from tests.harness import Client, Proxy, until
from tests.origin import LAST_MODIFIED

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
NGINX_CONF = """
daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off; default_type application/octet-stream; if_modified_since before; etag on;
    client_body_temp_path {root}/a; proxy_temp_path {root}/b; fastcgi_temp_path {root}/c;
    uwsgi_temp_path {root}/d; scgi_temp_path {root}/e;
    server {{ listen 127.0.0.1:{port} reuseport; root {root}/tree; }}
}}
"""
THERE = os.urandom(300_000)


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """nginx with THERE at /disk.img."""
    if not NGINX:
        pytest.skip("nginx is not installed")
    root = tmp_path_factory.mktemp("nginx")
    (root / "tree").mkdir()
    (root / "tree" / "disk.img").write_bytes(THERE)
    os.utime(root / "tree" / "disk.img", (LAST_MODIFIED, LAST_MODIFIED))
    with socket.socket() as ours:
        # Bound and not listening, it keeps the port for nginx, whose socket has SO_REUSEPORT too.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("127.0.0.1", 0))
        port = ours.getsockname()[1]
        (root / "nginx.conf").write_text(NGINX_CONF.format(root=root, port=port))
        command = [NGINX, "-p", str(root), "-c", "nginx.conf", "-e", str(root / "error.log")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        client = Client("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        try:
            asyncio.run(until(functools.partial(_listens, port)))
            yield client
        finally:
            client.close()
            process.terminate()
            _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def before_nginx(nginx: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """fetchonce in front of that nginx, so that both have the same ETag."""
    proxy = Proxy(tmp_path_factory.mktemp("before") / "cache", mirrors={"n": f"http://127.0.0.1:{nginx.port}/"})
    proxy.client.timeout = PATIENCE_SECONDS
    with contextlib.closing(proxy):
        yield proxy.start()


L = len(THERE)
AGREED = {
    "whole": {},
    "first-byte": {"Range": "bytes=0-0"},
    "all": {"Range": "bytes=0-"},
    "middle": {"Range": "bytes=1000-199999"},
    "last-byte": {"Range": f"bytes={L - 1}-"},
    "clipped": {"Range": f"bytes=299000-{L + 1000}"},
    "suffix": {"Range": "bytes=-5000"},
    "long-suffix": {"Range": f"bytes=-{L + 1}"},
    "unit-in-any-case": {"Range": "BYTES=0-9"},
    "another-unit": {"Range": "items=0-9"},
    "no-unit": {"Range": "0-9"},
    "past-the-end": {"Range": f"bytes={L}-"},
    "far-past-the-end": {"Range": "bytes=9000000-9000001"},
    "suffix-0": {"Range": "bytes=-0"},
    "two": {"Range": "bytes=0-9,100-199"},
    "two-with-space": {"Range": "bytes=0-9 , 100-199"},
    "backwards": {"Range": "bytes=100-199,0-9"},
    "with-suffix": {"Range": "bytes=0-9,-10"},
    "overlapping": {"Range": "bytes=0-99,50-149"},
    "twice": {"Range": "bytes=7-8,7-8"},
    "one-past-the-end": {"Range": f"bytes=1-9,{L}-"},
    "more-than-there-is": {"Range": f"bytes=1-,1-{L - 1}"},
    "inm-same": {"If-None-Match": "{etag}"},
    "inm-weak": {"If-None-Match": "W/{etag}"},
    "inm-list": {"If-None-Match": '"x", {etag}'},
    "inm-star": {"If-None-Match": "*"},
    "inm-other": {"If-None-Match": '"x"'},
    "inm-and-range": {"If-None-Match": "{etag}", "Range": "bytes=0-9"},
    "inm-other-and-range": {"If-None-Match": '"x"', "Range": "bytes=0-9"},
    "ims-same": {"If-Modified-Since": MODIFIED},
    "ims-after": {"If-Modified-Since": AFTER},
    "ims-before": {"If-Modified-Since": BEFORE},
    "ims-rfc850": {"If-Modified-Since": "Tuesday, 14-Nov-23 22:13:20 GMT"},
    "ims-asctime": {"If-Modified-Since": "Tue Nov 14 22:13:20 2023"},
    "ims-no-date": {"If-Modified-Since": "x"},
    "im-same": {"If-Match": "{etag}"},
    "im-weak": {"If-Match": "W/{etag}"},
    "im-list": {"If-Match": '"x", {etag}'},
    "im-star": {"If-Match": "*"},
    "im-other": {"If-Match": '"x"'},
    "im-and-range": {"If-Match": "{etag}", "Range": "bytes=0-9"},
    "im-other-and-inm": {"If-Match": '"x"', "If-None-Match": "{etag}"},
    "ius-same": {"If-Unmodified-Since": MODIFIED},
    "ius-before": {"If-Unmodified-Since": BEFORE},
    "ius-after": {"If-Unmodified-Since": AFTER},
    "if-range-tag": {"If-Range": "{etag}", "Range": "bytes=0-9"},
    "if-range-date": {"If-Range": MODIFIED, "Range": "bytes=0-9"},
    "if-range-other-tag": {"If-Range": '"x"', "Range": "bytes=0-9"},
    "if-range-weak-tag": {"If-Range": "W/{etag}", "Range": "bytes=0-9"},
    "if-range-before": {"If-Range": BEFORE, "Range": "bytes=0-9"},
    "if-range-after": {"If-Range": AFTER, "Range": "bytes=0-9"},
    "if-range-two-ranges": {"If-Range": "{etag}", "Range": "bytes=0-9,20-29"},
    "if-range-past-the-end": {"If-Range": "{etag}", "Range": f"bytes={L}-"},
    "if-range-other-past-the-end": {"If-Range": '"x"', "Range": f"bytes={L}-"},
}
DIFFERENT = {
    # RFC 9110 §14.2: an invalid ranges-specifier may be ignored or refused. nginx refuses; a client that cannot
    # write a Range is better off with the whole body than with an error.
    "last-before-first": ({"Range": "bytes=5-2"}, 416, 200),
    "no-digits": ({"Range": "bytes=-"}, 416, 200),
    "no-numbers": ({"Range": "bytes=a-b"}, 416, 200),
    # §5.6.1.2: empty list members must be accepted. nginx refuses them.
    "empty-member": ({"Range": "bytes=,0-9"}, 416, 206),
    # §14.1.2: an end past the body is its end, however large. nginx refuses what does not fit into 63 bits.
    "large-number": ({"Range": "bytes=0-99999999999999999999"}, 416, 206),
    # §13.1.3, §13.2.2: with If-None-Match the date is ignored. nginx wants both to hold.
    "inm-before-ims": ({"If-None-Match": "{etag}", "If-Modified-Since": BEFORE}, 200, 304),
    # §13.1.4, §13.2.2: the same of If-Match and If-Unmodified-Since.
    "im-before-ius": ({"If-Match": "{etag}", "If-Unmodified-Since": BEFORE}, 412, 200),
}


@pytest.mark.parametrize("asked", AGREED.values(), ids=AGREED.keys())
async def test_nginx_answers_the_same(nginx, before_nginx, asked):
    etag = (await nginx.get("/disk.img", method="HEAD")).headers["etag"]
    headers = {name: value.replace("{etag}", etag) for name, value in asked.items()}
    theirs = await nginx.get("/disk.img", headers)
    query = f"?{next(numbers)}"  # a new object for us, the same file for nginx
    for state in ("filling", "stored"):
        ours = await before_nginx.get("/n/disk.img" + query, headers)
        assert (state, ours.status) == (state, theirs.status)
        assert ours.headers.get("content-range") == theirs.headers.get("content-range")
        if ours.status < 400:
            for name in ("etag", "last-modified", "accept-ranges"):
                # nginx sends no Accept-Ranges in a 304, and some versions none in a 206; both are allowed.
                assert ours.headers.get(name) == theirs.headers.get(name) or name not in theirs.headers
        if ours.headers.get("content-type", "").startswith("multipart/"):
            assert byteranges(ours) == byteranges(theirs)  # the boundaries differ in length, and so does Content-Length
        elif ours.status < 400:
            assert ours.body == theirs.body
            for name in ("content-type", "content-length"):
                assert ours.headers.get(name) == theirs.headers.get(name)
        await before_nginx.wait_idle()


@pytest.mark.parametrize(("asked", "theirs", "ours"), DIFFERENT.values(), ids=DIFFERENT.keys())
async def test_where_nginx_answers_otherwise(nginx, before_nginx, asked, theirs, ours):
    etag = (await nginx.get("/disk.img", method="HEAD")).headers["etag"]
    headers = {name: value.replace("{etag}", etag) for name, value in asked.items()}
    assert (await nginx.get("/disk.img", headers)).status == theirs
    assert (await before_nginx.get("/n/disk.img", headers)).status == ours


async def test_nginx_answers_head_with_a_range_by_206_and_we_do_not(nginx, before_nginx):
    """RFC 9110 §14.2: a server must ignore a Range field of another method than GET."""
    theirs = await nginx.get("/disk.img", {"Range": "bytes=0-9"}, method="HEAD")
    ours = await before_nginx.get("/n/disk.img", {"Range": "bytes=0-9"}, method="HEAD")
    assert (theirs.status, ours.status) == (206, 200)
    assert ours.headers["content-length"] == str(L)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
