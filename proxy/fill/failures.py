"""Questions about stored objects that upstream has failed lately: for a while they are not asked again.

Like the negative cache, it is in memory and bounded. How long a failure counts, and for whom, is policy.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TLRUCache

from ..errors import UpstreamError, UpstreamStatus
from ..rules import policy

MAX_FAILURES = 4096


@dataclass(frozen=True, slots=True)
class Failure:
    error: UpstreamError
    times: int
    """How many questions have failed one after the other."""
    until: float
    """Unix time at which upstream is asked again."""


def status_of(error: UpstreamError) -> int | None:
    """What upstream answered; None if it did not."""
    return error.upstream_status if isinstance(error, UpstreamStatus) else None


class Failures:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # It is kept for a while after it has counted: the next one counts longer.
        self._failures: TLRUCache[str, Failure] = TLRUCache(
            MAX_FAILURES, lambda _, failure, now: max(now, failure.until) + policy.ASK_AGAIN_MAX, clock
        )

    def note(self, key: str, error: UpstreamError) -> None:
        """A question about the object `key` has failed, if that was no answer."""
        if not policy.is_failure(status_of(error)):
            self.forget(key)
            return
        before, now = self._failures.get(key), self._clock()
        # Clients that insist ask meanwhile. That they fail as well says nothing new.
        times = 1 if before is None else before.times + (before.until <= now)
        self._failures[key] = Failure(error, times, now + policy.ask_again_after(times, error.retry_after))

    def forget(self, key: str) -> None:
        """Upstream has answered."""
        if key in self._failures:
            self._failures.pop(key, None)

    def last(self, key: str) -> Failure | None:
        """The failure that counts now."""
        failure = self._failures.get(key) if key in self._failures else None
        return failure if failure and self._clock() < failure.until else None
