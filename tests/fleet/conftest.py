"""Several fetchonces, each with a cache directory of its own, in front of one origin."""

import socket
from collections.abc import Callable, Sequence

import pytest

from tests.harness import Proxy

FRESH = "max-age=600"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def server(proxy_factory) -> Callable[..., Proxy]:
    """Starts one: with these parents, and `own` (HOST:PORT) as the address by which others reach it."""

    def make(*parents: str, own: str = "", config: str = "", token: str = "", listen: str = "", **more) -> Proxy:
        lines = ["[fleet]", f"parents = {list(parents)}"]
        lines += [f'advertise = "http://{own}"'] if own else []
        lines += [f'token = "{token}"'] if token else []
        listen = listen or own or "127.0.0.1:0"
        return proxy_factory(config_text="\n".join([*lines, config, ""]), listen=listen, **more)

    return make


@pytest.fixture
def fleet(server) -> Callable[..., list[Proxy]]:
    """Starts several that have all the same list of parents: all of them, or all others."""

    def make(count: int, *, lists_itself: bool = True, config: str = "") -> list[Proxy]:
        own = [f"127.0.0.1:{free_port()}" for _ in range(count)]

        def parents(of: str) -> Sequence[str]:
            return [f"http://{each}" for each in own if lists_itself or each != of]

        return [server(*parents(each), own=each, config=config) for each in own]

    return make
