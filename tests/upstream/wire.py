"""A server that sends given bytes: for answers that no well-made server gives."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence


class Wire:
    """Connection n answers its requests with `answers[n]`, one after the other, and then closes.

    With `is_polite` a TLS connection ends with close_notify; else it is cut. `piece` bytes are sent at once.
    """

    def __init__(
        self, answers: Sequence[Sequence[bytes]], tls: ssl.SSLContext | None, is_polite: bool, piece: int
    ) -> None:
        self.requests: list[tuple[int, str]] = []
        """The connection's number, from 0, and the request line of each."""
        self._answers, self._tls, self._is_polite, self._piece = answers, tls, is_polite, piece
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._run, daemon=True).start()

    def url(self, path: str = "/") -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}{path}"

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # closed
            for number, answers in enumerate(self._answers):
                sock, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(sock, number, answers), daemon=True).start()

    def _serve(self, sock: socket.socket, number: int, answers: Sequence[bytes]) -> None:
        with contextlib.suppress(OSError), sock:
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True)
            with sock:
                for answer in answers:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        data = sock.recv(65536)
                        if not data:
                            return
                        head += data
                    self.requests.append((number, head.partition(b"\r\n")[0].decode("latin-1")))
                    for start in range(0, len(answer), self._piece):
                        sock.sendall(answer[start : start + self._piece])
                if isinstance(sock, ssl.SSLSocket) and self._is_polite:
                    sock.unwrap()
                else:
                    socket.socket.shutdown(sock, socket.SHUT_WR)

    def close(self) -> None:
        """No more connections; one that is open ends with its client's side."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept() on Linux
        self._listener.close()


@contextlib.contextmanager
def wire(
    *answers: Sequence[bytes], tls: ssl.SSLContext | None = None, is_polite: bool = True, piece: int = 1 << 20
) -> Iterator[Wire]:
    server = Wire(answers, tls, is_polite, piece)
    try:
        yield server
    finally:
        server.close()


def answer(*fields: str, body: bytes = b"", status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "", ""]).encode("latin-1") + body
