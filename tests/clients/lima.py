"""A Lima as it is installed, from its Go module: PREFIX/bin/limactl and PREFIX/share/lima.

`limactl create` downloads and prepares; it needs no QEMU, and of a guest agent only that there is one.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.clients.tools import build_go, run

MODULE = "github.com/lima-vm/lima/v2"
AS_A_USER = '#!/bin/sh\nexec unshare --user --map-user=1000 --map-group=1000 "{program}" "$@"\n'
"""limactl refuses to run as root; in a user namespace root's files are those of user 1000."""
ARCHES = ("x86_64", "aarch64")


def build(folder):
    """(limactl, its templates)."""
    program = build_go("limactl", folder, f"{MODULE}/cmd/limactl")
    where = ["go", "list", "-m", "-f", "{{.Dir}}", MODULE]
    module = subprocess.check_output(where, cwd=Path(__file__).parent / "limactl", text=True).strip()
    return program, Path(module, "templates")


class Lima:
    """limactl below `prefix`, with a copy of the templates that a test may change."""

    def __init__(self, program, templates, prefix):
        share = prefix / "share" / "lima"
        self.templates = share / "templates"
        shutil.copytree(templates, self.templates, copy_function=shutil.copyfile)
        for folder in (self.templates, *filter(Path.is_dir, self.templates.iterdir())):
            folder.chmod(0o755)  # the module's are read-only
        for folder in (self.templates, self.templates / "_images"):
            link_newest(folder)
        for arch in ARCHES:
            (share / f"lima-guestagent.Linux-{arch}").touch()
        self.program = prefix / "bin" / "limactl"
        self.program.parent.mkdir()
        if os.geteuid():
            self.program.symlink_to(program)
        else:
            real = prefix / "sbin" / "limactl"  # it looks for ../share
            real.parent.mkdir()
            real.symlink_to(program)
            self.program.write_text(AS_A_USER.format(program=real))
            self.program.chmod(0o755)

    def env(self, home):
        """What a shell has in which this Lima is used; HOME/.lima is Lima's."""
        path = f"{self.program.parent}:{os.environ['PATH']}"
        unset = dict.fromkeys(("LIMA_HOME", "LIMA_TEMPLATES_PATH", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), "")
        return {"PATH": path, "HOME": str(home), **unset}

    async def __call__(self, home, *args, check=True, **more):
        """(exit code, output and log) of limactl; `more` goes into its environment."""
        home.mkdir(exist_ok=True)
        code, said = await run(self.program, *args, check=check, env={**self.env(home), **more}, merged=True)
        return code, said.decode()

    async def create(self, home, template, *options, name="vm", check=True, **more):
        """`limactl create`. Short names: the paths of Lima's sockets are below its home."""
        return await self(home, "create", "--tty=false", f"--name={name}", *options, template, check=check, **more)

    @staticmethod
    def downloaded(home):
        """What its cache holds: bytes by URL."""
        cache = home / ".cache" / "lima" / "download" / "by-url-sha256"
        return {data.with_name("url").read_text(): data.read_bytes() for data in cache.glob("*/data")}


def link_newest(folder):
    """Make the links of Lima's repository, which are not in the archives of Go modules: fedora -> fedora-44."""
    versions = {}
    for file in folder.glob("*-*.yaml"):
        if found := re.fullmatch(r"(.+)-(\d+(?:\.\d+)?)", file.stem):
            versions.setdefault(found[1], []).append((tuple(map(int, found[2].split("."))), file.name))
    if "ubuntu" in versions:
        lts = [each for each in versions["ubuntu"] if each[0][0] % 2 == 0 and each[0][1] == 4]
        versions |= {"ubuntu-lts": lts, "ubuntu": lts}
    for name, found in versions.items():
        if not (link := folder / f"{name}.yaml").exists():
            link.symlink_to(max(found)[1])


def snapshot(folder):
    """Everything below `folder`: names, permissions, bytes and where links lead."""

    def content(path):
        return os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None

    return {str(path.relative_to(folder)): (path.lstat().st_mode, content(path)) for path in folder.rglob("*")}
