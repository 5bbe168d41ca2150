"""Every file imports only what the law of its folder allows; each folder's `__init__.py` says the law."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "proxy"
FLAT = {
    "__main__", "app", "record", "repeats", "gateway", "delivery", "rewritten", "negative", "prefetch", "config",
    "errors", "stats", "log", "logins", "toml_text", "version",
}  # fmt: skip
PLAIN = {"errors", "log", "version", "config", "toml_text", "rules"}
"""What any folder but rules/ may import."""
MAY_IMPORT = {
    "serving": PLAIN,
    "upstream": PLAIN,
    "store": PLAIN,
    "rules": {"errors"},
    "fill": PLAIN | {"stats", "store", "upstream"},
    "web": PLAIN | FLAT - {"app", "__main__"} | {"fill", "store", "upstream", "tools"},
    "tools": PLAIN,
    "cli": PLAIN | FLAT - {"__main__"} | {"fill", "store", "upstream", "serving", "web", "tools"},
}
"""By folder: what it may import, beside its own files. This is the whole table."""
FLAT_MAY_NOT_IMPORT = {"cli"}
ACTING = {"asyncio", "os", "pathlib", "socket", "threading", "time", "random", "secrets", "subprocess", "httpx"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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


def rooms_of(path: Path) -> set[str]:
    """The folders and flat modules a file imports from, without its own."""
    depth = len(path.relative_to(PACKAGE).parts)
    return {name.split(".")[0] for level, name in imports(path) if level == depth} - {room(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_keeps_the_law_of_its_folder(path):
    if path == PACKAGE / "__init__.py":
        assert imports(path) == []
    elif path.parent == PACKAGE:
        assert room(path) in FLAT, "a file must lie in one of the folders, or be one of the flat ones"
        assert path.name == "__main__.py" or not rooms_of(path) & FLAT_MAY_NOT_IMPORT
    else:
        assert room(path) in MAY_IMPORT, "no such folder in the table"
        assert rooms_of(path) <= MAY_IMPORT[room(path)]
    assert not any(name.split(".")[0] == "proxy" for _, name in imports(path)), "imports in the package are relative"


@pytest.mark.parametrize("path", [path for path in FILES if room(path) == "rules"], ids=lambda path: path.name)
def test_rules_are_pure(path):
    assert not {name.split(".")[0] for level, name in imports(path) if not level} & ACTING


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_each_folder_says_its_law_in_one_sentence(folder):
    law = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text())) or ""
    first = law.split("\n\n")[0]
    assert first.endswith(".")
    assert 1 <= first.count(".") <= 2


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "objects.py"], ids=lambda path: path.name)
def test_only_one_file_knows_obstore(path):
    assert "obstore" not in {name.split(".")[0] for level, name in imports(path) if not level}


@pytest.mark.parametrize("path", [path for path in FILES if room(path) != "upstream"], ids=lambda path: path.name)
def test_only_upstream_knows_httpx(path):
    assert not {name.split(".")[0] for level, name in imports(path) if not level} & {"httpx", "httpcore"}
