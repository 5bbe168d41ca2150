"""What the app says of an answer that it would give again: the server may repeat it without asking (serving/replay.py).

The app and its rules decide what is repeatable, and for how long; the server only repeats.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .pieces import Slice

Repetition = tuple[int, int, float, bool]
"""Unix time of its end in milliseconds, body bytes sent, seconds it took, whether the client left before its end."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """An answer to a request with the same bytes, from the same client address, to the same address of ours.

    Where the answer is a 206 to one range, any other range of `file` may stand in the request's Range.
    """

    since: float
    until: float
    """Between these Unix times it is true, Age and all. A clock that is set back shows an earlier one."""
    is_current: Callable[[], bool]
    """Whether the app would still give this answer. Asked after the request has begun and before it is answered."""
    file: Slice
    """The whole body, open as long as the answer is being sent."""
    served: Callable[[Mapping[Repetition, int]], None]
    """Told of all repetitions, some at a time, in order: how many there were of each."""
