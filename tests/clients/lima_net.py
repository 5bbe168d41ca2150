"""Lima with no option, where the names of all mirrors lead to one https server.

Run as `unshare --user --map-root-user --mount --net python -m tests.clients.lima_net LIMACTL TEMPLATES FOLDER`. The
names are in /etc/hosts, the server has a public address on loopback and a certificate of its own authority. Only the
digests in the templates are changed, to those of the images served.
"""

import asyncio
import hashlib
import platform
import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import trustme

from proxy.config import load
from tests.clients.lima import Lima, snapshot
from tests.harness import Proxy, fetchonce
from tests.names import PUBLIC
from tests.origin import Origin, pattern_bytes

SIZE = 3 << 20
NERDCTL = "https://github.com/containerd/nerdctl/releases/download/v2.3.5/nerdctl-full-2.3.5-linux-{}.tar.gz"
ARCHES = {"amd64": "x86_64", "arm64": "aarch64"}
MINE = "# mine\nssh:\n  forwardAgent: true"


def made_certain(templates, origin):
    """Serve every image that the templates name, and nerdctl, with the digests that are expected of them."""
    body = pattern_bytes(SIZE, 1)
    for file in templates.rglob("*.yaml"):
        text = file.read_text()
        for location in re.findall(r"location: \"?(https?://[^\"\s]+)", text):
            origin.body(urlsplit(location).path, body)
        for algorithm in ("sha256", "sha512"):
            digest = f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
            text = re.sub(rf"{algorithm}:[0-9a-f]{{64,128}}", digest, text)
        if not file.is_symlink():
            file.write_text(text)
    lines = "containerd:\n  archives:\n"
    for name, arch in ARCHES.items():
        origin.body(urlsplit(NERDCTL.format(name)).path, body)
        digest = hashlib.sha256(body).hexdigest()
        lines += f"  - {{location: '{NERDCTL.format(name)}', arch: {arch}, digest: 'sha256:{digest}'}}\n"
    default = templates / "default.yaml"
    default.write_text(default.read_text().replace("\ncontainerd:\n", f"\n{lines}", 1))


def named(folder):
    """Every mirror's name means PUBLIC. Returns the server's side of TLS, and the file of its authority."""
    settings = load(None, {})
    names = {urlsplit(url).hostname for mirror in settings.mirrors for url in mirror.upstreams}
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{PUBLIC} {name}\n" for name in sorted(names)))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", f"{PUBLIC}/32", "dev", "lo"], check=True)
    subprocess.run(["mount", "--bind", folder / "hosts", "/etc/hosts"], check=True)
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert(*names).configure_cert(context)
    return context, folder / "ca.pem"


def home_like(first, name):
    """Another home directory in the state of the first."""
    return shutil.copytree(first, first.with_name(name), symlinks=True)


async def scenario(limactl, templates, folder):
    context, trusted = named(folder)
    lima, trust = Lima(limactl, templates, folder / "lima"), {"SSL_CERT_FILE": str(trusted)}
    with Origin(tls=context, host=PUBLIC, port=443) as origin:
        made_certain(lima.templates, origin)
        proxy = Proxy(folder / "cache", mirrors={}, config_text=f"[upstream]\nca_bundle = '{trusted}'\n").start()
        try:
            await through_and_back(lima, origin, proxy, trust)
        finally:
            proxy.close()


async def through_and_back(lima, origin, proxy, trust):
    first = proxy.cache_dir.with_name("0")
    used = first / ".lima"
    (used / "_templates" / "experimental").mkdir(parents=True, mode=0o750)
    (used / "_templates" / "mine.yaml").write_text("base: template:ubuntu\n")
    (used / "_config").mkdir()
    (used / "_config" / "default.yaml").write_text(MINE)
    (first / "disk.raw").write_bytes(b"x" * 512)
    (first / "warm.yaml").write_text(f"images: [{{location: {first}/disk.raw}}]\nplain: true\n")
    await lima.create(first, first / "warm.yaml")  # keys, which several at once would each make
    await lima(first, "delete", "vm")
    before = snapshot(used)
    ours = {**lima.env(first), "FETCHONCE_CONFIG": str(proxy.config), "FETCHONCE_CACHE_DIR": str(proxy.cache_dir)}
    fetchonce("lima", "install", env=ours)
    homes = [first, *(home_like(first, str(number)) for number in (1, 2, 3))]
    cold, later = home_like(first, "4"), home_like(first, "5")

    # Four at once: one fetch of the image, and one of nerdctl.
    (arch,) = {each for each in ARCHES if ARCHES[each] == machine()}
    image = image_of(lima.templates / "_images" / "ubuntu.yaml", machine())
    wanted = [image, NERDCTL.format(arch)]
    held = [origin.body(urlsplit(url).path, pattern_bytes(SIZE, 1)).stall_at(SIZE // 2) for url in wanted]
    creating = [asyncio.create_task(lima.create(home, "template:ubuntu", **trust)) for home in homes]
    for url, resource in zip(wanted, held, strict=True):
        await proxy.wait_readers(4, urlsplit(url).path, timeout=60)
        resource.release()
    await asyncio.gather(*creating)
    for home in homes:
        assert set(lima.downloaded(home)) == {through(proxy, url) for url in wanted}
    assert [origin.count(urlsplit(url).path) for url in wanted] == [1, 1]

    # Another template with the same image asks nobody.
    asked = origin.requests
    await lima.create(later, "template:docker", **trust)
    assert set(lima.downloaded(later)) == {through(proxy, image)}
    assert origin.requests == asked
    assert all("fetchonce" in request.headers["user-agent"] for request in origin.log)

    # Without fetchonce the same command takes the originals.
    proxy.terminate()
    await lima.create(cold, "template:ubuntu", **trust)
    assert set(lima.downloaded(cold)) == set(wanted)
    assert [origin.count(urlsplit(url).path) for url in wanted] == [2, 2]

    await lima(first, "delete", "vm")
    fetchonce("lima", "remove", env=ours)
    assert snapshot(used) == before
    _, said = await lima(first, "template", "yq", "template:ubuntu", ".images[0].location", **trust)
    assert said.strip().endswith(image)


def machine():
    return "aarch64" if platform.machine() in ("aarch64", "arm64") else "x86_64"


def image_of(template, arch):
    """The first image for `arch`."""
    text = template.read_text()
    return re.search(rf"location: \"(\S+)\"\n  arch: \"{arch}\"", text)[1]


def through(proxy, url):
    return proxy.url(url.replace("https:/", ""))


if __name__ == "__main__":
    asyncio.run(scenario(*map(Path, sys.argv[1:4])))
