"""Whether a store gives a body so slowly that a mirror is asked for the rest. Peers' rule (curl's speed-limit and
speed-time, dnf's minrate): less than so many bytes a second, for so long.
"""

from dataclasses import dataclass

PACE_SECONDS = 5.0
"""Over which a rate is taken. Of waiting: a client that takes its bytes slowly says nothing about the store."""
FLOOR_RATE = 1e6
"""Bytes a second of one connection: less is slow..."""
LINE_RATE = 10e6
"""... unless all connections bring as much as this: then it is our own line that is full (100 Mbit/s)."""
PATIENT_SECONDS = 600.0
"""So long a slow store is waited for, after a mirror has been no faster."""


class Pace:
    """Of one body, by one connection or several."""

    def __init__(self) -> None:
        self.rate: float | None = None
        """Of the connection that was slow, or 0.0 if nothing came; None: none was."""
        self._is_compared = False
        self._since: float | None = None
        self._count = 0

    @property
    def is_slow(self) -> bool:
        return self.rate is not None

    def compared(self, count: int, now: float) -> bool:
        """Take note that a mirror has brought `count` bytes of the rest. True, once, if it is found no faster."""
        if self.rate is None or self._is_compared:
            return False
        if self._since is None:
            self._since = now
            return False
        self._count += count
        if (seconds := now - self._since) < PACE_SECONDS:
            return False
        self._is_compared = True
        return self._count / seconds <= self.rate


@dataclass(slots=True)
class Meter:
    """Of one connection."""

    since: float
    of_all: int
    """Bytes that all connections to the store have brought by then."""
    waited: float = 0.0
    count: int = 0

    def came(self, count: int, waited: float, now: float, of_all: int) -> float | None:
        """Take note that after a wait of so many seconds `count` bytes came. The rate, if it is slow; else None."""
        self.waited += waited
        self.count += count
        if self.waited < PACE_SECONDS:
            return None
        rate, rate_of_all = self.count / self.waited, (of_all - self.of_all) / max(now - self.since, self.waited)
        self.since, self.of_all, self.waited, self.count = now, of_all, 0.0, 0
        return rate if rate < FLOOR_RATE and rate_of_all < LINE_RATE else None
