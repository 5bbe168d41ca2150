"""/-/metrics, read by Prometheus' own parsers."""

import os
import signal

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from proxy.stats import Failure, Stats, mirror_label, total
from proxy.web.metrics import METRICS
from proxy.web.slots import Slots
from tests.harness import until
from tests.origin import pattern_bytes

SIZE = 300_000
FRESH = {"cache_control": "max-age=600"}


async def samples(proxy, accept="text/plain", parser=plain):
    """{(name without fetchonce_, labels' values in the order of their names): value}."""
    answer = await proxy.get("/-/metrics", {"Accept": accept})
    assert answer.status == 200
    found = {}
    for family in parser(answer.body.decode()):
        for each in family.samples:
            assert each.name.startswith("fetchonce_")
            labels = (value for _, value in sorted(each.labels.items()))
            found[each.name.removeprefix("fetchonce_"), *labels] = each.value
    return found


async def test_the_counters_tell_what_happened(origin, proxy_factory):
    proxy = proxy_factory("--allow", "*.invalid")
    origin.pattern("/x.img", SIZE, 1).headers(**FRESH).close_at(SIZE // 2, times=1)
    origin.body("/small", b"12345").headers(**FRESH)
    assert (await proxy.get("/u/x.img")).body == pattern_bytes(SIZE, 1)
    await proxy.wait_idle()
    await proxy.get("/u/x.img", {"Range": "bytes=0-99"})
    await proxy.get("/u/x.img", method="HEAD")
    await proxy.get("/u/none")
    await proxy.get("/nobody/x")
    await proxy.get("/u/x.img", method="POST")
    for name in ("a", "b"):
        assert (await proxy.get(f"/{name}.invalid/x")).status == 502
    found = await samples(proxy)

    def requests(cache, method, mirror, status):
        return found["requests_total", cache, method, mirror, str(status)]

    assert requests("MISS", "GET", "u", 200) == 1
    assert requests("HIT", "GET", "u", 206) == 1
    assert requests("HIT", "HEAD", "u", 200) == 1
    assert requests("ERROR", "GET", "u", 404) == 1
    assert requests("ERROR", "GET", "none", 403) == 1
    assert requests("ERROR", "other", "u", 405) == 1
    assert requests("ERROR", "GET", "other", 502) == 2  # hosts that are only allowed make no labels
    assert found["sent_bytes_total", "u"] == SIZE + 100
    assert found["fetched_bytes_total", "u"] >= SIZE
    assert found["fills_total", "u", "complete"] == 1
    assert found["fill_resumes_total", "u"] == 1
    assert found["fill_failures_total", "upstream-status", "u"] == 1
    assert found["fill_failures_total", "upstream-error", "other"] == 2
    assert found["fill_duration_seconds_count",] == found["fill_duration_seconds_bucket", "+Inf"] == 1
    assert found["first_byte_seconds_count",] == sum(found[key] for key in found if key[0] == "requests_total")
    assert (found["store_entries",], found["store_bytes",]) == (1, SIZE)
    assert (found["connections",], found["workers",], found["fills_running",]) == (1, 1, 0)


async def test_both_formats_hold_every_metric(proxy):
    for accept, parser in (("text/plain", plain), ("application/openmetrics-text; version=1.0.0", openmetrics)):
        answer = await proxy.get("/-/metrics", {"Accept": accept})
        assert answer.headers["content-type"].startswith(accept.partition(";")[0])
        families = {family.name: family for family in parser(answer.body.decode())}
        told = {f"{name}_{suffix}" if (suffix := {"counter": "total", "info": "info"}.get(family.type)) else name
                for name, family in families.items()}  # fmt: skip
        assert told == set(METRICS)
        assert all(family.documentation for family in families.values())


async def test_a_running_fill_and_an_eviction_are_seen(origin, proxy_factory):
    proxy = proxy_factory("--max-size", str(SIZE + 1000))
    origin.pattern("/a.img", SIZE, 1).headers(**FRESH)
    await proxy.get("/u/a.img")
    await proxy.wait_idle()
    origin.pattern("/b.img", SIZE, 2).headers(**FRESH).stall_at(1000)
    async with await proxy.stream("/u/b.img") as stream:
        await stream.read(1000)
        found = await samples(proxy)
        assert (found["fills_running",], found["fill_readers",]) == (1, 1)
        assert found["store_bytes",] < found["reserved_bytes",] < SIZE  # what is there, and what is still to come
        assert found["store_bytes",] + found["reserved_bytes",] == SIZE
        assert (found["evictions_total",], found["evicted_bytes_total",]) == (1, SIZE)
        origin.release()
        await stream.rest()


async def test_any_worker_tells_for_all_and_a_dead_one_takes_nothing_with_it(origin, proxy_factory):
    proxy = proxy_factory("--workers", "2")
    origin.body("/x", b"12345").headers(**FRESH)

    async def are_told(sent, workers):
        return await until(lambda: _are_told(sent, workers))

    async def _are_told(sent, workers):
        found = await samples(proxy)
        return found.get(("sent_bytes_total", "u")) == sent and found["workers",] == workers and found

    for _ in range(20):
        await proxy.get("/u/x")
    for _ in range(8):  # whichever of them answers
        await are_told(100, 2)
    for worker in (await proxy.get("/-/status")).json()["workers"]:
        os.kill(worker["pid"], signal.SIGKILL)
    await are_told(100, 2)
    await proxy.get("/u/x")
    await are_told(105, 2)


async def test_counters_do_not_fall_whichever_worker_answers(origin, proxy_factory):
    proxy = proxy_factory("--workers", "3")
    origin.body("/x", b"12345").headers(**FRESH)
    told = 0.0
    for _ in range(30):
        await proxy.get("/u/x")
        before, told = told, (await samples(proxy)).get(("sent_bytes_total", "u"), 0.0)
        assert told >= before


def test_counters_of_several_processes_add_up():
    stats, other = Stats(), Stats()
    for each in (stats, other):
        each.requests["u", "GET", "200", "HIT"] += 2
        each.first_byte.observe(0.003)
        each.failed(Failure(1.0 if each is other else 2.0, "https://u/x", "u", "upstream-timeout", "it was slow"))
    stats.add(Stats.decoded(other.encoded()))
    assert total(stats.requests, 3) == {"HIT": 4}
    assert (sum(stats.first_byte.counts), stats.first_byte.sum) == (2, pytest.approx(0.006))
    assert [failure.at for failure in stats.recent] == [1.0, 2.0]
    assert stats.failures["u", "upstream-timeout"] == 2
    assert mirror_label(None) == "none"


def test_the_longest_failures_fit_into_a_slot():
    stats, other = Stats(), Stats()
    for each in (stats, other):
        for number in range(120):
            url = f"https://u/{number}/{'x' * 8000}"
            each.failed(Failure(float(number), url, "u", "upstream-error", f"{url} cannot be reached"))
    stats.add(other)
    Slots(1).write(0, stats.encoded())
    assert stats.recent[-1].at == 119
    for number in range(120):
        other.failed(Failure(float(number), f"https://u/{number}", "u", "upstream-error", "it is down"))
    assert [each.at for each in other.recent] == list(range(20, 120))
