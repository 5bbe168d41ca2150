"""What a request must look like: its target, its head, and the limits of both."""

import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass


class Refused(Exception):
    """The request gets `status` and `message`, and the connection ends. Raised in a callback, it ends the parsing."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may use before it has said anything sensible. Bytes and seconds."""

    header_bytes: int = 65536
    """Request line and header fields together."""
    header_timeout: float = 10.0
    """From the first byte of a request, or from connecting, to the end of its headers."""
    idle_timeout: float = 75.0
    """Between two requests; also between two pieces of a request's body."""
    body_bytes: int = 1 << 20
    connections: int = 4096

    def check_head(self, size: int) -> None:
        if size > self.header_bytes:
            raise Refused(431, f"request line and headers are larger than {self.header_bytes} bytes")

    def check_body(self, data: int) -> None:
        if data > self.body_bytes:
            raise Refused(413, f"the request body is larger than {self.body_bytes} bytes")

    def check_body_on_wire(self, size: int) -> None:
        """Bounds chunk extensions and trailers: a chunk of one byte takes six on the wire."""
        if size > self.header_bytes + 8 * self.body_bytes:
            raise Refused(413, "the request body is larger than its data can explain")


def split_target(method: str, target: bytes) -> tuple[str, bytes, bytes]:
    """ASGI `path`, `raw_path` and `query_string` of a target in any of its four forms (RFC 9112 §3.2).

    An absolute form without a path means `/`. An authority (CONNECT) and `*` are their own path.
    """
    path, _, query = target.partition(b"?")
    if method != "CONNECT" and not path.startswith(b"/"):
        _, is_absolute, rest = path.partition(b"://")
        if is_absolute:
            path = b"/" + rest.partition(b"/")[2]
    return urllib.parse.unquote_to_bytes(path).decode("utf-8", "replace"), path, query


def head_size(method: str, target: bytes, fields: Sequence[tuple[bytes, bytes]]) -> int:
    size = len(method) + len(target) + len(b"  HTTP/1.1\r\n\r\n")
    return size + sum(len(name) + len(value) + len(b": \r\n") for name, value in fields)


def check_fields(version: str, fields: Sequence[tuple[bytes, bytes]], limits: Limits) -> None:
    """Raise Refused for a head that is wrong, or whose framing two servers might read in two ways (RFC 9112 §11.2)."""
    if version not in ("1.1", "1.0"):
        raise Refused(505, f"HTTP/{version} is not spoken here: use HTTP/1.1")
    hosts = 0
    length = coding = None
    for name, value in fields:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            length = value
        elif name == b"transfer-encoding":
            coding = value if coding is None else coding + b", " + value
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise Refused(400, f"a request needs exactly one Host header (RFC 9112 §3.2), this one has {hosts or 'none'}")
    if coding is not None:
        if length is not None or version == "1.0":
            raise Refused(400, "Transfer-Encoding together with Content-Length or HTTP/1.0 is ambiguous")
        if coding.lower() != b"chunked":
            raise Refused(501, "the only transfer coding understood in a request is chunked")
    if length is not None:
        limits.check_body(int(length))
