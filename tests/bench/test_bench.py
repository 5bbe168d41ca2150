"""The benchmark itself, at its smallest size: what it says, and what it leaves behind. No figure is looked at."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import report
from tests.bench.cases import CASES
from tests.bench.load import COMPILERS, Load, compiled
from tests.bench.origins import SBIN
from tests.bench.stage import Run
from tests.forks import REPOSITORY
from tests.harness import clean_environment
from tests.origin import Origin

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the benchmark needs Linux"),
    pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C compiler is installed"),
]
needs_nginx = pytest.mark.skipif(not shutil.which("nginx", path=SBIN), reason="nginx is not installed")
SMALLEST = ["--size", "4", "--rounds", "1", "--peers", "nginx"]
STOP_SECONDS = 30


def bench(directory: Path, *args: str) -> subprocess.Popen[str]:
    """With `directory` for everything that it makes."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench", *SMALLEST, *args],
        cwd=REPOSITORY,
        env={**clean_environment(), "TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def using(directory: Path) -> list[str]:
    """The command lines of all processes that name the directory."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        except OSError:
            continue
        if str(directory) in command:
            found.append(command)
    return found


@needs_nginx
def test_it_says_how_fetchonce_and_nginx_did_and_leaves_nothing_behind(tmp_path: Path) -> None:
    out, place = tmp_path / "out.json", tmp_path / "place"
    place.mkdir()
    with bench(place, "--cases", "hot8,range,small,tls8,slow8", "--out", str(out), "--markdown") as process:
        table, said = process.communicate()
    assert process.returncode == 0, said
    result = json.loads(out.read_text())
    assert list(result["cases"]) == ["hot8", "range", "small", "tls8", "slow8"]
    assert "--size 4" in result["command"]
    for name, case in result["cases"].items():
        ours, nginx = case["proxies"]["fetchonce"], case["proxies"]["nginx"]
        assert ours["figure"] > 0, said
        assert ours["peak_rss_mb"] > 1
        assert nginx["figure"] > 0, said
        assert case["best_peer"] == "nginx"
        assert case["ratio"] > 0
        assert f"| **{name}**: " in table
    for case in ("small", "tls8", "slow8"):
        assert result["cases"][case]["proxies"]["fetchonce"]["upstream"] == pytest.approx(1), "fetched once"
    assert result["cases"]["slow8"]["proxies"]["no proxy"]["upstream"] == pytest.approx(8)
    assert list(place.iterdir()) == []
    assert using(place) == []


@needs_nginx
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    with bench(tmp_path, "--cases", "tiny", "--rounds", "99") as process:
        assert process.stderr
        assert "tiny" in process.stderr.readline()
        assert len(using(tmp_path)) > 1, "the mirror and a proxy, most of the time"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=STOP_SECONDS)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
    assert using(tmp_path) == []


def test_load_client_counts_what_came(origin: Origin) -> None:
    origin.pattern("/a.img", 300_000)
    load = Load(compiled(), origin.port)
    once = load.once("/a.img", 3, 300_000)
    assert (once.error, once.requests, once.bytes) == (None, 3, 900_000)
    ranges = load.ranges("/a.img", 2, 0.05, 300_000, 1000)
    assert ranges.error is None
    assert ranges.bytes == ranges.requests * 1000 > 0
    for number in range(5):
        origin.body(f"/{number}.bin", b"body")
    numbered = load.numbered("/#.bin", 2, 5, 4)
    assert (numbered.error, numbered.requests, numbered.bytes) == (None, 5, 20)
    assert all(origin.count(f"/{number}.bin") == 1 for number in range(5))


def test_load_client_says_what_is_wrong(origin: Origin) -> None:
    load = Load(compiled(), origin.port)
    origin.body("/busy.img", b"body").status(503)
    assert load.once("/busy.img", 2, 4).error == "status 503"
    origin.pattern("/broken.img", 300_000).close_at(100_000)
    assert load.once("/broken.img", 2, 300_000).error == "the connection ended within a body"
    origin.body("/other.img", b"other body")
    assert load.once("/other.img", 1, 4).error == "Content-Length: 10 where 4 is right"
    origin.pattern("/whole.img", 300_000).ignore_ranges()
    assert load.ranges("/whole.img", 1, 0.05, 300_000, 1000).error == "status 200"


def test_stalled_readers_read_the_head_alone(origin: Origin) -> None:
    origin.body("/a.img", b"body").stall_at(0)
    with Load(compiled(), origin.port).stalled("/a.img", 7) as answers:
        assert (answers.error, answers.requests, answers.bytes) == (None, 7, 0)
        assert origin.count("/a.img") == 7


RUN = Run(2.0, 1.0, 1, 1, 0.1, 1, 0.1, 0.1)
GOOD = report.summary([RUN, dataclasses.replace(RUN, figure=9.0), dataclasses.replace(RUN, figure=4.0)], [])


def test_medians_are_compared_with_the_best_peer() -> None:
    by_name = {case.name: case for case in CASES}
    slower, faster = (report.summary([dataclasses.replace(RUN, figure=figure)], []) for figure in (1.0, 8.0))
    proxies = {"fetchonce": GOOD, "a": slower, "b": faster, "no proxy": slower}
    assert GOOD["figure"] == 4
    rate, time = (report.compared(by_name[name], "", proxies) for name in ("hot8", "cold8"))
    assert (rate["best_peer"], rate["ratio"]) == ("b", 0.5)
    assert (time["best_peer"], time["ratio"]) == ("a", 0.25)


def test_who_failed_once_is_not_compared() -> None:
    failed = report.summary([RUN, RUN], ["status 502"])
    for proxies in {"fetchonce": GOOD, "nginx": failed}, {"fetchonce": failed, "nginx": GOOD}:
        case = report.compared(CASES[0], "", proxies)
        assert case["ratio"] is None
        result = {"programs": [], "machine": {"cores": 2}, "rounds": 1, "command": "", "cases": {"hot1": case}}
        assert "status 502" in report.plain(result)


def test_readme_has_a_row_for_each_case() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert [case.name for case in CASES if f"| **{case.name}**: " not in readme] == []
