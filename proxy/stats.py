"""Counters of this process. Everybody adds to them; only web/ reads them."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Stats:
    requests: dict[str, int] = field(default_factory=dict)
    """Answers by result code: HIT, MISS, FOLLOW, REVALIDATED, STALE, BYPASS, ERROR."""
    sent_bytes: int = 0
    """Body bytes sent to clients."""
    fetched_bytes: int = 0
    """Body bytes received from upstream."""
    fills: dict[str, int] = field(default_factory=dict)
    """Fills by outcome: complete, unchanged, passed, failed."""

    def count_request(self, result: str) -> None:
        self.requests[result] = self.requests.get(result, 0) + 1

    def count_fill(self, outcome: str) -> None:
        self.fills[outcome] = self.fills.get(outcome, 0) + 1
