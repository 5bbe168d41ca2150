"""Metrics in the formats of Prometheus: text, or OpenMetrics for whoever asks for that.

Every name begins with `fetchonce_`; units are seconds and bytes; counters end in `_total`. METRICS is the whole list.
"""

import platform
from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from ..gateway import Gateway
from ..rules.eviction import Space
from ..stats import Histogram, Labels
from ..version import VERSION
from .monitor import Monitor, Snapshot

COUNTERS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "requests": ("requests", ("mirror", "method", "status", "cache"), "Answers to clients."),
    "repeated": ("repeated", ("mirror",), "Those of them that were repeated within a second, without a new look."),
    "sent_bytes": ("sent_bytes", ("mirror",), "Body bytes sent to clients."),
    "fetched_bytes": ("fetched_bytes", ("mirror",), "Body bytes received from upstream."),
    "peer_requests": ("peers", ("kind", "outcome"), "Questions to other servers of the fleet: answered or failed."),
    "peer_bytes": ("peer_bytes", ("kind",), "Those of the fetched bytes that came from other servers of the fleet."),
    "leases": ("leases", ("outcome",), "Looks for the lease of an object: held, elsewhere, or unknown."),
    "bucket_bytes": ("bucket_bytes", ("direction",), "Body bytes read from and written to the shared bucket."),
    "bucket_lookups": (
        "bucket_lookups",
        ("result",),
        "Objects looked for in the bucket: hit, stale (confirmed by upstream), miss, wrong, failed or absent.",
    ),
    "bucket_uploads": ("bucket_uploads", ("outcome",), "Bodies for the bucket: stored, present, failed or late."),
    "fills": ("fills", ("mirror", "outcome"), "Fills that ended: complete, unchanged, passed or failed."),
    "fill_failures": ("failures", ("mirror", "cause"), "Fills that failed."),
    "fill_resumes": ("resumes", ("mirror",), "Transfers from upstream that broke and were asked for again."),
    "evictions": ("evictions", (), "Bodies evicted to make room."),
    "evicted_bytes": ("evicted_bytes", (), "Bytes of evicted bodies."),
}
"""By name, without fetchonce_ and _total: the field of Stats, its labels, the help."""
HISTOGRAMS = {
    "first_byte_seconds": ("first_byte", "From a request to the head of its answer."),
    "fill_duration_seconds": ("fill_duration", "Of complete fills."),
}
GAUGES = {
    "workers": ("workers", "Processes of this server."),
    "connections": ("connections", "Open connections of clients."),
    "fills_running": ("fills", "Transfers from upstream that run."),
    "fill_readers": ("readers", "Clients that read bodies which are still coming."),
    "bucket_waiting": ("bucket_waiting", "Bodies on their way into the bucket."),
    "bucket_aside": ("bucket_aside", "Bodies that the bucket does not take, or damaged ones here: tried once a day."),
    "bucket_absent": ("bucket_absent", "Processes that leave the bucket alone for a while, because it failed."),
    "loop_lag_seconds": ("loop_lag", "The most that the event loop was late in the last minute."),
}
STORE = {
    "store_bytes": "Bytes in the cache directory, what has come of unfinished bodies included.",
    "reserved_bytes": "Bytes that running fills have still to bring, for which room is kept.",
    "store_max_bytes": "cache.max_size; 0: no limit.",
    "store_entries": "URLs stored whole.",
    "disk_free_bytes": "Free on the file system, less what is reserved.",
}
INFO = {"build": "Version of fetchonce and of Python.", "start_time_seconds": "When this process began, in Unix time."}
METRICS = (
    *(f"fetchonce_{name}_total" for name in COUNTERS),
    *(f"fetchonce_{name}" for name in (*HISTOGRAMS, *GAUGES, *STORE, "build_info", "start_time_seconds")),
)


async def exposition(gateway: Gateway, monitor: Monitor, accept: str) -> tuple[bytes, str]:
    """The text of all metrics, and its Content-Type."""
    space, entries = await gateway.janitor.space(), await gateway.store.count()
    families = [*_counted(monitor.snapshot()), *_stored(space, entries), *_about(gateway)]

    class Families:
        def collect(self) -> list[Metric]:
            return families

    registry = CollectorRegistry()
    registry.register(Families())
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type


def _counted(snapshot: Snapshot) -> Iterator[Metric]:
    for name, (field, labels, help_text) in COUNTERS.items():
        family = CounterMetricFamily(f"fetchonce_{name}", help_text, labels=labels)
        counts: Counter[Labels] = getattr(snapshot.stats, field)
        if not labels:
            counts[()] += 0  # there from the start, so that a rate is right from the first time on
        for values, count in sorted(counts.items()):
            family.add_metric(values, count)
        yield family
    for name, (field, help_text) in HISTOGRAMS.items():
        family_of = HistogramMetricFamily(f"fetchonce_{name}", help_text)
        histogram: Histogram = getattr(snapshot.stats, field)
        family_of.add_metric((), list(_cumulated(histogram)), histogram.sum)
        yield family_of
    for name, (field, help_text) in GAUGES.items():
        yield GaugeMetricFamily(f"fetchonce_{name}", help_text, getattr(snapshot.gauges, field))


def _cumulated(histogram: Histogram) -> Iterator[tuple[str, float]]:
    count = 0
    for bound, more in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        count += more
        yield "+Inf" if bound == float("inf") else str(bound), count


def _stored(space: Space, entries: int) -> Iterator[Metric]:
    for name, value in zip(STORE, (space.stored, space.reserved, space.max_size, entries, space.free), strict=True):
        yield GaugeMetricFamily(f"fetchonce_{name}", STORE[name], value)


def _about(gateway: Gateway) -> Iterator[Metric]:
    build = {"version": VERSION, "python": platform.python_version()}
    yield InfoMetricFamily("fetchonce_build", INFO["build"], build)
    yield GaugeMetricFamily("fetchonce_start_time_seconds", INFO["start_time_seconds"], gateway.started_at)
