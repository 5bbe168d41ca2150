"""The commands on a cache directory of the test's own, a terminal, and a server beside them."""

from collections.abc import Iterator

import pytest

from tests.cli.commands import CONFIG, Cli, Terminal


@pytest.fixture
def cli(origin, tmp_path) -> Iterator[Cli]:
    config = tmp_path / "fetchonce.toml"
    config.write_text(CONFIG.format(origin=origin.url()))
    cli = Cli(tmp_path / "cache", config)
    yield cli
    for process in cli.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.fixture
def server(cli, proxy_factory):
    """A server on the commands' cache directory."""
    return proxy_factory(cache_dir=cli.cache_dir)
