"""Which addresses may be asked: public ones, and of the others exactly the host:port that a mirror names.

A name is resolved once, each address is checked, and the connection goes to the checked address itself: no second
resolution could give another answer. TLS and Host keep the name. With a proxy on the way, the proxy resolves; then only
a host that is written as an address can be checked, which `check_literal` does before every request.
"""

import socket
from typing import Any

import httpcore

from ..rules.addresses import inside
from .wire import Wires

Named = frozenset[tuple[str, int]]
"""Host and port of each upstream of a mirror; an IPv6 address without brackets."""


class Refused(Exception):
    """`host` is or means an address that may not be asked."""

    def __init__(self, host: str, address: str, kind: str) -> None:
        means = f"{host} is" if host == address else f"{host} means {address},"
        super().__init__(f"{means} a {kind} address")


class Egress(Wires):
    """Makes the connections of one pool; runs in transfer threads, and blocks."""

    is_direct = True

    def __init__(self, named: Named) -> None:
        self._named = named

    def connect_tcp(self, host: str, port: int, *args: Any, **named: Any) -> httpcore.NetworkStream:
        """As httpcore's own. Raises Refused if none of the addresses of `host` is allowed."""
        addresses = [host] if (host, port) in self._named else _public(host, port)
        for address in addresses[:-1]:
            try:
                return super().connect_tcp(address, port, *args, **named)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return super().connect_tcp(addresses[-1], port, *args, **named)

    def check_literal(self, host: str, port: int) -> None:
        """Raises Refused if `host` is an address, however it is written, that is not allowed."""
        if (host, port) in self._named:
            return
        address = _written(host)
        if address and (kind := inside(address)):
            raise Refused(host, address, kind)


def _written(host: str) -> str | None:
    """The address that `host` spells; C libraries read 2130706433, 0x7f.1 and 017700000001 as one too. None: a name."""
    if ":" in host:
        return host
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


def _public(host: str, port: int) -> list[str]:
    """The addresses of `host` that are allowed, in the resolver's order; never empty."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: no host name at all
        raise httpcore.ConnectError(str(error)) from error
    addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    checked = [(address, inside(address)) for address in addresses]
    if allowed := [address for address, kind in checked if kind is None]:
        return allowed
    address, kind = checked[0]
    raise Refused(host, address, kind or "")
