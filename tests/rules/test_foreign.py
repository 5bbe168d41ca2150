"""What is believed of an entry that comes out of an archive."""

from dataclasses import replace

import pytest

from proxy.rules.digests import Digest
from proxy.rules.entry import Entry, Head
from proxy.rules.foreign import CLOCK_SECONDS, Unbelievable, attested, base, believed, is_newer
from proxy.rules.mirrors import Mirror, MirrorTable, cache_key

NOW = 1_800_000_000.0
SHA256, SHA512 = "ab" * 32, "cd" * 64
HEAD = Head(
    (("etag", '"x"'), ("content-type", "a/b")), 10, "0123456789abcdef", 5.0, (("accept", "a/b"),), "https://h:1"
)
ENTRY = Entry(cache_key("m", "pub/a.img", "x=1"), "https://h/m/pub/a.img?x=1", "m", HEAD, SHA256, NOW - 10, NOW - 5)


def with_head(**changes):
    return replace(ENTRY, head=replace(HEAD, **changes))


def test_an_entry_of_ours_is_believed_as_it_is():
    assert believed(ENTRY, NOW) == ENTRY


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(replace(ENTRY, key="../../../etc/passwd"), id="key-is-a-path"),
        pytest.param(replace(ENTRY, key=ENTRY.key.upper()), id="key-in-capitals"),
        pytest.param(replace(ENTRY, key=cache_key("m", "pub/b.img", "")), id="key-of-another-url"),
        pytest.param(replace(ENTRY, mirror="other"), id="key-of-another-mirror"),
        pytest.param(replace(ENTRY, mirror="m\x1b[2J", key=cache_key("m\x1b[2J", "pub/a.img", "x=1")), id="mirror"),
        pytest.param(replace(ENTRY, sha256="../" * 10), id="digest-is-a-path"),
        pytest.param(replace(ENTRY, sha256=SHA256[:-1]), id="digest-too-short"),
        pytest.param(with_head(generation="../x"), id="generation-is-a-path"),
        pytest.param(with_head(generation=""), id="no-generation"),
        pytest.param(with_head(length=None), id="no-length"),
        pytest.param(with_head(length=-1), id="negative-length"),
        pytest.param(with_head(age=-1.0), id="negative-age"),
        pytest.param(replace(ENTRY, validated_at=1e300), id="time-that-no-calendar-has"),
        pytest.param(replace(ENTRY, stored_at=-1.0), id="negative-time"),
        pytest.param(replace(ENTRY, url="file:///etc/passwd"), id="no-http-url"),
        pytest.param(replace(ENTRY, url="/https/h/m/pub/a.img?x=1"), id="another-spelling"),
        pytest.param(replace(ENTRY, url="https://h/m/\x1b[2J"), id="url-with-control-characters"),
        pytest.param(replace(ENTRY, url="https://h/../a", key=cache_key("m", "../a", "")), id="url-with-a-dot-segment"),
    ],
)
def test_what_could_do_harm_is_no_entry(entry):
    with pytest.raises(Unbelievable):
        believed(entry, NOW)


def test_headers_go_through_what_upstreams_go_through():
    head = replace(
        HEAD,
        headers=(("Content-Type", "a/b"), ("set-cookie", "a=b"), ("x", "a\r\nb: c"), ("a b", "c"), ("connection", "x")),
        nominated=(("authorization", "Basic x"), ("accept", "a\nb"), ("accept-language", "de")),
        node="https://h\x1b[2J",
    )
    found = believed(replace(ENTRY, head=head), NOW).head
    assert found.headers == (("content-type", "a/b"),)
    assert found.nominated == (("accept-language", "de"),)
    assert found.node == ""


def test_what_was_stored_in_the_future_is_stored_now_and_confirmed_when_it_says():
    found = believed(replace(ENTRY, stored_at=NOW + 1000, validated_at=NOW + 1000), NOW)
    assert (found.stored_at, found.validated_at) == (NOW, NOW + 1000)


@pytest.mark.parametrize(
    ("verified", "sha512", "kept"),
    [
        (f"sha256:{SHA256} (SHA256SUMS)", None, True),
        (f"sha512:{SHA512} (a.img.sha512)", SHA512, True),
        (f"sha512:{SHA512} (a.img.sha512)", None, False),
        (f"sha256:{'0' * 64} (SHA256SUMS)", None, False),
        (f"sha256:{SHA256} (\x1b[2J)", None, False),
        ("by me", None, False),
        (None, None, False),
    ],
)
def test_only_digests_of_the_body_are_attested(verified, sha512, kept):
    found = attested(replace(ENTRY, sha512="ee" * 64, verified=verified), sha512)
    assert found.verified == (verified if kept else None)
    assert found.sha512 == sha512
    assert not found.has(Digest("sha512", "ee" * 64))


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example/pub/vm/a.img",
        "https://images.example/pub/vm/",
        "https://images.example/pub/vm",
        "https://images.example/pub/vm/x//a%2fb.img?a=/b?c",
        "https://images.example:8443/one/a.img",
        "https://host.example/a.img",
        "http://host.example/a.img?x",
        "http://host.example:8080/deep/a.img",
        "http://images/a.img",
    ],
)
def test_the_base_of_whatever_a_mirror_has_is_found(url):
    mirrors = [
        Mirror("vm", ("https://images.example/pub/vm/", "https://other.example/")),
        Mirror("one", ("https://images.example:8443/",)),
    ]
    target = MirrorTable(mirrors, ["*.example", "host.example:8080", "images"]).resolve(url)
    entry = replace(ENTRY, url=target.url, mirror=target.mirror.name, key=target.key)
    found = base(entry)
    assert found is not None
    assert found.partition("://")[2] == target.mirror.upstreams[0].partition("://")[2]
    assert base(replace(entry, url=f"{target.url}x")) is None


@pytest.mark.parametrize(
    ("validated_at", "stored_at", "newer"),
    [
        pytest.param(NOW - 4, NOW - 100, True, id="confirmed-later"),
        pytest.param(NOW - 5, NOW - 9, True, id="stored-later"),
        pytest.param(NOW - 5, NOW - 10, False, id="the-same"),
        pytest.param(NOW - 6, NOW - 9, False, id="confirmed-earlier"),
        pytest.param(NOW + CLOCK_SECONDS - 1, NOW, True, id="clocks-differ"),
        pytest.param(NOW + CLOCK_SECONDS + 1, NOW, False, id="a-clock-is-wrong"),
    ],
)
def test_the_newer_of_two_generations(validated_at, stored_at, newer):
    assert is_newer(replace(ENTRY, validated_at=validated_at, stored_at=stored_at), ENTRY, NOW) is newer
