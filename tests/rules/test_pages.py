"""Web pages in place of files, and what pages may do that come from our address."""

import pytest

from proxy.rules.pages import PAGE_BYTES, confined, is_page

HTML = (("content-type", "text/html; charset=utf-8"),)


@pytest.mark.parametrize(
    ("name", "kind", "length", "page"),
    [
        ("noble-server-cloudimg-amd64.img", "text/html", 2000, True),
        ("noble.img", "Text/HTML; charset=utf-8", None, True),
        ("box.qcow2", "application/xhtml+xml", 10, True),
        ("rootfs.tar.xz", "text/html", 10, True),
        ("SHA256SUMS", "text/html", 10, True),
        ("Fedora-Cloud-43-CHECKSUM", "text/html", 10, True),
        ("CHECKSUM.SHA512-FreeBSD-15.0", "text/html", 10, True),
        ("image.iso.sha256", "text/html", 10, True),
        ("noble.img", "application/octet-stream", 2000, False),
        ("noble.img", "text/plain", 2000, False),
        ("noble.img", "text/html", PAGE_BYTES, False),
        ("", "text/html", 10, False),
        ("index.html", "text/html", 10, False),
        ("jammy64", "text/html", 10, False),
        ("images.json", "text/html", 10, False),
    ],
)
def test_a_web_page_under_the_name_of_a_file(name, kind, length, page):
    assert is_page([f"https://a/b/{name}"], (("content-type", kind),), length) is page


@pytest.mark.parametrize(
    ("url", "page"),
    [
        ("/files/xz-5.2.3.tar.bz2/download", True),
        ("/a.iso/b/c", True),
        ("/download?file=alpine.iso", True),
        ("/get.php?name=x.qcow2&mirror=1", True),
        ("/get?mirror=1&to=/pub/noble.img", True),
        ("/get?to=https%3A%2F%2Fb%2Fnoble.img", True),
        ("/get?noble.img", True),
        ("/noble%2Eimg", True),
        ("/noble.img;v=1", True),
        ("/get?file=SHA256SUMS", True),
        ("/get?q=noble", False),
        ("", False),
        ("/", False),
        ("/images.iso/", False),
        ("/noble.img/index.html", False),
        ("/checksums/why", False),
        ("/page.htm?x=1", False),
    ],
)
def test_every_part_of_the_url_may_name_the_file(url, page):
    assert is_page([f"https://example.iso{url}"], HTML, 100) is page


def test_so_may_a_redirect_and_the_answer_itself():
    assert is_page(["https://a/latest", "https://a/noble.img", "https://a/login.html"], HTML, 100)
    assert not is_page(["https://a/latest", "https://a/login.html"], HTML, 100)
    for disposition, page in (
        ('attachment; filename="noble.img"', True),
        ("attachment; FileName=noble.img ; x=1", True),
        ("attachment; filename*=UTF-8''noble%2Eimg", True),
        ("inline; filename=page.html", False),
        ("inline", False),
    ):
        assert is_page(["https://a/latest"], (*HTML, ("content-disposition", disposition)), 100) is page


@pytest.mark.parametrize(
    ("kind", "is_confined"),
    [
        ("text/html", True),
        ("Text/HTML; charset=x", True),
        ("application/xhtml+xml", True),
        ("image/svg+xml", True),
        ("text/xml", True),
        ("text/plain, text/html", True),
        (None, True),
        ("", True),
        ("html", True),
        ("*/*", True),
        ("application/unknown", True),
        ("text/plain", False),
        ("application/octet-stream", False),
        ("application/json", False),
        ("application/vnd.vagrant.box+tar", False),
    ],
)
def test_what_a_browser_would_run_is_confined(kind, is_confined):
    headers = () if kind is None else (("content-type", kind),)
    assert bool(confined(headers)) is is_confined
