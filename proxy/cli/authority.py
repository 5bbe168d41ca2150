"""A local certificate authority and the server certificate it signs: three files in a directory.

The authority is made once and kept, because a person has to trust it by hand. It can sign only for the names it was
made with: whoever steals its key cannot pose as any other site.
"""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..config import TLS_SERVER
from ..errors import ProxyError
from ..serving.tls import RENEW_SECONDS
from ..store.files import publish

AUTHORITY_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=397)  # Apple's limit is 398
RENEW = timedelta(seconds=RENEW_SECONDS)
CLOCK_SKEW = timedelta(hours=1)
"""How far a guest's clock may be behind ours."""
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
LOOPBACK = tuple(map(ipaddress.ip_network, ("127.0.0.0/8", "::1/128")))


@dataclass(frozen=True, slots=True)
class Made:
    authority: Path
    server: Path
    """Certificate and key in one file."""
    names: list[str]
    until: datetime
    is_new: bool
    """Whether the server certificate was made now."""
    left_out: list[str]
    """Optional names that the authority may not sign for."""


def make(directory: Path, required: Sequence[str], optional: Sequence[str], *, renew: bool) -> Made:
    """Make what is missing in `directory`: the authority, and a server certificate for these names.

    A server certificate that is there is kept unless it lacks a name or ends within RENEW, or `renew` is set. A new one
    keeps the names of the old one. Raises ProxyError for a file that does not fit, and for a `required` name that the
    authority may not sign for.
    """
    try:
        return CertificateAuthority(directory).make(required, optional, renew)
    except OSError as error:
        raise ProxyError(f"{error.filename or directory}: {error.strerror or error}") from error
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:  # TypeError: a key with a password
        raise ProxyError(f"a file in {directory} is not as it was made: {error}") from error


class CertificateAuthority:
    """The files in one directory, and what signs them."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._now = directory, datetime.now(UTC).replace(microsecond=0)
        self._authority, self._key = directory / "ca.pem", directory / "ca-key.pem"
        self._server = directory / TLS_SERVER

    def make(self, required: Sequence[str], optional: Sequence[str], renew: bool) -> Made:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._directory.stat().st_mode & 0o022:
            raise ProxyError(f"others may write to {self._directory}, and could change what you trust: chmod go-w it")
        authority, key = self._open_authority([*optional, *required])
        server = _read(self._server)
        former = _names_of(server) if server and _is_signed_by(server, authority) else []
        if refused := [name for name in required if not _permits(authority, name)]:
            raise ProxyError(
                f"{', '.join(refused)}: {self._authority} may sign only for the names it was made with. for another, "
                f"which must be trusted anew, remove it and {self._key}"
            )
        left_out = [name for name in optional if not _permits(authority, name)]
        names = [name for name in dict.fromkeys((*optional, *required, *former)) if name not in left_out]
        is_new = renew or server is None or set(names) != set(former) or server.not_valid_after_utc - self._now < RENEW
        if server is None or is_new:
            server = self._issue(authority, key, names)
        return Made(self._authority, self._server, names, server.not_valid_after_utc, is_new, left_out)

    def _open_authority(self, names: list[str]) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
        authority = _read(self._authority)
        if authority is None and not self._key.exists():
            return self._create(names)
        if authority is None:
            raise ProxyError(f"{self._key} is there without {self._authority}: restore that, or remove this one")
        if not self._key.exists():
            raise ProxyError(f"{self._authority} is there without {self._key}: restore that, or remove this one")
        key = load_pem_private_key(self._key.read_bytes(), None)
        if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != authority.public_key():
            raise ProxyError(f"{self._key} is not the key of {self._authority}: restore the right one, or remove both")
        if authority.not_valid_after_utc - self._now < RENEW:
            raise ProxyError(
                f"{self._authority} ends on {authority.not_valid_after_utc:%Y-%m-%d}. for another, which must be "
                f"trusted anew, remove it and {self._key}"
            )
        return authority, key

    def _create(self, names: list[str]) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
        key = generate_private_key(SECP256R1())
        alternatives = [_general_name(name) for name in names]
        networks = [*LOOPBACK, *(ipaddress.ip_network(each.value) for each in alternatives if _is_remote(each))]
        permitted = [
            *(each for each in alternatives if isinstance(each, x509.DNSName)),
            *map(x509.IPAddress, networks),
        ]
        subject = _title(f"fetchonce CA {self._now:%Y-%m-%d} {socket.gethostname()}"[:64])
        authority = (
            _builder(subject, subject, key, self._now, self._now + AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(is_authority=True), critical=True)
            .add_extension(x509.NameConstraints(permitted, None), critical=True)
            .sign(key, hashes.SHA256())
        )
        publish(self._key, _pem_of_key(key), 0o600)
        publish(self._authority, authority.public_bytes(Encoding.PEM), 0o644)
        return authority, key

    def _issue(
        self, authority: x509.Certificate, authority_key: EllipticCurvePrivateKey, names: list[str]
    ) -> x509.Certificate:
        key = generate_private_key(SECP256R1())
        identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        until = min(self._now - CLOCK_SKEW + SERVER_LIFE, authority.not_valid_after_utc)
        server = (
            _builder(_title("fetchonce"), authority.subject, key, self._now, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(map(_general_name, names)), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        publish(self._server, server.public_bytes(Encoding.PEM) + _pem_of_key(key), 0o600)
        return server


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _title(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names_of(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(each.value) for each in found]


def _is_signed_by(server: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether this authority signed it, and not an earlier one."""
    try:
        server.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError):
        return False
    return True


def _is_remote(name: x509.DNSName | x509.IPAddress) -> bool:
    """Whether it is an address outside loopback, which the constraints have to name."""
    return isinstance(name.value, Address) and not name.value.is_loopback


def _permits(authority: x509.Certificate, name: str) -> bool:
    """Whether its name constraints allow `name` (RFC 5280 §4.2.1.10)."""
    constraints = authority.extensions.get_extension_for_class(x509.NameConstraints).value
    value = _general_name(name).value
    for permitted in constraints.permitted_subtrees or ():
        match permitted:
            case x509.DNSName(value=domain):
                if value == domain or str(value).endswith(f".{domain}"):
                    return True
            case x509.IPAddress(value=network):
                if isinstance(value, Address) and isinstance(network, Network) and value in network:
                    return True
    return False


def _read(path: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        return None


def _pem_of_key(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
