"""No redirect and no name leads us to an address inside, but for exactly the host:port that a mirror names."""

import re
import shutil
import subprocess
import sys

import httpcore
import httpx
import pytest

from proxy.errors import UpstreamError
from tests.harness import REPOSITORY
from tests.names import SCENARIOS
from tests.origin import Origin

BODY = b"inside" * 100


@pytest.fixture
def secret():
    """What runs on this machine and no mirror names."""
    with Origin() as origin:
        origin.body("/x", BODY)
        yield origin


REDIRECTS = {
    "another port": ("http://127.0.0.1:{port}/x", "127.0.0.1 is a loopback"),
    "metadata": ("http://169.254.169.254/latest/meta-data/", "169.254.169.254 is a link-local"),
    "metadata, https": ("https://169.254.169.254/", "169.254.169.254 is a link-local"),
    "mapped": ("http://[::ffff:127.0.0.1]:{port}/x", "is a loopback"),
    "mapped in hex": ("http://[::ffff:7f00:1]:{port}/x", "is a loopback"),
    "NAT64": ("http://[64:ff9b::7f00:1]:{port}/x", "is a loopback"),
    "6to4": ("http://[2002:7f00:1::]:{port}/x", "is a loopback"),
    "IPv6": ("http://[::1]:{port}/x", "::1 is a loopback"),
    "unique local": ("http://[fd00:ec2::254]/x", "is a private"),
    "decimal": ("http://2130706433:{port}/x", "2130706433 means 127.0.0.1, a loopback"),
    "hexadecimal": ("http://0x7f.1:{port}/x", "0x7f.1 means 127.0.0.1, a loopback"),
    "octal": ("http://017700000001:{port}/x", "017700000001 means 127.0.0.1, a loopback"),
    "octal in parts": ("http://0177.0.0.01:{port}/x", "Invalid URL"),
    "short": ("http://127.1:{port}/x", "127.1 means 127.0.0.1, a loopback"),
    "any": ("http://0.0.0.0:{port}/x", "0.0.0.0 is a loopback"),
    "zero": ("http://0:{port}/x", "0 means 0.0.0.0, a loopback"),
    "fullwidth digits": ("http://\uff11\uff12\uff17.0.0.1:{port}/x", "loopback|is no URL|cannot be"),
    "a name": ("http://localhost:{port}/x", "localhost means [0-9:.]+, a loopback"),
    "a name with a dot": ("http://LOCALHOST.:{port}/x", "localhost. means [0-9:.]+, a loopback|cannot be resolved"),
    "the named host by another name": ("http://localhost:{named}/x", "localhost means [0-9:.]+, a loopback"),
    "a name that is no IDNA": ("http://xn--a:{port}/x", "cannot be fetched"),
    "private": ("http://10.0.0.1/x", "10.0.0.1 is a private"),
    "carrier": ("http://100.64.0.1/x", "100.64.0.1 is a reserved"),
    "multicast": ("http://224.0.0.1/x", "224.0.0.1 is a multicast"),
    "no scheme": ("//127.0.0.1:{port}/x", "127.0.0.1 is a loopback"),
    "a file": ("file:///etc/passwd", "no http"),
    "gopher": ("gopher://127.0.0.1:{port}/x", "no http"),
    "javascript": ("javascript:alert(1)", "cannot be fetched"),
    "a user": ("http://user@127.0.0.1:{named}/x", "with a user in it"),
    "a user that looks like the host": ("http://127.0.0.1:{named}@127.0.0.1:{port}/x", "with a user in it"),
    "a backslash": ("http://127.0.0.1:{port}\\@127.0.0.1:{named}/x", "127.0.0.1|is no URL|with a user"),
    "a broken bracket": ("http://[::1/x", "Invalid URL"),
    "a broken port": ("http://127.0.0.1:99999/x", "127.0.0.1 is a loopback"),
    "a control character": ("http://127.0.0.1:{port}\x01/x", "Invalid URL"),
}


@pytest.mark.parametrize(("location", "said"), REDIRECTS.values(), ids=REDIRECTS)
def test_a_redirect_inside_is_refused(origin, secret, make_upstream, location, said):
    location = location.format(port=secret.port, named=origin.port)
    origin.body("/a", b"").redirect(location.encode().decode("latin-1"))
    origin.body("/x", BODY)
    with pytest.raises(UpstreamError, match=said):
        make_upstream().open(origin.url("/a"))
    assert (origin.requests, secret.requests) == (1, 0)


def test_the_message_says_what_would_allow_it(origin, secret, make_upstream):
    origin.body("/a", b"").redirect(secret.url("/x"))
    with pytest.raises(UpstreamError, match=re.escape(f"--mirror NAME={secret.url()}")):
        make_upstream().open(origin.url("/a"))


def test_a_redirect_to_what_another_mirror_names_is_followed(origin, secret, make_upstream):
    origin.body("/a", b"").redirect(secret.url("/x"))
    with make_upstream(secret.url()).open(origin.url("/a")) as exchange:
        assert exchange.final_url == secret.url("/x")


def test_with_a_proxy_an_address_is_judged_and_a_name_left_to_it(origin, secret, make_upstream):
    upstream = make_upstream(upstream={"proxy": origin.url()})
    with pytest.raises(UpstreamError, match="0x7f.1 means 127.0.0.1, a loopback"):
        upstream.open(f"http://0x7f.1:{secret.port}/x")
    assert origin.requests == 0
    origin.body("http://inside.invalid/x", BODY)
    with upstream.open("http://inside.invalid/x") as exchange:
        assert exchange.status == 200


async def test_where_one_mirror_redirects_inside_the_next_is_asked(origin, secret, proxy_factory):
    origin.body("/bad/x", b"").redirect(secret.url("/x"))
    origin.body("/good/x", b"good")
    proxy = proxy_factory(mirrors={"u": f"{origin.url('/bad/')},{origin.url('/good/')}"})
    assert (await proxy.get("/u/x")).body == b"good"
    assert secret.requests == 0


async def test_an_allowed_host_on_this_machine_is_still_to_be_named_by_a_mirror(secret, proxy_factory):
    proxy = proxy_factory("--allow", f"127.0.0.1:{secret.port}", "--allow", f"localhost:{secret.port}")
    for host in ("127.0.0.1", "localhost"):
        answer = await proxy.get(f"/http/{host}:{secret.port}/x")
        assert answer.status == 502
        assert f"--mirror NAME=http://{host}:{secret.port}/" in answer.json()["message"]
    assert secret.requests == 0


@pytest.mark.skipif(not shutil.which("unshare"), reason="namespaces are Linux's")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_with_a_resolver_and_a_public_address_of_its_own(scenario):
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "--net", sys.executable, "-m", "tests.names", scenario],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_httpx_has_the_shape_we_rely_on():
    client = httpx.Client()
    assert isinstance(client._transport, httpx.HTTPTransport)
    assert isinstance(client._transport._pool, httpcore.ConnectionPool)
    assert isinstance(client._transport._pool._network_backend, httpcore.NetworkBackend)
    (proxied,) = httpx.Client(proxy="http://a.b")._mounts.values()
    assert isinstance(proxied._pool._network_backend, httpcore.NetworkBackend)
