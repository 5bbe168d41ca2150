"""Who may ask us, and under which name."""

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ConfigError, Forbidden, Misdirected, ProxyUnauthorized, Unauthorized
from proxy.rules.access import Access, is_via

LOOPBACK = ("127.0.0.0/8", "::1")
DEFAULT = Access.of(LOOPBACK, (), "")
OPEN = Access.of((*LOOPBACK, "192.168.0.0/16", "fd00::/8"), ("cache.example",), "s3cret:x")


def host(name):
    return [(b"accept", b"*/*"), (b"host", name.encode("latin-1"))]


def basic(password, user="x"):
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "localhost:8642",
        "LOCALHOST.:1",
        "localhost:",
        "127.0.0.1:8642",
        "127.0.0.1",
        "127.9.9.9:80",
        "[::1]:8642",
        "[::1]",
        "0.0.0.0:8642",
        "192.168.1.5:8642",
        "[::ffff:192.168.1.5]:8642",
        "host.lima.internal:8642",
        "host.docker.internal",
        "Host.Containers.Internal:8642",
        "cache.example:99",
        "CACHE.example.",
    ],
)
def test_what_we_are_called(name):
    OPEN.judge(b"/u/x", host(name), "192.168.1.9", "192.168.1.5")
    OPEN.judge(b"/-/status", host(name), "192.168.1.9", "::ffff:192.168.1.5")


@pytest.mark.parametrize(
    "name",
    [
        "evil.example",
        "evil.example:8642",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example@localhost",
        "localhost@evil.example",
        "localhost:8642@evil.example",
        "192.168.1.6",
        "1.1.1.1:8642",
        "2130706433",
        "0x7f.1",
        "[::2]:8642",
        "[localhost]",
        "host.lima.internal.evil.example",
        "cache.example.evil.example",
        "xcache.example",
        "localhost, evil.example",
        "localhost/",
        "http://localhost",
        "",
        " ",
        "\xff",
    ],
)
def test_what_we_are_not_called(name):
    with pytest.raises(Misdirected, match="this is fetchonce"):
        OPEN.judge(b"/-/status", host(name), "127.0.0.1", "192.168.1.5")


def test_the_refusal_says_what_would_allow_it():
    with pytest.raises(Misdirected) as refused:
        DEFAULT.judge(b"/", host("Cache.Example:8642"), "127.0.0.1", "127.0.0.1")
    assert '[access] hosts = ["cache.example"]' in refused.value.message
    assert refused.value.status == 421
    Access.of(LOOPBACK, ["cache.example"], "").judge(b"/", host("Cache.Example:8642"), "127.0.0.1", "127.0.0.1")


def test_only_of_an_origin_form_the_host_counts():
    for target in (b"http://far.example/x", b"far.example:443", b"*"):
        DEFAULT.judge(target, host("far.example"), "127.0.0.1", "127.0.0.1")
    DEFAULT.judge(b"/x", [], "127.0.0.1", "127.0.0.1")  # HTTP/1.0


def test_a_unix_socket_is_this_machine():
    Access.of((), (), "").judge(b"/x", host("whatever"), None, "/run/fetchonce.sock")


@pytest.mark.parametrize(
    ("target", "own"),
    [
        (b"http://127.0.0.1:8642/u/x?y", b"/u/x?y"),
        (b"HTTP://LOCALHOST:8642/", b"/"),
        (b"http://localhost:8642", b"/"),
        (b"http://[::1]:8642/-/status", b"/-/status"),
        (b"http://192.168.1.5:8642/x", b"/x"),
        (b"http://cache.example:8642/x", b"/x"),
        (b"http://127.0.0.1:8643/x", None),
        (b"http://127.0.0.1/x", None),
        (b"http://far.example:8642/x", None),
        (b"http://x@127.0.0.1:8642/x", None),
        (b"http://127.0.0.1:8642@far.example/x", None),
        (b"https://127.0.0.1:8642/x", b"/x"),
        (b"https://localhost/x", None),
        (b"ftp://127.0.0.1:8642/x", None),
        (b"/http://127.0.0.1:8642/x", None),
    ],
)
def test_an_absolute_form_that_means_us(target, own):
    assert OPEN.own_path(target, ("192.168.1.5", 8642)) == (target if own is None else own)
    assert OPEN.own_path(b"http://localhost/x", ("127.0.0.1", 80)) == b"/x"
    assert OPEN.own_path(target, None) == OPEN.own_path(target, ("/run/socket", None)) == target


def test_the_address_by_which_a_client_names_us():
    access, here = Access.of((), ("cache.example",), "to/ken"), ("192.168.1.5", 8642)

    def base(target, of=None, *more, server=here):
        return access.own_base("https", target, (*(host(of) if of else ()), *more), server)

    assert base(b"/u/x", "cache.example:99") == "https://cache.example:99"
    assert base(b"/u/x", "[::1]") == "https://[::1]"
    assert base(b"/u/x") is base(b"/u/x", 'a"b') is base(b"http://far.example/x", "cache.example") is None
    assert base(b"http://cache.example:8642/u", "far.example") == "https://cache.example:8642"
    for login, shown in (("me:to/ken", "me:to%2Fken@"), (":to/ken", ":to%2Fken@"), ("me:other", ""), ("to/ken", "")):
        basic = b"Basic " + base64.b64encode(login.encode())
        assert base(b"/u/x", "cache.example", (b"authorization", basic)) == f"https://{shown}cache.example"
    assert base(b"/u/x", "localhost", (b"authorization", b"Bearer to/ken")) == "https://localhost"


@pytest.mark.parametrize(
    ("client", "is_known"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.168.77.1", True),
        ("::ffff:192.168.77.1", True),
        ("fd00::7%eth0", True),
        ("192.169.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("10.0.0.1", False),
        ("nonsense", False),
    ],
)
def test_who_needs_no_token(client, is_known):
    if is_known:
        OPEN.judge(b"/x", host("localhost"), client, "127.0.0.1")
    else:
        with pytest.raises(Unauthorized):
            OPEN.judge(b"/x", host("localhost"), client, "127.0.0.1")


def test_without_a_token_nobody_else_may_ask():
    with pytest.raises(Forbidden, match=r'10.0.0.1 may not ask here.*clients = \["10.0.0.1"\]'):
        DEFAULT.judge(b"/x", [*host("localhost"), (b"authorization", b"Bearer ")], "10.0.0.1", "127.0.0.1")


@pytest.mark.parametrize("name", [b"authorization", b"proxy-authorization"])
@pytest.mark.parametrize(
    ("value", "is_right"),
    [
        (b"Bearer s3cret:x", True),
        (b"bearer   s3cret:x ", True),
        (basic("s3cret:x"), True),
        (basic("s3cret:x", user=""), True),
        (basic("s3cret:x").replace(b"Basic", b"BASIC"), True),
        (b"Bearer s3cret", False),
        (b"Bearer", False),
        (b"Bearer s3cret:xx", False),
        (b"Bearer \xff", False),
        (b"Basic", False),
        (b"Basic !!!", False),
        (b"Basic " + base64.b64encode(b"s3cret:x"), False),
        (basic("s3cret"), False),
        (b"Digest s3cret:x", False),
        (b"s3cret:x", False),
        (b"", False),
    ],
)
def test_the_token(name, value, is_right):
    headers = [*host("localhost"), (name, value)]
    if is_right:
        OPEN.judge(b"/x", headers, "10.0.0.1", "127.0.0.1")
        OPEN.judge(b"http://far.example/x", headers, "10.0.0.1", "127.0.0.1")
        return
    with pytest.raises(Unauthorized) as asked:
        OPEN.judge(b"/x", headers, "10.0.0.1", "127.0.0.1")
    assert asked.value.status == 401
    assert dict(asked.value.headers)["www-authenticate"].startswith('Basic realm="fetchonce"')
    with pytest.raises(ProxyUnauthorized) as asked:
        OPEN.judge(b"http://far.example/x", headers, "10.0.0.1", "127.0.0.1")
    assert asked.value.status == 407
    assert "proxy-authenticate" in dict(asked.value.headers)


def test_the_token_does_not_excuse_a_foreign_name():
    with pytest.raises(Misdirected):
        OPEN.judge(b"/x", [*host("evil.example"), (b"authorization", b"Bearer s3cret:x")], "10.0.0.1", "127.0.0.1")


@pytest.mark.parametrize(
    ("lines", "is_ours"),
    [
        ([b"1.1 fetchonce-1234abcd"], True),
        ([b"1.0 fred, HTTP/1.1 fetchonce-1234abcd (a comment), 1.1 p.example"], True),
        ([b"1.1 fred", b"1.1 fetchonce-1234abcd"], True),
        ([b"1.1 fetchonce-1234abce"], False),
        ([b"1.1 fetchonce"], False),
        ([b"fetchonce-1234abcd"], False),
        ([b"1.1 fred (fetchonce-1234abcd)"], False),
        ([b"", b",,", b"\xff"], False),
        ([], False),
    ],
)
def test_a_request_that_has_passed_us(lines, is_ours):
    assert is_via([(b"host", b"a"), *((b"via", line) for line in lines)], "fetchonce-1234abcd") is is_ours


CHANGES = {
    "a program": ([], True),
    "our page": ([(b"origin", b"http://localhost:8642"), (b"sec-fetch-site", b"same-origin")], True),
    "an address bar": ([(b"sec-fetch-site", b"none")], True),
    "another page": ([(b"origin", b"http://evil.example")], False),
    "another port": ([(b"origin", b"http://localhost:80")], False),
    "a file": ([(b"origin", b"null")], False),
    "another site that says no origin": ([(b"sec-fetch-site", b"cross-site")], False),
    "another host of the site": ([(b"sec-fetch-site", b"same-site")], False),
    "an origin that is none": ([(b"origin", b"http://[")], False),
    "another page with the token": (
        [(b"origin", b"http://evil.example"), (b"authorization", b"Bearer s3cret:x")],
        True,
    ),
}


@pytest.mark.parametrize(("headers", "is_allowed"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_who_may_change_something(method, headers, is_allowed):
    headers = [(b"host", b"localhost:8642"), (b"content-type", b"application/json; charset=utf-8"), *headers]
    if is_allowed:
        OPEN.judge_change(method, headers)
    else:
        with pytest.raises(Forbidden, match="may not change anything"):
            OPEN.judge_change(method, headers)


@pytest.mark.parametrize("kind", [b"text/plain", b"application/x-www-form-urlencoded", None])
def test_what_a_form_can_send_changes_nothing(kind):
    with pytest.raises(Forbidden, match="must be application/json"):
        DEFAULT.judge_change("POST", [(b"content-type", kind)] if kind else [])


@pytest.mark.parametrize(
    ("clients", "hosts", "token", "said"),
    [
        (["localhost"], [], "", 'access.clients: "localhost": expected an address or a network'),
        (["10.0.0.1/8"], [], "", 'access.clients: "10.0.0.1/8": expected an address or a network'),
        ([], ["cache.example:8642"], "", 'access.hosts: "cache.example:8642": expected a host name without'),
        ([], ["*.example"], "", "access.hosts"),
        ([], [], "two words", "access.token: expected printable ASCII"),
        ([], [], "schlüssel", "access.token: expected printable ASCII"),
    ],
)
def test_mistakes(clients, hosts, token, said):
    with pytest.raises(ConfigError) as wrong:
        Access.of(clients, hosts, token)
    assert said in wrong.value.message


def test_an_address_may_be_a_host_too():
    own = Access.of(LOOPBACK, ["fd00::1", "203.0.113.7"], "")
    assert own.is_own("[fd00::1]:8642", None)
    assert own.is_own("203.0.113.7", None)


@pytest.mark.parametrize(
    ("clients", "token", "is_open"),
    [
        (LOOPBACK, "", False),
        ((), "", False),
        (("127.0.0.1",), "", False),
        (LOOPBACK, "x", True),
        (("10.0.0.0/8",), "", True),
        (("0.0.0.0/0",), "", True),
    ],
)
def test_whether_anybody_beyond_this_machine_may_ask(clients, token, is_open):
    assert Access.of(clients, (), token).is_open is is_open


@given(
    st.binary(max_size=60), st.lists(st.tuples(st.sampled_from([b"host", b"authorization"]), st.binary(max_size=40)))
)
def test_whatever_comes_is_judged(target, headers):
    for client in ("10.0.0.1", "127.0.0.1"):
        with contextlib.suppress(Misdirected, Unauthorized, ProxyUnauthorized):
            OPEN.judge(target, headers, client, "127.0.0.1")
        OPEN.own_path(target, ("127.0.0.1", 8642))
