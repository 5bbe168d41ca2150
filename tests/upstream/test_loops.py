"""What we ask ourselves is refused, what we ask another fetchonce is not, and as http_proxy we are of use."""

import subprocess

import pytest

from tests.harness import free_port, until

BODY = b"image" * 1000


async def test_a_mirror_that_is_ourselves_is_508(origin, proxy_factory):
    port = free_port()
    mirrors = {"loop": f"http://127.0.0.1:{port}/u/", "u": origin.url()}
    proxy = proxy_factory(mirrors=mirrors, listen=f"127.0.0.1:{port}")
    answer = await proxy.get("/loop/x.img")
    assert answer.status == 508
    assert "leads back to fetchonce. look at upstream.proxy" in answer.json()["message"]
    assert origin.requests == 0
    await until(lambda: any("was asked for by this very fetchonce" in line for line in proxy.log))


async def test_a_proxy_that_is_ourselves_is_508_and_the_next_start_knows_itself_too(origin, proxy_factory):
    port = free_port()
    config = f'[upstream]\nproxy = "http://127.0.0.1:{port}"\n'
    proxy = proxy_factory(config_text=config, listen=f"127.0.0.1:{port}")
    for _ in range(2):
        answer = await proxy.get("/u/x.img")
        assert answer.status == 508
        assert "look at upstream.proxy, HTTP_PROXY" in answer.json()["message"]
        proxy.restart()
    assert origin.requests == 0


async def test_a_tunnel_through_ourselves_names_the_cause(proxy_factory):
    port = free_port()
    config = f'[upstream]\nproxy = "http://127.0.0.1:{port}"\n'
    proxy = proxy_factory("--allow", "far.example", config_text=config, listen=f"127.0.0.1:{port}")
    answer = await proxy.get("/far.example/x.img")
    assert answer.status == 502
    assert "405 Method Not Allowed. if it is fetchonce itself: look at upstream.proxy" in answer.json()["message"]


async def test_of_several_upstreams_one_that_is_ourselves_is_passed_over(origin, proxy_factory):
    port = free_port()
    mirrors = {"u": f"http://127.0.0.1:{port}/v/,{origin.url()}", "v": origin.url("/v/")}
    proxy = proxy_factory(mirrors=mirrors, listen=f"127.0.0.1:{port}")
    origin.body("/x.img", BODY)
    assert (await proxy.get("/u/x.img")).body == BODY


async def test_two_that_ask_each_other_are_508(proxy_factory):
    ports = [free_port(), free_port()]
    first, _ = (
        proxy_factory(mirrors={"loop": f"http://127.0.0.1:{other}/loop/"}, listen=f"127.0.0.1:{port}")
        for port, other in (ports, reversed(ports))
    )
    answer = await first.get("/loop/x.img")
    assert answer.status == 508
    assert "leads back to fetchonce" in answer.json()["message"]


async def test_one_fetchonce_may_ask_another(origin, proxy_factory):
    parent = proxy_factory()
    child = proxy_factory(mirrors={"u": parent.url("/u/")})
    origin.body("/x.img", BODY)
    assert (await child.get("/u/x.img")).body == BODY
    names = {path.read_text() for path in (child.cache_dir / "id", parent.cache_dir / "id")}
    assert len(names) == 2


@pytest.mark.parametrize("path", ["/x.img", "/x.img?y=1"])
def test_as_http_proxy_of_curl(origin, proxy, path):
    origin.body(path, BODY).headers(cache_control="max-age=600")
    for _ in range(2):
        got = subprocess.run(
            ["curl", "-sf", "--noproxy", "", "-x", proxy.url(), origin.url(path)], capture_output=True, timeout=30
        )
        assert (got.returncode, got.stdout) == (0, BODY)
    assert origin.requests == 1


def test_as_http_proxy_a_foreign_host_is_refused_with_the_message(proxy):
    got = subprocess.run(
        ["curl", "-s", "-x", proxy.url(), "http://far.example/x.img"], capture_output=True, text=True, timeout=30
    )
    assert "--allow far.example" in got.stdout
