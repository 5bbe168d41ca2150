"""What upstream has said it does not have: 404 and 410, for a mirror's `negative_ttl`.

In memory, and bounded: whoever asks for names at random makes it forget, never grow.
"""

from collections import OrderedDict
from dataclasses import dataclass

from .errors import UpstreamStatus
from .rules import policy
from .rules.entry import Head, Headers
from .rules.freshness import initial_age
from .rules.mirrors import Target

MAX_KNOWN = 4096


@dataclass(frozen=True, slots=True)
class Absence:
    status: int
    message: str
    at: float
    """Unix time at which upstream said so."""
    age: float
    """Seconds since the origin had said so, at that time."""
    lifetime: float


class Missing:
    def __init__(self) -> None:
        self._known: OrderedDict[str, Absence] = OrderedDict()

    def note(self, target: Target, error: UpstreamStatus, now: float) -> None:
        """Remember an answer, if it is one to be remembered."""
        head = Head(error.fields, None, "", initial_age(error.fields, now, 0.0))
        lifetime = policy.negative_lifetime(target.mirror, error.upstream_status, head)
        self.forget(target)
        if lifetime > 0:
            self._known[target.key] = Absence(error.upstream_status, error.message, now, head.age, lifetime)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)

    def forget(self, target: Target) -> None:
        self._known.pop(target.key, None)

    def check(self, target: Target, headers: Headers, now: float) -> None:
        """Raises UpstreamStatus if upstream need not be asked: it has just said that there is no such object."""
        known = self._known.get(target.key)
        if known is None:
            return
        resident = max(0.0, now - known.at)
        left = known.lifetime - resident
        if left <= 0:
            self.forget(target)
        elif policy.satisfies(policy.request_directives(headers), known.age + resident, left):
            error = UpstreamStatus(known.message, known.status)
            told = f"fetchonce; hit; ttl={int(left)}; detail=negative"
            raise error.with_header("age", str(int(known.age + resident))).with_header("cache-status", told)
