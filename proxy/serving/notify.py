"""What we tell the service manager that started us (sd_notify(3)); nothing where there is none."""

import contextlib
import os
import socket
import time

SEND_SECONDS = 1.0
"""How long a manager that does not read may hold us up."""


def notify(**fields: object) -> None:
    """Send assignments, such as `notify(READY=1)`. A value is one line."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    text = "\n".join(f"{name}={' '.join(str(value).splitlines())}" for name, value in fields.items())
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SEND_SECONDS)
        sock.connect(f"\0{path[1:]}" if path.startswith("@") else path)
        sock.send(text.encode())


def ready(status: str) -> None:
    """We serve. The process that says so is the main one: after an upgrade it is another than before."""
    notify(MAINPID=os.getpid(), READY=1, STATUS=status)


def reloading(status: str) -> None:
    """`ready` must follow."""
    notify(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000, STATUS=status)


def watchdog_seconds() -> float | None:
    """How often to send WATCHDOG=1: half of what the manager waits for it. None: it does not."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 2e6
