"""A redirect leads where RFC 3986 §5.2 says, byte for byte, which is where curl goes."""

import shutil
import subprocess

import pytest

from proxy.errors import UpstreamError
from proxy.upstream.location import resolve
from tests.upstream.wire import answer, wire

BASE = "/r/d;v=1//s;w?k=/a/b"
LOCATIONS = {
    "/t/x;": "/t/x;",
    "/t/x;?a=1": "/t/x;?a=1",
    "/a;b=c/d;p": "/a;b=c/d;p",
    "x.img": "/r/d;v=1//x.img",
    ";p": "/r/d;v=1//;p",
    "d/": "/r/d;v=1//d/",
    "./a:b": "/r/d;v=1//a:b",
    "//HOST/n//m": "/n//m",
    "http://HOST": "/",
    "http://HOST?x": "/?x",
    "HTTP://HOST/up": "/up",
    "?q=a/../b": "/r/d;v=1//s;w?q=a/../b",
    "x?y=/../z": "/r/d;v=1//x?y=/../z",
    "/x#f": "/x",
    "/x?y#f": "/x?y",
    "/a?b?c": "/a?b?c",
    "/caf\xe9.img?\xe9": "/caf%E9.img?%E9",
    "/caf\xc3\xa9.img": "/caf%C3%A9.img",
    "/a b": "/a%20b",
    "/a\\b|^c`d{e}<f>\"g'": "/a\\b|^c`d{e}<f>\"g'",
    "/%zz/%7e~/x%": "/%zz/%7e~/x%",
    "http://HOST/t/a/../b": "/t/b",
    "../x": "/r/d;v=1/x",
    "../../../../x": "/x",
    ".": "/r/d;v=1//",
    "..": "/r/d;v=1/",
    "/a/./b/../c": "/a/c",
    "/a/.": "/a/",
    "/a/..": "/",
    "/..": "/",
    "/.../.a/..b/..;/c": "/.../.a/..b/..;/c",
    "/a//b/..//c": "/a///c",
    "a/b/../..//c": "/r/d;v=1///c",
    "/a/%2e%2e/b": "/a/%2e%2e/b",
}


@pytest.mark.parametrize(("location", "expected"), LOCATIONS.items())
def test_a_location_is_followed_as_it_is_written(origin, make_upstream, location, expected):
    origin.body(BASE, b"").redirect(location.replace("HOST", f"127.0.0.1:{origin.port}"))
    with make_upstream().open(origin.url(BASE)) as exchange:
        assert exchange.final_url == origin.url(expected)
    assert origin.log[1].path == expected
    if curl := shutil.which("curl"):
        subprocess.run([curl, "-sL", "--noproxy", "*", origin.url(BASE)], check=True, capture_output=True, timeout=30)
        assert origin.log[3].path.lower() == expected.lower()


# RFC 3986 §5.4, without what leads to another scheme.
EXAMPLES = {
    "g": "/b/c/g",
    "./g": "/b/c/g",
    "g/": "/b/c/g/",
    "/g": "/g",
    "//g": "http://g/",
    "?y": "/b/c/d;p?y",
    "g?y": "/b/c/g?y",
    "#s": "/b/c/d;p?q",
    "g#s": "/b/c/g",
    "g?y#s": "/b/c/g?y",
    ";x": "/b/c/;x",
    "g;x": "/b/c/g;x",
    "g;x?y#s": "/b/c/g;x?y",
    "": "/b/c/d;p?q",
    ".": "/b/c/",
    "./": "/b/c/",
    "..": "/b/",
    "../": "/b/",
    "../g": "/b/g",
    "../..": "/",
    "../../": "/",
    "../../g": "/g",
    "../../../g": "/g",
    "/./g": "/g",
    "/../g": "/g",
    "g.": "/b/c/g.",
    ".g": "/b/c/.g",
    "g..": "/b/c/g..",
    "..g": "/b/c/..g",
    "./../g": "/b/g",
    "./g/.": "/b/c/g/",
    "g/./h": "/b/c/g/h",
    "g/../h": "/b/c/h",
    "g;x=1/./y": "/b/c/g;x=1/y",
    "g;x=1/../y": "/b/c/y",
    "g?y/./x": "/b/c/g?y/./x",
    "g?y/../x": "/b/c/g?y/../x",
    "g#s/../x": "/b/c/g",
    "g?": "/b/c/g?",
}


@pytest.mark.parametrize(("reference", "expected"), EXAMPLES.items())
def test_the_examples_of_rfc_3986(reference, expected):
    wanted = expected if expected.startswith("http:") else f"http://a{expected}"
    assert resolve("http://a/b/c/d;p?q", reference) == wanted


@pytest.mark.parametrize(("base", "expected"), [("http://a", "http://a/x"), ("http://a?b", "http://a/x")])
def test_a_base_without_a_path(base, expected):
    assert resolve(base, "x") == expected


@pytest.mark.parametrize("location", ["/a\tb", "/\x01", "http://h\xe9/x", "http:x", "a:b", "http:///x"])
def test_a_location_that_is_none_is_refused(origin, make_upstream, location):
    origin.body("/a", b"").redirect(location)
    with pytest.raises(UpstreamError, match="no URL|no http|Invalid URL|cannot be fetched"):
        make_upstream().open(origin.url("/a"))
    assert origin.requests == 1


def test_a_redirect_without_a_location_is_an_answer(origin, make_upstream):
    origin.body("/a", b"").redirect("")
    origin.body("/b", b"").status(302)
    for path in ("/a", "/b"):
        with make_upstream().open(origin.url(path)) as exchange:
            assert exchange.status == 302


def test_of_two_locations_the_first_one_counts(make_upstream):
    moved = answer("Location: /x", "Location: /y", "Content-Length: 0", status="302 Found")
    with (
        wire([moved, answer("Content-Length: 0")], [answer("Content-Length: 0")]) as server,
        make_upstream(server.url()).open(server.url("/a")) as exchange,
    ):
        assert exchange.final_url == server.url("/x")
