"""Settings: layers, and mistakes that name their place."""

import os

import pytest

from proxy.config import SHIPPED, load
from proxy.errors import ConfigError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("FETCHONCE_CONFIG", raising=False)


def write(tmp_path, text):
    path = tmp_path / "fetchonce.toml"
    path.write_text(text)
    return path


MISTAKES = {
    "unknown key": (
        "[fill]\nretries = 1\nconections = 4\n",
        3,
        "fill.conections: unknown key; did you mean connections?",
    ),
    "unknown section": ("listen = []\n\n[fills]\nx = 1\n", 3, "fills: unknown key; did you mean fill?"),
    "wrong type": ("# c\n[fill]\nconnections = 'many'\n", 3, "fill.connections: expected `int`, got `str`"),
    "out of bounds": ("[fill]\nconnections = 0\n", 2, "fill.connections: expected `int` >= 1"),
    "duration": ("[fill]\n\nread_timeout = 'soon'\n", 3, "fill.read_timeout: 'soon': expected a duration such as"),
    "size": ("[server]\nheader_size = 'big'\n", 2, "server.header_size: 'big': expected a size such as"),
    "choice": ("[fill]\non_abandon = 'weep'\n", 2, "fill.on_abandon: 'weep': expected 'finish' or 'pause'"),
    "choice of a mirror": ("[[mirror]]\nverify = 'maybe'\n", 2, "mirror[0].verify: 'maybe': expected 'strict' or '"),
    "text in place of a list": ('listen = "127.0.0.1:1"\n', 1, 'listen: expected a list such as ["..."], got `str`'),
    "one bracket": ("[mirror]\nname = 'x'\n", 1, "mirror: expected tables, each begun by [[mirror]]"),
    "mirror's ttl": (
        "[[mirror]]\nname = 'a'\nupstreams = ['https://a.b/']\n[[mirror]]\nname = 'b'\nttl = 'soon'\nupstreams = []\n",
        6,
        "mirror[1].ttl: 'soon': expected a duration",
    ),
    "mirror without upstreams": ("[[mirror]]\nname = 'a'\n", 1, "mirror[0]: missing key `upstreams`"),
    "mirror's name": ("[[mirror]]\nname = 'a.b'\nupstreams = ['https://a.b/']\n", 2, 'mirror[a.b].name: "a.b" cannot'),
    "mirror's URL": (
        "[[mirror]]\nname = 'a'\nupstreams = ['ftp://a.b/']\n",
        3,
        'mirror[a].upstreams: "ftp://a.b/": exp',
    ),
    "pattern": (
        "[[mirror]]\nname = 'a'\nupstreams = ['https://a.b/']\nmoving = ['(']\n",
        4,
        'mirror[a].moving: "(": expected a regular expression',
    ),
    "no CA bundle": ("[upstream]\nca_bundle = '/none.pem'\n", 2, 'upstream.ca_bundle: "/none.pem": no such file'),
    "proxy": ("[upstream]\nproxy = 'socks'\n", 2, 'upstream.proxy: "socks": expected http://HOST:PORT'),
    "a header for us to set": (
        "[[mirror]]\nname = 'a'\nupstreams = ['https://a.b/']\nheaders = {Host = 'x'}\n",
        4,
        'mirror[a].headers: "Host": expected the name of a header that is not',
    ),
    "a header's value": (
        "[[mirror]]\nname = 'a'\nupstreams = ['https://a.b/']\nheaders = {X-Key = \"a\\nb\"}\n",
        4,
        "mirror[a].headers: X-Key: expected printable ASCII",
    ),
    "no netrc": (
        "[[mirror]]\nname = 'a'\nupstreams = ['https://a.b/']\nnetrc = '/none'\n",
        4,
        "mirror[a].netrc: /none: cannot be read",
    ),
    "a URL with a password": (
        "[[mirror]]\nname = 'a'\nupstreams = ['ftp://me:s3cret@a.b/']\n",
        3,
        'mirror[a].upstreams: "ftp://***@a.b/": expected http(s)://',
    ),
    "a client": ("[access]\ntoken = 'x'\nclients = ['here']\n", 3, 'access.clients: "here": expected an address'),
    "a host": ("[access]\nhosts = ['a:1']\n", 2, 'access.hosts: "a:1": expected a host name'),
    "an allowed host": ("[access]\nallow_hosts = ['a b']\n", 2, 'allow_hosts: "a b": expected HOST'),
    "not TOML": ("listen = [\n\nx", 3, "not TOML"),
}


@pytest.mark.parametrize(("text", "line", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_names_file_line_key_and_what_was_expected(tmp_path, text, line, said):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load(str(path))
    assert raised.value.message.startswith(f"{path}:{line}: ")
    assert said in raised.value.message


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file"):
        load(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("name", ["settings", "settings.conf"])
def test_the_file_may_have_any_name(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("[fill]\nretries = 2\n")
    monkeypatch.setenv("FETCHONCE_CONFIG", str(tmp_path / name))
    assert load().file.fill.retries == 2


def test_the_file_may_be_a_pipe_or_a_device(monkeypatch):
    reads, writes = os.pipe()
    with open(reads), open(writes, "w") as file:
        file.write("[fill]\nretries = 2\n")
        file.close()
        monkeypatch.setenv("FETCHONCE_CONFIG", f"/dev/fd/{reads}")
        assert load().file.fill.retries == load().file.fill.retries == 2  # the second time is SIGHUP
    monkeypatch.setenv("FETCHONCE_CONFIG", "/dev/null")
    assert load().file.fill.retries == load(str(SHIPPED / "fetchonce.toml")).file.fill.retries


def test_a_mistake_in_a_pipe_names_its_line(monkeypatch):
    reads, writes = os.pipe()
    with open(reads), open(writes, "w") as file:
        file.write("\n[fill]\nretry = 2\n")
        file.close()
        path = f"/dev/fd/{reads}"
        with pytest.raises(ConfigError, match=f"^{path}:3: fill.retry: unknown key"):
            load(path)


def test_the_environment_wins_over_the_file_and_options_over_both(tmp_path, monkeypatch):
    path = write(tmp_path, "[fill]\nconnections = 2\nretries = 2\nread_timeout = '2s'\n")
    monkeypatch.setenv("FETCHONCE_FILL_RETRIES", "3")
    monkeypatch.setenv("FETCHONCE_FILL_READ_TIMEOUT", "3s")
    monkeypatch.setenv("FETCHONCE_LISTEN", "127.0.0.1:1, [::1]:1")
    settings = load(str(path), {"fill": {"read_timeout": "4s"}})
    fill = settings.file.fill
    assert (fill.connections, fill.retries, fill.read_timeout) == (2, 3, 4)
    assert settings.file.listen == ("127.0.0.1:1", "[::1]:1")


def test_a_mistake_in_the_environment_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("FETCHONCE_FILL_CONNECTIONS", "many")
    with pytest.raises(ConfigError, match="^FETCHONCE_FILL_CONNECTIONS: "):
        load(str(write(tmp_path, "")))


def test_mirrors_come_from_the_package_the_files_beside_and_the_options(tmp_path):
    path = write(tmp_path, "[[mirror]]\nname = 'ubuntu'\nupstreams = ['https://mirror.example/ubuntu']\n")
    (tmp_path / "mirrors").mkdir()
    (tmp_path / "mirrors" / "own.toml").write_text("[[mirror]]\nname = 'own'\nupstreams = ['http://own.example']\n")
    settings = load(str(path), {"mirror": [{"name": "opt", "upstreams": ["http://127.0.0.1:9/"]}]})
    mirrors = {mirror.name: mirror.upstreams for mirror in settings.mirrors}
    assert mirrors["ubuntu"] == ("https://mirror.example/ubuntu/",)  # in place of the shipped one
    assert mirrors["own"] == ("http://own.example/",)
    assert mirrors["opt"] == ("http://127.0.0.1:9/",)
    assert "debian" in mirrors


def test_shipped_mirrors_can_be_left_out(tmp_path):
    assert load(str(write(tmp_path, "shipped_mirrors = false\n"))).mirrors == ()


def test_the_shipped_file_says_the_defaults(tmp_path):
    assert load().file == load(str(write(tmp_path, ""))).file


def test_the_shipped_file_documents_every_key():
    import tomllib

    from proxy.config import SHIPPED, File, Section

    document = tomllib.loads((SHIPPED / "fetchonce.toml").read_text())
    for name in File.__struct_fields__:
        if name == "mirror":
            continue
        default = getattr(File(), name)
        if isinstance(default, Section):
            assert set(document[name]) == set(default.__struct_fields__)
        else:
            assert name in document
