"""What all fills of a process work with."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from ..config import FillSection
from ..rules.health import Health
from ..stats import Stats
from ..store.janitor import Janitor
from ..store.store import Store
from ..upstream.client import Upstream


@dataclass(frozen=True, slots=True)
class FillContext:
    store: Store
    janitor: Janitor
    upstream: Upstream
    settings: FillSection
    threads: Executor
    """Runs what blocks on upstream."""
    stats: Stats
    health: Health
    clock: Callable[[], float]
