"""Which addresses are public, and which belong to an inner network (RFC 6890 and the IANA registries).

An upstream's name or redirect may lead anywhere, but must not reach this machine, its network, or the metadata service
of a cloud. An IPv6 address that carries an IPv4 address is judged as that address.
"""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All global addresses that IANA has assigned. Python calls some addresses outside of it global, by oversight."""
NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052; an IPv6-only network reaches every IPv4 server through it


def inside(address: str) -> str | None:
    """The kind of a non-public address, for messages; None for a public one. Raises ValueError for anything else."""
    return _kind(ip_address(address.partition("%")[0]))


def _kind(address: IPv4Address | IPv6Address) -> str | None:
    if isinstance(address, IPv6Address) and (carried := _carried(address)):
        return _kind(carried)
    if address.is_unspecified or address.is_loopback:
        return "loopback"  # 0.0.0.0 and :: connect to this machine too
    if address.is_link_local:
        return "link-local"
    if address.is_multicast:
        return "multicast"
    if address.is_private:
        return "private"
    is_outside = address.is_global and not address.is_reserved
    if is_outside and (isinstance(address, IPv4Address) or address in GLOBAL_UNICAST):
        return None
    return "reserved"


def _carried(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address inside a mapped, 6to4, Teredo or NAT64 one."""
    teredo = address.teredo
    if address.ipv4_mapped or address.sixtofour or teredo:
        return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)
    return IPv4Address(int(address) & 0xFFFF_FFFF) if address in NAT64 else None
