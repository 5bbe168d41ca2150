"""Which answers the server may repeat, and until when (rules/repeat.py).

An answer from the store may be, as long as its Age is true and the same question would be decided in the same way. What
could come between is looked at before each repetition: the entry, the checksum files that its freshness rests on, a
fill that has something new, a reload.
"""

from collections.abc import Callable, Mapping

from .delivery import Delivery
from .fill.flights import Flights
from .rules.entry import Entry
from .rules.pieces import Slice
from .rules.repeat import Repeat, Repetition
from .store.hot import StoredBody
from .store.store import Store


class Repeats:
    def __init__(self, store: Store, flights: Flights, clock: Callable[[], float]) -> None:
        self._store, self._flights, self._clock = store, flights, clock
        self._era = object()

    def forbid(self) -> None:
        """None of the answers so far may be repeated any more: the settings are others."""
        self._era = object()

    def allow(self, delivery: Delivery, entry: Entry, steady: float) -> Delivery:
        """`delivery` of `entry`, which may be repeated; the decision to serve it holds for `steady` seconds."""
        now = self._clock()
        until = now + min(steady, 1.0 - delivery.age % 1.0)
        body, target, era = delivery.body, delivery.target, self._era
        tag = self._store.tag(entry.key)
        if until <= now or not isinstance(body, StoredBody) or not tag or tag.entry is not entry:
            return delivery  # what is stored may be another already
        siblings = target.checksums if target.mirror.is_moving(target.path) else ()
        tags, absent = [tag], []
        for sibling in siblings:
            if not (tag := self._store.tag(sibling.key)):
                absent.append(sibling.key)
            elif tag.entry.stored_at <= max(entry.stored_at, entry.validated_at):
                tags.append(tag)
            else:
                return delivery
        checksums, get_fill = self._flights.checksums, self._flights.get

        def is_current() -> bool:
            # A fill has a new body whole before that is stored.
            if self._era is not era or get_fill(target.key):
                return False
            return all(tag.is_current() for tag in tags) and all(checksums.is_absent(key) for key in absent)

        def served(repetitions: Mapping[Repetition, int]) -> None:
            self._store.touch(entry.key, self._clock(), sum(repetitions.values()))

        delivery.repeat = Repeat(now, until, is_current, Slice(body.fd, 0, body.length), served)
        return delivery
