"""fetchonce beside other caching proxies: `./run bench`.

Mirror, proxy and clients share this machine, and other work on it disturbs them. So the proxies take turns in each
round, and medians are compared, only with each other. Throw away the first run on a fresh virtual machine, where the
first touch of each page of memory is slow. Everything is in TMPDIR, which needs room for twelve images.
"""

import argparse
import contextlib
import itertools
import json
import resource
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

from tests.bench import report
from tests.bench.cases import CASES, Case, size_text
from tests.bench.load import Missing, compiled
from tests.bench.origins import MB, Origins, origins
from tests.bench.peers import DIRECT, OURS, PEERS, Peer, Site
from tests.bench.processes import ENDING, Broken, free_port
from tests.bench.stage import Idle, Run, Stage, Wrong

TRIES = 3
"""Of a run that says nothing."""
LEAST_MB = 4
ROOM = 12
"""Times the image: itself, and what the biggest case stores."""
DESCRIPTORS = 8192


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Bench:
    """The rounds, and what comes out of them."""

    def __init__(self, cases: Sequence[Case], peers: Sequence[Peer], origins: Origins, root: Path) -> None:
        self.cases, self.peers, self.origins = cases, peers, origins
        self._root, self._load = root, compiled()
        self._stages: dict[tuple[str, str], Stage] = {}
        self._runs: dict[tuple[str, str], list[Run]] = {}
        self._flaws: dict[tuple[str, str], list[str]] = {}

    def round(self, number: int) -> None:
        for group, cases in itertools.groupby(self.cases, lambda case: case.group):
            together = list(cases)
            for peer in self.peers:
                if group not in peer.lacks:
                    self._measure(peer, group, together, number)

    def _measure(self, peer: Peer, group: str, cases: Sequence[Case], number: int) -> None:
        """All cases of a group, in one life of the proxy."""
        stage = self._stage(peer, group)
        is_kept = group == "restart"
        if not is_kept:
            stage.empty()
        try:
            with contextlib.nullcontext() if is_kept else stage.up():
                for case in cases:
                    said = self._run(stage, case)
                    print(f"round {number}  {case.name:8} {peer.name:14} {said}", file=sys.stderr, flush=True)
        except Broken as error:
            for case in cases:
                self._flaws.setdefault((case.name, peer.name), []).append("did not run")
            print(error, file=sys.stderr)
        finally:
            if not is_kept:
                stage.empty()

    def _run(self, stage: Stage, case: Case) -> str:
        """Notes it, and says it in a few words."""
        place = case.name, stage.peer.name
        for _ in range(TRIES):
            try:
                run = case.run(case, stage)
            except Idle as error:
                why = str(error)
            except Wrong as error:
                why = str(error)
                break
            else:
                self._runs.setdefault(place, []).append(run)
                return f"{run.figure:10,.3f} {case.unit.name:7} {run.cpu:6.2f} CPU s  {run.peak_rss // MB} MB"
        self._flaws.setdefault(place, []).append(why)
        return f"not comparable: {why}"

    def _stage(self, peer: Peer, group: str) -> Stage:
        if (peer.name, group) not in self._stages:
            run = self._root / f"{peer.name}-{group}"
            run.mkdir()
            match group:
                case "tls":
                    upstream = self.origins.https
                case "slow":
                    upstream = self.origins.throttled
                case _:
                    upstream = self.origins.http
            port = free_port() if peer.command else upstream.port
            site = Site(port, upstream, self.origins.ca, run / "cache", run)
            site.cache.mkdir()
            self._stages[peer.name, group] = Stage(peer, site, self.origins, self._load)
        return self._stages[peer.name, group]

    def cases_json(self) -> dict[str, Any]:
        told = {}
        for case in self.cases:
            proxies = {
                peer.name: report.summary(
                    self._runs.get((case.name, peer.name), []), self._flaws.get((case.name, peer.name), [])
                )
                for peer in self.peers
                if case.group not in peer.lacks
            }
            told[case.name] = report.compared(case, case.description(self.origins), proxies)
        return told


def chosen(known: Sequence[T], text: str) -> list[T]:
    """Those whose names are in the text, in the order of `known`."""
    names = [name for name in text.split(",") if name]
    if unknown := set(names) - {each.name for each in known}:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(unknown))}")
    return [each for each in known if each.name in names]


def image_mb(text: str) -> int:
    if not text.isdecimal() or int(text) < LEAST_MB:
        raise argparse.ArgumentTypeError(f"at least {LEAST_MB}")
    return int(text)


def available(peers: Sequence[Peer]) -> tuple[list[Peer], list[str]]:
    """Those that are installed, and the versions of all of them. Says which are not."""
    found, versions = [], []
    for peer in peers:
        try:
            versions.append(peer.version())
            found.append(peer)
        except Missing as error:
            print(f"without {peer.name}: {error}", file=sys.stderr)
    return found, list(dict.fromkeys(versions))


@contextlib.contextmanager
def place(image_bytes: int) -> Iterator[Path]:
    """A directory for everything, removed afterwards. Raises Missing."""
    with tempfile.TemporaryDirectory(prefix="fetchonce-bench-") as name:
        if shutil.disk_usage(name).free < ROOM * image_bytes:
            needed = size_text(ROOM * image_bytes)
            raise Missing(f"{name} has no room for {needed}: set TMPDIR, or take a smaller --size")
        yield Path(name)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    if sys.platform != "linux":
        raise Missing("it needs Linux: the load client is written with epoll, and /proc says what a proxy uses")
    peers, programs = available([OURS, *options.peers, DIRECT])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, most), most))
    with place(options.size * MB) as root, origins(options.size * MB, root) as mirror:
        bench = Bench(options.cases, peers, mirror, root)
        for number in range(1, options.rounds + 1):
            bench.round(number)
        return {
            "command": shlex.join(["./run", "bench", *sys.argv[1:]]),
            "machine": report.machine(),
            "programs": [version for version in programs if version],
            "image_mb": options.size,
            "rounds": options.rounds,
            "cases": bench.cases_json(),
        }


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "./run bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, known in ("--cases", CASES), ("--peers", PEERS):
        names = ",".join(each.name for each in known)
        parser.add_argument(option, type=partial(chosen, known), default=names, metavar="NAME,...", help=f"[{names}]")
    parser.add_argument("--rounds", type=int, choices=range(1, 100), default=3, metavar="N", help="[3]")
    parser.add_argument("--size", type=image_mb, default=1024, metavar="MIB", help="of the image [1024]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything there as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the table for the README")
    return parser


def stop(number: int, frame: FrameType | None) -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)  # the next one would break the clean-up
    raise KeyboardInterrupt


def main() -> int:
    options = parser().parse_args()
    for number in ENDING:
        signal.signal(number, stop)
    try:
        result = measured(options)
    except (Missing, Broken) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing is left behind", file=sys.stderr)
        return 130
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print((report.markdown if options.markdown else report.plain)(result))
    return int(any(case["proxies"][OURS.name]["flaws"] for case in result["cases"].values()))


if __name__ == "__main__":
    sys.exit(main())
