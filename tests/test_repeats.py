"""Repeated answers of a real server: the same as those that the app gives, called back at once, and all counted."""

import asyncio
import collections
import datetime
import json
import os
import re
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import Truncated, until
from tests.tracing import needs_strace, traced
from tests.web.test_metrics import samples

pytestmark = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="elsewhere small bodies go the long way")

SIZE = 100_000
BODY, OTHER = os.urandom(SIZE), os.urandom(SIZE)
FRESH = {"cache_control": "max-age=600"}
MIRROR = """
shipped_mirrors = false
[[mirror]]
name = "u"
upstreams = ["{url}"]
moving = ["/latest/"]
checksums = ["SHA256SUMS", "SHA512SUMS"]
verify = "off"
"""


CLOSED = "[access]\nclients = ['192.0.2.1']\ntoken = 'x'\n"


def question(path, *lines, method="GET"):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]).encode("latin-1")


async def ask(connection, asked, method="GET"):
    """Status, fields and body."""
    await connection.send(asked)
    answer = await connection.answer(method)
    return answer.status, answer.headers, await answer.rest()


class Asking:
    """The same question, asked over and over on several connections: its answer is always at hand."""

    def __init__(self, proxy, asked, connections=1):
        self.proxy, self.asked = proxy, asked
        self.counts, self.bodies = [0] * connections, [b""] * connections
        self.statuses = collections.Counter()
        self.first = None

    async def __aenter__(self):
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(len(self.counts))]
        await self.next()
        return self

    async def __aexit__(self, *error):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, number):
        async with await self.proxy.connect() as connection:
            while True:
                try:
                    status, _, self.bodies[number] = await ask(connection, self.asked)
                except (Truncated, ConnectionError):
                    return  # the server has ended
                self.statuses[status] += 1
                self.counts[number] += 1

    async def next(self):
        """The bodies of questions that are asked from now on, one for each connection."""
        counts = [count + 2 for count in self.counts]  # the next may have been asked before
        await until(lambda: all(map(int.__ge__, self.counts, counts)))
        return set(self.bodies)


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def served(request, origin, proxy_factory):
    """fetchonce, in so many processes, and how many connections reach all of them."""
    proxy = proxy_factory("--workers", str(request.param), mirrors={}, config_text=MIRROR.format(url=origin.url()))
    return proxy, 1 if request.param == 1 else 16


async def repeated(proxy):
    return (await samples(proxy)).get(("repeated_total", "u"), 0)


async def test_what_is_called_back_is_not_repeated_once_more(origin, served):
    proxy, connections = served
    image = origin.body("/latest/a.img", BODY)
    await proxy.fetch("/u/latest/a.img")
    async with Asking(proxy, question("/u/latest/a.img", "Range: bytes=0-"), connections) as asking:
        assert await asking.next() == {BODY}
        assert await repeated(proxy) > 0

        image.generation(OTHER)
        assert (await proxy.get("/u/latest/a.img", {"Cache-Control": "no-cache"})).body == OTHER
        await proxy.wait_idle()
        assert await asking.next() == {OTHER}

        image.generation(BODY)
        await asyncio.to_thread(proxy.run, "rm", "/u/latest/a.img")
        assert await asking.next() == {BODY}

        await proxy.wait_stored()
        image.generation(OTHER)
        await asyncio.to_thread(proxy.run, "prune", "--to-size", "0")
        assert await asking.next() == {OTHER}

        await proxy.wait_stored()
        (blob,) = [path for path in proxy.files("blobs/*/*") if path.suffix != ".json"]
        with open(blob, "r+b") as file:
            file.write(bytes(10))
        await asyncio.to_thread(proxy.run, "verify", "--repair", code=1)
        assert await asking.next() == {OTHER}

        await proxy.wait_idle()
        before = await repeated(proxy)
        await asyncio.to_thread(proxy.run, "pin", "/u/latest/a.img")
        assert await asking.next() == {OTHER}
        await until(lambda: _more(proxy, before))
        assert set(asking.statuses) == {206}

        count = origin.count("/latest/a.img")
        image.generation(BODY)
        origin.body("/latest/SHA256SUMS", b"newer")
        await proxy.get("/u/latest/SHA256SUMS")
        await proxy.wait_idle()
        if connections == 1:  # a worker may not look for a file that was not there for 10 s
            assert await asking.next() == {BODY}
            assert origin.count("/latest/a.img") == count + 1
            await proxy.wait_idle()

        proxy.config.write_text(MIRROR.format(url=origin.url()) + CLOSED)
        proxy.send_signal(signal.SIGHUP)
        await until(lambda: sum("config.reloaded" in line for line in proxy.log) >= (1 if connections == 1 else 2))
        assert all(b"token" in body for body in await asking.next())
    assert set(asking.statuses) == {206, 401}


async def _more(proxy, before):
    answer = await proxy.get("/-/metrics", {"Authorization": "Bearer x"})
    return float(re.search(r'repeated_total\{mirror="u"\} (\S+)', answer.body.decode())[1]) > before


async def test_what_is_evicted_is_not_repeated(origin, proxy_factory):
    proxy = proxy_factory("--max-size", "250KB")
    images = [origin.body(f"/{name}.img", name.encode() + BODY).headers(**FRESH) for name in "abc"]
    await proxy.fetch("/u/a.img")
    asked = question("/u/a.img", "Range: bytes=0-9")
    async with await proxy.connect() as connection:
        for _ in range(2):
            await ask(connection, asked)
        images[0].generation(OTHER)
        for name in "bc":
            await proxy.fetch(f"/u/{name}.img")
            await ask(connection, question(f"/u/{name}.img"))
        await proxy.wait_log(f"evicted url={origin.url('/a.img')}")
        assert (await ask(connection, asked))[2] == OTHER[:10]


async def test_nothing_is_repeated_past_its_freshness(origin, proxy):
    """Asked on and on, upstream is asked once in each second; and Age never says more than was allowed."""
    origin.body("/a.img", BODY).headers(cache_control="max-age=1")
    await proxy.fetch("/u/a.img")
    fields = set()
    async with await proxy.connect() as connection:
        while origin.count("/a.img") < 3:
            status, found, body = await ask(connection, question("/u/a.img", "Range: bytes=0-9"))
            assert (status, body) == (206, BODY[:10])
            if found["cache-status"] == "fetchonce; hit":
                fields.add(found["age"])
    assert fields <= {"0"}
    assert await repeated(proxy) > 0


async def test_other_clients_and_stale_answers_ask_each_time(origin, proxy_factory):
    proxy = proxy_factory()
    origin.body("/a.img", BODY).headers(cache_control="max-age=0")
    await proxy.fetch("/u/a.img")
    async with await proxy.connect() as connection:
        for number in range(3):
            await ask(connection, question("/u/a.img"))
            assert origin.count("/a.img") == number + 2
    assert await repeated(proxy) == 0
    proxy.terminate()
    origin.stop()
    offline = proxy_factory("--offline", cache_dir=proxy.cache_dir)
    async with await offline.connect() as connection:
        for _ in range(3):
            status, fields, body = await ask(connection, question("/u/a.img"))
            assert (status, body) == (200, BODY)
            assert re.fullmatch(r"fetchonce; hit; ttl=-\d+", fields["cache-status"])


async def test_a_token_is_needed_however_often_others_have_shown_it(origin, proxy_factory):
    proxy = proxy_factory(config_text=CLOSED)
    origin.body("/a.img", BODY).headers(**FRESH)
    asked = question("/u/a.img", "Authorization: Bearer x")
    async with await proxy.connect() as one, await proxy.connect() as other:
        for _ in range(3):
            assert (await ask(one, asked))[0] == 200
        assert (await ask(other, question("/u/a.img")))[0] == 401
        assert (await ask(other, question("/u/a.img", "Authorization: Bearer y")))[0] == 401


@pytest.mark.parametrize("is_logged", [True, False], ids=["logged", "not logged"])
async def test_every_repetition_is_counted_to_the_last(origin, proxy_factory, is_logged):
    proxy = proxy_factory(config_text="" if is_logged else "[log]\naccess = false\n")
    origin.body("/a.img", BODY).headers(**FRESH)
    await proxy.fetch("/u/a.img")
    before = await samples(proxy)
    asked = [
        (question("/u/a.img", "Range: bytes=0-9"), "GET", 206, 10),
        (question("/u/a.img", "Range: bytes=99990-"), "GET", 206, 10),
        (question("/u/a.img"), "GET", 200, SIZE),
        (question("/u/a.img", method="HEAD"), "HEAD", 200, 0),
        (question("/u/a.img", "If-None-Match: *"), "GET", 304, 0),
    ]
    rounds, counts = 40, collections.Counter()
    async with await proxy.connect() as connection:
        for _ in range(rounds):
            for data, method, status, size in asked:
                found, _, body = await ask(connection, data, method)
                assert (found, len(body)) == (status, size)
                counts[method, status] += 1
        after = await samples(proxy)
        for (method, status), count in counts.items():
            key = "requests_total", "HIT", method, "u", str(status)
            assert after[key] - before.get(key, 0) == count
        assert after["sent_bytes_total", "u"] - before["sent_bytes_total", "u"] == rounds * (SIZE + 20)
        count = after["first_byte_seconds_count",] - before["first_byte_seconds_count",]
        assert count == rounds * len(asked)
        assert after["repeated_total", "u"] > rounds
        for _ in range(10):
            await ask(connection, asked[0][0])
        proxy.send_signal(signal.SIGTERM)  # directly behind the last
        assert await proxy.exited() == 0
    (entry,) = json.loads(proxy.run("ls", "--json").stdout)
    assert entry["hits"] == rounds * len(asked) + 10
    lines = proxy.accesses("GET", "/u/a.img") + proxy.accesses("HEAD", "/u/a.img")
    lines = [line for line in lines if "cache=HIT" in line]
    if not is_logged:
        assert lines == []
        return
    pattern = re.compile(r"method=(\w+) .* status=(\d+) bytes=(\d+)")
    told = collections.Counter(pattern.search(line).groups() for line in lines)
    wanted = collections.Counter({(method, str(status), str(size)): 0 for _, method, status, size in asked})
    for _, method, status, size in asked:
        wanted[method, str(status), str(size)] += rounds
    wanted["GET", "206", "10"] += 10
    wanted["HEAD", "200", str(SIZE)], wanted["HEAD", "200", "0"] = 0, rounds
    assert +told == +wanted
    for kind in ("status=206", "status=304", "status=200"):
        times = [datetime.datetime.fromisoformat(line[:23].replace(",", ".")) for line in lines if kind in line]
        assert len(times) >= rounds


# -- both ways give the same -------------------------------------------------------------------------------------------

numbers = st.integers(0, SIZE + 10) | st.sampled_from([0, SIZE - 1, SIZE, 10**18, 10**19])
span = st.builds("{}-{}".format, numbers, numbers | st.just(""))
specs = span | st.builds("-{}".format, numbers) | st.sampled_from(["-", "a-b", "1-2-3", "0x1-2", "+1-2", ""])
range_value = st.builds(
    "{}={}".format,
    st.sampled_from(["bytes", "bytes", "bytes", "Bytes", "bytes ", "lines"]),
    st.lists(specs, min_size=1, max_size=3).map(",".join) | specs,
)
names = st.sampled_from(["Range", "Range", "Range", "range", "RANGE", "X-Range", "Orange"])
space = st.sampled_from([": ", ": ", ":", ":  ", ": \t"])
range_line = st.builds("{}{}{}".format, names, space, range_value)
other_line = st.sampled_from(
    [
        "Accept-Encoding: gzip, br", "Cache-Control: no-cache", "Cache-Control: max-stale", "Pragma: no-cache",
        "Cache-Control: only-if-cached", "If-None-Match: *", 'If-None-Match: "x"', "Connection: keep-alive",
        "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT", "If-Modified-Since: Tue, 01 Jan 2030 00:00:00 GMT",
        'If-Range: "x"', "If-Range: ETAG", "If-None-Match: ETAG", "If-Match: ETAG", 'If-Match: "x"', "X: 50%d%s",
        "X: ange: bytes=1-2", "Authorization: Basic eDp5", "User-Agent: x",
    ]
)  # fmt: skip
generated = st.tuples(
    st.sampled_from(["GET", "GET", "GET", "HEAD"]), st.lists(range_line | other_line | range_line, max_size=4)
)


async def test_both_ways_give_the_same(origin, proxy):
    """hypothesis: the same bytes twice, and once more with a field that makes them new."""
    origin.body("/a.img", BODY).headers(cache_control="max-age=600", date=None)
    first = await proxy.fetch("/u/a.img")
    etag, loop = first.headers["etag"], asyncio.get_running_loop()
    serial = iter(range(10**6))

    async def compare(method, lines):
        lines = [line.replace("ETAG", etag) for line in lines]
        answers = []
        async with await proxy.connect() as connection:
            for more in ([], [], [f"X-New: {next(serial)}"]):
                status, fields, body = await ask(connection, question("/u/a.img", *lines, *more, method=method), method)
                fields.pop("age", None)
                fields.pop("date", None)
                if status >= 400:
                    body = b""
                answers.append((status, fields, body))
                if fields.get("connection") == "close":
                    break
        assert answers.count(answers[0]) == len(answers), (method, lines)

    @settings(max_examples=250)
    @given(generated)
    def run(asked):
        asyncio.run_coroutine_threadsafe(compare(*asked), loop).result()

    await asyncio.to_thread(run)
    assert await repeated(proxy) > 20
    assert "Traceback" not in "\n".join(proxy.log)


# -- what a repetition costs -------------------------------------------------------------------------------------------

SPELLINGS = {"newfstatat": "stat", "statx": "stat", "read": "recvfrom", "write": "sendto", "epoll_pwait": "epoll_wait"}
"""By C library and event loop."""


@needs_strace
@pytest.mark.parametrize(
    ("lines", "calls"),
    [
        pytest.param(["Range: bytes=10-65545"], {"recvfrom", "stat", "preadv2", "sendto", "sendfile"}, id="range"),
        pytest.param(["Range: bytes=0-9"], {"recvfrom", "stat", "preadv2", "sendmsg"}, id="small range"),
        pytest.param(["If-None-Match: *"], {"recvfrom", "stat", "sendto"}, id="304"),
    ],
)
async def test_a_repetition_costs_a_few_system_calls_and_no_other_thread(origin, proxy, tmp_path, lines, calls):
    count = 600
    origin.body("/a.img", BODY).headers(**FRESH)
    await proxy.fetch("/u/a.img")
    asked = question("/u/a.img", *lines)
    async with await proxy.connect() as connection:
        await ask(connection, asked)
        with traced(proxy.pid, "all", tmp_path / "strace") as made:
            before = await repeated(proxy)
            for _ in range(count):
                await ask(connection, asked)
            hits = await repeated(proxy) - before
    assert hits > count / 2
    found = collections.Counter(call.name for call in made)
    for spelling, call in SPELLINGS.items():
        found[call] += found.pop(spelling, 0)
    # Where a second ends, or the machine is busy, some go the long way; /-/metrics was asked too, which takes threads.
    slack = 120 + 20 * (count - hits)
    for call in calls | {"epoll_wait"}:
        assert hits <= found[call] <= count + slack, found
    assert sum(times for call, times in found.items() if call not in calls | {"epoll_wait"}) < 2 * slack, found
    assert found["futex"] + found["openat"] < slack, found
