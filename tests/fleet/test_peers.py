"""What is remembered of other servers of ours."""

import threading

from proxy.errors import PeerFailed, Unhelpful
from proxy.fill.context import MAX_SERVERS, Threads
from proxy.fill.peers import MAX_PEERS, KnownPeers
from proxy.rules.circuit import ABSENT_SECONDS
from proxy.stats import Stats
from tests.harness import until

BASE = "http://10.0.0.5:8642"


def failed(known, why, now, base=BASE):
    known.failed(base, "parent", why, PeerFailed("it did not help", why), now)


def test_whoever_answers_that_it_cannot_help_is_there():
    known = KnownPeers(Stats())
    failed(known, Unhelpful.GONE, now=0)
    assert known.is_absent(BASE, 1)
    assert not known.may_ask(BASE, 1)
    assert known.may_ask(BASE, ABSENT_SECONDS)
    failed(known, Unhelpful.UNABLE, now=ABSENT_SECONDS)
    assert known.may_ask(BASE, ABSENT_SECONDS)
    assert known.status() == {BASE: "answers"}
    failed(known, Unhelpful.SLOW, now=ABSENT_SECONDS + 1)
    assert known.may_ask(BASE, ABSENT_SECONDS + 1)
    failed(known, Unhelpful.SLOW, now=ABSENT_SECONDS + 60)
    assert not known.may_ask(BASE, ABSENT_SECONDS + 60)


def test_whoever_breaks_off_may_be_there():
    known = KnownPeers(Stats())
    failed(known, Unhelpful.BROKEN, now=0)
    assert known.may_ask(BASE, 1)


async def test_machines_that_come_and_go_are_forgotten():
    known, threads = KnownPeers(Stats()), Threads()
    try:
        for number in range(2 * MAX_PEERS):
            failed(known, Unhelpful.GONE, now=0, base=f"http://10.0.0.5:{number}")
        assert len(known.status()) == MAX_PEERS

        over, before = threading.Event(), threading.active_count()
        running = threads.of("http://upstream/x.img").submit(over.wait)
        waiting = [threads.of("http://upstream/x.img").submit(int, 7) for _ in range(300)]
        for number in range(3 * MAX_SERVERS):
            threads.of(f"http://10.0.0.5:{number}/x.img").submit(int).result(10)
        await until(lambda: threading.active_count() - before <= 128 + MAX_SERVERS)
        over.set()
        assert running.result(10)
        assert {each.result(10) for each in waiting} == {7}
    finally:
        threads.close()
