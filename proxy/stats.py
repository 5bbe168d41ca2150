"""Counters of this process. Rooms add to them and never read them; web/ takes snapshots."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Stats:
    requests: dict[str, int] = field(default_factory=dict)
    """Answers by cache word: HIT, MISS, FOLLOW, REVALIDATED, STALE, ERROR."""
    sent_bytes: int = 0
    """Body bytes sent to clients."""
    fetched_bytes: int = 0
    """Body bytes received from upstream."""
    fills: dict[str, int] = field(default_factory=dict)
    """Fills by outcome: complete, unchanged, failed."""

    def count_request(self, word: str) -> None:
        self.requests[word] = self.requests.get(word, 0) + 1

    def count_fill(self, outcome: str) -> None:
        self.fills[outcome] = self.fills.get(outcome, 0) + 1
