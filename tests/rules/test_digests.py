"""Digests and checksum files: real formats, and other texts, which must do no harm."""

import contextlib
import gzip
import hashlib
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.rules.digests import (
    MAX_CODINGS,
    MAX_MEMBERS,
    MAX_TEXT_BYTES,
    Digest,
    Expected,
    Unreadable,
    decoded,
    find,
    is_worth_a_look,
)

A, B, C = (hashlib.sha256(bytes([n])).hexdigest() for n in range(3))
A512, B512 = (hashlib.sha512(bytes([n])).hexdigest() for n in range(2))
MD5, SHA1 = hashlib.md5(b"").hexdigest(), hashlib.sha1(b"").hexdigest()
NAME = "noble.img"

ARMOURED = f"""-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# Fedora-Cloud-Base-Generic-44-1.7.x86_64.qcow2: 556662784 bytes
SHA256 (Fedora-Cloud-Base-Generic-44-1.7.x86_64.qcow2) = {A}
# Fedora-Cloud-Base-UEFI-UKI-44-1.7.x86_64.qcow2: 551682048 bytes
SHA256 (Fedora-Cloud-Base-UEFI-UKI-44-1.7.x86_64.qcow2) = {B}
-----BEGIN PGP SIGNATURE-----

iQIzBAEBCAAdFiEE
{C}  noble.img
-----END PGP SIGNATURE-----
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"sha256:{A}", Digest("sha256", A), id="sha256"),
        pytest.param(f"SHA256:{A.upper()}", Digest("sha256", A), id="upper-case"),
        pytest.param(f"sha512:{A512}", Digest("sha512", A512), id="sha512"),
        pytest.param(f"sha256:{A[:-1]}", None, id="short"),
        pytest.param(f"sha256:{A}0", None, id="long"),
        pytest.param(f"sha256:{A512}", None, id="length-of-the-other"),
        pytest.param(f"sha256:{A}\n", None, id="newline"),
        pytest.param(f"sha256:{A[:-1]}g", None, id="no-hex"),
        pytest.param(f"md5:{MD5}", None, id="md5"),
        pytest.param(f"sha1:{SHA1}", None, id="sha1"),
        pytest.param(A, None, id="bare"),
        pytest.param("", None, id="empty"),
    ],
)
def test_parse(text, expected):
    assert Digest.parse(text) == expected
    if expected:
        assert Digest.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        pytest.param(f"{A}  {NAME}\n", NAME, A, id="gnu-text"),
        pytest.param(f"{A} *{NAME}\n", NAME, A, id="gnu-binary-ubuntu"),
        pytest.param(f"{A} {NAME}\n", NAME, A, id="one-space"),
        pytest.param(f"{A}\t{NAME}\n", NAME, A, id="tab"),
        pytest.param(f"{A.upper()}  {NAME}\r\n", NAME, A, id="upper-case-crlf"),
        pytest.param(f"\ufeff{A}  {NAME}", NAME, A, id="byte-order-mark-no-newline"),
        pytest.param(f"{B}  other.img\n{A}  {NAME}\n{C}  x.img\n", NAME, A, id="one-of-three"),
        pytest.param(f"{A512}  {NAME}\n", NAME, A512, id="sha512-debian"),
        pytest.param(f"{A512}  {NAME}\n{A}  {NAME}\n", NAME, A, id="sha256-goes-first"),
        pytest.param(f"{A}  ./{NAME}\n", NAME, A, id="dot-slash"),
        pytest.param(f"{A}  cloud/amd64/{NAME}\n", NAME, A, id="directory"),
        pytest.param(f"{B}  old/{NAME}\n{A}  {NAME}\n", NAME, A, id="exact-before-directory"),
        pytest.param(f"{A}  a/{NAME}\n{B}  b/{NAME}\n", NAME, None, id="ambiguous-directories"),
        pytest.param(f"{A}  {NAME}\n{B}  {NAME}\n", NAME, None, id="contradiction"),
        pytest.param(f"{A}  {NAME}\n{A}  {NAME}\n", NAME, A, id="said-twice"),
        pytest.param(f"{A}  a b.img\n", "a%20b.img", A, id="space-and-percent-encoding"),
        pytest.param(f"{A}  a%20b.img\n", "a%20b.img", A, id="encoded-in-the-file-too"),
        pytest.param(f"{A}  ä.img\n", "%C3%A4.img", A, id="utf8"),
        pytest.param(f"\\{A}  a\\\\b\\nc.img\n", "a%5Cb%0Ac.img", A, id="gnu-escaped"),
        pytest.param(f"{A}  a\\nb.img\n", "a%5Cnb.img", A, id="backslash-unescaped"),
        pytest.param(f"SHA256 ({NAME}) = {A}\n", NAME, A, id="bsd"),
        pytest.param(f"SHA512 ({NAME}) = {A512}\n", NAME, A512, id="bsd-sha512"),
        pytest.param(f"SHA256({NAME})= {A}\n", NAME, A, id="openssl"),
        pytest.param(f"SHA2-256({NAME})= {A}\n", NAME, A, id="openssl-3"),
        pytest.param(f"SHA256 (a (1).img) = {A}\n", "a%20(1).img", A, id="bsd-parentheses"),
        pytest.param(f"SHA512 ({NAME}) = {A}\n", NAME, None, id="bsd-wrong-length"),
        pytest.param(f"MD5 ({NAME}) = {MD5}\nSHA256 ({NAME}) = {A}\n", NAME, A, id="mixed-with-md5"),
        pytest.param(f"{MD5}  {NAME}\n", NAME, None, id="md5"),
        pytest.param(f"{SHA1}  {NAME}\n", NAME, None, id="sha1"),
        pytest.param(f"MD5 ({NAME}) = {MD5}\nSHA1 ({NAME}) = {SHA1}\n", NAME, None, id="bsd-md5-sha1"),
        pytest.param(ARMOURED, "Fedora-Cloud-Base-UEFI-UKI-44-1.7.x86_64.qcow2", B, id="fedora-checksum"),
        pytest.param(ARMOURED, NAME, None, id="nothing-after-the-signature-counts"),
        pytest.param(f"# {A}  {NAME}\n", NAME, None, id="comment"),
        pytest.param(f"{A}\n", NAME, None, id="bare-in-a-list"),
        pytest.param(f"{A}  other.img\n", NAME, None, id="another-name"),
        pytest.param(f"{A}  my-{NAME}\n", NAME, None, id="longer-name"),
        pytest.param(f"<html><body>{A}  {NAME}</body></html>", NAME, None, id="html"),
        pytest.param(f"{A}0  {NAME}\n", NAME, None, id="65-digits"),
        pytest.param("", NAME, None, id="empty"),
    ],
)
@pytest.mark.parametrize("kind", [str, bytes])
def test_find(text, name, expected, kind):
    found = find(text if kind is str else text.encode(), name)
    assert (found and found.hex) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"{A}", A, id="bare"),
        pytest.param(f"{A}\n\n", A, id="bare-newlines"),
        pytest.param(f"{A512}\n", A512, id="bare-sha512"),
        pytest.param(f"# sha256\n{A}\n", A, id="comment"),
        pytest.param(f"{A}  build/output.img\n", A, id="another-name"),
        pytest.param(f"SHA256 (output.img) = {A}\n", A, id="bsd-another-name"),
        pytest.param(
            f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA1\n\n{A}\n-----BEGIN PGP SIGNATURE-----\nx", A, id="pgp"
        ),
        pytest.param(f"{A}  x.img\n{B}  y.img\n", None, id="two-others"),
        pytest.param(f"{A}\n{B}\n", None, id="two-bare"),
        pytest.param(f"{MD5}\n{A}\n", None, id="not-the-only-line"),
        pytest.param(f"{MD5}\n", None, id="md5"),
        pytest.param("404 not found\n", None, id="text"),
    ],
)
def test_the_only_line_of_a_sidecar_counts(text, expected):
    found = find(text, NAME, is_sidecar=True)
    assert (found and found.hex) == expected
    if expected:
        assert find(text, NAME) is None


def test_the_directory_of_the_object_decides_between_equal_names():
    text = f"{A}  amd64/{NAME}\n{B}  arm64/{NAME}\n"
    assert find(text, NAME, path=f"releases/arm64/{NAME}") == Digest("sha256", B)
    assert find(text, NAME, path=f"releases/riscv/{NAME}") is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"{A}  {NAME}\n".encode() + b"\0", id="binary"),
        pytest.param(f"{A}  {NAME}\n".encode("utf-16"), id="utf-16"),
        pytest.param(f"{A}  {NAME}\n" + "#" * MAX_TEXT_BYTES, id="huge"),
        pytest.param("SHA256 (" + ")=" * 2_000_000, id="parentheses"),
        pytest.param("a" * 64 + " " * 4_000_000, id="spaces"),
        pytest.param("\n" * 2_000_000, id="lines"),
    ],
)
def test_what_no_checksum_file_is_is_refused_quickly(text):
    started = time.process_time()
    assert find(text, NAME) is None
    assert time.process_time() - started < 5


@given(st.binary(max_size=400), st.text(max_size=20), st.booleans())
def test_never_raises(data, name, is_sidecar):
    find(data, name, is_sidecar=is_sidecar)
    find(data.decode("latin-1"), name, path=f"x/{name}", is_sidecar=is_sidecar)


@given(
    st.dictionaries(
        st.text(
            st.characters(min_codepoint=0x21, max_codepoint=0x17F, exclude_characters="/\\%\x7f\x85\xa0*"), min_size=1
        ),
        st.binary(min_size=32, max_size=32),
        min_size=1,
    ),
    st.sampled_from(["{hex}  {name}", "{hex} *{name}", "SHA256 ({name}) = {hex}", "{hex}  ./{name}"]),
)
def test_every_listed_name_is_found(files, form):
    files = {name: digest for name, digest in files.items() if not name.startswith(".")}
    text = "\n".join(form.format(hex=digest.hex(), name=name) for name, digest in files.items())
    for name, digest in files.items():
        assert find(text.encode(), name) == Digest("sha256", digest.hex())


@pytest.mark.parametrize(
    ("name", "length", "expected"),
    [
        ("noble.img", 600_000_000, True),
        ("noble.img", None, True),
        ("noble.img", 1000, False),
        ("kubectl", 50_000_000, True),
        ("rootfs.tar.xz", 50_000_000, True),
        ("index.json", 50_000_000, False),
        ("noble.manifest", 5_000_000, False),
    ],
)
def test_is_worth_a_look(name, length, expected):
    assert is_worth_a_look(name, length) is expected


def test_expected_tells_its_source():
    assert str(Expected(Digest("sha256", A), "SHA256SUMS")) == f"sha256:{A} (SHA256SUMS)"
    assert str(Expected(Digest("sha256", A))) == f"sha256:{A} (as asked for)"


# How it comes

TEXT = f"{A}  {NAME}\n".encode()


def raw_deflate(data):
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("body", "codings"),
    [
        pytest.param(TEXT, None, id="plain"),
        pytest.param(TEXT, "identity", id="identity"),
        pytest.param(gzip.compress(TEXT), "gzip", id="rfc9110-8.4.1.3-gzip"),
        pytest.param(gzip.compress(TEXT), "X-GZIP", id="rfc9110-8.4.1.3-x-gzip"),
        pytest.param(gzip.compress(TEXT[:9]) + gzip.compress(TEXT[9:]) + b"\0\0", "gzip", id="rfc1952-2.2-members"),
        pytest.param(zlib.compress(TEXT), "deflate", id="rfc9110-8.4.1.2-deflate"),
        pytest.param(raw_deflate(TEXT), "deflate", id="deflate-without-zlib"),
        pytest.param(gzip.compress(zlib.compress(TEXT)), "deflate, ,gzip", id="rfc9110-8.4-in-the-order-applied"),
        pytest.param(TEXT, "x-gzip", id="labelled-by-its-name-alone"),
        pytest.param(TEXT.decode().encode("utf-16"), None, id="utf-16"),
        pytest.param(b"\xfe\xff" + TEXT.decode().encode("utf-16-be"), None, id="utf-16-be"),
        pytest.param(gzip.compress(TEXT.decode().encode("utf-16")), "gzip", id="utf-16-in-gzip"),
    ],
)
def test_it_is_read_however_it_comes(body, codings):
    assert decoded(body, codings) == TEXT


@pytest.mark.parametrize(
    ("body", "codings", "why"),
    [
        pytest.param(TEXT, "br", "Content-Encoding is br", id="br"),
        pytest.param(TEXT, ",".join(["identity"] * (MAX_CODINGS + 1)), "members", id="many-codings"),
        pytest.param(gzip.compress(TEXT)[:-9], "gzip", "cut short", id="cut-short"),
        pytest.param(b"\x1f\x8b" + TEXT, "gzip", "decompressed", id="damaged"),
        pytest.param(gzip.compress(bytes(MAX_TEXT_BYTES + 1)), "gzip", "longer than", id="bomb"),
        pytest.param(gzip.compress(b"") * (MAX_MEMBERS + 1), "gzip", "members", id="many-members"),
        pytest.param(b"#" * (MAX_TEXT_BYTES + 1), None, "longer than", id="long"),
        pytest.param(gzip.compress(TEXT), None, "not text", id="compressed-and-silent-about-it"),
        pytest.param(TEXT.decode().encode("utf-16-le"), None, "not text", id="utf-16-without-a-mark"),
        pytest.param(b"\xff\xfe\x00", None, "UTF-16", id="half-a-character"),
    ],
)
def test_what_cannot_be_read_says_why(body, codings, why):
    with pytest.raises(Unreadable, match=why):
        decoded(body, codings)


@given(st.binary(max_size=400), st.sampled_from([None, "gzip", "deflate", "br", "gzip, deflate", "\xe9"]))
def test_any_bytes_are_text_or_unreadable(body, codings):
    with contextlib.suppress(Unreadable):
        decoded(b"\x1f\x8b\x08" + body, codings)
        decoded(body, codings)
