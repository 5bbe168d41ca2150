"""`service`: the printed files are whole, and deploy/ holds the same."""

import json
import plistlib
import re
import shlex
import stat
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from proxy.cli import service
from proxy.cli.service import MADE, Installation, plist, socket_unit, system_unit, user_unit
from proxy.web.metrics import HISTOGRAMS, METRICS
from tests.harness import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
DEPLOYED = {
    "fetchonce.service": system_unit,
    "fetchonce-user.service": user_unit,
    "fetchonce.socket": socket_unit,
    "fetchonce.plist": plist,
    "compose.yaml": MADE["compose"],
    "Containerfile": MADE["container"],
    "kubernetes.yaml": MADE["kubernetes"],
    "github-actions.yaml": MADE["github-actions"],
}
AWKWARD = Installation(
    program=("/opt/my tools/50% \"off\"/fetch&once'$x",),
    options=("--config", "/etc/a b.toml", "--listen", "unix:/run/f o/s"),
    environment=(("PYTHONPATH", "/srv/a b%"),),
    listen=("https://127.0.0.1:9443", "unix:/run/f o/s", "127.0.0.1:9000"),
    cache_dir="/srv/vm images%",
    max_size="7000000000",
    token_file="/etc/the token",
    log="/Users/a & b/log",
)


@pytest.mark.parametrize("name", DEPLOYED)
def test_deploy_holds_what_is_made_by_default(name):
    assert (DEPLOY / name).read_text() == DEPLOYED[name](Installation())


@pytest.mark.parametrize("name", DEPLOYED)
def test_no_placeholder_is_left(name):
    for of in (Installation(), AWKWARD):
        text = re.sub(r"\$\{\{.*?\}\}|\$MAINPID|\$\(.*?\)|\$!", "", DEPLOYED[name](of))
        assert "$" not in text.replace("fetch&amp;once'$x", "").replace("fetch&once'$$x", "")
        assert text.endswith("\n")


def directives(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def words(value: str) -> list[str]:
    """As systemd reads them: quotes, backslashes, specifiers and variables."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(value)]


def test_a_system_unit_is_confined_and_paths_are_quoted():
    unit = directives(system_unit(Installation()))
    assert unit["ExecStart"] == ["/usr/local/bin/fetchonce serve"]
    assert (unit["DynamicUser"], unit["CacheDirectory"]) == (["yes"], ["fetchonce"])
    assert unit["Environment"] == ["FETCHONCE_CACHE_DIR=%C/fetchonce"]
    assert unit["ProtectHome"] == ["yes"]
    assert "LoadCredential" not in unit
    unit = directives(system_unit(AWKWARD))
    assert [words(value) for value in unit["ExecStart"]] == [list(AWKWARD.command)]
    assert [words(value)[0] for value in unit["Environment"]] == [
        "PYTHONPATH=/srv/a b%",
        "FETCHONCE_ACCESS_TOKEN_FILE=%d/token",
    ]
    assert [words(value)[0] for value in unit["ReadWritePaths"]] == ["/run/f o", "/srv/vm images%"]
    assert words(unit["LoadCredential"][0]) == ["token:/etc/the token"]
    assert unit["User"] == ["fetchonce"]
    assert "DynamicUser" not in unit
    assert directives(socket_unit(AWKWARD))["ListenStream"] == ["127.0.0.1:9443", '"/run/f o/s"', "127.0.0.1:9000"]


def test_a_plist_is_read_as_it_was_meant():
    for of in (Installation(), AWKWARD):
        told = plistlib.loads(plist(of).encode())
        assert told["ProgramArguments"] == list(of.command)
        assert told["EnvironmentVariables"] == dict(of.environment)
        assert (told["Label"], told["StandardErrorPath"], told["KeepAlive"]) == (
            "fetchonce",
            of.log,
            {"SuccessfulExit": False},
        )


@pytest.mark.parametrize("name", [name for name in DEPLOYED if name.endswith(".yaml")])
def test_yaml_parses_and_has_the_port_and_the_size(name):
    for of, port, size in ((Installation(), 8642, "50GB"), (AWKWARD, 9000, "7000000000")):
        documents = list(YAML(typ="safe").load_all(DEPLOYED[name](of)))
        assert None not in documents
        match name:
            case "compose.yaml":
                one = documents[0]["services"]["fetchonce"]
                assert one["ports"] == [f"127.0.0.1:{port}:{port}"]
                assert one["environment"]["FETCHONCE_CACHE_MAX_SIZE"] == size
                assert (one["build"]["dockerfile"], one["read_only"]) == ("deploy/Containerfile", True)
            case "kubernetes.yaml":
                assert [each["kind"] for each in documents] == ["PersistentVolumeClaim", "Service", "Deployment"]
                (container,) = documents[2]["spec"]["template"]["spec"]["containers"]
                assert container["ports"][0]["containerPort"] == documents[1]["spec"]["ports"][0]["port"] == port
                assert {"name": "FETCHONCE_CACHE_MAX_SIZE", "value": size} in container["env"]
                assert container["readinessProbe"]["httpGet"]["path"] == "/-/readyz"
                assert container["livenessProbe"]["httpGet"]["path"] == "/-/healthz"
            case "github-actions.yaml":
                steps = documents[0]["jobs"]["images"]["steps"]
                assert any(f"serve --listen 127.0.0.1:{port} " in step.get("run", "") for step in steps)


def test_the_command_names_this_installation(cli, tmp_path):
    unit = directives(cli("service", "systemd", "--user").out)
    command = words(unit["ExecStart"][0])
    assert command[:4] == [sys.executable, "-m", "proxy", "serve"]
    assert command[4:] == ["--config", str(cli.config), "--cache-dir", str(cli.cache_dir)]
    assert unit["Environment"] == [f"PYTHONPATH={REPOSITORY}"]

    script = tmp_path / "a dir" / "fetchonce"
    script.parent.mkdir()
    lines = ["#!" + sys.executable, f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})", "import proxy.__main__"]
    script.write_text("\n".join(lines))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    given = ["service", "systemd", "--system", "--listen", "127.0.0.1:99", "--config", cli.config]
    ran = subprocess.run([script, *given], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert words(directives(ran.stdout)["ExecStart"][0]) == [
        *(str(script), "serve", "--config", str(cli.config), "--listen", "127.0.0.1:99"),
    ]


def test_options_that_do_not_fit_are_refused(cli):
    assert "are for systemd" in cli("service", "compose", "--user", code=2).err
    assert "no such configuration file" in cli("service", "systemd", "--config", "/nowhere", code=2).err


def test_the_templates_are_all_used_and_packed():
    assert {path.name for path in service.TEMPLATES.iterdir()} == {
        "fetchonce-system.service",
        *(DEPLOYED.keys() - {"fetchonce.service"}),
    }


def test_dashboard_and_alerts_use_metrics_that_there_are():
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    alerts = YAML(typ="safe").load((DEPLOY / "alerts.yaml").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    warned = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    parts = {f"fetchonce_{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
    for text in (asked, warned):
        names = set(re.findall(r"\bfetchonce_\w+", " ".join(text)))
        assert names
        assert names <= set(METRICS) | parts
    every = " ".join(asked + warned)
    shown = {name for name in METRICS if name in every}
    # A label of the dashboard's, and a part of the requests.
    assert set(METRICS) - shown <= {"fetchonce_build_info", "fetchonce_repeated_total"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
