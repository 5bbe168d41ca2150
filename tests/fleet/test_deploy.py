"""The examples of several machines: what they set is what the README says."""

import pytest
from ruamel.yaml import YAML

from proxy.config import load
from tests.forks import REPOSITORY

DEPLOY = REPOSITORY / "deploy"


def of_compose():
    services = YAML(typ="safe").load(DEPLOY / "fleet-compose.yaml")["services"]
    return {name: service["environment"] for name, service in services.items() if name.startswith("cache")}


def of_kubernetes():
    documents = list(YAML(typ="safe").load_all(DEPLOY / "fleet-kubernetes.yaml"))
    (found,) = [each for each in documents if each["kind"] == "StatefulSet"]
    (container,) = found["spec"]["template"]["spec"]["containers"]
    set_ = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    names = [f"fetchonce-{number}" for number in range(found["spec"]["replicas"])]
    return {name: {key: value.replace("$(NAME)", name) for key, value in set_.items()} for name in names}


@pytest.mark.parametrize("example", [of_compose, of_kubernetes])
def test_three_servers_name_each_other_and_themselves(example, monkeypatch, tmp_path):
    config = tmp_path / "fetchonce.toml"
    config.touch()
    servers = example()
    assert len(servers) == 3
    for name, environment in servers.items():
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        settings = load(str(config))
        assert settings.fleet.own in settings.fleet.parents
        assert len(settings.fleet.parents) == 3
        host = settings.fleet.own.removeprefix("http://").removesuffix(":8642")
        assert host.startswith(name)
        assert host in settings.access.hosts
        assert settings.file.lease.redis.startswith("redis://")
        assert settings.file.s3.url.startswith("s3://")
