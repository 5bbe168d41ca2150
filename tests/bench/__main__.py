"""What fetchonce is worth where a mirror limits each connection: `python -m tests.bench`.

The mirror is the scripted origin, which limits each connection to RATE. (nginx does not limit the first second of a
request.) Eight curls ask at once for one big body: each of the mirror itself, then through fetchonce with an empty
cache, by one connection and by several, and then again. The ways take turns in each round, so that other load on the
machine slows all of them; medians are compared. The cache is in TMPDIR: if the disk is slow, set it to a directory in
memory.
"""

import argparse
import asyncio
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests.harness import Proxy
from tests.origin import Origin, pattern_sha256

MB = 1024**2
SEED = 1


READERS = 8


async def curls(url: str, size: int) -> float:
    """Seconds until READERS curls have the whole body. (Reading it in this process would cost more than the rest.)"""
    curl = "curl", "-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{size_download}", url
    began = time.monotonic()
    clients = [await asyncio.create_subprocess_exec(*curl, stdout=subprocess.PIPE) for _ in range(READERS)]
    got = {out for out, _ in await asyncio.gather(*(client.communicate() for client in clients))}
    assert got == {str(size).encode()}, got
    return time.monotonic() - began


async def through_fetchonce(directory: Path, mirror: str, size: int, connections: int) -> tuple[float, float]:
    """Seconds with an empty cache, and again from disk."""
    config = f"[fill]\nconnections = {connections}\n"
    proxy = Proxy(directory / "cache", mirrors={"u": mirror}, config_text=config).start()
    try:
        first = await curls(proxy.url("/u/big.img"), size)
        await proxy.wait_idle(timeout=60)
        again = await curls(proxy.url("/u/big.img"), size)
        assert (await (await proxy.stream("/u/big.img")).sha256())[0] == pattern_sha256(size, SEED)
        return first, again
    finally:
        proxy.close()


async def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="of the body, in MiB")
    parser.add_argument("--rate", type=int, default=40, help="of one connection, in MiB/s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    size = options.size * MB
    took: dict[str, list[tuple[float, float]]] = {}
    """By way: seconds, and how many times the body came from the mirror."""

    def note(way: str, seconds: float, before: int) -> None:
        times = (origin.bytes_sent("/big.img") - before) / size
        took.setdefault(way, []).append((seconds, times))
        print(f"{way}: {seconds:.2f} s, {times:.2f} times from the mirror", flush=True)

    with Origin() as origin:
        origin.pattern("/big.img", size, SEED).throttle(options.rate * MB).headers(cache_control="max-age=600")
        for _ in range(options.rounds):
            before = origin.bytes_sent("/big.img")
            note("each from the mirror", await curls(origin.url("/big.img"), size), before)
            for connections in options.connections:
                before = origin.bytes_sent("/big.img")
                with tempfile.TemporaryDirectory() as directory:
                    first, again = await through_fetchonce(Path(directory), origin.url(), size, connections)
                note(f"through fetchonce, connections = {connections}", first, before)
                note("again", again, origin.bytes_sent("/big.img"))
    print(f"\n{READERS} clients, {options.size} MiB, {options.rate} MiB/s each; medians of {options.rounds}")
    base = statistics.median(seconds for seconds, _ in took["each from the mirror"])
    for way, results in took.items():
        seconds, times = (statistics.median(values) for values in zip(*results, strict=True))
        print(f"{way}: {seconds:.2f} s ({base / seconds:.1f} times as fast), {times:.2f} times from the mirror")


asyncio.run(main())
