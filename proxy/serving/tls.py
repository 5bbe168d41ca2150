"""TLS for a listener: its certificate, and what a client that fails the handshake is told.

The certificate is read whole before it takes the place of the former; connections that run keep theirs. A listener has
one Context for its life, inherited by workers: so they take each other's session tickets, and a replacement needs no
file. HTTP/1.1 only.
"""

import contextlib
import gc
import ssl
import time
from dataclasses import dataclass
from logging import ERROR, WARNING
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakSet

from ..config import Settings, line_of
from ..errors import ConfigError
from ..log import events, log
from .response import answer

RENEW_SECONDS = 30 * 86400.0
"""Before its end a certificate should be renewed."""
LOOK_SECONDS = 1.0
"""Between two searches for handshakes that are over, where there seem to be too many."""
PLAIN = "this port speaks https: write https:// in place of http://, or use the port that speaks plain http"
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name


@dataclass(frozen=True, slots=True)
class Certificate:
    """Read from its files, and fit for a server but for its time."""

    context: ssl.SSLContext
    path: Path
    not_before: float
    not_after: float

    def problem(self, now: float) -> str | None:
        """What clients will hold against it at `now`; None if nothing."""
        if now >= self.not_after:
            return "it has expired"
        return "it is not valid yet: is the clock right?" if now < self.not_before else None

    def report(self, now: float) -> None:
        """Log what is wrong with it, or will soon be. It is used nevertheless: plain listeners are not to blame."""
        hint = "fetchonce tls init renews what it has made; then SIGHUP, or a restart"
        if problem := self.problem(now):
            log(events, ERROR, "tls.refused_by_clients", certificate=self.path, why=problem, hint=hint)
        elif self.not_after - now < RENEW_SECONDS:
            days = int((self.not_after - now) / 86400)
            log(events, WARNING, "tls.expires_soon", certificate=self.path, days=days, hint=hint)


def certificate(settings: Settings) -> Certificate | None:
    """Read the one in force; None if nobody listens for https. Raises ConfigError."""
    if not settings.listens_for_https:
        return None
    cert, key = settings.tls_files

    def wrong(name: str, text: str) -> ConfigError:
        main = Path(settings.sources[0])
        return ConfigError(f"{main}:{line_of(main, ['server', name])}: server.{name}: {text}")

    for name, path in (("tls_cert", cert), ("tls_key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            hint = "" if settings.file.server.tls_cert else "; `fetchonce tls init` makes one"
            raise wrong(name, f"{path}: cannot be read: {error.strerror or error}{hint}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # OpenSSL would ask for a password on the terminal, or wait for one where there is none.
        context.load_cert_chain(cert, key, password=_no_password)
    except _Encrypted:
        raise wrong("tls_key", f"{key}: expected a key without a password") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise wrong("tls_key", f"{key} does not belong to the certificate in {cert}") from error
        what = f"in {cert}" if cert == key else f"in {cert}, and its key in {key}"
        raise wrong("tls_cert", f"expected a certificate {what}, in PEM: {_reason(error)}") from error
    try:
        not_before, not_after = _period(context, cert)
    except ssl.SSLError as error:
        raise wrong("tls_cert", f"{cert}: expected a server's certificate: {_reason(error)}") from error
    return Certificate(context, cert, not_before, not_after)


class Context(ssl.SSLContext):
    """What a listener is made with; `use` has its next connections get another certificate.

    `handshakes` may be under way at once: Protocol counts only connections that are through with theirs.
    """

    def __new__(cls, first: Certificate, handshakes: int) -> "Context":
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, first: Certificate, handshakes: int) -> None:
        self._limit = handshakes
        self._waiting: WeakSet[_Connection] = WeakSet()
        self._next_look = 0.0
        self.use(first)

    def use(self, certificate: Certificate) -> None:
        self._now = certificate.context
        self._now.sslobject_class = _Connection

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **named: Any) -> ssl.SSLObject:
        connection = self._now.wrap_bio(incoming, outgoing, *args, **named)
        assert isinstance(connection, _Connection)
        connection.outgoing, connection.waiting = outgoing, self._waiting
        if len(self._waiting) >= self._limit and time.monotonic() >= self._next_look:
            gc.collect()  # some versions of asyncio leave those whose client went away in a cycle
            self._next_look = time.monotonic() + LOOK_SECONDS
        connection.is_refused = len(self._waiting) >= self._limit
        if not connection.is_refused:
            self._waiting.add(connection)
        return connection


class _Connection(ssl.SSLObject):
    outgoing: ssl.MemoryBIO
    waiting: "WeakSet[_Connection]"
    is_refused: bool

    def do_handshake(self) -> None:
        if self.is_refused:
            raise ssl.SSLError("too many connections")
        try:
            super().do_handshake()
            self.waiting.discard(self)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            if error.reason in ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST"):
                self.outgoing.write(answer(400, PLAIN))
            if not self.outgoing.pending:
                raise
            # asyncio sends what is there only while the handshake goes on: an alert, or our answer. It ends when the
            # client leaves, says more, or the time for the handshake is over.
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the client is being told") from error


class _Encrypted(Exception):
    pass


def _no_password() -> NoReturn:
    raise _Encrypted


def _reason(error: ssl.SSLError) -> str:
    text = getattr(error, "verify_message", "") or error.reason or str(error)
    return text.lower().replace("_", " ")


def _period(server: ssl.SSLContext, path: Path) -> tuple[float, float]:
    """When a server's certificate begins and ends to be valid, by a handshake with it in memory.

    The ssl module reads a certificate that somebody has shown, not one in a file. SSLError if it is not fit for that.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | NO_CHECK_TIME
    client.load_verify_locations(path)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours, theirs = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    for each in (ours, theirs):
        with contextlib.suppress(ssl.SSLWantReadError):
            each.do_handshake()
    ours.do_handshake()
    shown = ours.getpeercert()
    assert shown
    return ssl.cert_time_to_seconds(str(shown["notBefore"])), ssl.cert_time_to_seconds(str(shown["notAfter"]))
