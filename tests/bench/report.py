"""What came out: medians, ratios to the best peer, tables. The tables are made of what goes into the JSON."""

import dataclasses
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.bench.cases import Case
from tests.bench.origins import GB, MB
from tests.bench.peers import DIRECT, OURS
from tests.bench.stage import Run

LIMITED = 0.95
"""CPU seconds of the load client in a second from which on it was the limit."""


def machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "system": f"{platform.system()} {platform.release()}"}


def summary(runs: Sequence[Run], flaws: Sequence[str]) -> dict[str, Any]:
    """Of one proxy in one case. Without a figure if one of its runs went wrong: then it is not compared."""
    if flaws or not runs:
        return {"flaws": list(flaws), "runs": [dataclasses.asdict(run) for run in runs]}

    def median(values: Iterable[float]) -> float:
        return statistics.median(values)

    upstream = [run.upstream for run in runs if run.upstream is not None]
    return {
        "figure": median(run.figure for run in runs),
        "seconds": median(run.seconds for run in runs),
        "first_byte": median(run.first_byte for run in runs),
        "cpu_per_gib": median(run.cpu * GB / max(1, run.bytes) for run in runs),
        "cpu_per_request": median(run.cpu / run.requests for run in runs),
        "peak_rss_mb": median(run.peak_rss / MB for run in runs),
        "upstream": median(upstream) if upstream else None,
        "client_is_limit": median(run.client for run in runs) > LIMITED,
        "flaws": [],
        "runs": [dataclasses.asdict(run) for run in runs],
    }


def compared(case: Case, what: str, proxies: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The case, with the best peer, and how many times as good as that we are."""
    more = case.unit.more_is_better
    figures = {name: told["figure"] for name, told in proxies.items() if "figure" in told}
    peers = {name: figure for name, figure in figures.items() if name not in (OURS.name, DIRECT.name)}
    best = (max if more else min)(peers, key=lambda name: peers[name], default=None)
    ratio = None
    if best and OURS.name in figures:
        ours, theirs = figures[OURS.name], peers[best]
        above, below = (ours, theirs) if more else (theirs, ours)
        ratio = above / below if above > 0 and below > 0 else None
    return {
        "what": what,
        "unit": case.unit.name,
        "more_is_better": more,
        "cpu": case.unit.cpu,
        "best_peer": best,
        "ratio": ratio,
        "proxies": dict(proxies),
    }


# -- tables ------------------------------------------------------------------------------------------------------------


def markdown(result: Mapping[str, Any]) -> str:
    """The block that stands in the README."""
    rounds = f"medians of {result['rounds']} rounds" if result["rounds"] > 1 else "one round"
    lines = [
        f"{', '.join(result['programs'])}; each of them in turn, with mirror and clients on the same "
        f"{result['machine']['cores']} cores; {rounds} (`{result['command']}`).",
        "A ratio above 1 is for fetchonce. CPU and memory are of all its processes, with the best peer's behind them.",
        "",
        "| case | fetchonce | best peer | ratio | CPU; peer | memory; peer |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in result["cases"].items():
        ours, best = case["proxies"].get(OURS.name, {}), case["proxies"].get(case["best_peer"], {})
        cells = [
            f"**{name}**: {case['what']}",
            _figure(ours, case),
            f"{case['best_peer']} {_figure(best, case)}" if best else "–",
            _number(case["ratio"]) if case["ratio"] else "–",
            _beside(_cpu(ours, case), _cpu(best, case)),
            _beside(_memory(ours), _memory(best)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    direct = [
        f"Without any proxy the clients of {name} take {told['seconds']:.1f} s, and the mirror sends "
        f"{told['upstream']:.0f} times the bytes."
        for name, case in result["cases"].items()
        if (told := case["proxies"].get(DIRECT.name)) and "figure" in told
    ]
    return "\n".join([*lines, *(["", *direct] if direct else [])])


def plain(result: Mapping[str, Any]) -> str:
    """All proxies in all cases."""
    lines = []
    for name, case in result["cases"].items():
        ratio = f"; {_number(case['ratio'])} of {case['best_peer']}" if case["ratio"] else ""
        lines += ["", f"{name}: {case['what']}{ratio}"]
        for proxy, told in case["proxies"].items():
            sent = f"{told['upstream']:.2f} times from upstream" if told.get("upstream") else ""
            cells = [_figure(told, case), _cpu(told, case), _memory(told), sent]
            lines.append(f"  {proxy:14}" + "  ".join(f"{cell:20}" for cell in cells).rstrip())
    return "\n".join(lines[1:])


def _figure(told: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    if "figure" not in told:
        return "; ".join(sorted(set(told.get("flaws", ())))) or "–"
    at_least = "at least " if told["client_is_limit"] else ""
    return f"{at_least}{_number(told['figure'])} {case['unit']}".replace(" /s", "/s")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}" if value >= 1 else f"{value:.2g}"


def _cpu(told: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    if "figure" not in told:
        return ""
    match case["cpu"]:
        case "gib":
            return f"{told['cpu_per_gib']:.2f} s/GiB"
        case "request":
            return f"{told['cpu_per_request'] * 1e6:.0f} µs each"
        case _:
            return ""


def _memory(told: Mapping[str, Any]) -> str:
    return f"{told['peak_rss_mb']:.0f} MB" if told.get("peak_rss_mb") else ""


def _beside(ours: str, theirs: str) -> str:
    """ "0.20 s/GiB; 0.15": the unit once."""
    return f"{ours}; {theirs.split(' ')[0]}" if ours and theirs else ours or "–"
