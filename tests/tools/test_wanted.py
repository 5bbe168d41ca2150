"""What templates and lists want."""

import json
import os
from pathlib import Path

import pytest

from proxy.errors import RequestError
from proxy.rules.digests import Digest
from proxy.tools.wanted import Choice, Found, Wanted, is_source, read

SHA256, SHA512 = Digest("sha256", "ab" * 32), Digest("sha512", "cd" * 64)
INTEL, ARM = Choice("x86_64"), Choice("aarch64")
ALL = Choice(all_arch=True)


@pytest.fixture(autouse=True)
def no_lima(tmp_path, monkeypatch):
    """No Lima is installed, but for what a test puts into these directories."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("LIMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LIMA_TEMPLATES_PATH", f"{tmp_path / 'home' / '_templates'}:{tmp_path / 'share'}")
    for name in ("bin", "home/_templates", "share"):
        (tmp_path / name).mkdir(parents=True)


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        return str(path)

    return write


def urls(found: Found) -> list[list[str]]:
    """Each URL with those in its stead."""
    assert not found.troubles
    return [[turn.url for turn in each.all()] for each in found.wanted]


def refused(argument: str, choice: Choice = INTEL) -> str:
    with pytest.raises(RequestError) as caught:
        read(argument, choice)
    return caught.value.message


# -- Lima --------------------------------------------------------------------------------------------------------------

IMAGES = f"""\
images:
- location: https://h/dated-amd64.img
  arch: x86_64
  digest: {SHA256}
  variant: server
  kernel: {{location: "https://h/vmlinuz", digest: "{SHA512}", cmdline: quiet}}
  initrd: {{location: https://h/initrd}}
- {{location: https://h/arm.img, arch: aarch64, variant: server}}
# the newest
- {{location: https://h/release-amd64.img, arch: x86_64, variant: server}}
- {{location: https://h/minimal-amd64.img, arch: x86_64, variant: minimal}}
"""


def test_of_lima_what_lima_would_download(write):
    template = write("vm.yaml", f"{IMAGES}containerd: {{system: false, user: false}}\n")
    image, kernel, initrd = read(template, INTEL).wanted
    assert image == Wanted(
        "https://h/dated-amd64.img", SHA256, "x86_64", (Wanted("https://h/release-amd64.img", None, "x86_64"),)
    )
    assert (kernel, initrd) == (
        Wanted("https://h/vmlinuz", SHA512, "x86_64"),
        Wanted("https://h/initrd", None, "x86_64"),
    )
    assert urls(read(template, ARM)) == [["https://h/arm.img"]]
    assert {url for turns in urls(read(template, ALL)) for url in turns} == {
        *(f"https://h/{name}" for name in ("dated-amd64.img", "release-amd64.img", "minimal-amd64.img", "arm.img")),
        *(f"https://h/{name}" for name in ("vmlinuz", "initrd")),
    }


def test_yaml_without_images_wants_nothing_of_lima(write):
    archives = "containerd: {archives: [{location: https://h/nerdctl.tgz}]}\n"
    with pytest.raises(RequestError, match="names no URL to fetch"):
        read(write("compose.yaml", "services: {web: {image: nginx}}\n" + archives), INTEL)


def test_a_template_without_an_image_for_the_architecture_is_told(write):
    template = write("vm.yaml", "plain: true\n" + IMAGES)
    (trouble,) = read(template, Choice("riscv64")).troubles
    assert trouble == f"{template} has no image for riscv64, but for aarch64, x86_64: choose with --arch"


def test_the_architecture_of_a_template_wins_over_this_machines(write):
    template = write("mac.yaml", "os: Darwin\narch: aarch64\nimages: [{location: https://h/mac.ipsw}]\n")
    assert urls(read(template, Choice())) == [["https://h/mac.ipsw"]]


def test_bases_are_read_depth_first_wherever_they_are(write):
    """A string, a list, maps; beside the file, installed, with template:// of old, and in a home that wins."""
    write("share/_images/ubuntu-26.04.yaml", "images: [{location: https://h/third}]\n")
    os.symlink("ubuntu-26.04.yaml", str(Path(write("share/_images/x.yaml", "")).parent / "ubuntu.yaml"))
    write("share/shadowed.yaml", "images: [{location: https://h/hidden}]\n")
    write("home/_templates/shadowed.yaml", "images: [{location: https://h/fourth}]\n")
    write("share/k8s.yaml", "base: _images/ubuntu\n")
    write("sub/second.yaml", "images: [{location: https://h/second}]\nbase: template:k8s\ncontainerd: {user: true}\n")
    template = write(
        "vm.yaml",
        "base:\n- {url: sub/second.yaml, digest: x}\n- template://shadowed\n- sub/second.yaml\n"
        "images: [{location: https://h/first}]\ncontainerd: {system: false, user: false}\n",
    )
    four = [["https://h/first", "https://h/second", "https://h/third", "https://h/fourth"]]
    assert urls(read(template, INTEL)) == four
    assert urls(read(f"file://{template}", INTEL)) == four
    assert urls(read("template:k8s", Choice("riscv64"))) == [["https://h/third"]]


def test_a_base_that_cannot_be_read_is_told_and_the_rest_is_wanted(write):
    bases = ["https://h/base.yaml", "fedora-rawhide:x", "nowhere.yaml", "template:nowhere", "vm.yaml"]
    template = write("vm.yaml", f"plain: true\nimages: [{{location: https://h/a.img}}]\nbase: {json.dumps(bases)}\n")
    found = read(template, INTEL)
    assert [each.url for each in found.wanted] == ["https://h/a.img"]
    assert [trouble.split(": ")[1] for trouble in found.troubles] == [
        f"its base {base} is left out" for base in bases[:-1]
    ]
    assert "limactl template copy" in found.troubles[0]


@pytest.mark.parametrize(
    ("settings", "arch", "is_wanted"),
    [
        ("", "x86_64", True),
        ("", "riscv64", False),
        ("os: FreeBSD", "x86_64", False),
        ("plain: true", "x86_64", False),
        ("containerd: {user: false}", "x86_64", False),
        ("containerd: {system: true, user: false}", "x86_64", True),
        ("containerd: {user: null, system: null}", "aarch64", True),
    ],
)
def test_the_archive_of_containerd_is_wanted_where_lima_installs_it(write, settings, arch, is_wanted):
    archives = [{"location": f"https://h/nerdctl-{each}", "arch": each} for each in ("x86_64", "aarch64", "riscv64")]
    base = write("base.yaml", json.dumps({"containerd": {"archives": archives}}))
    template = write("vm.yaml", f"images: [{{location: https://h/a.img}}]\nbase: {base}\n{settings}\n")
    wanted = [turns[0] for turns in urls(read(template, Choice(arch)))]
    assert wanted == ["https://h/a.img"] + ([f"https://h/nerdctl-{arch}"] if is_wanted else [])


def test_without_limactl_it_is_told_that_what_lima_adds_by_itself_is_not_known(write):
    found = read(write("vm.yaml", "images: [{location: https://h/a.img}]\n"), INTEL)
    assert urls(found) == [["https://h/a.img"]]
    assert "`limactl info` does not work here" in found.notes[0]


def test_windows_wants_its_drivers_and_what_is_here_already_is_not_wanted(write):
    template = write(
        "win.yaml",
        "os: Windows\nimages: [{location: ~/Downloads/Win11.iso, arch: x86_64}]\n"
        "osOpts: {Windows: {virtioWin: [{location: https://h/virtio.iso, arch: x86_64}]}}\n",
    )
    assert urls(read(template, INTEL)) == [["https://h/virtio.iso"]]


# -- Packer ------------------------------------------------------------------------------------------------------------

HCL = """\
packer {
  required_plugins { qemu = { version = "~> 1", source = "github.com/hashicorp/qemu" } }
}
variable "release" { default = "noble" }
variable "mirror" { type = string }
locals {
  base = "https://${var.mirror}/${var.release}"
  urls = ["${local.base}/a.img", "https://h/b.img"]
}
local "sum" { expression = "file:${local.base}/SHA256SUMS" }
source "qemu" "list" {
  iso_urls     = local.urls
  iso_checksum = local.sum
}
source "qemu" "one" {
  iso_url      = "https://h/one.iso"
  iso_checksum = "%s"
}
source "proxmox-iso" "nested" {
  boot_iso {
    iso_url      = "${local.base}/nested.iso"
    iso_checksum = "none"
  }
}
variable "arch" { default = "x86_64" }
variable "isos" {
  default = { x86_64 = { url = "https://h/x.iso" }, "aarch64" = { url = "https://h/a.iso" } }
}
source "qemu" "map" { iso_urls = [var.isos[var.arch].url, var.isos["aarch64"].url, local.urls[1]] }
source "qemu" "local" { iso_url = "./own.iso" }
build { sources = ["source.qemu.one"] }
"""


def test_packer_in_hcl(write, monkeypatch):
    template = write("vm.pkr.hcl", HCL % SHA256.hex)
    write("values.auto.pkrvars.hcl", 'mirror = "m.example"')
    write("other.pkr.hcl", 'variable "elsewhere" { default = "https://h/elsewhere.iso" }\n')
    found = read(template, INTEL)
    base = "https://m.example/noble"
    assert urls(found) == [
        [f"{base}/a.img", "https://h/b.img"],
        [f"{base}/SHA256SUMS"],
        ["https://h/one.iso"],
        [f"{base}/nested.iso"],
        ["https://h/x.iso", "https://h/a.iso", "https://h/b.img"],
    ]
    assert [each.digest for each in found.wanted] == [None, None, SHA256, None, None]
    write("z.pkr.hcl", 'source "qemu" "z" { iso_url = var.elsewhere }\r\n')
    assert ["https://h/elsewhere.iso"] in urls(read(str(Path(template).parent), INTEL))


def test_what_only_packer_can_work_out_is_told(write, monkeypatch):
    monkeypatch.setenv("PKR_VAR_mirror", "from.env")
    text = (
        'variable "mirror" {}\nvariable "open" {}\n'
        'source "qemu" "a" { iso_url = var.open }\n'
        'source "qemu" "b" { iso_url = lower("https://H/b.iso") }\n'
        'source "qemu" "c" { iso_url = "https://${var.mirror}/c.iso" }\n'
    )
    found = read(write("vm.pkr.hcl", text), INTEL)
    assert [each.url for each in found.wanted] == ["https://from.env/c.iso"]
    assert [trouble.split(" needs ")[1].split(",")[0] for trouble in found.troubles] == [
        "${var.open}",
        '${lower("https://H/b.iso")}',
    ]


def test_packer_in_json(write, monkeypatch):
    monkeypatch.setenv("VERSION", "24.04")
    template = {
        "variables": {"v": "{{env `VERSION`}}", "url": "https://h/ubuntu-{{user `v`}}.iso", "sum": SHA512.hex},
        "builders": [
            {"iso_url": "{{user `url`}}", "iso_checksum": "{{ user `sum` }}", "iso_checksum_type": "sha512"},
            {"iso_urls": ["{{user `none`}}"], "iso_checksum": "md5:0123"},
        ],
    }
    found = read(write("vm.json", json.dumps(template)), INTEL)
    assert found.wanted == (Wanted("https://h/ubuntu-24.04.iso", SHA512),)
    assert "iso_urls needs {{user `none`}}" in found.troubles[0]
    native = {
        "variable": {"url": {"default": "https://h/native.iso"}},
        "source": {"qemu": {"a": {"iso_url": "${var.url}", "iso_checksum": str(SHA256)}}},
    }
    assert read(write("vm.pkr.json", json.dumps(native)), INTEL).wanted == (Wanted("https://h/native.iso", SHA256),)


# -- Vagrant -----------------------------------------------------------------------------------------------------------


def box(version, provider, **more):
    name = f"https://h/{version}-{provider}-{more.get('architecture', '')}.box"
    return {"name": provider, "url": name, **more}


METADATA = {
    "name": "me/box",
    "versions": [
        {"version": "9.0.0", "providers": [box("9", "libvirt", checksum=SHA256.hex, checksum_type="sha256")]},
        {
            "version": "10.0.0",
            "providers": [
                box("10", "virtualbox"),
                box("10", "libvirt", architecture="amd64", checksum=SHA512.hex, checksum_type="sha512"),
                box("10", "libvirt", architecture="arm64"),
            ],
        },
        {"version": "10.0.0.rc1", "providers": [box("rc", "libvirt")]},
    ],
}


def test_vagrant_metadata(write):
    metadata = write("box.json", json.dumps(METADATA))
    assert read(metadata, Choice("x86_64", provider="libvirt")).wanted == (
        Wanted("https://h/10-libvirt-amd64.box", SHA512, "x86_64"),
    )
    assert urls(read(metadata, Choice("aarch64", provider="libvirt"))) == [["https://h/10-libvirt-arm64.box"]]
    assert urls(read(metadata, Choice("riscv64", provider="libvirt"))) == [["https://h/rc-libvirt-.box"]]
    assert urls(read(metadata, Choice(provider="virtualbox"))) == [["https://h/10-virtualbox-.box"]]
    assert "libvirt, virtualbox: choose one with --provider" in refused(metadata)
    assert "has no box for hyperv on x86_64" in refused(metadata, Choice("x86_64", provider="hyperv"))
    assert len(read(metadata, ALL).wanted) == 5


# -- quickemu, lists ---------------------------------------------------------------------------------------------------


def test_quickemu(write):
    lines = '#!/usr/bin/quickemu --vm\nguest_os="linux"\ndisk_img="a/disk.qcow2"\niso="{}"\n'
    assert urls(read(write("a.conf", lines.format("https://h/a.iso")), INTEL)) == [["https://h/a.iso"]]
    assert "quickget --url" in refused(write("b.conf", lines.format("a/a.iso")))


def test_lists(write):
    text = (
        "\ufeff# what we need\r\n\r\nhttps://h/a.img\r\n"
        f"/ubuntu/b.img {SHA256}  # ours\n{SHA512.hex} http://h/c.img#c\nhttps://h/d.img#not-a-comment\n"
    )
    assert read(write("list.txt", text), INTEL).wanted == (
        Wanted("https://h/a.img"),
        Wanted("/ubuntu/b.img", SHA256),
        Wanted("http://h/c.img#c", SHA512),
        Wanted("https://h/d.img#not-a-comment"),
    )
    found = read(path := write("list.txt", "https://h/a.img\nnot a url\nhttps://h/b.img sha256:12\n"), INTEL)
    assert len(found.wanted) == 1
    assert [trouble.partition(" ")[0] for trouble in found.troubles] == [f"{path}:2:", f"{path}:3:"]


# -- what is none of these ---------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_told(write, tmp_path):
    assert refused(f"{tmp_path}/none.yaml") == f"there is no file {tmp_path}/none.yaml"
    assert "a URL begins with https://" in refused("h.example/a.img")
    assert "is template:ubuntu" in refused("ubuntu")
    assert "is a directory" in refused(str(tmp_path / "bin"))
    assert "there is no template:nowhere in " in refused("template:nowhere")
    assert 'holds no ".."' in refused("template:../x")
    assert "neither a list of URLs nor a template" in refused(write("a.img", "\0\1\2"))
    assert "neither a list of URLs nor a template" in refused(write("a.txt", "hello\nworld\n"))
    assert "neither a list of URLs nor a template" in refused(write("a.json", '{"a": 1}'))
    assert "names no URL to fetch" in refused(write("empty.yaml", "# nothing\n"))
    assert ":2: this is not YAML" in refused(write("broken.yaml", "a: 1\n- b\n"))
    assert "has no keys at its top" in refused(write("list.yaml", "- a\n"))
    assert ":2: this is not HCL" in refused(write("broken.pkr.hcl", 'source "a" "b" {\n  iso_url = \n}\n'))
    assert "is not JSON" in refused(write("broken.json", "{"))


MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{f'*a{n - 1}, ' * 10}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "images: [{location: 2024-13-45}]", "a.yaml: this is not YAML that can be read: month must be"),
        ("a.yaml", f"cpus: {'9' * 5000}", "a.yaml: this is not YAML"),
        ("a.yaml", "? [a, [b]]\n: c", "a.yaml: this is not YAML"),
        ("a.yaml", "a: &a {<<: *a}", "a.yaml: this is not YAML that can be read: its aliases stand for too much"),
        ("a.yaml", MERGED, "a.yaml: this is not YAML that can be read: its aliases stand for too much"),
        ("a.yaml", f"images: {'[' * 900}{']' * 900}", "a.yaml is nested too deeply to be read"),
        ("a.yaml", 'images: [{location: "https://h/\\e[2J"}]', "a.yaml names no URL to fetch"),
        ("a.pkr.hcl", f"a = {'(' * 900}1{')' * 900}", "a.pkr.hcl is nested too deeply to be read"),
        ("a.pkr.hcl", f"a = {'9' * 5000}", "a.pkr.hcl: this is not HCL that can be read"),
        ("a.json", '{"builders": ' + "[" * 900 + "]" * 900 + "}", "a.json "),
    ],
    ids=["date", "number", "key", "cycle", "billion", "deep", "control", "deep-hcl", "number-hcl", "deep-json"],
)
def test_what_would_break_a_parser_is_told(write, name, text, said):
    assert said in refused(write(name, text))


def test_odd_values_are_no_values(write):
    odd = "variant: [b], arch: x86_64, location: https://h/a.img, digest: [1]"
    assert read(write("a.yaml", f"images: [{{{odd}}}]"), INTEL).wanted == (Wanted("https://h/a.img", None, "x86_64"),)
    for base in (r"a\0b", r"a\ud800b"):
        found = read(write("b.yaml", f'base: "{base}"\nimages: []'), INTEL)
        assert "is left out" in found.troubles[0]
    assert refused(write("c.yaml", "base: ./c.yaml")).endswith("c.yaml names no URL to fetch")
    box = {"version": "1" * 5000, "providers": [{"name": "x", "url": "https://h/a.box"}]}
    assert urls(read(write("a.json", json.dumps({"versions": [box]})), INTEL)) == [["https://h/a.box"]]


@pytest.mark.parametrize(
    "text",
    [
        'locals {\n  x = var.y[local.x]\n}\nsource "a" "b" { iso_url = local.x }',
        "locals {\n"
        + "".join(f'  x{n} = "{f"${{local.x{n + 1}}}" * 10}"\n' for n in range(12))
        + '  x12 = ""\n}\nsource "a" "b" { iso_url = "https://h/${local.x0}" }',
    ],
    ids=["cycle", "billion"],
)
def test_variables_that_are_made_of_each_other_without_end_are_told(write, text):
    (trouble,) = read(write("a.pkr.hcl", text), INTEL).troubles
    assert "which only Packer can work out" in trouble


def test_a_path_is_told_from_a_url(write, tmp_path):
    there = write("vm.yaml", "")
    sources = ["-", "template:ubuntu", there, f"{tmp_path}/none.yaml", "none.yaml", "./x", f"file://{there}"]
    names = ["https://h/a", "/ubuntu/a.img", "/https://h/a", "/HTTPS///h/a", f"/{SHA256}/ubuntu/a", "/h.example"]
    assert [is_source(each) for each in (*sources, *names)] == [True] * len(sources) + [False] * len(names)
