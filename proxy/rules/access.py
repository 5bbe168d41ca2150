"""Who may ask us, and under which name.

A client may ask if it is in one of the networks of `access.clients`, comes through a unix socket, or shows the token.
A request whose Host is none of our names is refused: somebody else's name server points that name at our address, so
that a web page in a browser here can reach us (DNS rebinding).
"""

import base64
import binascii
import functools
import hmac
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import quote

from ..errors import ConfigError, Forbidden, Misdirected, ProxyUnauthorized, Unauthorized

RawHeaders = Iterable[tuple[bytes, bytes]]
"""As the server hands them over: names in lower case."""
Address = IPv4Address | IPv6Address
Server = tuple[str, int | None] | None
"""Our address in a connection, as ASGI has it."""

OWN_NAMES = frozenset({"localhost", "host.lima.internal", "host.docker.internal", "host.containers.internal"})
"""Names by which clients on this machine, and its guests and containers, reach us."""
CHALLENGE = 'Basic realm="fetchonce", Bearer realm="fetchonce"'


@dataclass(frozen=True, slots=True)
class Access:
    """The part of the section [access] that is about clients. Made by `of`."""

    clients: tuple[IPv4Network | IPv6Network, ...]
    hosts: frozenset[str]
    token: str = field(repr=False)
    """Empty if there is none."""

    @classmethod
    def of(cls, clients: Iterable[str], hosts: Collection[str], token: str) -> "Access":
        """Raises ConfigError for an entry that is malformed."""
        networks = []
        for entry in clients:
            try:
                networks.append(ip_network(entry))
            except ValueError as error:
                raise ConfigError(f'access.clients: "{entry}": expected an address or a network: {error}') from error
        for host in hosts:
            if host.lower() != (host.lower() if _address(host) else _host(host)):
                raise ConfigError(f'access.hosts: "{host}": expected a host name without a port')
        if token and not re.fullmatch(r"[\x21-\x7e]+", token):
            raise ConfigError("access.token: expected printable ASCII characters without spaces")
        return cls(tuple(networks), frozenset(map(str.lower, hosts)), token)

    @property
    def is_open(self) -> bool:
        """Whether other machines may ask."""
        return bool(self.token) or not all(network.is_loopback for network in self.clients)

    def judge(self, target: bytes, headers: RawHeaders, client: str | None, here: str | None) -> None:
        """Raise an error unless `client` (None: a unix socket), connected to our address `here`, may ask.

        `target` is the request target as received. Host counts only beside an origin-form target (RFC 9112 §3.2). A
        request without Host does not come from a browser.
        """
        if client is None:
            return
        self._judge_client(target, headers, client)
        if target.startswith(b"/") and (host := _field(headers, b"host")) is not None and not self.is_own(host, here):
            name = _host(host) or host
            raise Misdirected(
                f'this is fetchonce, and not "{host[:100]}". if you mean it to be reached by that name: '
                f'[access] hosts = ["{name[:100]}"]'
            )

    def is_own(self, authority: str, here: str | None) -> bool:
        """Whether HOST[:PORT] is us. The port is not compared: it may be forwarded, and a page cannot choose it."""
        name = _host(authority)
        if name is None:
            return False
        if name in OWN_NAMES or name in self.hosts:
            return True
        address = _address(name)
        return address is not None and (
            address.is_loopback or address.is_unspecified or (here is not None and address == _address(here))
        )

    def own_path(self, target: bytes, server: Server) -> bytes:
        """`target` in origin-form if it is in absolute-form and names us with our port; else unchanged.

        A client that uses our URLs and has us as its http_proxy too asks `GET http://127.0.0.1:8642/ubuntu/...`.
        """
        scheme, found, rest = target.partition(b"://")
        if not found or scheme.lower() not in (b"http", b"https") or not server or server[1] is None:
            return target
        authority, slash, path = rest.partition(b"/")
        host = authority.decode("latin-1")
        port = host.rpartition(":")[2] if re.search(r":\d+\Z", host) else "80" if scheme.lower() == b"http" else "443"
        return slash + path or b"/" if port == str(server[1]) and self.is_own(host, server[0]) else target

    def own_base(self, scheme: str, target: bytes, headers: RawHeaders, server: Server) -> str | None:
        """The URL by which the client names us, without a path; None if it does not. After `judge`.

        A client that has put the token into its URL needs it in the others too.
        """
        if target.startswith(b"/"):
            authority = _field(headers, b"host") or ""
        elif self.own_path(target, server) != target:
            authority = target.partition(b"://")[2].partition(b"/")[0].decode("latin-1")
        else:
            return None
        if _host(authority) is None:
            return None
        credentials = _field(headers, b"authorization")
        if not credentials or not credentials.lower().startswith("basic ") or not self.is_token(credentials):
            return f"{scheme}://{authority}"
        user, _, token = base64.b64decode(credentials[6:]).decode("latin-1").partition(":")
        return f"{scheme}://{quote(user, safe='')}:{quote(token, safe='')}@{authority}"

    def is_bearing(self, headers: RawHeaders) -> bool:
        """Whether the request shows the token, as Bearer or as the password of Basic, to us as an origin or proxy."""
        return any(self.is_token(_field(headers, name)) for name in (b"authorization", b"proxy-authorization"))

    def is_token(self, credentials: str | None) -> bool:
        """Whether the value of a field is our token. If so, it must not be sent upstream."""
        given = _credential(credentials)
        return bool(self.token) and given is not None and hmac.compare_digest(given, self.token.encode())

    def judge_change(self, method: str, headers: RawHeaders) -> None:
        """Raise Forbidden unless a request that changes something comes from a program or from our own page.

        A page elsewhere can send us a POST through a visitor's browser. But the browser asks first before it sends
        JSON, and always says where the request comes from. A request with the token is trusted from anywhere.
        """
        if (
            method == "POST"
            and (_field(headers, b"content-type") or "").partition(";")[0].strip() != "application/json"
        ):
            raise Forbidden("a request that changes something must be application/json")
        origin, site = _field(headers, b"origin"), _field(headers, b"sec-fetch-site")
        is_elsewhere = origin is not None and origin.partition("://")[2] != _field(headers, b"host")
        if (is_elsewhere or site not in (None, "same-origin", "none")) and not self.is_bearing(headers):
            raise Forbidden(f"a page of {origin or 'another site'} may not change anything here")

    def _judge_client(self, target: bytes, headers: RawHeaders, client: str) -> None:
        address = _address(client)
        if (address is not None and any(address in each for each in self.clients)) or self.is_bearing(headers):
            return
        if not self.token:
            raise Forbidden(f'{client} may not ask here. to allow it: [access] clients = ["{client}"]')
        message = f"{client} must show the token of this fetchonce: http://x:TOKEN@HOST:PORT/..., or as Bearer"
        if target.startswith(b"/"):
            raise Unauthorized(message, headers=(("www-authenticate", CHALLENGE),))
        raise ProxyUnauthorized(message, headers=(("proxy-authenticate", CHALLENGE),))


def is_via(headers: RawHeaders, pseudonym: str) -> bool:
    """Whether the request has come through the proxy `pseudonym` (RFC 9110 §7.6.3)."""
    members = (member.split() for name, value in headers if name == b"via" for member in value.split(b","))
    return any(len(member) > 1 and member[1] == pseudonym.encode() for member in members)


def _field(headers: RawHeaders, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def _credential(value: str | None) -> bytes | None:
    """The token or password in an Authorization field (RFC 6750 §2.1, RFC 7617 §2)."""
    scheme, _, rest = (value or "").partition(" ")
    match scheme.lower():
        case "bearer":
            return rest.strip().encode("latin-1")
        case "basic":
            try:
                return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return None
        case _:
            return None


@functools.lru_cache(maxsize=64)  # few, as each may be as long as a head
def _host(authority: str) -> str | None:
    """The host of HOST[:PORT] in lower case, without brackets and trailing dot; None if it is malformed."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+?)\.?(?::\d{0,5})?", authority.lower())
    return found[1].strip("[]") if found else None


@functools.lru_cache(maxsize=1024)
def _address(text: str) -> Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A socket for both families shows IPv4 clients as mapped addresses.
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address
