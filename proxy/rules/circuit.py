"""Whether a service that failed is left alone for a while. `now` is any clock that only goes forward."""

ABSENT_SECONDS = 30.0
"""What failed counts as absent for so long; then the next question shows whether it is back."""


class Circuit:
    def __init__(self, failures: int = 1) -> None:
        """It is left alone after so many failures in a row."""
        self._enough, self._failures, self._absent_until = failures, 0, 0.0

    def may_ask(self, now: float) -> bool:
        """Whether to ask it. When its time is over, who asks first tries it; the others wait for that."""
        if self.is_absent(now):
            return False
        if self.is_given_up:
            self._absent_until = now + ABSENT_SECONDS
        return True

    @property
    def is_given_up(self) -> bool:
        """Whether it has failed, and has not answered since."""
        return self._failures >= self._enough

    def is_absent(self, now: float) -> bool:
        """Whether it is not to be asked. To look changes nothing."""
        return self.is_given_up and now < self._absent_until

    def left(self, now: float) -> float:
        """Seconds until it may be asked again."""
        return self._absent_until - now if self.is_absent(now) else 0.0

    def failed(self, now: float) -> bool:
        """It failed. True if it was fine until now, and is given up: worth a line in the log."""
        self._failures += 1
        if self.is_given_up:
            self._absent_until = now + ABSENT_SECONDS
        return self._failures == self._enough

    def answered(self) -> bool:
        """It answered. True if it had been given up."""
        had_failed, self._failures = self.is_given_up, 0
        return had_failed
