"""What to type so that a tool fetches through us: pure data, and its forms for a terminal and for the README.

Every line can be pasted as it is; HOST, PATH and FILE stand for the image's own. {base} is our address, {https} the one
that speaks https, {remote} the one for other machines, {guest} the one for Lima's guests. What each line does was seen,
or read in the tool's source.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from textwrap import wrap

WIDTH = 80


@dataclass(frozen=True, slots=True)
class Addresses:
    """URLs of the server, without a slash at the end."""

    base: str = "http://127.0.0.1:8642"
    https: str = "https://127.0.0.1:8643"
    remote: str = "http://ADDRESS:8642"

    @property
    def guest(self) -> str:
        return re.sub("//.*:", "//host.lima.internal:", self.base)

    def fill(self, text: str) -> str:
        # Not str.format: the lines are full of braces of their own.
        for name in ("base", "https", "remote", "guest"):
            text = text.replace("{" + name + "}", getattr(self, name))
        return text


@dataclass(frozen=True, slots=True)
class Step:
    text: str
    """A command, or a line of the tool's file."""
    about: str = ""
    """Where it goes, or what it is good for."""
    has_fallback: bool = False
    """Of a variable: whether the tool asks upstream while we do not run."""


@dataclass(frozen=True, slots=True)
class Hint:
    names: tuple[str, ...]
    """As people write them; the first is the tool's, the others are found too."""
    steps: tuple[Step, ...]
    note: str = ""
    """What does not go through us all the same, and what to mind."""
    shown: int = 1
    """How many of the names the table shows."""

    @property
    def name(self) -> str:
        return ", ".join(self.names[: self.shown])

    @property
    def variables(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.text.startswith("export "))

    def uses(self, address: str) -> bool:
        """Whether one of its lines has {`address`}."""
        return any("{" + address + "}" in step.text for step in self.steps)


HINTS = (
    Hint(
        ("Lima", "limactl"),
        (
            Step("fetchonce lima install", "once, with upstream as fallback"),
            Step(
                'limactl start --set \'(.. | select(tag == "!!map" and has("location")) | .location) |= '
                'sub("^https?://", "{base}/")\' template:ubuntu',
                "for one VM",
            ),
        ),
        "--set covers images, kernels, initrds and listed archives, not nerdctl, and has no fallback. `fetchonce "
        "seed lima TEMPLATE` fills Lima's own cache, and nothing else changes. In a guest the address is "
        "{guest}/",
    ),
    Hint(
        ("Colima",),
        (Step("diskImageMirror: {base}/github.com", "in `colima.yaml`, or in the template for new profiles"),),
        "not covered: k3s and what it fetches. There is no fallback. The template is a whole colima.yaml, "
        "~/.config/colima/_templates/default.yaml",
    ),
    Hint(
        ("Packer",),
        (
            Step('iso_urls = ["{base}/HOST/PATH", "https://HOST/PATH"]', "with upstream as fallback"),
            Step('iso_checksum = "file:{base}/HOST/SHA256SUMS"'),
        ),
        "`fetchonce rewrite FILE` writes both into a template. Not covered: plugins, and what the build fetches.",
    ),
    Hint(
        ("Vagrant",),
        (
            Step("fetchonce vagrant install", "once, with upstream as fallback"),
            Step('export VAGRANT_SERVER_URL="{base}/vagrantcloud.com"', "instead, without a plug-in"),
        ),
        "not covered: boxes on a host that no mirror has. VAGRANT_SERVER_URL has no fallback, and a box added by "
        "it keeps this address for `box update`.",
    ),
    Hint(
        ("minikube",),
        (
            Step(
                'export MINIKUBE_ISO_URL="$(minikube start --help 2>/dev/null | sed -nE '
                "'s#.*\\[https://([^],]+\\.iso).*#{base}/\\1 https://\\1#p')\"",
                "the ISO, with upstream as fallback",
                has_fallback=True,
            ),
            Step('export MINIKUBE_BINARY_MIRROR="{base}/dl.k8s.io/release"', "Kubernetes"),
            Step(
                "fetchonce seed minikube https://storage.googleapis.com/minikube-preloaded-volume-tarballs/PATH",
                "preloaded images",
            ),
        ),
        "not covered: container images. MINIKUBE_BINARY_MIRROR, for kubectl, kubeadm and kubelet, has no "
        "fallback: unset it where fetchonce does not run. There is no option for the preloaded images, so `seed` "
        "puts them into minikube's cache.",
    ),
    Hint(
        ("podman machine", "podman"),
        (Step("podman machine init --image-path {base}/HOST/PATH", "`--image` for podman 5 and newer"),),
        "not covered: the image that podman takes without the option. It comes from an OCI registry.",
    ),
    Hint(
        ("virt-builder",),
        (Step("virt-builder --source {base}/builder.libguestfs.org/index.asc fedora-42"),),
        "not covered: packages that --install and --update fetch. For every run: uri= in "
        "/etc/virt-builder/repos.d/*.conf",
    ),
    Hint(
        ("virt-install",),
        (Step("virt-install --cdrom {base}/HOST/PATH"),),
        "qemu reads it over HTTP while the guest runs, so fetchonce must run too. With --location the guest asks "
        "the same address: give one that it reaches, such as 192.168.122.1, and listen there. Not covered: "
        "packages that the installer fetches.",
    ),
    Hint(
        ("diskimage-builder", "disk-image-create", "dib"),
        (
            Step('export DIB_CLOUD_IMAGES="{base}/cloud-images.ubuntu.com/noble/current"', "for Ubuntu"),
            Step('export SHA256SUMS="{base}/cloud-images.ubuntu.com/noble/current/SHA256SUMS"'),
            Step('export DIB_RELEASE="noble"'),
        ),
        "not covered: packages (see DIB_DISTRIBUTION_MIRROR) and sources. There is no fallback: unset them where "
        "fetchonce does not run.",
    ),
    Hint(
        ("quickget", "quickemu"),
        (
            Step(
                "sed 's#https://#{base}/#g' \"$(command -v quickget)\" >fetchonce-quickget",
                "a copy, for `bash fetchonce-quickget`",
            ),
        ),
        "not covered: systems on hosts that no mirror has. For these use the original.",
    ),
    Hint(
        ("coreos-installer", "Fedora CoreOS"),
        (Step("coreos-installer download --stream-base-url {base}/builds.coreos.fedoraproject.org/streams/"),),
    ),
    Hint(
        ("Ansible", "get_url"),
        (
            Step("url: {base}/HOST/PATH", "of `get_url`"),
            Step("checksum: sha256:{base}/HOST/SHA256SUMS"),
        ),
        "on other machines it must be an address that they reach.",
    ),
    Hint(
        ("Incus", "LXD", "lxc"),
        (Step("incus remote add once {https}/images.linuxcontainers.org --protocol=simplestreams"),),
        "for LXD it is `lxc remote add`. Then launch from `once:`; the remote `images:` stays as it is.",
        shown=2,
    ),
    Hint(
        ("Multipass",),
        (
            Step("multipass set local.image.mirror={https}/cloud-images.ubuntu.com/", "Ubuntu"),
            Step(
                "MULTIPASS_DISTRIBUTIONS_URL={https}/raw.githubusercontent.com/canonical/multipass/refs/heads/main/"
                "data/distributions/distribution-info.json",
                "others, in the daemon's environment",
            ),
        ),
        "not covered: Ubuntu's index, which is fetched from upstream first all the same; Ubuntu Core.",
    ),
    Hint(
        ("cross-platform-actions", "CPA", "GitHub Actions"),
        (Step('export CPA_RESOURCE_URL="{base}/github.com"', "or under `env:` of the workflow"),),
        "not covered: packages in the guest. There is no fallback.",
    ),
    Hint(
        ("Proxmox", "pvesh"),
        (
            Step(
                "pvesh create /nodes/NODE/storage/local/download-url --content iso --filename FILE --url "
                "{remote}/HOST/PATH",
                "or Download from URL",
            ),
        ),
        "not covered: the templates of `pveam`.",
    ),
    Hint(
        ("KubeVirt", "CDI", "DataVolume"),
        (Step("url: {remote}/HOST/PATH", "`source.http` of a DataVolume"),),
        "not covered: containerDisks and registry sources. CDI's importProxy works for http:// URLs only.",
    ),
    Hint(
        ("Harvester", "Longhorn"),
        (
            Step("url: {remote}/HOST/PATH", "of a VirtualMachineImage"),
            Step("fetchonce prefetch --pin https://HOST/PATH"),
        ),
        "each new node fetches the image again, and cannot once upstream has deleted it. What is pinned stays.",
    ),
    Hint(
        ("Terraform", "OpenTofu", "bpg", "libvirt"),
        (
            Step('url = "{remote}/HOST/PATH"', "bpg/proxmox, where the node fetches"),
            Step('content = { url = "{base}/HOST/PATH" }', "`create` of a libvirt_volume"),
        ),
        "not covered: providers and modules.",
    ),
    Hint(
        ("Glance", "OpenStack"),
        (Step("glance image-create-via-import --import-method web-download --uri {remote}/HOST/PATH"),),
        "the port must be among allowed_ports of [import_filtering_opts].",
    ),
    Hint(
        ("qemu-img",),
        (Step("qemu-img convert -m 1 -O qcow2 {base}/HOST/PATH disk.qcow2"),),
        "-m 1, because more coroutines hang now and then over HTTP, whatever the server.",
    ),
    Hint(
        ("apt", "debootstrap"),
        (
            Step("deb {base}/deb.debian.org/debian stable main", "in `sources.list`"),
            Step("debootstrap stable DIR {base}/deb.debian.org/debian", "with `serve --allow deb.debian.org`"),
        ),
        "not covered: archives on other hosts, such as security.debian.org. Each needs a line and an --allow of "
        "its own, or http_proxy={base} for all of them.",
        shown=2,
    ),
    Hint(
        ("sstream-mirror", "simplestreams", "MAAS"),
        (Step("sstream-mirror {base}/cloud-images.ubuntu.com/releases/streams/v1/index.sjson DIR"),),
    ),
    Hint(
        ("curl", "wget", "aria2"),
        (
            Step("curl -fLO {base}/HOST/PATH", "`-C -` goes on with a half, also while the image is coming"),
            Step("wget -c {base}/HOST/PATH"),
            Step("aria2c -x8 {base}/HOST/PATH"),
        ),
        "behind a company proxy set NO_PROXY=127.0.0.1,localhost",
        shown=3,
    ),
)


def find(text: str) -> tuple[Hint, ...]:
    """Hints with a name that is `text`, else with one that begins so; letter case does not matter."""
    wanted = text.casefold()
    for fits in (str.__eq__, str.startswith):
        if found := tuple(hint for hint in HINTS if any(fits(name.casefold(), wanted) for name in hint.names)):
            return found
    return ()


def near(text: str) -> list[str]:
    """Names that look like `text`, the likest first."""
    known = {name.casefold(): name for hint in HINTS for name in hint.names}
    return [known[each] for each in get_close_matches(text.casefold(), known, n=3, cutoff=0.6)]


def as_text(hint: Hint, addresses: Addresses, before: Iterable[str] = ()) -> str:
    """For people: what to type, and about each line what is to be known. `before`: what to know first of all."""
    lines = [hint.name, *(line for text in before for line in wrapped(text))]
    for step in hint.steps:
        lines += [f"  {step.about}:"] * bool(step.about) + [f"    {addresses.fill(step.text)}"]
    return "\n".join([*lines, *wrapped(addresses.fill(hint.note))])


def wrapped(text: str) -> list[str]:
    """Its lines, with paths and options whole."""
    return wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def as_value(hint: Hint, addresses: Addresses) -> dict[str, object]:
    """For JSON."""
    steps = [{"text": addresses.fill(step.text), "about": step.about} for step in hint.steps]
    env = [addresses.fill(step.text) for step in hint.variables]
    note = addresses.fill(hint.note)
    return {"tool": hint.name, "steps": steps, "note": note, "env": env, "needs_https": hint.uses("https")}


def as_markdown(hints: Iterable[Hint], addresses: Addresses) -> str:
    """The README's table."""

    def cell(step: Step) -> str:
        code = addresses.fill(step.text).replace("|", r"\|")
        return f"`{code}`" + (f" ({step.about})" if step.about else "")

    rows = [f"| {hint.name} | {'; '.join(map(cell, hint.steps))} |" for hint in hints]
    return "\n".join(["| tool | what to say |", "|---|---|", *rows])
