"""https beside http: real clients that trust nothing but --cacert, and the certificates of `tls init`."""

import asyncio
import datetime
import json
import os
import re
import signal
import ssl
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from proxy.serving.connection import REFUSED
from tests.harness import REPOSITORY, Client, fetchonce, until
from tests.origin import pattern_bytes

SIZE = 16 << 20
SEED = 11
FRESH = {"cache_control": "max-age=600"}
END_SECONDS = 30


def init(directory, *args, code=0):
    ran = fetchonce("tls", "init", "--json", "--dir", directory, *args, code=code)
    return ran.stderr if code else json.loads(ran.stdout)


async def run(*command, data=b""):
    """A client's exit code, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
    )
    try:
        async with asyncio.timeout(END_SECONDS):
            out, error = await process.communicate(data)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out, error.decode(errors="replace")


@dataclass
class Secure:
    """A proxy that listens for http and https, and clients of its https."""

    proxy: object
    authority: Path

    @property
    def port(self):
        return next(int(found[1]) for line in self.proxy.log if (found := re.search(r"https://[\w.]+:(\d+)", line)))

    def url(self, path):
        return f"https://localhost:{self.port}{path}"

    async def curl(self, path, *options):
        return await run("curl", "-sS", "--cacert", self.authority, *options, self.url(path))

    async def get(self, path, *options):
        """The body; the client must succeed."""
        code, out, error = await self.curl(path, "--fail", *options)
        assert code == 0, error
        return out

    async def s_client(self, *options, data=b""):
        """What openssl says about a connection on which it sends `data`."""
        _, out, error = await run(
            "openssl", "s_client", "-connect", f"127.0.0.1:{self.port}", "-CAfile", self.authority, *options, data=data
        )
        return out.decode(errors="replace") + error

    async def connect(self):
        context = ssl.create_default_context(cafile=self.authority)
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname="localhost")

    async def serial(self):
        """The serial number of the certificate that a new connection is shown."""
        _, writer = await self.connect()
        shown = writer.get_extra_info("peercert")["serialNumber"]
        writer.transport.abort()
        return int(shown, 16)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory made by `tls init`. Tests must not change it."""
    directory = tmp_path_factory.mktemp("tls") / "made"
    init(directory, "--host", "cache.example", "--host", "192.0.2.7")
    return directory


@pytest.fixture
def secure_factory(proxy_factory, made):
    def make(*args, directory=made, more="", **options):
        config = f"[server]\ntls_cert = '{directory / 'server.pem'}'\n{more}"
        return Secure(
            proxy_factory("--listen", "https://127.0.0.1:0", *args, config_text=config, **options), directory / "ca.pem"
        )

    return make


@pytest.fixture
def secure(secure_factory):
    return secure_factory()


def serial_of(path):
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


# -- what clients get --------------------------------------------------------------------------------------------------


async def test_https_answers_as_http_does(origin, secure):
    origin.pattern("/noble.img", SIZE, SEED).headers(**FRESH)
    assert await secure.get("/u/noble.img") == pattern_bytes(SIZE, SEED)
    await until(secure.proxy.entries)
    for options in (["-I"], ["-i", "-r", "1000-1999"], ["-i", "-r", "-77"], ["-i", "-r", "0-9,90-99"], ["-i"]):
        _, out, _ = await secure.curl("/u/noble.img", *options)
        _, plain, _ = await run("curl", "-sS", *options, secure.proxy.url("/u/noble.img"))
        varying = re.compile(rb"(?im)^(date|age): .*$|[0-9a-f]{32}")
        assert varying.sub(b"", out) == varying.sub(b"", plain)
    assert origin.requests == 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_eight_readers_over_https_follow_one_fill(origin, secure_factory, workers):
    secure = secure_factory("--workers", str(workers))
    origin.pattern("/noble.img", SIZE, SEED).stall_at(SIZE // 2, times=1).headers(**FRESH)

    async def read():
        return await secure.get("/u/noble.img")

    readers = [asyncio.create_task(read()) for _ in range(8)]
    async with await secure.proxy.stream("/u/noble.img") as plain:
        assert await plain.read(SIZE // 2) == pattern_bytes(SIZE, SEED, 0, SIZE // 2)
        ahead = await secure.get("/u/noble.img", "-r", f"{SIZE - 100}-")
        assert ahead == pattern_bytes(SIZE, SEED, SIZE - 100, SIZE)
        origin.release()
        assert {body == pattern_bytes(SIZE, SEED) for body in await asyncio.gather(*readers)} == {True}
        assert await plain.rest() == pattern_bytes(SIZE, SEED, SIZE // 2, SIZE)
    assert sum(request.range is None for request in origin.log) == 1


async def test_a_body_that_cannot_be_completed_is_visibly_broken(origin, secure):
    origin.pattern("/noble.img", SIZE, SEED).close_at(SIZE // 2)
    code, out, error = await secure.curl("/u/noble.img", "--max-time", "20")
    assert (code, out) == (18, pattern_bytes(SIZE, SEED, 0, SIZE // 2)), error


async def test_who_does_not_trust_the_authority_gets_nothing(secure):
    code, _, error = await run("curl", "-sS", secure.url("/-/healthz"))
    assert code == 60, error


async def test_only_tls_1_2_and_1_3_and_http_1_1(secure):
    for version in ("-tls1_2", "-tls1_3"):
        seen = await secure.s_client(version, "-alpn", "h2,http/1.1", "-verify_return_error")
        assert "ALPN protocol: http/1.1" in seen
        assert "Verify return code: 0 (ok)" in seen
    refused = await secure.s_client("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")
    assert "alert protocol version" in refused  # and not just a closed connection


@pytest.mark.parametrize("name", ["localhost", "host.lima.internal", "host.docker.internal", "cache.example"])
async def test_the_certificate_is_for_every_name_we_go_by(secure, name):
    seen = await secure.s_client("-verify_return_error", "-verify_hostname", name)
    assert "Verify return code: 0 (ok)" in seen


@pytest.mark.parametrize("request_line", ["GET /u/noble.img HTTP/1.1", "CONNECT example.org:443 HTTP/1.1"])
async def test_plain_http_on_the_https_port_is_told_so(secure, request_line):
    client = Client("127.0.0.1", secure.port)
    async with await client.connect() as connection:
        await connection.send(f"{request_line}\r\nHost: localhost\r\n\r\n".encode())
        answer = await connection.answer()
        assert answer.status == 400
        assert (
            "this port speaks https" in json.loads(await answer.read(int(answer.headers["content-length"])))["message"]
        )
    assert await secure.get("/-/healthz")


async def test_https_on_the_plain_port_is_told_in_the_log(secure):
    code, _, _ = await run("curl", "-sS", secure.proxy.url("/").replace("http:", "https:"))
    assert code == 35
    assert "this port speaks plain http" in await secure.proxy.wait_log("server.refused")


# -- the limits hold there too -----------------------------------------------------------------------------------------


async def test_a_client_that_says_nothing_is_cut_off_before_and_after_the_handshake(secure_factory):
    secure = secure_factory(more='header_timeout = "1s"\n')
    assert await Client("127.0.0.1", secure.port).raw(b"") == b""
    assert await Client("127.0.0.1", secure.port).raw(bytes.fromhex("1603010200010001fc0303")) == b""
    reader, writer = await secure.connect()
    writer.write(b"GET /u/noble.img HTTP/1.1\r\nHost: ")
    async with asyncio.timeout(END_SECONDS):
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
    writer.transport.abort()


async def test_a_crowd_that_never_shakes_hands_is_bounded(secure_factory):
    secure = secure_factory(more='header_timeout = "1h"\nconnections = 2\n')
    client = Client("127.0.0.1", secure.port)
    crowd = [await client.connect() for _ in range(2 + REFUSED)]
    async with await client.connect() as late:
        assert await late.rest() == b""
    client.close()
    del crowd

    async def is_answered():
        return (await secure.curl("/-/healthz"))[0] == 0

    await until(is_answered)


async def test_a_foreign_host_is_refused_and_a_host_of_ours_is_not(origin, secure):
    origin.body("/noble.img", b"x" * 10)
    _, out, _ = await secure.curl("/u/noble.img", "-H", "Host: evil.example", "-w", "%{http_code}")
    assert out.endswith(b"421")
    assert await secure.get("/u/noble.img", "-H", "Host: host.lima.internal:8643") == b"x" * 10


# -- its life ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
async def test_sighup_takes_the_new_certificate_and_running_connections_keep_theirs(
    origin, secure_factory, tmp_path, workers
):
    first = init(tmp_path / "tls")
    server = Path(first["cert"])
    secure = secure_factory("--workers", str(workers), directory=server.parent)
    origin.pattern("/noble.img", SIZE, SEED).stall_at(SIZE // 2)
    reader, writer = await secure.connect()
    writer.write(b"GET /u/noble.img HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")

    assert await secure.serial() == serial_of(server)
    init(server.parent, "--renew")
    secure.proxy.send_signal(signal.SIGHUP)

    processes = 1 if workers == 1 else workers + 1  # each reads the file by itself
    await until(lambda: sum("config.reloaded" in line for line in secure.proxy.log) == processes)
    assert {await secure.serial() for _ in range(8)} == {serial_of(server)}
    good = server.read_bytes()
    server.write_text("nonsense")
    secure.proxy.send_signal(signal.SIGHUP)
    assert f"{secure.proxy.config}:2: server.tls_cert" in await secure.proxy.wait_log("config.refused")
    server.write_bytes(good)
    assert {await secure.serial() for _ in range(8)} == {serial_of(server)}

    origin.release()
    async with asyncio.timeout(END_SECONDS):
        assert await reader.readexactly(SIZE) == pattern_bytes(SIZE, SEED)
    writer.transport.abort()


async def test_a_worker_that_begins_later_needs_no_files(secure_factory, tmp_path):
    server = Path(init(tmp_path / "tls")["cert"])
    secure = secure_factory("--workers", "2", directory=server.parent)
    server.unlink()
    line = await secure.proxy.wait_log("worker.started")
    os.kill(int(re.search(r"pid=(\d+)", line)[1]), signal.SIGKILL)
    await secure.proxy.wait_log("worker.died")
    await until(lambda: sum("worker.started" in line for line in secure.proxy.log) == 3)
    for _ in range(8):
        assert await secure.get("/-/healthz")


async def test_commands_work_beside_a_server_that_only_speaks_https(origin, proxy_factory, made):
    origin.body("/noble.img", b"x" * 10)
    config = f"shipped_mirrors = false\n[server]\ntls_cert = '{made / 'server.pem'}'\n"
    proxy = proxy_factory(listen="https://127.0.0.1:0", config_text=config)
    secure = Secure(proxy, made / "ca.pem")
    assert await secure.get("/u/noble.img") == b"x" * 10
    mirror = f'[[mirror]]\nname = "u"\nupstreams = ["{origin.url()}"]\n'
    proxy.config.write_text(f"{config}{mirror}")
    options = ("--config", proxy.config, "--cache-dir", proxy.cache_dir)
    own = f"https://127.0.0.1:{secure.port}/u/noble.img"
    assert fetchonce("url", origin.url("/noble.img"), *options).stdout.startswith(f"https://127.0.0.1:{secure.port}/")
    assert json.loads(fetchonce("show", own, "--json", *options).stdout)["url"] == origin.url("/noble.img")
    assert json.loads(fetchonce("status", "--json", *options).stdout)["workers"]


def test_https_beyond_loopback_needs_to_be_told_who_may_ask(tmp_path, made):
    ran = fetchonce(
        "serve", "--listen", "https://0.0.0.0:0", "--cache-dir", tmp_path, code=2,
        env={"FETCHONCE_SERVER_TLS_CERT": str(made / "server.pem")},
    )  # fmt: skip
    assert "reachable from the network" in ran.stderr


# -- certificates that are wrong ---------------------------------------------------------------------------------------


def signed(key, *, days=90.0, of_client=False):
    """A self-signed certificate that ends in `days`, in PEM."""
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    purpose = x509.OID_CLIENT_AUTH if of_client else x509.OID_SERVER_AUTH
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=min(days, 0) - 1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def new_key():
    return ec.generate_private_key(ec.SECP256R1())


def pem(key, password=b""):
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


KEY = new_key()
WRONG = {
    "missing": (None, None, "tls_cert", "cannot be read: No such file"),
    "a key that is missing": (signed(KEY), None, "tls_key", "cannot be read: No such file"),
    "no PEM": (b"nonsense", pem(KEY), "tls_cert", "expected a certificate in"),
    "no key in one file": (signed(KEY), "same", "tls_cert", "expected a certificate in"),
    "another key": (signed(KEY), pem(new_key()), "tls_key", "does not belong to the certificate in"),
    "a key with a password": (signed(KEY), pem(KEY, b"secret"), "tls_key", "expected a key without a password"),
    "a client's": (signed(KEY, of_client=True), pem(KEY), "tls_cert", "expected a server's certificate: unsuitable"),
    "expired": (signed(KEY, days=-1), pem(KEY), "", "no client will trust this certificate: it has expired"),
}


@pytest.mark.parametrize(("cert", "key", "at", "message"), WRONG.values(), ids=WRONG)
def test_config_check_says_what_is_wrong_with_a_certificate(tmp_path, cert, key, at, message):
    cert_file, key_file, config = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "fetchonce.toml"
    text = f'listen = ["https://127.0.0.1:8643"]\n[server]\ntls_cert = "{cert_file}"\n'
    if cert:
        cert_file.write_bytes(cert)
    if key != "same":
        text += f'tls_key = "{key_file}"\n'
        if key:
            key_file.write_bytes(key)
    config.write_text(text)
    said = fetchonce("config", "check", "--config", config, code=2).stderr
    assert message in said
    if at:
        assert (
            f"{config}:{text.splitlines().index(next(x for x in text.splitlines() if at in x)) + 1}: server.{at}"
            in said
        )
        serving = fetchonce("serve", "--config", config, "--cache-dir", tmp_path / "cache", code=2).stderr
        assert said.strip() == serving.strip()


def test_a_certificate_is_read_only_where_somebody_listens_for_https(tmp_path):
    config = tmp_path / "fetchonce.toml"
    config.write_text('[server]\ntls_cert = "/nowhere/cert.pem"\n')
    fetchonce("config", "check", "--config", config)


def test_without_a_certificate_it_says_how_to_make_one(tmp_path):
    config = tmp_path / "fetchonce.toml"
    config.write_text('listen = ["https://127.0.0.1:8643"]\n')
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    said = fetchonce("config", "check", "--config", config, code=2, env=home).stderr
    assert "`fetchonce tls init` makes one" in said
    fetchonce("tls", "init", env=home)
    fetchonce("config", "check", "--config", config, env=home)


@pytest.mark.parametrize(("days", "event"), [(-1, "tls.refused_by_clients"), (10, "tls.expires_soon")])
async def test_an_ending_certificate_stops_nobody_who_asks_without_it(secure_factory, tmp_path, days, event):
    (tmp_path / "server.pem").write_bytes(signed(KEY, days=days) + pem(KEY))
    secure = secure_factory(directory=tmp_path)
    await secure.proxy.wait_log(event)
    assert (await secure.proxy.get("/-/healthz")).status == 200


# -- tls init ----------------------------------------------------------------------------------------------------------


def test_init_again_changes_nothing_and_renew_keeps_the_authority_and_the_names(tmp_path):
    directory = tmp_path / "deep" / "tls"
    first = init(directory, "--host", "cache.example")
    assert first["is_new"]
    kept = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert kept.keys() == {"ca.pem", "ca-key.pem", "server.pem"}
    assert init(directory) == {**first, "is_new": False, "names": init(directory)["names"]}
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == kept
    renewed = init(directory, "--renew")
    assert set(renewed["names"]) == set(first["names"])
    after = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert after["server.pem"] != kept["server.pem"]
    assert [after[name] == kept[name] for name in ("ca.pem", "ca-key.pem")] == [True, True]


def test_keys_are_for_their_owner_alone(made):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (made, *made.iterdir())}
    assert modes == {"made": 0o700, "ca-key.pem": 0o600, "server.pem": 0o600, "ca.pem": 0o644}


def test_a_certificate_that_ends_soon_is_renewed(tmp_path):
    init(tmp_path / "tls")
    authority = x509.load_pem_x509_certificate((tmp_path / "tls/ca.pem").read_bytes())
    key = load_pem_private_key((tmp_path / "tls/ca-key.pem").read_bytes(), None)
    server = tmp_path / "tls/server.pem"
    old = x509.load_pem_x509_certificate(server.read_bytes())
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=29)
    builder = x509.CertificateBuilder(
        authority.subject, old.subject, old.public_key(), 1, old.not_valid_before_utc, ends
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    server.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    again = init(tmp_path / "tls")
    assert again["is_new"]
    assert datetime.datetime.fromisoformat(again["until"]) > ends


async def test_the_authority_can_sign_for_nobody_else(tmp_path):
    init(tmp_path / "tls", "--host", "cache.example", "--host", "192.0.2.7")
    before = (tmp_path / "tls/server.pem").read_bytes()
    said = init(tmp_path / "tls", "--host", "example.org", "--host", "192.0.2.8", "--host", "a.cache.example", code=1)
    assert "example.org, 192.0.2.8: " in said
    assert "for another, which must be trusted anew, remove it and" in said
    assert (tmp_path / "tls/server.pem").read_bytes() == before
    # Other tools get no further with its key either.
    authority, key = tmp_path / "tls/ca.pem", tmp_path / "tls/ca-key.pem"
    for number, name in enumerate(("DNS:example.org", "IP:192.0.2.8", "DNS:cache.example")):
        names = tmp_path / f"{number}.cnf"
        names.write_text(f"subjectAltName={name}\n")
        request, leaf = tmp_path / f"{number}.csr", tmp_path / f"{number}.pem"
        made = ("openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-out", request)
        assert (await run(*made, "-keyout", tmp_path / "k"))[0] == 0
        made = ("openssl", "x509", "-req", "-in", request, "-CA", authority, "-CAkey", key, "-days", "1", "-out", leaf)
        assert (await run(*made, "-CAserial", tmp_path / "serial", "-CAcreateserial", "-extfile", names))[0] == 0
        code, _, error = await run("openssl", "verify", "-CAfile", authority, leaf)
        assert ("permitted subtree violation" in error) == (code != 0) == (name != "DNS:cache.example"), error


def test_what_is_in_the_way_is_never_overwritten(tmp_path):
    directory = tmp_path / "tls"
    init(directory)
    files = {name: (directory / name).read_bytes() for name in ("ca.pem", "ca-key.pem")}
    for name, data, message in (
        ("ca-key.pem", None, "without"),
        ("ca.pem", None, "without"),
        ("ca-key.pem", pem(new_key()), "is not the key of"),
        ("ca-key.pem", b"nonsense", "not as it was made"),
        ("ca-key.pem", pem(KEY, b"secret"), "not as it was made"),
        ("ca.pem", b"nonsense", "not as it was made"),
    ):
        (directory / name).unlink()
        if data:
            (directory / name).write_bytes(data)
        assert message in init(directory, code=1)
        assert (directory / name).exists() == bool(data)
        (directory / name).write_bytes(files[name])
    directory.chmod(0o777)
    assert "others may write to" in init(directory, code=1)
    directory.chmod(0o700)
    # An authority that was removed on purpose is made anew. Then the old one's certificate is worth nothing.
    for name in files:
        (directory / name).unlink()
    assert init(directory)["is_new"]


def test_names_come_from_the_configuration_too_and_must_be_names(tmp_path):
    config = tmp_path / "fetchonce.toml"
    config.write_text('[access]\nhosts = ["Cache.Example"]\n')
    assert "cache.example" in init(tmp_path / "tls", "--config", config)["names"]
    config.write_text('[access]\nhosts = ["other.example"]\n')
    ran = fetchonce("tls", "init", "--dir", tmp_path / "tls", "--config", config)
    assert "left out, since the authority was made without: other.example" in ran.stderr
    for name in ("https://x", "x:8643", "*.example", "", "a_b"):
        assert "expected a name or an address" in init(tmp_path / "tls", "--host", name, code=2)


def test_it_prints_the_lines_to_add_and_how_to_trust_it(tmp_path):
    told = fetchonce("tls", "init", "--dir", tmp_path / "my tls").stdout
    assert 'listen = ["127.0.0.1:8642", "https://127.0.0.1:8643"]' in told
    assert f'tls_cert = "{tmp_path / "my tls"}/server.pem"' in told
    for way in (
        "update-ca-certificates",
        "update-ca-trust",
        "security add-trusted-cert",
        "multipass set",
        "incus remote",
    ):
        assert way in told
    assert f"curl --cacert '{tmp_path}/my tls/ca.pem'" in told


def test_without_the_package_it_says_how_to_get_it_and_all_else_works(tmp_path):
    hidden = "import sys; sys.modules['cryptography'] = None; from proxy.cli import main; main(sys.argv[1:])"

    def ran(*args):
        return subprocess.run(
            [sys.executable, "-c", hidden, *args], cwd=REPOSITORY, capture_output=True, text=True, timeout=END_SECONDS
        )

    refused = ran("tls", "init", "--dir", str(tmp_path / "tls"))
    assert (refused.returncode, "pip install 'fetchonce[tls]'" in refused.stderr) == (1, True)
    assert not (tmp_path / "tls").exists()
    config = tmp_path / "fetchonce.toml"
    server = init(tmp_path / "tls")["cert"]
    config.write_text(f'listen = ["https://127.0.0.1:8643"]\n[server]\ntls_cert = "{server}"\n')
    assert ran("config", "check", "--config", str(config)).returncode == 0
