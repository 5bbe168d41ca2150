"""Whether a service that failed is left alone for a while. `now` is any clock that only goes forward."""

FAILURES = 3
"""In a row: one slow answer of a thousand is nothing, three are trouble."""
ABSENT_SECONDS = 30.0
"""What failed counts as absent for so long; then the next question shows whether it is back."""


class Circuit:
    def __init__(self) -> None:
        self._failures, self._absent_until = 0, 0.0

    def is_absent(self, now: float) -> bool:
        """Whether it is not to be asked."""
        return self._failures >= FAILURES and now < self._absent_until

    def left(self, now: float) -> float:
        """Seconds until it may be asked again."""
        return self._absent_until - now if self.is_absent(now) else 0.0

    def failed(self, now: float) -> bool:
        """It failed. True if it was fine until now, and is given up: worth a line in the log."""
        self._failures += 1
        if self._failures >= FAILURES:
            self._absent_until = now + ABSENT_SECONDS
        return self._failures == FAILURES

    def answered(self) -> bool:
        """It answered. True if it had been given up."""
        had_failed, self._failures = self._failures >= FAILURES, 0
        return had_failed
