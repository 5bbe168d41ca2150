"""The shipped mirrors, tried with URLs that VM tools really request."""
# ruff: noqa: E501 - a URL stays on one line, to be found by looking for it

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import UnknownMirror
from proxy.rules.mirrors import Mirror, MirrorTable, Target, is_valid_name, parse_target, proxied_path

FILES = sorted((Path(__file__).parent.parent / "config" / "mirrors").glob("*.toml"))
TABLES = [(file, table) for file in FILES for table in tomllib.loads(file.read_text("utf-8"))["mirror"]]
KEYS = {
    "name", "upstreams", "immutable", "moving", "ttl", "checksums", "ignore_query", "rewrite", "connections",
    "forward_authorization",
}  # fmt: skip
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def mirror_of(table: dict[str, Any]) -> Mirror:
    ttl = re.fullmatch(r"(\d+)([smhd])", table.get("ttl", "5m"))
    assert ttl
    return Mirror(
        name=table["name"],
        upstreams=tuple(table["upstreams"]),
        immutable=tuple(table.get("immutable", ())),
        moving=tuple(table.get("moving", ())),
        ttl=float(ttl[1]) * SECONDS[ttl[2]],
        checksums=tuple(table.get("checksums", ())),
        ignore_query=table.get("ignore_query", False),
        rewrite=tuple(table.get("rewrite", ())),
        forward_authorization=table.get("forward_authorization", True),
    )


MIRRORS = [mirror_of(table) for _, table in TABLES]
TABLE = MirrorTable(MIRRORS)

UBUNTU = "https://cloud-images.ubuntu.com"
DEBIAN = "https://cloud.debian.org/images/cloud"
FEDORA = "https://download.fedoraproject.org/pub"
ALPINE = "https://dl-cdn.alpinelinux.org/alpine"
ARCH = "https://geo.mirror.pkgbuild.com"
ALMA = "https://repo.almalinux.org/almalinux"
KITTEN = "https://kitten.repo.almalinux.org/10-kitten/cloud/x86_64/images"
ROCKY = "https://dl.rockylinux.org/pub/rocky"
CENTOS = "https://cloud.centos.org/centos/9-stream/x86_64/images"
SUSE = "https://download.opensuse.org"
GITHUB = "https://github.com"
GCS = "https://storage.googleapis.com"
VAGRANT = "https://vagrantcloud.com"
FREEBSD = "https://download.freebsd.org"
VOID = "https://repo-default.voidlinux.org/live"
INCUS = "https://images.linuxcontainers.org"
GENTOO = "https://distfiles.gentoo.org"
FINCH = "https://deps.runfinch.com"
SCHEMATIC = "ce4c980550dd2ab1b17bbf2b08801c7eb59418eafe8f279833297925d67c7515"
VIRTIO = "https://fedorapeople.org/groups/virt/virtio-win/direct-downloads"

IMMUTABLE, MOVING, NEITHER = "immutable", "moving", "neither"

# URL, mirror, kind, names of the checksum files beside it ({}: the file's own name).
URLS = [
    (f"{UBUNTU}/releases/noble/release-20250430/ubuntu-24.04-server-cloudimg-amd64.img", "ubuntu", IMMUTABLE, "SHA256SUMS"),
    (f"{UBUNTU}/releases/noble/release-20250430/SHA256SUMS", "ubuntu", IMMUTABLE, ""),
    (f"{UBUNTU}/releases/noble/release/ubuntu-24.04-server-cloudimg-amd64.img", "ubuntu", MOVING, "SHA256SUMS"),
    (f"{UBUNTU}/releases/noble/release/SHA256SUMS", "ubuntu", MOVING, ""),
    (f"{UBUNTU}/releases/24.04/release/unpacked/ubuntu-24.04-server-cloudimg-amd64-vmlinuz-generic", "ubuntu", MOVING, "SHA256SUMS"),
    (f"{UBUNTU}/minimal/releases/noble/release-20260617/ubuntu-24.04-minimal-cloudimg-amd64.img", "ubuntu", IMMUTABLE, "SHA256SUMS"),
    (f"{UBUNTU}/minimal/releases/noble/release/ubuntu-24.04-minimal-cloudimg-arm64.img", "ubuntu", MOVING, "SHA256SUMS"),
    (f"{UBUNTU}/noble/current/noble-server-cloudimg-amd64.img", "ubuntu", MOVING, "SHA256SUMS"),
    (f"{UBUNTU}/noble/20250403/noble-server-cloudimg-amd64.img", "ubuntu", IMMUTABLE, "SHA256SUMS"),
    (f"{UBUNTU}/daily/server/noble/current/noble-server-cloudimg-amd64.img", "ubuntu", MOVING, "SHA256SUMS"),
    (f"{UBUNTU}/daily/server/noble/20250403.1/noble-server-cloudimg-amd64.img", "ubuntu", IMMUTABLE, "SHA256SUMS"),
    (f"{UBUNTU}/daily/server/releases/24.04/release/ubuntu-24.04-server-cloudimg-amd64.img", "ubuntu", MOVING, "SHA256SUMS"),
    (f"{UBUNTU}/releases/streams/v1/index.json", "ubuntu", MOVING, "SHA256SUMS"),
    (f"{UBUNTU}/releases/", "ubuntu", NEITHER, ""),
    ("https://releases.ubuntu.com/24.04/ubuntu-24.04.1-live-server-amd64.iso", "ubuntu-releases", IMMUTABLE, "SHA256SUMS"),
    ("https://releases.ubuntu.com/24.04/SHA256SUMS", "ubuntu-releases", MOVING, ""),
    ("https://old-releases.ubuntu.com/releases/23.10/ubuntu-23.10.1-desktop-amd64.iso", "ubuntu-releases", IMMUTABLE, "SHA256SUMS"),
    ("https://cdimage.ubuntu.com/ubuntu-server/daily-live/current/noble-live-server-amd64.iso", "ubuntu-cdimage", MOVING, "SHA256SUMS"),
    ("https://cdimage.ubuntu.com/ubuntu-server/daily-live/20240421/noble-live-server-amd64.iso", "ubuntu-cdimage", IMMUTABLE, "SHA256SUMS"),
    ("https://cdimage.ubuntu.com/kubuntu/releases/24.04/release/kubuntu-24.04-desktop-amd64.iso", "ubuntu-cdimage", MOVING, "SHA256SUMS"),
    (f"{DEBIAN}/bookworm/20260923-2610/debian-12-genericcloud-amd64-20260923-2610.qcow2", "debian", IMMUTABLE, "SHA512SUMS"),
    (f"{DEBIAN}/bookworm/20260923-2610/SHA512SUMS", "debian", IMMUTABLE, ""),
    (f"{DEBIAN}/bookworm/latest/debian-12-genericcloud-amd64.qcow2", "debian", MOVING, "SHA512SUMS"),
    (f"{DEBIAN}/bookworm/latest/SHA512SUMS", "debian", MOVING, ""),
    (f"{DEBIAN}/trixie/daily/latest/debian-13-generic-riscv64-daily.qcow2", "debian", MOVING, "SHA512SUMS"),
    (f"{DEBIAN}/bookworm/daily/20250217-2026/debian-12-nocloud-arm64-daily-20250217-2026.qcow2", "debian", IMMUTABLE, "SHA512SUMS"),
    ("https://cdimage.debian.org/cdimage/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2", "debian", MOVING, "SHA512SUMS"),
    ("https://cdimage.debian.org/images/cloud/bookworm/20250428-2096/debian-12-generic-amd64-20250428-2096.qcow2", "debian", IMMUTABLE, "SHA512SUMS"),
    ("https://cdimage.debian.org/cdimage/cloud/OpenStack/current-10/debian-10-openstack-amd64.qcow2", "debian", MOVING, "SHA512SUMS"),
    ("https://cdimage.debian.org/debian-cd/current/amd64/iso-cd/debian-12.10.0-amd64-netinst.iso", "debian-cd", MOVING, "SHA512SUMS SHA256SUMS"),
    ("https://cdimage.debian.org/cdimage/archive/12.4.0/amd64/iso-cd/debian-12.4.0-amd64-netinst.iso", "debian-cd", IMMUTABLE, "SHA512SUMS SHA256SUMS"),
    ("https://cdimage.debian.org/cdimage/weekly-builds/amd64/iso-cd/debian-testing-amd64-netinst.iso", "debian-cd", MOVING, "SHA512SUMS SHA256SUMS"),
    ("https://cdimage.debian.org/cdimage/archive/latest-oldstable/amd64/iso-cd/debian-11.11.0-amd64-netinst.iso", "debian-cd", MOVING, "SHA512SUMS SHA256SUMS"),
    (f"{FEDORA}/fedora/linux/releases/44/Cloud/x86_64/images/Fedora-Cloud-Base-Generic-44-1.7.x86_64.qcow2", "fedora", IMMUTABLE, ""),
    (f"{FEDORA}/fedora/linux/releases/44/Cloud/x86_64/images/Fedora-Cloud-44-1.7-x86_64-CHECKSUM", "fedora", IMMUTABLE, ""),
    (f"{FEDORA}/alt/risc-v/release/44/Cloud/riscv64/images/Fedora-Cloud-Base-Generic-44-20260604.0.riscv64.qcow2", "fedora", IMMUTABLE, ""),
    ("https://dl.fedoraproject.org/pub/fedora/linux/releases/42/Cloud/x86_64/images/Fedora-Cloud-Base-Generic-42-1.1.x86_64.qcow2", "fedora", IMMUTABLE, ""),
    ("https://archives.fedoraproject.org/pub/archive/fedora/linux/releases/36/Server/aarch64/images/Fedora-Server-36-1.5.aarch64.raw.xz", "fedora", IMMUTABLE, ""),
    (f"{FEDORA}/fedora/linux/development/rawhide/Cloud/x86_64/images/Fedora-Cloud-Base-Generic-Rawhide-20260520.n.0.x86_64.qcow2", "fedora", MOVING, ""),
    (f"{FEDORA}/fedora/linux/updates/44/Everything/x86_64/repodata/repomd.xml", "fedora", MOVING, ""),
    ("https://builds.coreos.fedoraproject.org/prod/streams/stable/builds/40.20240709.3.1/x86_64/fedora-coreos-40.20240709.3.1-openstack.x86_64.qcow2.xz", "fedora-coreos", IMMUTABLE, ""),
    ("https://builds.coreos.fedoraproject.org/streams/stable.json", "fedora-coreos", MOVING, ""),
    ("https://builds.coreos.fedoraproject.org/prod/streams/stable/builds/builds.json", "fedora-coreos", MOVING, ""),
    (f"{ALPINE}/v3.23/releases/cloud/nocloud_alpine-3.23.4-x86_64-uefi-cloudinit-r0.qcow2", "alpine", IMMUTABLE, "{}.sha512 {}.sha256"),
    (f"{ALPINE}/v3.23/releases/cloud/nocloud_alpine-3.23.4-x86_64-uefi-cloudinit-r0.qcow2.sha512", "alpine", NEITHER, ""),
    (f"{ALPINE}/v3.19/releases/x86_64/alpine-virt-3.19.1-x86_64.iso", "alpine", IMMUTABLE, "{}.sha512 {}.sha256"),
    (f"{ALPINE}/latest-stable/releases/x86_64/alpine-standard-3.18.0-x86_64.iso", "alpine", MOVING, "{}.sha512 {}.sha256"),
    (f"{ALPINE}/v3.19/releases/x86_64/latest-releases.yaml", "alpine", MOVING, "{}.sha512 {}.sha256"),
    (f"{ALPINE}/v3.19/releases/x86_64/netboot/vmlinuz-virt", "alpine", MOVING, "{}.sha512 {}.sha256"),
    (f"{ALPINE}/v3.19/releases/x86_64/netboot-3.19.1/vmlinuz-virt", "alpine", IMMUTABLE, "{}.sha512 {}.sha256"),
    (f"{ARCH}/images/v20260515.530093/Arch-Linux-x86_64-cloudimg-20260515.530093.qcow2", "arch", IMMUTABLE, "{}.SHA256 sha256sums.txt"),
    (f"{ARCH}/images/latest/Arch-Linux-x86_64-cloudimg.qcow2", "arch", MOVING, "{}.SHA256 sha256sums.txt"),
    (f"{ARCH}/images/latest/Arch-Linux-x86_64-cloudimg.qcow2.SHA256", "arch", MOVING, ""),
    ("https://fastly.mirror.pkgbuild.com/images/latest/Arch-Linux-x86_64-cloudimg.qcow2", "arch", MOVING, "{}.SHA256 sha256sums.txt"),
    (f"{ARCH}/iso/2024.05.01/archlinux-x86_64.iso", "arch", IMMUTABLE, "{}.SHA256 sha256sums.txt"),
    (f"{ARCH}/core/os/x86_64/core.db", "arch", MOVING, "{}.SHA256 sha256sums.txt"),
    (f"{ALMA}/9.5/cloud/x86_64/images/AlmaLinux-9-GenericCloud-9.5-20241120.x86_64.qcow2", "almalinux", IMMUTABLE, "CHECKSUM"),
    (f"{ALMA}/10.0/cloud/x86_64/images/AlmaLinux-10-GenericCloud-10.0-20250528.0.x86_64.qcow2", "almalinux", IMMUTABLE, "CHECKSUM"),
    (f"{ALMA}/9/cloud/x86_64/images/AlmaLinux-9-GenericCloud-latest.x86_64.qcow2", "almalinux", MOVING, "CHECKSUM"),
    (f"{ALMA}/9/cloud/x86_64/images/CHECKSUM", "almalinux", MOVING, ""),
    (f"{ALMA}/8/isos/x86_64/AlmaLinux-8.10-x86_64-boot.iso", "almalinux", IMMUTABLE, "CHECKSUM"),
    (f"{ALMA}/9/isos/x86_64/AlmaLinux-9-latest-x86_64-dvd.iso", "almalinux", MOVING, "CHECKSUM"),
    ("https://vault.almalinux.org/9.4/isos/x86_64/AlmaLinux-9.4-x86_64-minimal.iso", "almalinux", IMMUTABLE, "CHECKSUM"),
    (f"{KITTEN}/AlmaLinux-Kitten-GenericCloud-10-20260501.0.x86_64.qcow2", "almalinux-kitten", IMMUTABLE, "CHECKSUM"),
    (f"{KITTEN}/AlmaLinux-Kitten-GenericCloud-10-latest.x86_64.qcow2", "almalinux-kitten", MOVING, "CHECKSUM"),
    (f"{KITTEN}/CHECKSUM", "almalinux-kitten", MOVING, ""),
    (f"{ROCKY}/9.5/images/x86_64/Rocky-9-GenericCloud-Base-9.5-20241118.0.x86_64.qcow2", "rocky", IMMUTABLE, "{}.CHECKSUM CHECKSUM"),
    (f"{ROCKY}/9/images/x86_64/Rocky-9-GenericCloud.latest.x86_64.qcow2", "rocky", MOVING, "{}.CHECKSUM CHECKSUM"),
    (f"{ROCKY}/9/images/x86_64/Rocky-9-GenericCloud.latest.x86_64.qcow2.CHECKSUM", "rocky", MOVING, ""),
    (f"{ROCKY}/9/images/x86_64/CHECKSUM", "rocky", MOVING, ""),
    ("https://download.rockylinux.org/pub/rocky/9/isos/x86_64/Rocky-9.6-x86_64-minimal.iso", "rocky", IMMUTABLE, "{}.CHECKSUM CHECKSUM"),
    ("https://download.rockylinux.org/pub/rocky/9/isos/x86_64/Rocky-9-latest-x86_64-minimal.iso", "rocky", MOVING, "{}.CHECKSUM CHECKSUM"),
    ("http://dl.rockylinux.org/vault/rocky/9.4/isos/x86_64/Rocky-9.4-x86_64-dvd.iso", "rocky", IMMUTABLE, "{}.CHECKSUM CHECKSUM"),
    (f"{CENTOS}/CentOS-Stream-GenericCloud-9-20250428.0.x86_64.qcow2", "centos-stream", IMMUTABLE, "{}.SHA256SUM CHECKSUM"),
    (f"{CENTOS}/CentOS-Stream-GenericCloud-9-latest.x86_64.qcow2", "centos-stream", MOVING, "{}.SHA256SUM CHECKSUM"),
    (f"{CENTOS}/CentOS-Stream-GenericCloud-9-latest.x86_64.qcow2.SHA256SUM", "centos-stream", MOVING, ""),
    (f"{CENTOS}/CHECKSUM", "centos-stream", MOVING, ""),
    ("https://cloud.centos.org/centos/7/images/sha256sum.txt", "centos-stream", MOVING, "{}.SHA256SUM CHECKSUM"),
    ("https://mirror.stream.centos.org/9-stream/BaseOS/x86_64/iso/CentOS-Stream-9-latest-x86_64-dvd1.iso", "centos-stream-iso", MOVING, "{}.SHA256SUM"),
    ("https://mirror.stream.centos.org/9-stream/BaseOS/x86_64/iso/CentOS-Stream-9-20240513.0-x86_64-dvd1.iso", "centos-stream-iso", IMMUTABLE, "{}.SHA256SUM"),
    ("https://mirror.stream.centos.org/9-stream/BaseOS/x86_64/os/repodata/repomd.xml", "centos-stream-iso", MOVING, "{}.SHA256SUM"),
    (f"{SUSE}/distribution/leap/16.0/appliances/Leap-16.0-Minimal-VM.x86_64-Cloud.qcow2", "opensuse", MOVING, "{}.sha256"),
    (f"{SUSE}/distribution/leap/15.6/appliances/openSUSE-Leap-15.6-Minimal-VM.x86_64-15.6.0-Cloud-Build19.146.qcow2", "opensuse", IMMUTABLE, "{}.sha256"),
    (f"{SUSE}/distribution/leap/15.6/appliances/openSUSE-Leap-15.6-Minimal-VM.x86_64-15.6.0-Cloud-Build19.146.qcow2.sha256", "opensuse", NEITHER, ""),
    (f"{SUSE}/tumbleweed/appliances/openSUSE-Tumbleweed-Minimal-VM.x86_64-Cloud.qcow2", "opensuse", MOVING, "{}.sha256"),
    (f"{SUSE}/tumbleweed/appliances/openSUSE-Tumbleweed-Minimal-VM.x86_64-Cloud.qcow2.sha256", "opensuse", MOVING, ""),
    (f"{SUSE}/tumbleweed/appliances/openSUSE-Tumbleweed-Minimal-VM.x86_64-1.0.0-Cloud-Snapshot20261005.qcow2", "opensuse", IMMUTABLE, "{}.sha256"),
    (f"{SUSE}/tumbleweed/iso/openSUSE-Tumbleweed-DVD-x86_64-Current.iso", "opensuse", MOVING, "{}.sha256"),
    (f"{SUSE}/tumbleweed/repo/oss/repodata/repomd.xml", "opensuse", MOVING, "{}.sha256"),
    (f"{SUSE}/repositories/Cloud:/Images:/Leap_15.6/images/openSUSE-Leap-15.6.x86_64-NoCloud.qcow2", "opensuse", MOVING, "{}.sha256"),
    ("https://yum.oracle.com/templates/OracleLinux/OL9/u5/x86_64/OL9U5_x86_64-kvm-b253.qcow2", "oracle", IMMUTABLE, ""),
    ("https://yum.oracle.com/ISOS/OracleLinux/OL9/u4/x86_64/OracleLinux-R9-U4-x86_64-dvd.iso", "oracle", IMMUTABLE, ""),
    ("https://yum.oracle.com/repo/OracleLinux/OL9/baseos/latest/x86_64/repodata/repomd.xml", "oracle", MOVING, ""),
    ("https://cdn.amazonlinux.com/al2023/os-images/2023.11.20260406.2/kvm/al2023-kvm-2023.11.20260406.2-kernel-6.1-x86_64.xfs.gpt.qcow2", "amazon", IMMUTABLE, "SHA256SUMS"),
    ("https://cdn.amazonlinux.com/al2023/os-images/latest/kvm-arm64/", "amazon", MOVING, ""),
    ("https://updates.cdn-apple.com/2026SummerFCS/fullrestores/140-75212/A2A24B94-1FC1-45A3-93F7-C51B02AF1F4D/UniversalMac_26.6.2_25G83_Restore.ipsw", "apple", IMMUTABLE, ""),
    (f"{GITHUB}/containerd/nerdctl/releases/download/v2.1.4/nerdctl-full-2.1.4-linux-amd64.tar.gz", "nerdctl", IMMUTABLE, "SHA256SUMS"),
    (f"{GITHUB}/lima-vm/alpine-lima/releases/download/v0.2.41/alpine-lima-std-3.20.3-x86_64.iso", "alpine-lima", IMMUTABLE, "{}.sha512sum"),
    (f"{GITHUB}/abiosoft/colima-core/releases/download/v0.8.1/ubuntu-24.04-minimal-cloudimg-arm64-docker.qcow2", "colima", IMMUTABLE, "{}.sha512sum"),
    (f"{GITHUB}/k3s-io/k3s/releases/download/v1.28.5%2Bk3s1/k3s-arm64", "k3s", IMMUTABLE, "sha256sum-amd64.txt sha256sum-arm64.txt"),
    (f"{GITHUB}/siderolabs/talos/releases/download/v1.8.0/nocloud-amd64.raw.xz", "talos", IMMUTABLE, "sha256sum.txt sha512sum.txt"),
    (f"{GITHUB}/kubernetes/minikube/releases/download/v1.16.0/minikube-v1.16.0.iso", "minikube-github", IMMUTABLE, "{}.sha256"),
    (f"{GITHUB}/mcginty/arch-boxes-arm/releases/download/v20220323/Arch-Linux-aarch64-cloudimg-20220323.0.qcow2", "github", IMMUTABLE, ""),
    (f"{GITHUB}/siderolabs/talos/releases/latest/download/metal-amd64.iso", "github", MOVING, ""),
    (f"{GITHUB}/owner/project/releases/download/continuous/disk.img", "github", MOVING, ""),
    (f"{GITHUB}/owner/project/releases/download/v2-nightly/disk.img", "github", MOVING, ""),
    (f"{GITHUB}/owner/project/releases/download/nightly-20240501/disk.img", "github", IMMUTABLE, ""),
    (f"{GITHUB}/kholia/OSX-KVM/raw/master/OVMF_CODE.fd", "github", NEITHER, ""),
    (f"{GITHUB}/kholia/OSX-KVM/raw/v1.2.3/OVMF_CODE.fd", "github", IMMUTABLE, ""),
    ("https://raw.githubusercontent.com/lima-vm/lima/master/templates/default.yaml", "github-raw", NEITHER, ""),
    ("https://raw.githubusercontent.com/canonical/multipass/refs/heads/main/data/distributions/distribution-info.json", "github-raw", NEITHER, ""),
    ("https://raw.githubusercontent.com/lima-vm/lima/v2.2.0/templates/default.yaml", "github-raw", IMMUTABLE, ""),
    (f"{GCS}/minikube/iso/minikube-v1.34.0-amd64.iso", "minikube", IMMUTABLE, "{}.sha256"),
    (f"{GCS}/minikube/iso/minikube-v1.34.0-amd64.iso.sha256", "minikube", NEITHER, ""),
    (f"{GCS}/minikube/releases/v1.34.0/minikube-linux-amd64.sha256", "minikube", IMMUTABLE, ""),
    (f"{GCS}/minikube/releases/latest/minikube-linux-amd64", "minikube", MOVING, "{}.sha256"),
    (f"{GCS}/minikube-builds/iso/22436/minikube-v1.37.0-1761658712-21800-amd64.iso", "minikube-builds", IMMUTABLE, "{}.sha256"),
    (f"{GCS}/minikube-preloaded-volume-tarballs/preloaded-images-k8s-v12-v1.21.2-docker-overlay2-amd64.tar.lz4", "minikube-preload", IMMUTABLE, ""),
    ("https://dl.k8s.io/release/v1.31.0/bin/linux/amd64/kubectl", "kubernetes", IMMUTABLE, "{}.sha256"),
    ("https://dl.k8s.io/release/stable.txt", "kubernetes", MOVING, "{}.sha256"),
    (f"{VAGRANT}/generic/boxes/ubuntu2204/versions/4.3.12/providers/libvirt/amd64/vagrant.box", "vagrant", IMMUTABLE, ""),
    ("https://app.vagrantup.com/ubuntu/boxes/trusty64/versions/20170619.0.0/providers/virtualbox.box", "vagrant", IMMUTABLE, ""),
    (f"{VAGRANT}/api/v2/vagrant/generic/ubuntu2204", "vagrant", MOVING, ""),
    (f"{VAGRANT}/ubuntu/trusty64", "vagrant", MOVING, ""),
    ("https://app.vagrantup.com/ubuntu/boxes/xenial64", "vagrant", MOVING, ""),
    ("http://builder.libguestfs.org/fedora-32.xz", "virt-builder", MOVING, ""),
    ("https://builder.libguestfs.org/index.asc", "virt-builder", MOVING, ""),
    ("http://archive.libguestfs.org/builder/fedora-27.xz", "virt-builder-archive", MOVING, ""),
    (f"{INCUS}/images/ubuntu/noble/amd64/cloud/20260319_07:42/disk.qcow2", "incus", IMMUTABLE, "SHA256SUMS"),
    (f"{INCUS}/images/archlinux/current/amd64/default/20260901_20%3A34/rootfs.tar.xz", "incus", IMMUTABLE, "SHA256SUMS"),
    (f"{INCUS}/streams/v1/images.json", "incus", MOVING, "SHA256SUMS"),
    (f"{INCUS}/meta/1.0/index-system", "incus", MOVING, "SHA256SUMS"),
    (f"{FREEBSD}/releases/VM-IMAGES/15.0-RELEASE/amd64/Latest/FreeBSD-15.0-RELEASE-amd64-BASIC-CLOUDINIT-ufs.qcow2.xz", "freebsd", IMMUTABLE, "CHECKSUM.SHA512 CHECKSUM.SHA256"),
    (f"{FREEBSD}/ftp/releases/amd64/amd64/ISO-IMAGES/14.0/FreeBSD-14.0-RELEASE-amd64-disc1.iso", "freebsd", IMMUTABLE, "CHECKSUM.SHA512 CHECKSUM.SHA256"),
    (f"{FREEBSD}/snapshots/VM-IMAGES/15.0-STABLE/amd64/Latest/FreeBSD-15.0-STABLE-amd64-ufs.qcow2.xz", "freebsd-snapshots", MOVING, "CHECKSUM.SHA512 CHECKSUM.SHA256"),
    (f"{FREEBSD}/snapshots/VM-IMAGES/16.0-CURRENT/amd64/20260907/FreeBSD-16.0-CURRENT-amd64-ufs.qcow2.xz", "freebsd-snapshots", IMMUTABLE, "CHECKSUM.SHA512 CHECKSUM.SHA256"),
    ("http://ftp-archive.freebsd.org/pub/FreeBSD-Archive/old-releases/VM-IMAGES/15.1-RELEASE/amd64/Latest/FreeBSD-15.1-RELEASE-amd64-BASIC-CLOUDINIT-zfs.raw.xz", "freebsd-archive", IMMUTABLE, "CHECKSUM.SHA512 CHECKSUM.SHA256"),
    (f"{VOID}/current/void-live-x86_64-20250202-base.iso", "void", MOVING, "sha256sum.txt"),
    (f"{VOID}/20250202/void-live-x86_64-20250202-base.iso", "void", IMMUTABLE, "sha256sum.txt"),
    ("https://repo-fastly.voidlinux.org/live/current/sha256sum.txt", "void", MOVING, ""),
    ("https://releases.nixos.org/nixos/25.05/nixos-25.05.802674.7848cd8c982f/nixos-minimal-25.05.802674.7848cd8c982f-x86_64-linux.iso", "nixos", IMMUTABLE, "{}.sha256"),
    ("https://channels.nixos.org/nixos-25.05/latest-nixos-minimal-x86_64-linux.iso", "nixos-channels", MOVING, "{}.sha256"),
    ("http://download.cirros-cloud.net/0.6.2/cirros-0.6.2-x86_64-disk.img", "cirros", IMMUTABLE, ""),
    ("http://download.cirros-cloud.net/daily/20161201/cirros-d161201-aarch64-disk.img", "cirros", IMMUTABLE, ""),
    ("http://download.cirros-cloud.net/daily/", "cirros", MOVING, ""),
    (f"{GITHUB}/cirros-dev/cirros/releases/download/0.6.2/cirros-0.6.2-x86_64-disk.img", "cirros", IMMUTABLE, ""),
    (f"{VIRTIO}/stable-virtio/virtio-win.iso", "virtio-win", MOVING, ""),
    (f"{VIRTIO}/archive-virtio/virtio-win-0.1.221-1/virtio-win.iso", "virtio-win", IMMUTABLE, ""),
    (f"{FREEBSD}/ftp/snapshots/VM-IMAGES/16.0-CURRENT/amd64/Latest/FreeBSD-16.0-CURRENT-amd64-BASIC-CLOUDINIT-zfs.raw.xz", "freebsd-snapshots", MOVING, "CHECKSUM.SHA512 CHECKSUM.SHA256"),
    (f"{FREEBSD}/releases/amd64/14.1-RELEASE/base.txz", "freebsd", IMMUTABLE, "CHECKSUM.SHA512 CHECKSUM.SHA256"),
    (f"{FEDORA}/alt/risc-v/release/42/Cloud/riscv64/images/Fedora-Cloud-Base-Generic-42.20250414-8635a3a5bfcd.riscv64.qcow2", "fedora", IMMUTABLE, ""),
    (f"{ALMA}/9/vagrant/x86_64/AlmaLinux-9-Vagrant-libvirt-9.4-20240805.x86_64.box", "almalinux", IMMUTABLE, "CHECKSUM"),
    (f"{ALMA}/9/vagrant/x86_64/AlmaLinux-9-Vagrant-libvirt-latest.x86_64.box", "almalinux", MOVING, "CHECKSUM"),
    (f"{ROCKY}/9/images/x86_64/Rocky-9-Vagrant-Libvirt-9.4-20240509.0.x86_64.box", "rocky", IMMUTABLE, "{}.CHECKSUM CHECKSUM"),
    (f"{ROCKY}/9/images/x86_64/Rocky-9-Vagrant-Libvirt.latest.x86_64.box", "rocky", MOVING, "{}.CHECKSUM CHECKSUM"),
    (f"https://factory.talos.dev/image/{SCHEMATIC}/v1.11.5/nocloud-amd64.iso", "talos-factory", IMMUTABLE, ""),
    (f"https://factory.talos.dev/image/{SCHEMATIC}/v1.12.0-beta.1/metal-arm64.raw.zst", "talos-factory", IMMUTABLE, ""),
    ("https://factory.talos.dev/versions", "talos-factory", NEITHER, ""),
    ("https://stable.release.flatcar-linux.net/amd64-usr/4230.2.1/flatcar_production_qemu_image.img", "flatcar-stable", IMMUTABLE, "{}.DIGESTS"),
    ("https://stable.release.flatcar-linux.net/amd64-usr/current/flatcar_production_qemu_image.img", "flatcar-stable", MOVING, "{}.DIGESTS"),
    ("https://stable.release.flatcar-linux.net/amd64-usr/current/version.txt", "flatcar-stable", MOVING, "{}.DIGESTS"),
    ("https://beta.release.flatcar-linux.net/arm64-usr/4186.1.0/flatcar_production_pxe.vmlinuz", "flatcar-beta", IMMUTABLE, "{}.DIGESTS"),
    ("https://beta.release.flatcar-linux.net/arm64-usr/current/flatcar_production_pxe.vmlinuz", "flatcar-beta", MOVING, "{}.DIGESTS"),
    ("https://alpha.release.flatcar-linux.net/amd64-usr/4230.0.0/flatcar_production_openstack_image.img.bz2", "flatcar-alpha", IMMUTABLE, "{}.DIGESTS"),
    ("https://alpha.release.flatcar-linux.net/amd64-usr/current/flatcar_production_openstack_image.img.bz2.DIGESTS", "flatcar-alpha", MOVING, ""),
    ("https://lts.release.flatcar-linux.net/amd64-usr/4081.3.6/flatcar_production_vmware_ova.ova", "flatcar-lts", IMMUTABLE, "{}.DIGESTS"),
    ("https://lts.release.flatcar-linux.net/amd64-usr/current-2024/flatcar_production_vmware_ova.ova", "flatcar-lts", MOVING, "{}.DIGESTS"),
    (f"{GENTOO}/experimental/amd64/openstack/gentoo-openstack-amd64-default-latest.qcow2", "gentoo", MOVING, "{}.sha256 {}.DIGESTS"),
    (f"{GENTOO}/experimental/amd64/openstack/gentoo-openstack-amd64-default-20260201.qcow2", "gentoo", IMMUTABLE, "{}.sha256 {}.DIGESTS"),
    (f"{GENTOO}/releases/amd64/autobuilds/20260208T163056Z/stage3-amd64-openrc-20260208T163056Z.tar.xz", "gentoo", IMMUTABLE, "{}.sha256 {}.DIGESTS"),
    (f"{GENTOO}/releases/amd64/autobuilds/current-install-amd64-minimal/install-amd64-minimal-20260712T170110Z.iso", "gentoo", IMMUTABLE, "{}.sha256 {}.DIGESTS"),
    (f"{GENTOO}/releases/amd64/autobuilds/current-install-amd64-minimal/install-amd64-minimal-20260712T170110Z.iso.sha256", "gentoo", NEITHER, ""),
    (f"{GENTOO}/releases/amd64/autobuilds/current-install-amd64-minimal/", "gentoo", MOVING, ""),
    (f"{GENTOO}/releases/amd64/autobuilds/latest-stage3-amd64-openrc.txt", "gentoo", MOVING, "{}.sha256 {}.DIGESTS"),
    (f"{FINCH}/common/x86-64/finch-rootfs-production-amd64-1771357941.tar.gz", "finch", IMMUTABLE, "{}.sha512sum"),
    (f"{FINCH}/Fedora-Cloud-Base-38-1.6.x86_64-20230918164920.qcow2", "finch", IMMUTABLE, "{}.sha512sum"),
    (f"{FINCH}/common/x86-64/", "finch", NEITHER, ""),
]  # fmt: skip


@pytest.mark.parametrize(("url", "mirror", "kind", "checksums"), URLS, ids=[url for url, *_ in URLS])
def test_url_of_a_vm_tool(url: str, mirror: str, kind: str, checksums: str) -> None:
    target = TABLE.resolve(proxied_path(url))
    assert target.mirror.name == mirror
    found = (target.mirror.is_immutable(target.path), target.mirror.is_moving(target.path))
    assert found == (kind == IMMUTABLE, kind == MOVING)
    directory = target.path[: len(target.path) - len(target.name)]
    assert target.checksum_paths == tuple(directory + name.replace("{}", target.name) for name in checksums.split())


@pytest.mark.parametrize("url", [url for url, *_ in URLS])
def test_name_and_host_are_one_entry(url: str) -> None:
    target = TABLE.resolve(url)
    by_name = f"/{target.mirror.name}/{target.path}" + (f"?{target.query}" if target.query else "")
    assert {TABLE.resolve(spelling).key for spelling in (by_name, *target.urls, *map(proxied_path, target.urls))} == {
        target.key
    }


def test_every_mirror_has_an_url_in_the_table() -> None:
    assert {mirror.name for mirror in MIRRORS} == {name for _, name, *_ in URLS}


def test_every_pattern_has_an_url_in_the_table() -> None:
    paths: dict[str, list[str]] = {}
    for url, name, *_ in URLS:
        paths.setdefault(name, []).append("/" + TABLE.resolve(url).path)
    unused = [
        (mirror.name, pattern)
        for mirror in MIRRORS
        for pattern in (*mirror.immutable, *mirror.moving, *mirror.rewrite)
        if not any(re.search(pattern, path) for path in paths[mirror.name])
    ]
    assert unused == []


def test_what_names_files_by_absolute_urls_is_rewritten() -> None:
    rewritten = {url for url, *_ in URLS if (of := TABLE.resolve(url)).mirror.is_rewritten(of.path)}
    assert rewritten == {
        "https://builds.coreos.fedoraproject.org/streams/stable.json",
        "https://raw.githubusercontent.com/canonical/multipass/refs/heads/main/data/distributions/distribution-info.json",
        f"{VAGRANT}/api/v2/vagrant/generic/ubuntu2204",
        f"{VAGRANT}/ubuntu/trusty64",
    }


@pytest.mark.parametrize(("file", "table"), TABLES, ids=[table["name"] for _, table in TABLES])
def test_table_is_well_formed(file: Path, table: dict[str, Any]) -> None:
    assert table.keys() <= KEYS
    assert is_valid_name(table["name"])
    for url in table["upstreams"]:
        assert re.fullmatch(r"https?://[a-z0-9.-]+/([^?#\s]+/)?", url)
        # A request for https must not silently become http when the first upstream fails.
        assert url.startswith("https:") or table["upstreams"][0].startswith("http:")
    for name in table.get("checksums", ()):
        assert re.fullmatch(r"[A-Za-z0-9.{}-]+", name)
        assert re.sub(r"\{file\}", "", name).isprintable()
    assert MIRRORS[[other["name"] for _, other in TABLES].index(table["name"])].ttl >= 60


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_file_says_what_it_is_for(file: Path) -> None:
    text = file.read_text("utf-8")
    assert text.startswith("# ")
    assert set(tomllib.loads(text)) == {"mirror"}
    # A backslash in a basic string is an escape: patterns are literal strings.
    assert not re.search(r'"[^"\n]*\\[^"\n]*"', text)


def test_the_readme_names_them_all() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    said = readme.partition("These come with it:")[2].partition("([config/mirrors]")[0].lower().replace("\n", " ")
    assert [file.stem for file in FILES if file.stem not in said and file.stem.replace("-", " ") not in said] == []


def test_names_and_bases_are_unique() -> None:
    names = [mirror.name for mirror in MIRRORS]
    bases = [(parse_target(url).host, parse_target(url).path) for mirror in MIRRORS for url in mirror.upstreams]
    assert len(set(names)) == len(names)
    assert len(set(bases)) == len(bases)


@pytest.mark.parametrize("url", [url for url, _, kind, _ in URLS if kind == IMMUTABLE])
def test_nothing_is_immutable_but_by_a_number(url: str) -> None:
    target = TABLE.resolve(url)
    for word in ("latest", "current", "daily", "release"):
        path = re.sub(r"\d+([._-]\d+)*", word, target.path)
        assert not target.mirror.is_immutable(path)


@pytest.mark.parametrize("url", [url for url, *_ in URLS])
def test_checksum_file_of_a_moving_object_is_not_immutable(url: str) -> None:
    target = TABLE.resolve(url)
    if target.mirror.is_moving(target.path):
        assert not any(map(target.mirror.is_immutable, target.checksum_paths))


UNSERVED = {
    "aka.ms": "a short address of anything at all: whoever could ask for it could ask for everything",
    "example.com": "an example",
}
"""Hosts in Lima's templates that no mirror has, and why."""


def target_of(url: str) -> Target | None:
    try:
        return TABLE.resolve(url)
    except UnknownMirror:
        return None


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")
def test_every_image_of_lima_has_a_mirror_that_knows_whether_it_moves() -> None:
    folder = Path(__file__).parent / "clients" / "limactl"
    module = "github.com/lima-vm/lima/v2"
    subprocess.run(["go", "mod", "download", module], cwd=folder, check=True)
    lima = subprocess.check_output(["go", "list", "-m", "-f", "{{.Dir}}", module], cwd=folder, text=True).strip()
    templates = "".join(file.read_text("utf-8") for file in sorted(Path(lima).glob("templates/**/*.yaml")))
    locations = set(re.findall(r"location: *[\"']?(https?://[^\s\"']+)", templates))
    assert len(locations) > 200
    targets = {url: target_of(url) for url in locations}
    assert {parse_target(url).host for url, target in targets.items() if target is None} == UNSERVED.keys()
    found = [target for target in targets.values() if target]
    assert [each.url for each in found if each.mirror.is_immutable(each.path) == each.mirror.is_moving(each.path)] == []
