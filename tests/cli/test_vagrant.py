"""`vagrant install`, `remove` and `status`: what they say, and what they leave alone."""

import os

OWN = "http://127.0.0.1:8642"


def test_install_twice_status_and_remove(cli, tmp_path):
    home = tmp_path / "its home"
    env, file = {"VAGRANT_HOME": str(home)}, home / "Vagrantfile"

    def run(*args, code=0):
        return cli("vagrant", *args, env=env, code=code)

    assert run("status").out == f"not installed in {file}: fetchonce vagrant install\n"
    shown = run("install", "--dry-run").out
    assert '+      "http://127.0.0.1:8642"' in shown
    assert not home.exists()
    assert run("install").out == f"installed: boxes come through {OWN}, or directly while it does not run ({file})\n"
    text = file.read_text()
    assert '"images.example/pub/",' in text
    again = run("install", "--json").json()
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
    told = run("status", "--json").json()
    assert (told["state"], told["why"]) == (
        "outdated",
        [
            "fetchonce is at http://[::1]:99 now",
            "new in the configuration: images.example/all/",
            "gone in the configuration: images.example/pub/",
        ],
    )
    assert "to mend it: fetchonce vagrant install\n" in run("status").out
    assert run("install").out.startswith("installed: boxes come through http://[::1]:99,")
    assert run("status").out.startswith("installed: ")

    proxy = ["--proxy", "http://me:s3cret@cache.example:1/", "--no-fallback"]
    said = run("install", *proxy).out
    assert said == f"installed: boxes come through http://***@cache.example:1 ({file})\n"
    assert run("status").out == said  # another machine's address is not held against it
    file.write_text(file.read_text().replace("private\n", "\n"))
    assert run("status").out.splitlines()[1:] == [
        "  it is another version's",
        "to mend it: fetchonce vagrant install --proxy http://me:s3cret@cache.example:1 --no-fallback",
    ]
    assert "-# >>> fetchonce" in run("remove", "--dry-run").out
    assert run("remove").out == f"removed from {file}: boxes come from where they always did\n"
    assert not home.exists()
    assert run("remove").out == f"there is nothing of fetchonce in {file}\n"
    assert run("remove", "--json").json() == {"file": str(file), "state": "absent", "changed": False}


def test_the_address_is_that_of_the_running_server(cli, server, tmp_path):
    args = ["vagrant", "install", "--vagrant-home", str(tmp_path), "--json"]
    assert cli(*args).json()["proxy"] == server.url("").rstrip("/")


def test_what_cannot_be_done_changes_nothing_and_says_why(cli, tmp_path):
    torn, file, unreadable = tmp_path / "torn", tmp_path / "file", tmp_path / "unreadable"
    torn.mkdir()
    before = "# >>> fetchonce: boxes\nmine\n"
    (torn / "Vagrantfile").write_text(before)
    file.touch()
    (unreadable / "Vagrantfile").mkdir(parents=True)
    wrong = {
        f"{torn}/Vagrantfile: of the lines": ["install", "--vagrant-home", str(torn)],
        "one is missing. nothing was changed": ["remove", "--vagrant-home", str(torn)],
        f"{file}/Vagrantfile cannot be read: Not a directory": ["install", "--vagrant-home", str(file)],
        f"{unreadable}/Vagrantfile cannot be read: Is a directory": ["install", "--vagrant-home", str(unreadable)],
        f"{tmp_path}/a/b/Vagrantfile cannot be written: No such file": ["install", "--vagrant-home", f"{tmp_path}/a/b"],
    }
    for said, ran in zip(wrong, cli.together(*(["vagrant", *args] for args in wrong.values()), code=1), strict=True):
        assert said in ran.err
        assert not ran.out
    assert (torn / "Vagrantfile").read_text() == before
    for proxy in ("cache:8642", "http://a/b", 'http://a"b', "http://#{x}@a"):
        assert "expected http://HOST:PORT" in cli("vagrant", "install", "--proxy", proxy, code=2).err
    cli.config.write_text('listen = ["unix:/x"]\n')
    assert "say --proxy URL" in cli("vagrant", "install", "--vagrant-home", str(tmp_path), code=1).err
    assert sorted(os.listdir(tmp_path)) == ["fetchonce.toml", "file", "torn", "unreadable"]
