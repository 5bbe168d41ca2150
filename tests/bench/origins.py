"""The mirrors: nginx with files, by http and https, and the scripted origin where each connection is slow.

nginx's own limit_rate is no such limit: the first second of each request is free, so ranges escape it.
"""

import contextlib
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from tests.bench.load import Missing
from tests.bench.processes import Server, free_port, running
from tests.origin import Origin

MB, GB = 1024**2, 1024**3
LEAST = 50  # of what a case has many of
FRESH = "public, max-age=86400"
SLOW_BYTES_PER_SECOND = 40_000_000
SBIN = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin"
"""Debian has nginx and Varnish there, where a user's PATH does not lead."""
TEMPLATES = Path(__file__).parent


def program(name: str, package: str) -> str:
    """Its path. Raises Missing."""
    found = shutil.which(name, path=SBIN)
    if not found:
        raise Missing(f"{name} is not installed (Debian: apt install {package})")
    return found


def filled_in(template: str, target: Path, **values: object) -> Path:
    """Write the template into `target`, with each @NAME@ replaced."""
    # nginx's workers would give up being root, and could not read and write here.
    values["USER"] = "user root;" if os.geteuid() == 0 else ""
    text = (TEMPLATES / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    target.write_text(text)
    return target


@dataclass(frozen=True, slots=True)
class Object:
    """A file of the mirror."""

    name: str
    size: int
    file: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Upstream:
    scheme: str
    port: int


@dataclass(frozen=True, slots=True)
class Origins:
    """All of them, running."""

    image: Object
    quarter: Object
    slow_image: Object
    """Of the slow origin, which knows no other."""
    tiny: Object
    sparse: Object
    """Eight times the image, and nothing but zeros; its digest is not known."""
    http: Upstream
    https: Upstream
    throttled: Upstream
    ca: Path
    """The certificate of the authority that made that of https."""
    slow: Origin
    slow_body: bytes
    log: Path
    words: Iterator[int] = field(default_factory=itertools.count)

    def scaled(self, count: int) -> int:
        """`count` if the image has 1 GiB; less in proportion if it is smaller."""
        return max(LEAST, min(count, count * self.image.size // GB))

    @property
    def seconds(self) -> float:
        """How long a case asks again and again."""
        return max(0.2, 4 * min(1, self.image.size / GB))

    def for_clients(self, count: int) -> Object:
        """What so many ask for at once: the image, or a smaller one where that would take minutes."""
        return self.quarter if count > 8 else self.image

    def unseen(self, wanted: Object) -> str:
        """A path of the object that no proxy has asked for."""
        path = f"/w{next(self.words)}-/{wanted.name}"
        if wanted is self.slow_image:
            self.slow.body(path, self.slow_body).throttle(SLOW_BYTES_PER_SECOND).headers(cache_control=FRESH)
        return path

    def sent(self, path: str) -> int:
        """Bytes of bodies sent for it, by answers that have ended. `path` may be the first part of one."""
        slow = self.slow.bytes_sent(path)
        with self.log.open() as log:
            return slow + sum(int(line.split()[1]) for line in log if line.startswith(path))


@contextlib.contextmanager
def origins(image_bytes: int, root: Path) -> Iterator[Origins]:
    """`image_bytes`: at least 4 MiB. `root`: an empty directory for files, logs and configuration. Raises Missing."""
    nginx = program("nginx", "nginx-light")
    data, run = root / "data", root / "origin"
    data.mkdir()
    run.mkdir()
    digest = hashlib.sha256()
    with (data / "image").open("wb") as file:
        for _ in range(0, image_bytes, MB):
            piece = os.urandom(MB)
            digest.update(piece)
            file.write(piece)
    with (data / "image").open("rb") as file:
        quarter = file.read(image_bytes // 4)
    (data / "quarter").write_bytes(quarter)
    tiny = os.urandom(1024)
    (data / "tiny").write_bytes(tiny)
    with (data / "sparse").open("wb") as file:
        file.truncate(8 * image_bytes)

    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(run / "ca.pem"))
    ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(run / "origin.pem"))
    port, tls_port = free_port(), free_port()
    config = filled_in("origin.conf", run / "origin.conf", RUN=run, DATA=data, PORT=port, TLS_PORT=tls_port)
    command = [nginx, "-p", str(run), "-c", str(config), "-e", str(run / "origin.error")]
    with running(lambda: Server(command, port, run / "said")), Origin() as slow:
        sha256 = hashlib.sha256(quarter).hexdigest()
        yield Origins(
            image=Object("image", image_bytes, data / "image", digest.hexdigest()),
            quarter=Object("quarter", len(quarter), data / "quarter", sha256),
            slow_image=Object("slow", len(quarter), data / "quarter", sha256),
            tiny=Object("tiny", len(tiny), data / "tiny", hashlib.sha256(tiny).hexdigest()),
            sparse=Object("sparse", 8 * image_bytes, data / "sparse", ""),
            http=Upstream("http", port),
            https=Upstream("https", tls_port),
            throttled=Upstream("http", slow.port),
            ca=run / "ca.pem",
            slow=slow,
            slow_body=quarter,
            log=run / "origin.log",
        )
