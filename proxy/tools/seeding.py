"""Files put where a tool keeps its own downloads, so that it finds them there and asks nobody.

Lima (pkg/downloader of 2.2): CACHE/download/by-url-sha256/SHA256(URL)/ with `data`, and beside it `url`, `time` (its
Last-Modified), `type` and `sha256.digest` or `sha512.digest`. With the digest that a template expects Lima asks nobody,
without one it asks for Last-Modified. It holds a flock of the directory while it looks and while it downloads.
minikube (pkg/minikube/download): HOME/cache/iso/ARCH/NAME and HOME/cache/preloaded-tarball/NAME, used as they are.

Both write a new file and rename it, and never write into one that is there.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import RequestError
from ..rules.digests import Digest
from .wanted import this_arch

LOOK_SECONDS = 0.1
"""How often to look whether a lock is free. A thread that waits in flock cannot be ended."""
GO_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}

Place = Callable[[Path], str]
"""Makes the new file, and says how."""


@dataclass(frozen=True, slots=True)
class Seed:
    """One file that a tool is to find."""

    url: str
    """By which the tool asks for it."""
    digest: Digest | None
    """What the tool expects of it."""
    size: int
    sha256: str
    modified: str = ""
    """Its Last-Modified, word for word."""
    content_type: str = ""


class Cache(Protocol):
    """Where a tool keeps its downloads."""

    root: Path

    def path(self, url: str) -> Path:
        """Where the tool will look. Raises RequestError for what it would not keep there."""

    def has(self, url: str, digest: Digest | None) -> bool:
        """Whether the tool has it already, and will ask nobody."""

    async def put(self, seed: Seed, place: Place, wait: Callable[[Path], object]) -> str:
        """How the file came there, or "" if it was there. `wait` is called if another process has it locked."""


class LimaCache:
    def __init__(self, root: Path | None = None) -> None:
        """By default the directory of Go's os.UserCacheDir."""
        home, is_mac = Path.home(), sys.platform == "darwin"
        caches = home / "Library/Caches" if is_mac else Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
        self.root = (root or caches / "lima").absolute()

    def path(self, url: str) -> Path:
        return self.root / "download" / "by-url-sha256" / hashlib.sha256(url.encode()).hexdigest() / "data"

    def has(self, url: str, digest: Digest | None) -> bool:
        data = self.path(url)
        return digest is not None and data.exists() and _text(_digest_path(data, digest)) == str(digest)

    async def put(self, seed: Seed, place: Place, wait: Callable[[Path], object]) -> str:
        # Killed at any point, this leaves nothing that Lima would take for another file.
        data = self.path(seed.url)
        data.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with _locked(data.parent, wait):
            is_dated = not seed.digest and seed.modified and _text(data.with_name("time")) == seed.modified
            is_same = is_dated or self.has(seed.url, seed.digest or Digest("sha256", seed.sha256))
            if is_same and _size(data) == seed.size:
                return ""
            # `limactl prune` sweeps data.tmp.*
            with _placed(data.with_name(f"data.tmp.{os.getpid()}.fetchonce"), place) as (new, how):
                for digest in data.parent.glob("*.digest"):
                    digest.unlink()
                # A hard link may be older than what Lima made of the old data, which it would then take for new.
                shutil.rmtree(data.with_name("imgconv"), ignore_errors=True)
                data.unlink(missing_ok=True)
                for name, text in (("url", seed.url), ("time", seed.modified), ("type", seed.content_type)):
                    data.with_name(name).write_text(text)
                new.rename(data)
                if seed.digest:
                    _digest_path(data, seed.digest).write_text(str(seed.digest))
            return how


class MinikubeCache:
    def __init__(self, root: Path | None = None) -> None:
        """By default as minikube's localpath.MiniPath."""
        home = root or Path(os.environ.get("MINIKUBE_HOME") or Path.home())
        self.root = (home if root or home.name == ".minikube" else home / ".minikube").absolute()

    def path(self, url: str) -> Path:
        name = url.partition("?")[0].rpartition("/")[2]
        if name.startswith("preloaded-images-"):
            return self.root / "cache" / "preloaded-tarball" / name
        if name.endswith(".iso"):
            arch = re.search(r"-(amd64|arm64)\.iso$", name)
            return self.root / "cache" / "iso" / (arch[1] if arch else GO_ARCHES.get(this_arch(), this_arch())) / name
        raise RequestError("this is neither an ISO nor a preload of minikube's (preloaded-images-...)")

    def has(self, url: str, digest: Digest | None) -> bool:
        return False  # it may be the rest of a broken download

    async def put(self, seed: Seed, place: Place, wait: Callable[[Path], object]) -> str:
        path = self.path(seed.url)
        path.parent.mkdir(parents=True, exist_ok=True)
        if _size(path) == seed.size:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == seed.sha256:
                    return ""
        with _placed(path.with_name(f".{path.name}.{os.getpid()}.fetchonce"), place) as (new, how):
            new.replace(path)
        return how


def _digest_path(data: Path, digest: Digest) -> Path:
    return data.with_name(f"{digest.algorithm}.digest")


@contextlib.contextmanager
def _placed(new: Path, place: Place) -> Iterator[tuple[Path, str]]:
    """The new file, and how it came there. It is gone afterwards if nobody has renamed it."""
    new.unlink(missing_ok=True)
    try:
        yield new, place(new)
    finally:
        new.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _locked(directory: Path, wait: Callable[[Path], object]) -> AsyncIterator[None]:
    """Hold the flock of the directory, as Lima does (pkg/lockutil)."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        is_waiting = False
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not is_waiting:
                    wait(directory)
                is_waiting = True
                await asyncio.sleep(LOOK_SECONDS)
        yield
    finally:
        os.close(fd)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return None
