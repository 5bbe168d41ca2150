"""An origin, and fetchonce in front of it, new for each test."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings

from proxy.config import load
from proxy.upstream.client import Upstream
from proxy.upstream.lane import Lane
from tests.harness import Proxy
from tests.origin import Origin

# A busy machine is no failure.
settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

LONGEST = {"test_crash.py", "test_lima.py", "test_store_machine.py"}  # limactl is compiled first


class ProxyFactory(Protocol):
    def __call__(
        self,
        *args: str,
        config_text: str = "",
        cache_dir: Path | None = None,
        mirrors: Mapping[str, str] | None = None,
        listen: str = "127.0.0.1:0",
        start: bool = True,
    ) -> Proxy:
        """A process with these arguments. Defaults: a new cache directory, and the origin as mirror `u`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with the longest tests first: at the end the short tests keep every worker busy."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        yield origin


@pytest.fixture
def other() -> Iterator[Origin]:
    """A second origin."""
    with Origin() as other:
        yield other


@pytest.fixture
def proxy_factory(origin: Origin, tmp_path: Path) -> Iterator[ProxyFactory]:
    """Starts processes; the test fails if one of them does not end cleanly."""
    made: list[Proxy] = []
    with contextlib.ExitStack() as stack:

        def make(
            *args: str,
            config_text: str = "",
            cache_dir: Path | None = None,
            mirrors: Mapping[str, str] | None = None,
            listen: str = "127.0.0.1:0",
            start: bool = True,
        ) -> Proxy:
            proxy = Proxy(
                cache_dir or tmp_path / f"cache-{len(made)}",
                *args,
                mirrors={"u": origin.url()} if mirrors is None else mirrors,
                config_text=config_text,
                listen=listen,
            )
            made.append(proxy)
            stack.callback(proxy.close)
            return proxy.start() if start else proxy

        yield make


@pytest.fixture
def proxy(proxy_factory: ProxyFactory) -> Proxy:
    """fetchonce in front of `origin`, as mirror `u`, with an empty cache."""
    return proxy_factory()


@pytest.fixture
def make_upstream(origin: Origin, tmp_path: Path) -> Iterator[Callable[..., Upstream]]:
    """Makes an Upstream alone, from these sections of the configuration."""
    with contextlib.ExitStack() as stack:

        def make(*bases: str, lane: Lane | None = None, **sections: Any) -> Upstream:
            """Its mirror `u` has the origin and then `bases`."""
            config = tmp_path / "upstream.toml"
            config.write_text(f"shipped_mirrors = false\n[cache]\ndir = '{tmp_path}'\n")
            mirror = [{"name": "u", "upstreams": [origin.url(), *bases]}]
            settings = load(str(config), {"upstream": {"proxy": ""}, "mirror": mirror, **sections})
            upstream = Upstream(settings, "fetchonce-test", lane)
            stack.callback(upstream.close)
            return upstream

        yield make
