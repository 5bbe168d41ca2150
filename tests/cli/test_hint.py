"""fetchonce hint: with the address of the server that runs, or of the one that is configured."""

import os
import subprocess

import pytest

from tests.clients.tools import needs

MINIKUBE_HELP = """\
Starts a local Kubernetes cluster
Options:
    --install-addons=true:
\tIf set, install addons. Defaults to true.
    --iso-url=[https://storage.googleapis.com/minikube/iso/minikube-v1.34.0-amd64.iso,https://github.com/kubernetes/\
minikube/releases/download/v1.34.0/minikube-v1.34.0-amd64.iso,https://kubernetes.oss-cn-hangzhou.aliyuncs.com/minikube/\
iso/minikube-v1.34.0-amd64.iso]:
\tLocations to fetch the minikube ISO from. The list depends on the machine architecture.
"""


def configured(cli, *listen):
    cli.config.write_text(f"listen = {list(listen)}\n")


def test_it_names_the_server_that_runs(cli, server):
    assert f'"{server.url()}"' in cli("hint", "limactl").out
    assert f"diskImageMirror: {server.url()}github.com\n" in cli("hint", "colima").out


@pytest.mark.parametrize(
    ("listen", "found"),
    [
        (["127.0.0.1:9000"], {"curl": "http://127.0.0.1:9000/", "lima": "http://host.lima.internal:9000/", "incus": "https://127.0.0.1:8643/"}),
        (["unix:/run/x", "127.0.0.1:9000", "https://127.0.0.1:9443"], {"curl": "http://127.0.0.1:9000/", "incus": "https://127.0.0.1:9443/"}),
        (["https://127.0.0.1:9443"], {"curl": "https://127.0.0.1:9443/", "kube": "https://ADDRESS:9443/"}),
        (["unix:/run/x"], {"curl": "http://127.0.0.1:8642/"}),
        (["0.0.0.0:9000"], {"curl": "http://127.0.0.1:9000/", "kube": "http://ADDRESS:9000/"}),
        (["[::]:9000"], {"curl": "http://[::1]:9000/", "kube": "http://ADDRESS:9000/"}),
        (["127.0.0.1:9000", "192.168.7.1:9000"], {"curl": "http://127.0.0.1:9000/", "kube": "http://192.168.7.1:9000/"}),
    ],
)  # fmt: skip
def test_it_names_the_address_that_fits_the_tool(cli, listen, found):
    configured(cli, *listen)
    for ran, address in zip(cli.together(*(["hint", tool] for tool in found)), found.values(), strict=True):
        assert address in ran.out
        assert ("`listen`" in ran.out) == ("ADDRESS" in address or ("https" in address and "https" not in str(listen)))


def test_without_a_tool_all_are_listed(cli):
    listed, whole = cli.together(["hint"], ["hint", "--json"])
    tools = whole.json()
    assert [line.split("  ")[0] for line in listed.out.splitlines()] == [each["tool"] for each in tools]
    assert tools[0]["steps"][0]["text"] in listed.out
    assert "hint TOOL" in listed.err


def test_json_of_one_tool_is_an_object_and_of_several_a_list(cli):
    one, several = cli.together(["hint", "minikube", "--json"], ["hint", "virt", "--json"])
    assert one.json()["tool"] == "minikube"
    assert one.json()["env"] == [each["text"] for each in one.json()["steps"] if each["text"].startswith("export ")]
    assert [each["tool"] for each in several.json()] == ["virt-builder", "virt-install"]


def test_an_unknown_tool_names_the_near_ones(cli):
    ran = cli("hint", "vagant", code=2)
    assert 'no hint for "vagant", but for Vagrant' in ran.err


def test_a_tool_of_two_words_needs_no_quotes(cli):
    assert cli("hint", "podman", "machine").out.startswith("podman machine\n")


@needs("sh")
def test_env_is_for_eval_and_without_a_tool_harmless(cli, tmp_path):
    """minikube says what its own help has, and the second URL is its fallback."""
    safe, dib, colima = cli.together(["hint", "--env"], ["hint", "--env", "dib"], ["hint", "--env", "colima"])
    assert not colima.out
    assert "no variable" in colima.err
    minikube = tmp_path / "minikube"
    minikube.write_text(f"#!/bin/sh\ncat <<'EOF'\n{MINIKUBE_HELP}EOF\n")
    minikube.chmod(0o755)

    def evaluated(text, path):
        env = {"PATH": f"{path}:/usr/bin:/bin"}
        out = subprocess.check_output(["sh", "-c", 'eval "$1"; exec env', "sh", text], env=env, text=True)
        return {k: v for k, _, v in (line.partition("=") for line in out.splitlines()) if "_" in k or k == "SHA256SUMS"}

    iso = "storage.googleapis.com/minikube/iso/minikube-v1.34.0-amd64.iso"
    assert evaluated(safe.out, tmp_path) == {"MINIKUBE_ISO_URL": f"http://127.0.0.1:8642/{iso} https://{iso}"}
    assert evaluated(safe.out, os.devnull) == {"MINIKUBE_ISO_URL": ""}  # as if it were not set
    images = "http://127.0.0.1:8642/cloud-images.ubuntu.com/noble/current"
    expected = {"DIB_CLOUD_IMAGES": images, "SHA256SUMS": f"{images}/SHA256SUMS", "DIB_RELEASE": "noble"}
    assert evaluated(dib.out, tmp_path) == expected
