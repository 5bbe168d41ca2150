"""Digests of bodies, and the checksum files that list them.

Reading is lenient and never raises: a line that is not clear does not count. SHA-256 and SHA-512 only, because a body
can be made to fit an MD5 or SHA-1. Formats: GNU coreutils (`HEX  NAME`), BSD and OpenSSL (`SHA256 (NAME) = HEX`), a
digest alone, each with comments and PGP armour around it, and mixed. Time is linear in the length of the text.
"""

import codecs
import re
import urllib.parse
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

Algorithm = Literal["sha256", "sha512"]

MAX_CODINGS = 4  # of one body; nobody needs two
MAX_MEMBERS = 64  # of one gzip file; each costs a copy of the rest
MAX_TEXT_BYTES = 4 * 1024**2  # Debian's longest SHA512SUMS has 0.3 MB
MAX_LINE_CHARACTERS = 8 * 1024  # twice PATH_MAX and the longest digest
MIN_BODY_BYTES = 1024**2
"""Smaller bodies are not worth another request to upstream."""

TEXTS = frozenset({"asc", "gpg", "htm", "html", "json", "list", "log", "manifest", "md", "sig", "txt", "xml", "yaml"})
"""Suffixes of files that are not images, archives or binaries, whatever their size."""

_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})", re.IGNORECASE)
_HEX = r"(?P<hex>[0-9a-fA-F]{128}|[0-9a-fA-F]{64})"
_GNU = re.compile(rf"(?P<escaped>\\?){_HEX}(?:[ \t]+\*?(?P<name>\S.*))?")
_BSD = re.compile(rf"(?P<escaped>\\?)SHA2?-?(?P<bits>256|512)[ \t]?\((?P<name>.+)\)[ \t]?=[ \t]?{_HEX}", re.IGNORECASE)
_ESCAPE = re.compile(r"\\([\\nr])")
_SIGNED = "-----BEGIN PGP SIGNED MESSAGE-----"
_SIGNATURE = "-----BEGIN PGP SIGNATURE-----"
_ALGORITHMS: dict[int, Algorithm] = {64: "sha256", 128: "sha512"}


@dataclass(frozen=True, slots=True)
class Digest:
    algorithm: Algorithm
    hex: str
    """In lower case."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """From "sha256:HEX" or "sha512:HEX" in any case; None for anything else."""
        found = _DIGEST.fullmatch(text)
        if not found:
            return None
        digits = (found[2] or found[4]).lower()
        return cls(_ALGORITHMS[len(digits)], digits)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class Expected:
    """The digest a body must have, and who says so."""

    digest: Digest
    source: str | None = None
    """Name of the checksum file; None if a client gave the digest."""
    fetched_at: float = 0.0
    """Unix time at which upstream last said so."""

    def __str__(self) -> str:
        return f"{self.digest} ({self.source or 'as asked for'})"


@dataclass(frozen=True, slots=True)
class _Line:
    digest: Digest
    name: str | None
    """As listed, unescaped; None if the line is only a digest."""


def is_worth_a_look(name: str, length: int | None) -> bool:
    """Whether to look for the body `name` of `length` bytes (None: unknown) in a checksum file.

    Everything but text: image and archive types are too many to list, and kernels and kubectl have no suffix.
    """
    return (length is None or length > MIN_BODY_BYTES) and name.rpartition(".")[2].lower() not in TEXTS


class Unreadable(ValueError):
    """Why a checksum file cannot be read."""


def decoded(body: bytes, codings: str | None) -> bytes:
    """The UTF-8 text of a checksum file that came with that Content-Encoding. Raises Unreadable.

    Servers send coded bodies although we ask for none. Apache also labels a plain `x.gz.sha256` as gzip.
    """
    names = [name for each in (codings or "").lower().split(",") if (name := each.strip(" \t"))]
    if len(names) > MAX_CODINGS:
        raise Unreadable(f"its Content-Encoding has {len(names)} members")
    for name in reversed(names):
        match name:
            case "gzip" | "x-gzip":
                body = _gunzip(body) if body.startswith(_GZIP) else body
            case "deflate":
                # RFC 9110 §8.4.1.2: zlib's format. Some send the bare stream.
                body = _inflate(body, zlib.MAX_WBITS if _is_zlib(body) else -zlib.MAX_WBITS)[0]
            case "identity":
                pass
            case _:
                raise Unreadable(f"its Content-Encoding is {name[:40]}")
    for mark, coding in _UTF16.items():
        if body.startswith(mark):
            try:
                body = body.removeprefix(mark).decode(coding).encode()
            except UnicodeDecodeError as error:
                raise Unreadable("it is malformed UTF-16") from error
    if len(body) > MAX_TEXT_BYTES:
        raise Unreadable(f"it is longer than {MAX_TEXT_BYTES} bytes")
    if b"\0" in body:
        raise Unreadable("it is not text")
    return body


_GZIP = b"\x1f\x8b"
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def _is_zlib(body: bytes) -> bool:
    return len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0


def _gunzip(body: bytes) -> bytes:
    """All members of a gzip file (RFC 1952 §2.2)."""
    text = b""
    for _ in range(MAX_MEMBERS):
        member, body = _inflate(body, 16 + zlib.MAX_WBITS)
        text += member
        if len(text) > MAX_TEXT_BYTES or not body.startswith(_GZIP):
            return text
    raise Unreadable(f"it has more than {MAX_MEMBERS} gzip members")


def _inflate(body: bytes, format_bits: int) -> tuple[bytes, bytes]:
    """The text, and what follows its end. It is never much longer than MAX_TEXT_BYTES."""
    stream = zlib.decompressobj(format_bits)
    try:
        text = stream.decompress(body, MAX_TEXT_BYTES + 1)
    except zlib.error as error:
        raise Unreadable(f"it cannot be decompressed: {error}") from error
    if not stream.eof and len(text) <= MAX_TEXT_BYTES:
        raise Unreadable("it cannot be decompressed: it is cut short")
    return text, stream.unused_data


def find(text: bytes | str, name: str, *, path: str = "", is_sidecar: bool = False) -> Digest | None:
    """The digest that a checksum file lists for the object `name`; None if it lists none, or different ones.

    `name` and `path`, the object's whole path, may be percent-encoded. A line counts if its name is the object's name;
    else if the object's path ends with it; else if its last segment is the name. A sidecar is about this object alone:
    if it has one line, that line counts whatever its name. SHA-256 wins over SHA-512.
    """
    lines = list(_lines(text))
    names = {name, urllib.parse.unquote(name, errors="surrogateescape")}
    paths = {f"/{path}", urllib.parse.unquote(f"/{path}", errors="surrogateescape")}
    ranks: tuple[list[Digest], ...] = ([], [], [])
    for line in lines:
        if not line or not line.name:
            continue
        listed = line.name.removeprefix("./").lstrip("/")
        if listed in names:
            ranks[0].append(line.digest)
        elif listed.rpartition("/")[2] in names:
            ranks[1 if any(each.endswith("/" + listed) for each in paths) else 2].append(line.digest)
    for found in ranks:
        if found:
            return _the_one(found)
    if is_sidecar and len(lines) == 1 and lines[0]:
        return lines[0].digest
    return None


def _the_one(found: list[Digest]) -> Digest | None:
    for algorithm in ("sha256", "sha512"):
        if of := {each for each in found if each.algorithm == algorithm}:
            return of.pop() if len(of) == 1 else None
    return None


def _lines(text: bytes | str) -> Iterator[_Line | None]:
    """Each line that is not a comment or armour; None for a line without a digest that we accept."""
    if len(text) > MAX_TEXT_BYTES:
        return
    if isinstance(text, bytes):
        if b"\0" in text:
            return
        text = text.decode("utf-8", "surrogateescape")
    elif "\0" in text:
        return
    # Not splitlines(): it also splits at characters that a name may contain.
    lines = iter(text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n"))
    for raw in lines:
        line = raw.strip(" \t\r")
        if line == _SIGNATURE:
            return
        if line == _SIGNED:
            while next(lines, "").strip():
                pass  # "Hash: SHA256" and the like, up to an empty line
        elif line and not line.startswith(("#", ";")):
            yield None if len(line) > MAX_LINE_CHARACTERS else _line(line.removeprefix("- "))


def _line(line: str) -> _Line | None:
    found = _GNU.fullmatch(line) or _BSD.fullmatch(line)
    if not found:
        return None
    digits, name = found["hex"].lower(), found["name"]
    algorithm = _ALGORITHMS[len(digits)]
    if (bits := found.groupdict().get("bits")) and not algorithm.endswith(bits):
        return None
    if name and found["escaped"]:
        name = _ESCAPE.sub(lambda escape: {"n": "\n", "r": "\r"}.get(escape[1], "\\"), name)
    return _Line(Digest(algorithm, digits), name)
