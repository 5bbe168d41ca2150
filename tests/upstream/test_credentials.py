"""Credentials of a mirror: who gets them, and that nobody else ever sees them."""

import base64
import json

import pytest

from proxy.config import load
from proxy.errors import ConfigError
from proxy.upstream.client import Upstream
from tests.origin import Origin

BODY = b"image" * 1000
TOKEN = {"Authorization": "Bearer s3cret", "X-Key": "k3y"}


def basic(login):
    return "Basic " + base64.b64encode(login.encode()).decode()


@pytest.fixture
def other():
    with Origin() as other:
        other.body("/x", BODY)
        yield other


@pytest.fixture
def make(origin, other, tmp_path):
    made = []

    def make(*mirrors):
        config = tmp_path / "fetchonce.toml"
        config.write_text(f"shipped_mirrors = false\n[cache]\ndir = '{tmp_path}'\n")
        named = {"name": "other", "upstreams": [other.url()]}
        settings = load(str(config), {"upstream": {"proxy": ""}, "mirror": [*mirrors, named]})
        upstream = Upstream(settings, "fetchonce-test")
        made.append(upstream)
        return upstream

    yield make
    for upstream in made:
        upstream.close()


def fetch(upstream, url, headers=()):
    with upstream.open(url, headers=headers) as exchange:
        assert exchange.status in (200, 206)


def test_each_upstream_of_the_mirror_gets_its_headers(origin, other, make):
    origin.body("/a/x", BODY)
    other.body("/b/x", BODY)
    upstream = make({"name": "u", "upstreams": [origin.url("/a/"), other.url("/b/")], "headers": TOKEN})
    fetch(upstream, origin.url("/a/x"), (("authorization", "Bearer of-a-client"), ("range", "bytes=0-")))
    fetch(upstream, other.url("/b/x"))
    fetch(upstream, other.url("/x"))  # of another mirror on that host
    first, second, third = origin.log[0].headers, other.log[0].headers, other.log[1].headers
    for headers in (first, second):
        assert (headers["authorization"], headers["x-key"]) == ("Bearer s3cret", "k3y")
    assert not {"authorization", "x-key"} & set(third)


def test_a_mirror_within_another_has_its_own(origin, make):
    origin.body("/x", BODY), origin.body("/in/x", BODY), origin.body("/bare/x", BODY)
    upstream = make(
        {"name": "outer", "upstreams": [origin.url()], "headers": {"Authorization": "outer"}},
        {"name": "inner", "upstreams": [origin.url("/in/")], "headers": {"Authorization": "inner"}},
        {"name": "bare", "upstreams": [origin.url("/bare/")]},
    )
    for path in ("/x", "/in/x", "/bare/x"):
        fetch(upstream, origin.url(path))
    assert [request.headers.get("authorization") for request in origin.log] == ["outer", "inner", None]


def test_a_redirect_to_the_same_host_keeps_them_and_one_elsewhere_does_not(origin, other, make):
    upstream = make({"name": "u", "upstreams": [origin.url()], "headers": TOKEN})
    origin.body("/a", b"").redirect("/b")
    origin.body("/b", b"").redirect(other.url("/c"))
    other.body("/c", b"").redirect(origin.url("/d"))
    origin.body("/d", BODY)
    fetch(upstream, origin.url("/a"), (("cookie", "id=1"), ("range", "bytes=0-"), ("Proxy-Authorization", "x")))
    asked = [*origin.log[:2], *other.log, *origin.log[2:]]
    assert [request.path for request in asked] == ["/a", "/b", "/c", "/d"]
    for name, seen in (("authorization", 2), ("x-key", 2), ("cookie", 2), ("proxy-authorization", 2), ("range", 4)):
        assert [name in request.headers for request in asked] == [True] * seen + [False] * (4 - seen)


def test_a_redirect_to_a_mirror_does_not_use_that_mirrors(origin, other, make):
    upstream = make(
        {"name": "u", "upstreams": [origin.url()]},
        {"name": "private", "upstreams": [other.url()], "headers": TOKEN},
    )
    origin.body("/a", b"").redirect(other.url("/x"))
    fetch(upstream, origin.url("/a"))
    assert "authorization" not in other.log[0].headers


@pytest.mark.parametrize(
    ("userinfo", "login"), [("me:s3cret", "me:s3cret"), ("me:a%40b%3Ac", "me:a@b:c"), ("t0ken", "t0ken:"), (":p", ":p")]
)
def test_a_login_in_the_url(origin, make, userinfo, login):
    origin.body("/x", BODY)
    upstream = make({"name": "u", "upstreams": [origin.url().replace("//", f"//{userinfo}@")]})
    fetch(upstream, origin.url("/x"))
    assert origin.log[0].headers["authorization"] == basic(login)


@pytest.mark.parametrize("setting", [True, "a path"])
def test_a_login_of_netrc(origin, make, tmp_path, monkeypatch, setting):
    file = tmp_path / ".netrc"
    file.touch(0o600)
    file.write_text("machine elsewhere login a password b\nmachine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    origin.body("/x", BODY)
    fetch(make({"name": "u", "upstreams": [origin.url()], "netrc": setting is True or str(file)}), origin.url("/x"))
    assert origin.log[0].headers["authorization"] == basic("me:s3cret")


def test_a_header_wins_over_the_url_and_the_url_over_netrc(origin, make, tmp_path):
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login file password f\n")
    origin.body("/x", BODY)
    by_url = origin.url().replace("//", "//url:u@")
    for more, expected in (({}, basic("url:u")), ({"headers": TOKEN}, "Bearer s3cret")):
        fetch(make({"name": "u", "upstreams": [by_url], "netrc": str(file), **more}), origin.url("/x"))
        assert origin.log[-1].headers["authorization"] == expected


def test_a_mistake_in_netrc_is_told_without_its_text(make, tmp_path):
    file = tmp_path / "netrc"
    file.write_text("machine a.b login me password s3cret\ns3cret\n")
    with pytest.raises(ConfigError, match=r"mirror\[u\].netrc: .*netrc:\d+: expected a netrc file") as wrong:
        make({"name": "u", "upstreams": ["https://a.b/"], "netrc": str(file)})
    assert "s3cret" not in wrong.value.message


def test_a_usual_header_is_replaced(origin, make):
    origin.body("/x", BODY)
    fetch(make({"name": "u", "upstreams": [origin.url()], "headers": {"User-Agent": "mine"}}), origin.url("/x"))
    assert origin.log[0].headers["user-agent"] == "mine"


async def test_nothing_shows_them(origin, other, proxy_factory):
    """Neither log, status, answers and errors, nor where they could be stored."""
    login = origin.url().replace("//", "//me:s3cret@")
    config = f'[[mirror]]\nname = "v"\nupstreams = ["{login}"]\nheaders = {{X-Key = "k3y"}}\n'
    proxy = proxy_factory("--log-level", "debug", config_text=config, mirrors={})
    origin.body("/x", BODY).headers(cache_control="max-age=600").stall_at(100)
    origin.body("/away", b"").redirect(other.url("/x?signature=s1gned"))
    said, host = [], f"127.0.0.1:{origin.port}"
    async with await proxy.stream("/v/x") as stream:
        said.append(json.dumps(await proxy.status()))
        origin.release()
        assert await stream.rest() == BODY
    for path in (
        "/v/none",
        "/v/away",
        f"/me:s3cret@{host}/x",
        f"/https/me:s3cret@{host}/x",
        f"http://me:s3cret@{host}/x",
    ):
        answer = await proxy.get(path)
        assert answer.status >= 400
        said.append(f"{answer.head!r} {answer.body!r}")
    assert (await proxy.get("/v/x")).body == BODY
    assert origin.log[0].headers["authorization"] == basic("me:s3cret")
    proxy.terminate()
    said += [*proxy.log, *(path.read_text("latin-1") for path in proxy.cache_dir.rglob("*") if path.is_file())]
    for secret in ("s3cret", "k3y", basic("me:s3cret"), "s1gned"):
        assert secret not in "\n".join(said)
