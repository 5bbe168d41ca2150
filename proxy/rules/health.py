"""Which upstream servers failed recently. They are asked last for a while."""

from collections.abc import Iterable

SHUN_SECONDS = 60.0
"""How long a failed server comes last. Short, because the others may be far away, and one request is enough to see."""


CROWDED_SECONDS = 600.0
"""How long a server that refused a second connection is left with one: a rate limit counts by minutes or hours."""


class Health:
    """Remembers failures by server (scheme, host, port). `now` is any clock that only goes forward."""

    def __init__(self) -> None:
        self._failed: dict[str, float] = {}
        self._crowded_until: dict[str, float] = {}

    def failed(self, url: str, now: float) -> None:
        self._failed[_server(url)] = now

    def refused_more(self, url: str, now: float, seconds: float | None) -> None:
        """One more connection was refused, or met another node: for `seconds` one at a time must do."""
        self._crowded_until[_server(url)] = now + max(CROWDED_SECONDS, seconds or 0.0)

    def takes_more(self, url: str, now: float) -> bool:
        """Whether the server may be asked over several connections at once."""
        return now >= self._crowded_until.get(_server(url), 0.0)

    def answered(self, url: str) -> None:
        self._failed.pop(_server(url), None)

    def order(self, urls: Iterable[str], now: float) -> list[str]:
        """`urls` in their order, but with recently failed servers last; among those, the oldest failure first."""

        def shunned(url: str) -> float:
            at = self._failed.get(_server(url))
            return 0.0 if at is None or now - at >= SHUN_SECONDS else 1.0 + at

        return sorted(urls, key=shunned)


def _server(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
