"""The bytes of one connection to upstream, between httpcore and the socket."""

import ssl
from collections.abc import Iterable
from typing import Any

import httpcore


class Wire(httpcore.NetworkStream):
    """One connection, as httpcore writes and reads it."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        raw = stream.get_extra_info("socket")
        if isinstance(raw, ssl.SSLSocket):
            # By default a connection that is cut reads as one that ended, and half a body as a whole one
            # (RFC 8446 §6.1, RFC 9112 §9.8). httpcore does not let wrap_socket be told otherwise.
            raw.suppress_ragged_eofs = False  # type: ignore[attr-defined]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
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
