"""Every spelling of a target, every malformed one, and how a table of mirrors resolves them."""

import re
import urllib.parse
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.errors import ConfigError, RequestError, UnknownMirror
from proxy.rules.mirrors import (
    MAX_TARGET_BYTES,
    RESERVED,
    Mirror,
    MirrorTable,
    Target,
    allowed_host,
    cache_key,
    is_valid_name,
    parse_target,
    proxied_path,
)

UBUNTU = Mirror(
    "ubuntu",
    ("https://cloud-images.ubuntu.com/", "https://mirror.example:8443/pub/cloud-images/"),
    immutable=(r"/release-\d{8}/",),
    moving=("/(release|current|daily)/",),
    checksums=("SHA256SUMS", "{file}.sha256"),
)
FEDORA = Mirror("fedora", ("https://download.fedora.example/pub/", "https://dl.fedora.example/pub/"))
GITHUB = Mirror("github", ("https://github.com/",))
RELEASES = "containerd/nerdctl/releases/download"
NERDCTL = Mirror("nerdctl", (f"https://github.com/{RELEASES}/",))
LOCAL = Mirror("u", ("http://127.0.0.1:9000/",))
QUIET = Mirror("quiet", ("https://quiet.example/",), ignore_query=True)
DOTLESS = Mirror("build", ("http://buildserver/images/",))
MIRRORS = (UBUNTU, FEDORA, GITHUB, NERDCTL, LOCAL, QUIET, DOTLESS)
TABLE = MirrorTable(MIRRORS, ("Allowed.example", "ported.example:8080", "*.wild.example", "localhost:7000", "nas"))

IMAGE = "releases/noble/release-20250430/ubuntu-24.04-server-cloudimg-amd64.img"

SPELLINGS = [
    f"/ubuntu/{IMAGE}",
    f"/cloud-images.ubuntu.com/{IMAGE}",
    f"/cloud-images.ubuntu.com:443/{IMAGE}",
    f"/cloud-images.ubuntu.com:80/{IMAGE}",
    f"/cloud-images.ubuntu.com:/{IMAGE}",
    f"/cloud-images.ubuntu.com./{IMAGE}",
    f"/Cloud-Images.Ubuntu.COM/{IMAGE}",
    f"/https/cloud-images.ubuntu.com/{IMAGE}",
    f"/http/cloud-images.ubuntu.com/{IMAGE}",
    f"/http/cloud-images.ubuntu.com:80/{IMAGE}",
    f"/https://cloud-images.ubuntu.com/{IMAGE}",
    f"/http://cloud-images.ubuntu.com/{IMAGE}",
    f"/https:/cloud-images.ubuntu.com/{IMAGE}",
    f"/HTTPS///cloud-images.ubuntu.com/{IMAGE}",
    f"/HTTPS///cloud-images.ubuntu.com.:0443/{IMAGE}",
    f"http://cloud-images.ubuntu.com/{IMAGE}",
    f"https://cloud-images.ubuntu.com/{IMAGE}",
    f"HTTPS://CLOUD-IMAGES.UBUNTU.COM:443/{IMAGE}",
    f"http://cloud-images.ubuntu.com:80/{IMAGE}?",
    f"/mirror.example:8443/pub/cloud-images/{IMAGE}",
    f"https://mirror.example:8443/pub/cloud-images/{IMAGE}",
]


@pytest.mark.parametrize("target", SPELLINGS)
def test_every_spelling_is_one_target(target: str) -> None:
    found = TABLE.resolve(target.encode())
    assert found == TABLE.resolve(target) == Target(UBUNTU, IMAGE, "", "https")
    assert found.key == cache_key("ubuntu", IMAGE, "")
    assert found.urls == (
        f"https://cloud-images.ubuntu.com/{IMAGE}",
        f"https://mirror.example:8443/pub/cloud-images/{IMAGE}",
    )
    assert found.url == found.urls[0]
    assert found.name == "ubuntu-24.04-server-cloudimg-amd64.img"


@pytest.mark.parametrize(
    ("target", "mirror", "url"),
    [
        ("/ubuntu", "ubuntu", "https://cloud-images.ubuntu.com/"),
        ("/ubuntu/", "ubuntu", "https://cloud-images.ubuntu.com/"),
        ("/github.com", "github", "https://github.com/"),
        ("https://github.com", "github", "https://github.com/"),
        ("https://github.com?a", "github", "https://github.com/?a"),
        ("/github/a/", "github", "https://github.com/a/"),
        ("/github/a//b", "github", "https://github.com/a//b"),
        ("/github//a", "github", "https://github.com//a"),
        ("/github.com//a", "github", "https://github.com//a"),
        ("/github/v1%2Bk3s%zz%", "github", "https://github.com/v1%2Bk3s%zz%"),
        ("/github/%25", "github", "https://github.com/%25"),
        ("/github/%252541", "github", "https://github.com/%252541"),
        ("/github/a/...", "github", "https://github.com/a/..."),
        ("/github/.a/b.", "github", "https://github.com/.a/b."),
        ("/github/a?x=../b&y=%0a?", "github", "https://github.com/a?x=../b&y=%0a?"),
        ("/quiet/a?token=1", "quiet", "https://quiet.example/a"),
        ("/dl.fedora.example/pub/x", "fedora", "https://download.fedora.example/pub/x"),
        ("/dl.fedora.example/pub", "fedora", "https://download.fedora.example/pub/"),
        ("/127.0.0.1:9000/x", "u", "http://127.0.0.1:9000/x"),
        ("http://127.0.0.1:9000/x", "u", "http://127.0.0.1:9000/x"),
        ("/https/127.0.0.1:9000/x", "u", "http://127.0.0.1:9000/x"),
        ("/u/127.0.0.1:8642/ubuntu/x", "u", "http://127.0.0.1:9000/127.0.0.1:8642/ubuntu/x"),
        ("/http/buildserver/images/x", "build", "http://buildserver/images/x"),
        ("/buildserver/images/x", "build", "http://buildserver/images/x"),
        # Whatever the name, the longest base wins.
        (f"/github.com/{RELEASES}/v2/n", "nerdctl", f"https://github.com/{RELEASES}/v2/n"),
        (f"/github/{RELEASES}/v2/n", "nerdctl", f"https://github.com/{RELEASES}/v2/n"),
        (f"/github/{RELEASES}", "nerdctl", f"https://github.com/{RELEASES}/"),
        (f"/github/{RELEASES}s/v2", "github", f"https://github.com/{RELEASES}s/v2"),
    ],
)
def test_mirror_and_url(target: str, mirror: str, url: str) -> None:
    found = TABLE.resolve(target.encode())
    assert (found.mirror.name, found.url) == (mirror, url)


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("/allowed.example/a/b?c", "https://allowed.example/a/b?c"),
        ("/http/allowed.example/a", "http://allowed.example/a"),
        ("http://ALLOWED.example:80/a", "http://allowed.example/a"),
        ("/allowed.example:80/a", "http://allowed.example/a"),
        ("https://allowed.example", "https://allowed.example/"),
        ("/ported.example:8080/a", "https://ported.example:8080/a"),
        ("http://ported.example:8080/a", "http://ported.example:8080/a"),
        ("/a.wild.example/x", "https://a.wild.example/x"),
        ("/a.b.wild.example./x", "https://a.b.wild.example/x"),
        ("/localhost:7000/x", "https://localhost:7000/x"),
        ("/http/nas/x", "http://nas/x"),
        ("/nas/x", "https://nas/x"),
    ],
)
def test_allowed_host_is_asked_by_the_scheme_named(target: str, url: str) -> None:
    found = TABLE.resolve(target)
    assert found.url == url
    assert found.mirror.name == found.url.split("/")[2]
    assert not found.mirror.is_moving(found.path)
    assert not found.mirror.is_immutable(found.path)
    assert not found.checksum_paths


def test_schemes_of_an_allowed_host_share_an_entry() -> None:
    assert TABLE.resolve("/http/allowed.example/a").key == TABLE.resolve("/allowed.example/a").key


def test_allowed_host_shares_no_entry_with_a_mirror_of_that_name() -> None:
    table = MirrorTable([Mirror("nas", ("https://other.example/",))], ["nas"])
    by_name, by_host = table.resolve("/nas/a"), table.resolve("/http/nas/a")
    assert (by_name.url, by_host.url) == ("https://other.example/a", "http://nas/a")
    assert by_name.key != by_host.key


@pytest.mark.parametrize(
    "target",
    ["/wild.example/x", "/notwild.example/x", "/allowed.example:8443/x", "/ported.example/x", "/localhost/x"],
)
def test_allowing_a_host_allows_no_other(target: str) -> None:
    with pytest.raises(UnknownMirror):
        TABLE.resolve(target)


def test_a_host_allowed_beside_a_mirror_serves_what_the_mirror_does_not() -> None:
    table = MirrorTable([FEDORA], ["dl.fedora.example"])
    assert table.resolve("/dl.fedora.example/pub/x").mirror is FEDORA
    assert table.resolve("/dl.fedora.example/other").url == "https://dl.fedora.example/other"


def test_key_tells_mirror_path_and_query_apart() -> None:
    keys = {cache_key(*parts) for parts in [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("a", "", "bc")]}
    assert len(keys) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in keys)


def test_own_upstream_wins_over_anothers_fallback_and_the_last_over_the_first() -> None:
    own = Mirror("own", ("https://a.example/",))
    fallback = Mirror("fallback", ("https://b.example/", "https://a.example/"))
    again = Mirror("again", ("https://a.example/",))
    assert MirrorTable([own, fallback]).resolve("/a.example/x").mirror is own
    assert MirrorTable([fallback, own]).resolve("/a.example/x").mirror is own
    assert MirrorTable([own, again]).resolve("/a.example/x").mirror is again
    assert MirrorTable([own, again]).resolve("/own/x").mirror is own
    inner = Mirror("inner", ("https://a.example/in/",))
    assert MirrorTable([own, again, inner]).resolve("/own/x").mirror is own
    assert MirrorTable([own, again, inner]).resolve("/own/in/x").mirror is inner


def test_a_mirror_set_anew_replaces_the_first() -> None:
    anew = replace(UBUNTU, upstreams=("https://de.example/",))
    table = MirrorTable([UBUNTU, anew])
    assert table.resolve("/ubuntu/x").url == "https://de.example/x"
    with pytest.raises(UnknownMirror):
        table.resolve("/cloud-images.ubuntu.com/x")


BAD = {
    "empty": b"",
    "asterisk": b"*",
    "relative": b"ubuntu/x",
    "authority": b"github.com:443",
    "other-scheme": b"ftp://github.com/x",
    "slash": b"/",
    "slashes": b"//github.com/x",
    "scheme-alone": b"/https",
    "scheme-slash": b"/https/",
    "scheme-slashes": b"/http://",
    "absolute-no-host": b"http:///x",
    "own": b"/-/status",
    "registry": b"/v2/library/x",
    "registry-capital": b"/V2/library/x",
    "digest-short": b"/sha256:" + b"0" * 63 + b"/ubuntu/x",
    "digest-512": b"/sha512:00/ubuntu/x",
    "digest-twice": b"/sha256:" + b"0" * 64 + b"/sha256:" + b"0" * 64 + b"/ubuntu/x",
    "digest-alone": b"/sha256:" + b"0" * 64,
    "digest-dots": b"/sha256:" + b"0" * 64 + b"/ubuntu/../x",
    "digest-own": b"/sha256:" + b"0" * 64 + b"/-/status",
    "digest-inside": b"/xsha256:00/ubuntu/x",
    "userinfo": b"/user@github.com/x",
    "userinfo-dotless": b"/user@nas/x",
    "userinfo-password": b"https://user:password@github.com/x",
    "userinfo-prefixed": b"/https/user@github.com/x",
    "bad-port": b"/github.com:99999/x",
    "word-port": b"/github.com:http/x",
    "empty-label": b"/github..com/x",
    "two-trailing-dots": b"/github.com../x",
    "encoded-host": b"/github%2ecom%2f.example/x",
    "fragment": b"/ubuntu/x#y",
    "space": b"/ubuntu/a b",
    "nul": b"/ubuntu/a\0b",
    "cr": b"/ubuntu/a\rb",
    "lf": b"/ubuntu/a\nb",
    "lf-last": b"/ubuntu/a\n",
    "tab": b"/ubuntu/a\tb",
    "delete": b"/ubuntu/a\x7fb",
    "high": b"/ubuntu/\xc3\xa4",
    "high-query": b"/ubuntu/a?\xff",
    "lf-query": b"/ubuntu/a?b\nc",
    "backslash": b"/ubuntu/a\\b",
    "backslash-query": b"/ubuntu/a?\\",
    "nul-encoded": b"/ubuntu/%00",
    "cr-encoded": b"/ubuntu/%0d",
    "lf-encoded": b"/ubuntu/%0A",
    "lf-encoded-twice": b"/ubuntu/%250a",
    "backslash-encoded": b"/ubuntu/..%5cx",
    "backslash-encoded-twice": b"/ubuntu/a%255Cx",
    "dot": b"/ubuntu/./x",
    "dots": b"/ubuntu/../x",
    "dots-last": b"/ubuntu/x/..",
    "dot-last": b"/ubuntu/x/.",
    "dots-first": b"/../ubuntu/x",
    "dots-encoded": b"/ubuntu/%2e%2e/x",
    "dots-mixed": b"/ubuntu/.%2E/x",
    "dot-encoded": b"/ubuntu/%2e/x",
    "dots-encoded-twice": b"/ubuntu/%252e%252e/x",
    "dots-encoded-thrice": b"/ubuntu/%25252e%25252e/x",
    "dots-of-encoded-digits": b"/ubuntu/%%32%65./x",
    "slash-encoded": b"/ubuntu/a%2f..%2fx",
    "slash-encoded-twice": b"/ubuntu/a%252f..",
    "dots-before-query": b"/ubuntu/a/..?x",
    "dots-absolute": b"https://github.com/a/../b",
    "dots-prefixed": b"/https/github.com/%2e%2e/b",
    "encoded-too-often": b"/ubuntu/%" + b"25" * 20 + b"41",
    "long": b"/ubuntu/" + b"a" * MAX_TARGET_BYTES,
}


@pytest.mark.parametrize("target", BAD.values(), ids=BAD.keys())
def test_bad_target_is_refused(target: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        TABLE.resolve(target)
    assert refused.value.status == 400
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("digest", ["sha256:" + "aB" * 32, "sha512:" + "aB" * 64])
@pytest.mark.parametrize(
    "rest", ["ubuntu/x%20y?q", "https/cloud-images.ubuntu.com/x%20y?q", "https://cloud-images.ubuntu.com/x%20y?q"]
)
def test_digest_form_is_the_same_object(digest: str, rest: str) -> None:
    plain, demanding = TABLE.resolve(f"/{rest}"), TABLE.resolve(f"/{digest}/{rest}")
    assert plain.digest is None
    assert str(demanding.digest) == digest.lower()
    assert (demanding.key, demanding.urls) == (plain.key, plain.urls)


def test_longest_target_is_taken() -> None:
    target = b"/ubuntu/" + b"a" * (MAX_TARGET_BYTES - 8)
    assert TABLE.resolve(target).path == "a" * (MAX_TARGET_BYTES - 8)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_word_is_no_name(name: str) -> None:
    assert not is_valid_name(name)
    with pytest.raises(RequestError) as refused:
        parse_target(f"/{name}")
    assert refused.value.status == 400


@pytest.mark.parametrize("name", ["ubuntu", "k3s", "virt-builder", "a_b", "V1"])
def test_valid_name(name: str) -> None:
    assert is_valid_name(name)


@pytest.mark.parametrize(
    "name", ["", "a.b", "a/b", "a b", "-a", "ä", "sha256:aa", "Http", "V2", "localhost", "a\n", "a:1", "١"]
)
def test_invalid_name(name: str) -> None:
    assert not is_valid_name(name)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        pytest.param(
            "/example.org/x",
            "no mirror is configured for example.org. to allow it: start with --allow example.org, or add to the "
            'configuration: [[mirror]] name = "example" upstreams = ["https://example.org/"]',
            id="host",
        ),
        pytest.param(
            "http://pool.github.com/x",
            "no mirror is configured for pool.github.com. to allow it: start with --allow pool.github.com, or add to "
            'the configuration: [[mirror]] name = "my-pool-github-com" upstreams = ["http://pool.github.com/"]',
            id="name-of-another-mirror",
        ),
        pytest.param(
            "http://127.0.0.1:8642/ubuntu/x",
            "no mirror is configured for 127.0.0.1:8642. to allow it: start with --allow 127.0.0.1:8642, or add to the "
            'configuration: [[mirror]] name = "my-127-0-0-1-8642" upstreams = ["http://127.0.0.1:8642/"]',
            id="own-address-is-a-host-like-any",
        ),
        pytest.param(
            "/dl.fedora.example/other/x",
            "of dl.fedora.example only /pub/ is configured, and /other/x is not below it. "
            "to allow the whole host: start with --allow dl.fedora.example",
            id="outside-the-base",
        ),
        pytest.param(
            "/ubunto/x",
            'no mirror is called "ubunto". similar ones: ubuntu. '
            "an upstream host is written as it is: /example.org/PATH",
            id="name-misspelt",
        ),
        pytest.param(
            "/zzz/x",
            'no mirror is called "zzz". mirrors are set as [[mirror]] tables in the configuration. '
            "an upstream host is written as it is: /example.org/PATH",
            id="name-unknown",
        ),
    ],
)
def test_unknown_mirror_says_what_to_do(target: str, message: str) -> None:
    with pytest.raises(UnknownMirror) as refused:
        TABLE.resolve(target)
    assert refused.value.status == 403
    assert refused.value.message == message


@pytest.mark.parametrize(
    "target", ["/example.org/x", "/localhost/x", "/http/x/y", "/[::1]:80/x", "/a.b-c.d/x", "/1.2.3.4/x"]
)
def test_advised_configuration_works(target: str) -> None:
    with pytest.raises(UnknownMirror) as refused:
        TABLE.resolve(target)
    allow = re.search(r"--allow (\S+),", refused.value.message)
    table = re.search(r'name = "(.+)" upstreams = \["(.+)"\]', refused.value.message)
    assert allow
    assert table
    assert is_valid_name(table[1])
    assert MirrorTable(MIRRORS, [allow[1]]).resolve(target).path in {"x", "y"}
    assert MirrorTable([*MIRRORS, Mirror(table[1], (table[2],))]).resolve(target).mirror.name == table[1]


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://cloud-images.ubuntu.com/releases/x.img", "/cloud-images.ubuntu.com/releases/x.img"),
        ("https://Cloud-Images.Ubuntu.com:443/A%2fB//c?d=e", "/cloud-images.ubuntu.com/A%2fB//c?d=e"),
        ("http://cloud-images.ubuntu.com/x", "/http/cloud-images.ubuntu.com/x"),
        ("http://127.0.0.1:9000/x", "/http/127.0.0.1:9000/x"),
        ("https://mirror.example:8443/x", "/mirror.example:8443/x"),
        ("https://mirror.example:80/x", "/https/mirror.example:80/x"),
        ("http://mirror.example:443/x", "/http/mirror.example:443/x"),
        ("https://buildserver/x", "/https/buildserver/x"),
        ("https://github.com", "/github.com/"),
        ("https://github.com?a", "/github.com/?a"),
    ],
)
def test_proxied_path_leads_back_to_the_url(url: str, path: str) -> None:
    assert proxied_path(url) == path
    assert parse_target(path).host == parse_target(url).host
    assert parse_target(path).scheme == parse_target(url).scheme
    assert parse_target(path).query == parse_target(url).query
    assert parse_target(path).path == (parse_target(url).path or "/")


@pytest.mark.parametrize(
    "url", ["/ubuntu/x", "x", "ftp://github.com/x", "https://u@github.com/x", "https:///x", "https://a.b/.."]
)
def test_proxied_path_of_what_is_no_upstream_url(url: str) -> None:
    with pytest.raises(RequestError):
        proxied_path(url)


@pytest.mark.parametrize(
    ("entry", "host"),
    [
        ("Example.ORG.", "example.org"),
        ("example.org:443", "example.org"),
        ("example.org:80", "example.org"),
        ("example.org:8080", "example.org:8080"),
        ("*.Example.org", "*.example.org"),
        ("[::1]:8080", "[::1]:8080"),
    ],
)
def test_allowed_host_in_its_normal_form(entry: str, host: str) -> None:
    assert allowed_host(entry) == host


@pytest.mark.parametrize("entry", ["", "*", "*.", "https://example.org", "example.org/x", "a@b.c", "*.*.org", "a b"])
def test_allowed_host_that_is_none(entry: str) -> None:
    with pytest.raises(ConfigError, match="allow_hosts"):
        MirrorTable([], [entry])


@pytest.mark.parametrize("url", ["https://a.b", "ftp://a.b/", "https://u@a.b/", "https:///", "https://a.b/x"])
def test_upstream_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="upstream"):
        MirrorTable([Mirror("x", (url,))])


@pytest.mark.parametrize(
    ("path", "is_immutable", "is_moving"),
    [
        ("releases/noble/release-20250430/x.img", True, False),
        ("releases/noble/release/x.img", False, True),
        ("release/release-20250430/x.img", False, True),
        ("release", False, False),
        ("", False, False),
    ],
)
def test_moving_wins_over_immutable(path: str, is_immutable: bool, is_moving: bool) -> None:
    assert UBUNTU.is_immutable(path) is is_immutable
    assert UBUNTU.is_moving(path) is is_moving


@pytest.mark.parametrize(
    ("path", "checksums"),
    [
        ("a/x.img", ("a/SHA256SUMS", "a/x.img.sha256")),
        ("x.img", ("SHA256SUMS", "x.img.sha256")),
        ("x.img/x.img", ("x.img/SHA256SUMS", "x.img/x.img.sha256")),
        (".sha256", ("SHA256SUMS", ".sha256.sha256")),
        ("a/x.img.sha256", ()),
        ("a/SHA256SUMS", ()),
        ("a/", ()),
        ("", ()),
    ],
)
def test_checksum_files_beside_the_object(path: str, checksums: tuple[str, ...]) -> None:
    assert Target(UBUNTU, path, "a=b", "https").checksum_paths == checksums


def resolved(target: bytes | str) -> Target | None:
    """None if it is refused with a message that can be shown."""
    try:
        return TABLE.resolve(target)
    except RequestError as error:
        refused = error
    assert refused.message.isprintable()
    return None


def bytes_of(*pieces: bytes) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(pieces), max_size=12).map(b"".join)


STARTS = (b"/ubuntu/", b"/github.com/", b"https://github.com/", b"/HTTPS///", b"/http/allowed.example/", b"/")
PIECES = b". .. / %2e %2F %25 2e %32 %65 %5c % a ? # @ : \xff".split()
BYTES = st.binary(max_size=60) | st.builds(
    lambda first, rest: first + rest, st.sampled_from(STARTS), bytes_of(*PIECES) | st.binary(max_size=20)
)


@given(BYTES)
@example(b"/ubuntu/%%32e./x")
@example(b"/ubuntu/%252e%252E%252f")
def test_any_bytes_are_resolved_or_refused(target: bytes) -> None:
    found = resolved(target)
    if found is None:
        return
    # Checked with another decoder than the one under test, at every stage.
    stage, before = found.path.encode(), b""
    while stage != before:
        assert not {b".", b".."} & set(stage.split(b"/"))
        assert not set(b"\0\r\n\\") & set(stage)
        before, stage = stage, urllib.parse.unquote_to_bytes(stage)
    assert target.partition(b"?")[0].endswith(found.path.encode())
    for url, base in zip(found.urls, found.mirror.upstreams, strict=True):
        assert url.partition("://")[2].startswith(base.partition("://")[2])
        assert re.fullmatch(r"[\x21-\x7e]+", url)


@given(st.text(max_size=40))
def test_any_text_is_resolved_or_refused(target: str) -> None:
    url = f"https://github.com/{target}"
    if found := resolved(url):
        assert TABLE.resolve(proxied_path(url)) == found
