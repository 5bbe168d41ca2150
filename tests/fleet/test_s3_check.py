"""fetchonce s3 check, and what is said where [s3] is wrong or its package is missing."""

import json
import subprocess
import sys

import pytest

from proxy.config import load
from proxy.errors import ConfigError
from tests.fleet.s3 import Bucket, Rclone, Wire
from tests.harness import REPOSITORY, fetchonce, until

SMALL = bytes(range(256)) * 100


@pytest.fixture
def config(tmp_path):
    return tmp_path / "fetchonce.toml"


def check(config, *args, code=0):
    return fetchonce("s3", "check", "--config", config, *args, code=code).stdout


@pytest.fixture(scope="session")
def rclone(tmp_path_factory):
    engine = Rclone(tmp_path_factory.mktemp("rclone") / "buckets")
    (engine.root / "images").mkdir()  # it looks for buckets once in five minutes
    try:
        yield engine.start()
    finally:
        engine.close()


def test_all_is_well_and_the_rule_is_what_s3_takes(bucket, config):
    config.write_text(bucket.config())
    told = json.loads(check(config, "--json"))
    assert told["is_fine"]
    assert [step["error"] for step in told["steps"]] == [None] * 6
    (rule,) = json.loads(told["lifecycle"])["Rules"]
    assert rule["Filter"] == {"Prefix": "images/"}
    assert (rule["Expiration"], rule["AbortIncompleteMultipartUpload"]) == ({"Days": 30}, {"DaysAfterInitiation": 1})
    said = check(config)
    assert told["lifecycle"] in said
    assert f"--bucket {bucket.name} " in said
    assert bucket.files("*/*") == []


def test_a_store_without_conditional_writes_is_told_of_and_will_do(rclone, config):
    with Wire(rclone.port) as wire:
        config.write_text(Bucket(rclone, "images", wire).config())
        steps = {step["name"]: step["error"] for step in json.loads(check(config, "--json"))["steps"]}
        assert "If-None-Match" in steps.pop("write only what is new")
        assert "range" in steps.pop("read a part")
        assert set(steps.values()) == {None}
        assert "nothing wrong can come of it" in check(config)


async def test_servers_share_a_store_without_conditional_writes(origin, proxy_factory, rclone):
    origin.body("/x", SMALL).headers(cache_control="max-age=600")
    with Wire(rclone.port) as wire:
        bucket = Bucket(rclone, "images", wire)
        await proxy_factory(config_text=bucket.config()).fetch("/u/x")
        await bucket.wait(1)
        assert (await proxy_factory(config_text=bucket.config()).get("/u/x")).body == SMALL
    assert origin.requests == 1


async def test_servers_share_a_store_that_refuses_conditional_writes(origin, proxy_factory, bucket, config):
    bucket.wire.fail(r"PUT ", 501, header="if-none-match")
    for number in range(2):
        origin.body(f"/{number}", SMALL + bytes([number])).headers(cache_control="max-age=600")
    proxy = proxy_factory(config_text=bucket.config())
    for number in range(2):
        await proxy.fetch(f"/u/{number}")
        await bucket.wait(number + 1)
    assert (await proxy.status())["s3"]["uploads"] == {"stored": 2}
    config.write_text(bucket.config())
    told = json.loads(check(config, "--json"))
    assert [step["name"] for step in told["steps"] if step["error"]] == ["write only what is new"]


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"secret_access_key": "wrong"}, "SignatureDoesNotMatch"),
        ({"url": "s3://no-such-bucket"}, "NoSuchBucket"),
        ({"endpoint": "http://127.0.0.1:1"}, "127.0.0.1:1"),
    ],
    ids=["secret", "bucket", "endpoint"],
)
def test_what_is_wrong_is_said(bucket, config, keys, word):
    config.write_text(bucket.config(**keys))
    said = check(config, code=1)
    assert word in said
    assert "testsecret" not in said


def test_a_bucket_that_may_only_be_read(bucket, config):
    config.write_text(bucket.config())
    bucket.wire.fail(r"(PUT|POST|DELETE) ", 403)
    steps = {step["name"]: step["error"] for step in json.loads(check(config, "--json", code=1))["steps"]}
    assert "403" in steps["write"]


def test_no_bucket_is_no_bucket(config):
    config.write_text("")
    assert "s3.url is empty" in fetchonce("s3", "check", "--config", config, code=2).stderr


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('url = "https://bucket.example/"', "expected s3://"),
        ('url = "s3://me:secret@bucket/"', "expected s3://"),
        ('endpoint = "127.0.0.1:9000"', "expected a URL"),
        ('endpoint = "http://127.0.0.1:9000"\nurl = "gs://images"', "for s3:// alone"),
    ],
)
def test_wrong_values_name_the_line(config, line, word):
    config.write_text(f"[s3]\n{line}\n")
    with pytest.raises(ConfigError, match=word) as caught:
        load(str(config))
    assert f"{config}:2: s3." in caught.value.message


WITHOUT = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        assert name != "obstore", "it was imported"
sys.meta_path.insert(0, Missing())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "obstore" else find(name, *more)
sys.argv = ["fetchonce", *sys.argv[1:]]
import proxy.__main__
"""
"""Python without the package, or with one that must not be imported."""


def run_without(*args):
    command = [sys.executable, "-c", WITHOUT, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)


def test_without_the_package_the_configuration_says_what_to_install(config):
    config.write_text('[s3]\nurl = "s3://images"\n')
    ran = run_without("config", "check", "--config", config)
    assert ran.returncode == 2
    assert "fetchonce[fleet]" in ran.stderr
    assert f"{config}:2: s3.url" in ran.stderr


def test_without_a_bucket_nothing_of_the_package_is_imported(origin, config, tmp_path):
    origin.body("/x", SMALL).headers(cache_control="max-age=600")
    config.write_text("")
    cache, mirror = ("--cache-dir", tmp_path / "cache"), f'[[mirror]]\nname = "u"\nupstreams = ["{origin.url()}"]\n'
    config.write_text(mirror)
    ran = run_without("prefetch", origin.url("/x"), "--config", config, *cache)
    assert ran.returncode == 0, ran.stderr


async def test_the_keys_come_from_the_profile_too(origin, bucket, config, tmp_path):
    keys = tmp_path / "credentials"
    keys.write_text("[images]\naws_access_key_id = testkey\naws_secret_access_key = testsecret\n")
    config.write_text(bucket.config(access_key_id="", secret_access_key=""))
    env = {"AWS_SHARED_CREDENTIALS_FILE": str(keys), "AWS_PROFILE": "images"}
    assert fetchonce("s3", "check", "--config", config, env=env).returncode == 0


def test_keys_of_the_configuration_are_not_mixed_with_a_profile(bucket, config, tmp_path):
    keys = tmp_path / "credentials"
    lines = ("aws_access_key_id = a", "aws_secret_access_key = b", "aws_session_token = c")
    keys.write_text("\n".join(["[default]", *lines, ""]))
    config.write_text(bucket.config())
    assert fetchonce("s3", "check", "--config", config, env={"AWS_SHARED_CREDENTIALS_FILE": str(keys)}).returncode == 0
    assert bucket.wire.asked
    assert not any("x-amz-security-token" in each.headers for each in bucket.wire.asked)


async def test_a_read_only_server_reads(origin, proxy_factory, bucket):
    origin.body("/x", SMALL).headers(cache_control="max-age=600")
    await proxy_factory(config_text=bucket.config()).fetch("/u/x")
    await bucket.wait(1)
    origin.body("/y", SMALL + b"1").headers(cache_control="max-age=600")
    bucket.wire.fail(r"(PUT|POST|DELETE) ", 403)
    reader = proxy_factory(config_text=bucket.config())
    await reader.fetch("/u/y")
    await until(lambda: any("bucket.not_written" in line for line in reader.log))
    assert (await reader.get("/u/x")).body == SMALL
    assert origin.count("/x") == 1
    assert (await reader.status())["s3"]["waiting"] >= 1  # y; and x, until the bucket is asked again
