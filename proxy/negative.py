"""The negative cache: upstream's 404 and 410, for a mirror's `negative_ttl`.

It is in memory and bounded: a client that asks for random names makes it forget, not grow. It is for clients without
credentials alone: upstream may hide from them what it gives to others, and the other way round.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TLRUCache

from .errors import UpstreamStatus
from .rules import policy, vary
from .rules.cache_status import CacheStatus
from .rules.entry import Head, Headers
from .rules.freshness import initial_age
from .rules.mirrors import Target

MAX_ANSWERS = 4096


@dataclass(frozen=True, slots=True)
class NegativeAnswer:
    status: int
    message: str
    received_at: float
    """Unix time."""
    age: float
    """Seconds since the origin made the answer, when we received it."""
    lifetime: float
    asked: str | None
    """As in CacheStatus."""


class NegativeCache:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._answers: TLRUCache[tuple[str, str], NegativeAnswer] = TLRUCache(
            MAX_ANSWERS, lambda _, answer, now: now + answer.lifetime, clock
        )

    def note(self, target: Target, headers: Headers, error: UpstreamStatus, method: str = "GET") -> None:
        """Remember upstream's answer to a request with `headers`, if it may be remembered."""
        if vary.login(headers) is not None:
            return
        now = self._clock()
        head = Head(error.fields, None, "", initial_age(error.fields, now, 0.0))
        lifetime = policy.negative_lifetime(target.mirror, error.upstream_status, head)
        self._answers.pop((method, target.key), None)
        if lifetime > 0:
            self._answers[method, target.key] = NegativeAnswer(
                error.upstream_status, error.message, now, head.age, lifetime, error.cache_status.asked
            )

    def forget(self, target: Target, headers: Headers) -> None:
        """Upstream has given the object for a request with `headers`."""
        if vary.login(headers) is None:
            for question in (("GET", target.key), ("HEAD", target.key)):
                if question in self._answers:
                    self._answers.pop(question, None)

    def check(self, target: Target, headers: Headers, method: str = "GET") -> None:
        """Raises UpstreamStatus if upstream has just said that there is no such object, and need not be asked again.

        What it said to GET holds for HEAD, but not the other way round: some servers know HEAD badly.
        """
        asked = [each for each in (("GET", target.key), (method, target.key)) if each in self._answers]
        answer = self._answers.get(asked[0]) if asked else None
        if answer is None or vary.login(headers) is not None:
            return
        resident = self._clock() - answer.received_at
        if resident < 0:  # the clock was set back: nobody knows the age
            return
        age, left = answer.age + resident, answer.lifetime - resident
        if policy.satisfies(policy.request_directives(headers), age, left):
            cache_status = CacheStatus(hit=True, ttl=int(left), detail="negative", asked=answer.asked)
            error = UpstreamStatus(answer.message, answer.status)
            raise error.with_cache_status(cache_status, ("age", str(int(age))))
