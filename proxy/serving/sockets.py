"""From the address that a user writes to a listening socket."""

import contextlib
import errno
import os
import socket
import stat
import sys
from collections.abc import Sequence
from typing import Any

from ..config import HTTPS
from ..errors import ConfigError

BACKLOG = 4096
UNIX = "unix:"


def bind(listen: str) -> socket.socket:
    """A listening socket for `HOST:PORT`, `[v6]:PORT`, `https://` before either, or `unix:PATH`. Port 0 takes a free
    one. Raises ConfigError."""
    if listen.startswith(UNIX):
        return _bind_unix(listen, listen.removeprefix(UNIX))
    family, address = resolve(listen)
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # so that [::] and 0.0.0.0 are two listeners
        sock.bind(address)
        sock.listen(BACKLOG)  # now, so that the address is ours and early clients wait instead of failing
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {listen}: {_reason(error, str(address[1]))}") from error
    return sock


def address_of(listener: socket.socket) -> str:
    """HOST:PORT or unix:PATH, as a user would write it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"{UNIX}{name if isinstance(name, str) else name.decode(errors='replace').replace(chr(0), '@', 1)}"
    return f"[{name[0]}]:{name[1]}" if listener.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def fits(listener: socket.socket, listen: str) -> bool:
    """Whether `listener` is where `listen` says; port 0 is any. Raises ConfigError, as `bind`."""
    if listen.startswith(UNIX) or listener.family == socket.AF_UNIX:
        return listen == address_of(listener)
    family, address = resolve(listen)
    name = listener.getsockname()
    return listener.family == family and name[0] == address[0] and address[1] in (0, name[1])


def resolve(listen: str) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Where `HOST:PORT` leads. Raises ConfigError."""
    host, _, port = listen.removeprefix(HTTPS).rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"cannot listen on {listen}: write an IPv6 address in brackets, such as [::1]:8642")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(
            f"cannot listen on {listen}: expected HOST:PORT such as 127.0.0.1:8642, https://HOST:PORT or unix:PATH"
        )
    try:
        family, _, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen on {listen}: the host {host} is not known here ({error})") from error
    return family, address


def share(sockets: Sequence[socket.socket], workers: int) -> list[list[socket.socket]]:
    """Of `sockets`, which listen on one address, those of each worker. They are more than one after an upgrade.

    On Linux each worker gets a socket of its own, and the kernel balances connections between them. Where that cannot
    be had all share one: the first worker to wake accepts everything that waits, so a few workers get most connections.
    No socket is left over: clients may wait there already.
    """
    shared = list(sockets)
    # Not before bind(): there it would let a second server listen beside us.
    if workers > 1 and sys.platform == "linux" and shared[0].family != socket.AF_UNIX:
        # A socket that another user has opened, such as a service manager, cannot be joined.
        with contextlib.suppress(OSError):
            for sock in shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            while len(shared) < workers:
                shared.append(_beside(shared[0]))
    return [shared[worker::workers] or [shared[worker % len(shared)]] for worker in range(workers)]


def _beside(sock: socket.socket) -> socket.socket:
    other = socket.socket(sock.family, sock.type, sock.proto)
    try:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_INET6:
            is_only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, is_only)
        other.bind(sock.getsockname())
        other.listen(BACKLOG)
    except OSError:
        other.close()
        raise
    return other


def _reason(error: OSError, port: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use; another fetchonce? try --listen 127.0.0.1:0 (any free port), or stop it"
        case errno.EACCES:
            return f"port {port} needs privileges; use one above 1023, such as 8642"
        case errno.EADDRNOTAVAIL:
            return "this machine does not have that address; use 127.0.0.1 or one that `ip address` or `ifconfig` shows"
    return error.strerror or str(error)


def _bind_unix(listen: str, path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(listen, path)
        sock.bind(path)
        os.chmod(path, 0o600)  # before listen(), because until then nobody can connect
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        hint = "; make its directory first" if error.errno == errno.ENOENT else ""
        raise ConfigError(f"cannot listen on {listen}: {error.strerror or error}{hint}") from error
    except ConfigError:
        sock.close()
        raise
    return sock


def _remove_stale(listen: str, path: str) -> None:
    """Remove the socket file of a dead server. ConfigError if the server lives, or if the file is something else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"cannot listen on {listen}: what is there is not a socket; remove it or name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise ConfigError(f"cannot listen on {listen}: it is in use; another fetchonce? name another path, or stop it")
