"""The sidecars in blobs/: what says which URLs a body belongs to. They are the truth, the index repeats them.

Raises Damaged for a sidecar that is not what it should be, and OSError.
"""

import os
from pathlib import Path

import msgspec

from ..rules.entry import Entry
from .files import publish


class Damaged(Exception):
    """What is on disk is not what it should be."""


class Sidecars:
    """Paths in blobs/, and the entries that the sidecars there hold."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def blob(self, sha256: str) -> Path:
        return self.directory / sha256[:2] / sha256

    def path(self, entry: Entry) -> Path:
        return self.directory / entry.sha256[:2] / f"{entry.sha256}.{entry.key}.json"

    def of(self, sha256: str) -> list[Path]:
        """The sidecars of a blob, one for each of its URLs."""
        return sorted((self.directory / sha256[:2]).glob(f"{sha256}.*.json"))

    def key(self, path: Path) -> str:
        return path.name.split(".")[1]

    def read(self, path: Path) -> tuple[Entry, tuple[int, int]]:
        """The entry, with the inode and mtime of the file it was read from."""
        with open(path, "rb") as file:
            stat, text = os.fstat(file.fileno()), file.read()
        try:
            entry = msgspec.json.decode(text, type=Entry)
        except msgspec.MsgspecError as error:
            raise Damaged(f"its sidecar is damaged: {error}") from None
        if self.path(entry) != path or entry.head.length is None:
            raise Damaged("its sidecar is another one's")
        return entry, (stat.st_ino, stat.st_mtime_ns)

    def write(self, entry: Entry) -> None:
        publish(self.path(entry), msgspec.json.encode(entry))

    def sweep(self) -> dict[str, list[Path]]:
        """All sidecars by key. Removes half-written files, and bodies without a sidecar."""
        found: dict[str, list[Path]] = {}
        for directory in (path for path in self.directory.iterdir() if path.is_dir()):
            names = set(os.listdir(directory))
            sidecars = {name for name in names if name.endswith(".json") and not name.startswith(".")}
            for name in sidecars:
                found.setdefault(self.key(directory / name), []).append(directory / name)
            for name in sorted(names - sidecars - {name.partition(".")[0] for name in sidecars}):
                if name.startswith(".") or "." not in name:
                    (directory / name).unlink(missing_ok=True)
        return found
