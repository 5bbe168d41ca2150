"""What the README says to type for each tool, typed as it stands: the tool gets its file, and upstream sends it once.

Other files here do the same for apt, debootstrap, Packer's go-getter, simplestreams and Lima.
"""

import hashlib
import lzma
import os
import shlex
import subprocess

import pytest

from tests.clients.tools import needs, run, sha256, typed
from tests.harness import REPOSITORY

IMAGE = os.urandom(4 << 20)
DIGEST = hashlib.sha256(IMAGE).hexdigest()
PATH = "/images/noble.img"
EXTRACTED = REPOSITORY / ".cache" / "tools"
"""Where CI unpacks packages of whose tools only the part that downloads runs here."""


@pytest.fixture
def image(origin):
    origin.body("/SHA256SUMS", f"{DIGEST}  noble.img\n".encode())
    return origin.body(PATH, IMAGE).headers(cache_control="max-age=600")


@pytest.mark.parametrize(("number", "program"), [*enumerate(["curl", "wget", "aria2c"])])
async def test_a_line_for_the_shell(origin, proxy, image, tmp_path, number, program):
    line = typed("curl", proxy, PATH=PATH[1:])[number]
    assert line.startswith(program)
    for _ in range(2):  # the second time it is there already
        await run("sh", "-c", line, cwd=tmp_path)
        assert sha256(tmp_path / "noble.img") == DIGEST
    assert origin.count(PATH) == 1


@needs("qemu-img")
async def test_qemu_img(origin, proxy, tmp_path):
    raw, disk = tmp_path / "raw", tmp_path / "original.qcow2"
    raw.write_bytes(IMAGE)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, disk], check=True)
    origin.body("/disk.qcow2", disk.read_bytes()).headers(cache_control="max-age=600")
    (line,) = typed("qemu-img", proxy, PATH="disk.qcow2")
    await run("sh", "-c", line, cwd=tmp_path)
    await run("qemu-img", "compare", raw, tmp_path / "disk.qcow2")
    assert origin.count("/disk.qcow2") == 1


@needs("ansible-playbook")
async def test_ansible_gets_an_image_with_the_digest_of_its_checksum_file(origin, proxy, image, tmp_path):
    lines = [f"        {line}\n" for line in typed("Ansible", proxy, PATH=PATH[1:])]
    head = "- hosts: localhost\n  gather_facts: false\n  tasks:\n    - ansible.builtin.get_url:\n"
    (tmp_path / "play.yaml").write_text(head + "".join(lines) + f"        dest: {tmp_path}/got.img\n")
    env = {"HOME": str(tmp_path), "ANSIBLE_LOCALHOST_WARNING": "0"}
    await run("ansible-playbook", "play.yaml", cwd=tmp_path, env=env)
    assert sha256(tmp_path / "got.img") == DIGEST
    assert origin.count(PATH) == origin.count("/SHA256SUMS") == 1


@pytest.mark.skipif(not EXTRACTED.exists(), reason="diskimage-builder is not unpacked")
async def test_diskimage_builder_fetches_ubuntu_once_for_two_builds(origin, proxy, image, tmp_path):
    squashfs = "/noble/current/noble-server-cloudimg-amd64.squashfs"
    origin.body(squashfs, IMAGE).headers(cache_control="max-age=600")
    origin.body("/noble/current/SHA256SUMS", f"{DIGEST} *{squashfs.rpartition('/')[2]}\n".encode())
    elements = next(EXTRACTED.glob("usr/lib/python3/dist-packages/diskimage_builder/elements"))
    # It unpacks what it has fetched by sudo: that is not ours to try, and needs root.
    (tmp_path / "sudo").write_text("#!/bin/sh\n")
    (tmp_path / "sudo").chmod(0o755)
    exports = "; ".join(typed("dib", proxy, **{"cloud-images.ubuntu.com": "u"}))
    script = f"{exports}; exec bash {elements}/ubuntu/root.d/10-cache-ubuntu-tarball"
    for build in ("first", "second"):
        home = tmp_path / build
        home.mkdir()
        env = {"DIB_IMAGE_CACHE": home, "DIB_LOCKFILES": home, "TARGET_ROOT": home, "ARCH": "amd64", "DIB_OFFLINE": ""}
        env |= {"TMP_HOOKS_PATH": elements / "cache-url", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        await run("sh", "-c", script, env={name: str(value) for name, value in env.items()})
        assert sha256(home / squashfs.rpartition("/")[2]) == DIGEST
    assert origin.count(squashfs) == origin.count("/noble/current/SHA256SUMS") == 1


@pytest.mark.skipif(not EXTRACTED.exists(), reason="virt-builder is not unpacked")
async def test_virt_builder_caches_a_template(origin, proxy, tmp_path):
    packed = lzma.compress(IMAGE, preset=0)
    about = {"name": "x", "arch": "x86_64", "file": "fedora-42.xz", "format": "raw", "size": len(IMAGE)}
    about |= {"checksum[sha512]": hashlib.sha512(packed).hexdigest(), "compressed_size": len(packed)}
    origin.body("/index.asc", "".join(["[fedora-42]\n", *(f"{k}={v}\n" for k, v in about.items())]).encode())
    origin.body("/fedora-42.xz", packed).headers(cache_control="max-age=600")
    (line,) = typed("virt-builder", proxy, **{"builder.libguestfs.org": "u"})
    *words, template = shlex.split(line)
    assert template == "fedora-42"
    # To build it would boot a system, and this index is not signed.
    words += ["--no-check-signature", "--cache-all-templates"]
    for user in ("first", "second"):
        env = {"PATH": f"{EXTRACTED}/usr/bin:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / user)}
        env |= {"LD_LIBRARY_PATH": str(EXTRACTED / "usr/lib" / f"{os.uname().machine}-linux-gnu")}
        await run(*words, env=env)
        (cached,) = (tmp_path / user).glob("virt-builder/fedora-42.*")
        assert cached.read_bytes() == packed
    assert origin.count("/fedora-42.xz") == 1


async def test_the_copy_of_quickget_goes_through_us(origin, proxy, image, tmp_path):
    script = tmp_path / "quickget"
    script.write_text(f'#!/bin/sh\ncurl -sf "https://u{PATH}" -o got.img\n')
    script.chmod(0o755)
    (line,) = typed("quickget", proxy)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    await run("sh", "-c", f"{line} && bash fetchonce-quickget", cwd=tmp_path, env=env)
    assert sha256(tmp_path / "got.img") == DIGEST
    assert origin.count(PATH) == 1
