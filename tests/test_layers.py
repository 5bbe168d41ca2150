"""The import table of proxy/__init__.py: imports go down only, and rules/ touches nothing that acts."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "proxy"
FLOORS = [
    {"__main__"},
    {"cli"},
    {"app", "server", "workers"},
    {"web", "connection", "tls"},
    {"gateway"},
    {"flights", "delivery", "cycle", "missing"},
    {"checksums", "outlet"},
    {"fill"},
    {"passage", "ingest"},
    {"asking", "following"},
    {"janitor"},
    {"store"},
    {"blobs", "transfer", "verify"},
    {"index", "hashing", "upstream"},
    {"partial", "guard", "loops"},
    {"config"},
    {"rules"},
    {"errors", "stats", "log", "version", "presence"},
]
ACTING = {"asyncio", "os", "pathlib", "socket", "threading", "time", "random", "secrets", "subprocess", "httpx"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if name in names)


def imports(path: Path) -> list[tuple[int, str]]:
    """(how many packages up, dotted name) of each import in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                found.append((node.level, node.module))
            else:
                found += [(node.level, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    if path == PACKAGE / "__init__.py":
        assert imports(path) == []
        return
    here, depth = room(path), len(path.relative_to(PACKAGE).parts)
    for level, name in imports(path):
        if level == depth:  # from the package itself
            other = name.split(".")[0]
            assert other == here or floor(other) > floor(here), f"{here} imports {other}"
        else:
            assert not name.startswith("proxy"), "imports inside the package are relative"


@pytest.mark.parametrize("path", [path for path in FILES if room(path) == "rules"], ids=lambda path: path.name)
def test_rules_are_pure(path):
    assert not {name.split(".")[0] for level, name in imports(path) if not level} & ACTING


def test_no_room_is_left_out():
    assert {room(path) for path in FILES} - {"__init__"} == set.union(*FLOORS)
