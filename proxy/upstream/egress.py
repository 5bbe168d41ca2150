"""Whom we connect to: public addresses, and of the others exactly the host:port that a mirror names.

A name is resolved once, each address is judged, and the connection goes to the judged address itself: there is no
second resolution that could give another answer. TLS and Host keep the name. Where a proxy is on the way, the proxy
resolves; then only a host that is written as an address can be judged, which `judge_literal` does before every request.
"""

import socket
from collections.abc import Iterable

import httpcore

from ..rules.addresses import inside

Named = frozenset[tuple[str, int]]
"""Host and port of each upstream of a mirror; of an IPv6 address without brackets."""


class Refused(Exception):
    """`host` is or means an address that nobody may be sent to."""

    def __init__(self, host: str, address: str, kind: str) -> None:
        means = f"{host} is" if host == address else f"{host} means {address},"
        super().__init__(f"{means} a {kind} address")


class Guard(httpcore.NetworkBackend):
    """Makes the connections of one pool; runs in transfer threads, and blocks."""

    def __init__(self, named: Named) -> None:
        self._named = named
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Raises Refused if `host` has no address that is allowed; else as httpcore's own."""
        addresses = [host] if (host, port) in self._named else _public(host, port)
        for address in addresses[:-1]:
            try:
                return self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return self._plain.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    def judge_literal(self, host: str, port: int) -> None:
        """Raises Refused if `host` is written as an address, in whatever way, that is not allowed."""
        if (host, port) in self._named:
            return
        address = _written(host)
        if address and (kind := inside(address)):
            raise Refused(host, address, kind)


def _written(host: str) -> str | None:
    """The address that `host` spells, also as 2130706433, 0x7f.1 or 017700000001, which C libraries take for one."""
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
    judged = [(address, inside(address)) for address in addresses]
    if allowed := [address for address, kind in judged if kind is None]:
        return allowed
    address, kind = judged[0]
    raise Refused(host, address, kind or "")
