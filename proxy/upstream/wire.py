"""The bytes of one connection to upstream, between httpcore and the socket.

httpcore offers no other place for what is done here: h11 refuses a head that RFC 9112 tells us to mend, and its parser
is not ours to set up.
"""

import re
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

MAX_HEAD_BYTES = 128 * 1024  # h11 refuses more than 100 KiB

_END_OF_HEAD = re.compile(rb"\n\r?\n")
_INTERIM = re.compile(rb"HTTP/[0-9]\.[0-9] 1")
_SPACE_BEFORE_COLON = re.compile(rb"^([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]+:", re.MULTILINE)


class Wire(httpcore.NetworkStream):
    """One connection, as httpcore writes and reads it."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._awaits_head = False
        raw = stream.get_extra_info("socket")
        if isinstance(raw, ssl.SSLSocket):
            # By default a connection that is cut reads as one that ended, and half a body as a whole one
            # (RFC 8446 §6.1, RFC 9112 §9.8). httpcore does not let wrap_socket be told otherwise.
            raw.suppress_ragged_eofs = False  # type: ignore[attr-defined]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """The next bytes; the first ones after a request are the whole head of the answer, and may be more than asked.

        Nothing is kept back: an Exchange reads a large body from the socket itself.
        """
        if not self._awaits_head:
            return self._stream.read(max_bytes, timeout)
        self._awaits_head = False
        heads, received = b"", self._stream.read(max_bytes, timeout)
        while True:
            if end := _END_OF_HEAD.search(received):
                head, received = received[: end.end()], received[end.end() :]
                heads += _SPACE_BEFORE_COLON.sub(rb"\1:", head)  # RFC 9112 §5.1
                if not _INTERIM.match(head):
                    return heads + received
            elif len(heads) + len(received) > MAX_HEAD_BYTES or not (data := self._stream.read(max_bytes, timeout)):
                return heads + received
            else:
                received += data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            self._awaits_head = True
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return Wire(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Wires(httpcore.SyncBackend):
    """Connects as httpcore does."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        return Wire(super().connect_tcp(host, port, timeout, local_address, socket_options))
