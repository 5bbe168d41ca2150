"""How long a big body takes the first time, with one connection and with several: `python -m tests.bench`.

The mirror is the scripted origin, which limits each connection to RATE. (nginx does not limit the first second of a
request.) fetchonce starts with an empty cache each time. The settings take turns in each round, so that other load on
the machine slows all of them; medians are compared. The cache is in TMPDIR: if the disk is slow, set it to a directory
in memory.
"""

import argparse
import asyncio
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests.harness import Proxy, until
from tests.origin import Origin, pattern_sha256

MB = 1024**2
SEED = 1


async def seconds(directory: Path, url: str, size: int, connections: int, readers: int) -> float:
    """Seconds from an empty cache until all readers have everything, or without readers until it is stored."""
    proxy = Proxy(directory / "cache", mirrors={"u": url}, config_text=f"[fill]\nconnections = {connections}\n").start()
    try:
        began = time.monotonic()
        if readers:
            # curl, because reading in this process would cost more than the rest.
            curl = "curl", "-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{size_download}", proxy.url("/u/big.img")
            clients = [await asyncio.create_subprocess_exec(*curl, stdout=subprocess.PIPE) for _ in range(readers)]
            got = {out for out, _ in await asyncio.gather(*(client.communicate() for client in clients))}
            assert got == {str(size).encode()}, got
        else:
            async with await proxy.stream("/u/big.img"):
                pass  # the fill goes on without a client

            async def is_stored() -> bool:
                return any((directory / "cache" / "blobs").glob("*/*.json"))

            await until(is_stored, timeout=120)
        took = time.monotonic() - began
        assert (await (await proxy.stream("/u/big.img")).sha256())[0] == pattern_sha256(size, SEED)
        return took
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
    took: dict[tuple[int, int], list[float]] = {}
    with Origin() as origin:
        origin.pattern("/big.img", size, SEED).throttle(options.rate * MB).headers(cache_control="max-age=600")
        url = origin.url()
        for _ in range(options.rounds):
            for readers in (0, 8):
                for connections in options.connections:
                    with tempfile.TemporaryDirectory() as directory:
                        result = await seconds(Path(directory), url, size, connections, readers)
                    took.setdefault((readers, connections), []).append(result)
                    print(f"readers {readers}  connections {connections}  {result:.2f} s", flush=True)
    first, *others = options.connections
    for readers, what in ((0, "the fill alone"), (8, "eight readers")):
        base = statistics.median(took[readers, first])
        print(f"{what}: {base:.2f} s with {first}", end="")
        for connections in others:
            median = statistics.median(took[readers, connections])
            print(f", {median:.2f} s with {connections}: {base / median:.2f} times as fast", end="")
        print()


asyncio.run(main())
