"""The sidecars in blobs/: what says which URLs a body belongs to. They are the truth, the index repeats them.

A sidecar is a line of JSON. Those of small bodies that were stored together are names of one file with the lines of all
(small.py).
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
        key, lines = self.key(path).encode(), text.splitlines()
        try:
            for line in (each for each in lines if len(lines) == 1 or key in each):
                entry = msgspec.json.decode(line, type=Entry)
                if self.path(entry) == path and entry.head.length is not None:
                    return entry, (stat.st_ino, stat.st_mtime_ns)
        except msgspec.MsgspecError as error:
            raise Damaged(f"its sidecar is damaged: {error}") from None
        raise Damaged("its sidecar is another one's")

    def write(self, entry: Entry) -> None:
        publish(self.path(entry), msgspec.json.encode(entry))

    def named(self, name: str) -> Path:
        """The sidecar of that name, without its suffix."""
        return self.directory / name[:2] / f"{name}.json"

    def sweep(self, prefix: str) -> set[str]:
        """The names of the sidecars in the directory of `prefix`, without their suffix.

        Removes half-written files there, and bodies without a sidecar.
        """
        directory = self.directory / prefix
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return set()
        sidecars = {name.removesuffix(".json") for name in names if name.endswith(".json") and name[0] != "."}
        bodies = {name.partition(".")[0] for name in sidecars}
        for name in names:
            if name.startswith(".") or ("." not in name and name not in bodies):
                (directory / name).unlink(missing_ok=True)
        return sidecars
