"""The server's certificate: read and checked as a whole before it is used. HTTP/1.1 only."""

import contextlib
import ssl
from dataclasses import dataclass
from logging import ERROR, WARNING
from pathlib import Path
from typing import NoReturn

from ..config import Settings
from ..errors import ConfigError
from ..log import events, log
from ..toml_text import line_of
from .handshake import ServerContext, TellingObject

RENEW_SECONDS = 30 * 86400.0
"""A certificate should be renewed so long before its end."""
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name


@dataclass(frozen=True, slots=True)
class Certificate:
    """Read from its files. It fits a server, but its time may be over or not yet come."""

    context: ssl.SSLContext
    path: Path
    not_before: float
    not_after: float

    def problem(self, now: float) -> str | None:
        """Why clients refuse it at `now`; None if they do not."""
        if now >= self.not_after:
            return "it has expired"
        return "it is not valid yet: is the clock right?" if now < self.not_before else None

    def report(self, now: float) -> None:
        """Log what is wrong with it, or soon will be. It is used all the same, so that plain listeners go on."""
        hint = "fetchonce tls init renews what it has made; then SIGHUP, or a restart"
        if problem := self.problem(now):
            log(events, ERROR, "tls.refused_by_clients", certificate=self.path, why=problem, hint=hint)
        elif self.not_after - now < RENEW_SECONDS:
            days = int((self.not_after - now) / 86400)
            log(events, WARNING, "tls.expires_soon", certificate=self.path, days=days, hint=hint)


def certificate(settings: Settings) -> Certificate | None:
    """Read the configured one; None if no listener speaks https. Raises ConfigError."""
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
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
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
    context.sslobject_class = TellingObject  # only now, because _period needs the errors themselves
    return Certificate(context, cert, not_before, not_after)


class CurrentCertificate:
    """The certificate of new connections. It can be replaced; running connections keep theirs.

    Forked workers inherit it. So they accept each other's session tickets, and a worker that starts later
    needs no file.
    """

    def __init__(self, first: Certificate) -> None:
        self._now = first

    def use(self, certificate: Certificate) -> None:
        self._now = certificate

    def context(self) -> ssl.SSLContext:
        return self._now.context


class _Encrypted(Exception):
    pass


def _no_password() -> NoReturn:
    raise _Encrypted


def _reason(error: ssl.SSLError) -> str:
    text = getattr(error, "verify_message", "") or error.reason or str(error)
    return text.lower().replace("_", " ")


def _period(server: ssl.SSLContext, path: Path) -> tuple[float, float]:
    """When a server's certificate begins and ends to be valid. SSLError if it does not fit a server.

    The ssl module cannot read a certificate from a file, only one that a peer has shown. So this makes a handshake in
    memory.
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
