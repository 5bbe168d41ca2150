"""`vagrant install`, `remove` and `status`: what they say, and what they leave alone."""

import json
import os

from click.testing import CliRunner

from proxy.cli.vagrant import vagrant

OWN = "http://127.0.0.1:8642"


def test_install_twice_status_and_remove(cli, tmp_path):
    home = tmp_path / "its home"
    env, file = cli.env({"VAGRANT_HOME": str(home)}), home / "Vagrantfile"

    def run(*args, code=0):
        """What it prints. In this process, which is twenty times as fast."""
        ran = CliRunner().invoke(vagrant, args, env=env, catch_exceptions=False)
        assert ran.exit_code == code
        return ran.stdout

    assert run("status", code=1) == f"not installed in {file}: fetchonce vagrant install\n"
    shown = run("install", "--dry-run")
    assert '+      "http://127.0.0.1:8642"' in shown
    assert not home.exists()
    assert run("install") == f"installed: boxes come through {OWN}, or directly while it does not run ({file})\n"
    text = file.read_text()
    assert '"images.example/pub/",' in text
    again = json.loads(run("install", "--json"))
    assert again == {
        "file": str(file),
        "state": "installed",
        "proxy": OWN,
        "fallback": True,
        "places": sorted(
            [cli.config.read_text().split('upstreams = ["http://')[1].split('"')[0], "images.example/pub/"]
        ),
        "changed": False,
    }
    assert file.read_text() == text

    cli.config.write_text('listen = ["[::1]:99"]\n' + cli.config.read_text().replace("/pub/", "/all/"))
    told = json.loads(run("status", "--json", code=1))
    assert (told["state"], told["why"]) == (
        "outdated",
        [
            "fetchonce is at http://[::1]:99 now",
            "new in the configuration: images.example/all/",
            "gone in the configuration: images.example/pub/",
        ],
    )
    assert "to mend it: fetchonce vagrant install\n" in run("status", code=1)
    assert run("install").startswith("installed: boxes come through http://[::1]:99,")
    assert run("status").startswith("installed: ")

    proxy = ["--proxy", "http://me:s3cret@cache.example:1/", "--no-fallback"]
    said = run("install", *proxy)
    assert said == f"installed: boxes come through http://***@cache.example:1 ({file})\n"
    assert run("status") == said  # another machine's address is not held against it
    file.write_text(file.read_text().replace("private\n", "\n"))
    assert run("status", code=1).splitlines()[1:] == [
        "  it is another version's",
        "to mend it: fetchonce vagrant install --proxy http://me:s3cret@cache.example:1 --no-fallback",
    ]
    assert "-# >>> fetchonce" in run("remove", "--dry-run")
    assert run("remove") == f"removed from {file}: boxes come from where they always did\n"
    assert not home.exists()
    assert run("remove") == f"there is nothing of fetchonce in {file}\n"
    assert json.loads(run("remove", "--json")) == {"file": str(file), "state": "absent", "changed": False}


def test_the_address_is_that_of_the_running_server(cli, server, tmp_path):
    given, address = ["--vagrant-home", str(tmp_path)], server.url("").rstrip("/")
    assert cli("vagrant", "install", *given, "--json").json()["proxy"] == address
    assert "nothing answers" not in cli("vagrant", "status", *given).err
    server.close()
    said = cli("vagrant", "install", *given, "--proxy", address.replace("//", "//me:s3cret@")).err
    assert f"nothing answers at {address}: until fetchonce serves there, boxes come directly\n" in said


def test_what_cannot_be_done_changes_nothing_and_says_why(cli, tmp_path):
    torn, file, unreadable = tmp_path / "torn", tmp_path / "file", tmp_path / "unreadable"
    torn.mkdir()
    before = "# >>> fetchonce: boxes\nmine\n"
    (torn / "Vagrantfile").write_text(before)
    file.touch()
    (unreadable / "Vagrantfile").mkdir(parents=True)
    inside = ["vagrant", "install", "--vagrant-home"]
    wrong = {
        f"{torn}/Vagrantfile: of the lines": [*inside, str(torn)],
        "one is missing. nothing was changed": ["vagrant", "remove", "--vagrant-home", str(torn)],
        f"{file}/Vagrantfile cannot be read: Not a directory": [*inside, str(file)],
        f"{unreadable}/Vagrantfile cannot be read: Is a directory": [*inside, str(unreadable)],
        f"{tmp_path}/a/b/Vagrantfile cannot be written: No such file": [*inside, f"{tmp_path}/a/b"],
    }
    for said, ran in zip(wrong, cli.together(*wrong.values(), code=1), strict=True):
        assert said in ran.err
        assert not ran.out
    assert (torn / "Vagrantfile").read_text() == before
    for proxy in ("cache:8642", "http://a/b", 'http://a"b', "http://#{x}@a"):
        ran = CliRunner().invoke(vagrant, ["install", "--proxy", proxy], env=cli.env(None))
        assert (ran.exit_code, "expected http://HOST:PORT" in ran.stderr) == (2, True)
    cli.config.write_text('listen = ["unix:/x"]\n')
    assert "say --proxy URL" in cli("vagrant", "install", "--vagrant-home", str(tmp_path), code=1).err
    assert sorted(os.listdir(tmp_path)) == ["fetchonce.toml", "file", "torn", "unreadable"]
