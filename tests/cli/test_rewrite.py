"""`rewrite`."""

import os
import stat
import subprocess

from tests.cli.commands import BODY, FRESH
from tests.clients.tools import needs
from tests.harness import until

SCRIPT = """\
#!/bin/sh
# from https://images.example/pub/
curl -fsS -O https://images.example/pub/$NAME.img
wget http://n.example/x
"""
OURS = SCRIPT.replace("-O https://", "-O http://127.0.0.1:8642/")


def test_the_changed_text_is_printed_and_the_file_stays(cli, tmp_path):
    script = tmp_path / "a script.sh"
    script.write_text(SCRIPT)
    ran, from_stdin = cli.together(["rewrite", str(script)], ["rewrite", "/dev/null"])
    assert ran.out == OURS
    assert ran.err == f"{script} (shell): 1 URL would go through http://127.0.0.1:8642, and needs it to run\n"
    assert script.read_text() == SCRIPT
    assert (from_stdin.out, from_stdin.err) == (
        "",
        "/dev/null (text): nothing to change: no URL of a configured host\n",
    )


def test_in_place_keeps_what_a_file_is_and_undo_gives_it_back(cli, tmp_path):
    real, link, lima = tmp_path / "real.sh", tmp_path / "link", tmp_path / "t.yaml"
    real.write_bytes(SCRIPT.replace("\n", "\r\n").encode() + b"caf\xe9")
    real.chmod(0o750)
    link.symlink_to("real.sh")
    lima.write_text("images:\n- location: https://images.example/pub/a.img\n")
    before = {path: path.read_bytes() for path in (real, lima)}

    ran = cli("rewrite", "-i", str(link), str(lima))
    assert ran.out == ""
    assert ran.err.splitlines() == [
        f"{link} (shell): 1 URL goes through http://127.0.0.1:8642, and needs it to run",
        f"{lima} (lima): 1 URL goes through http://127.0.0.1:8642",
    ]
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o750
    assert real.read_bytes() == OURS.replace("\n", "\r\n").encode() + b"caf\xe9"
    assert lima.read_text() == (
        "images:\n- location: http://127.0.0.1:8642/images.example/pub/a.img\n"
        "- location: https://images.example/pub/a.img\n"
    )

    written = real.stat()
    again = cli("rewrite", "-i", str(link), str(lima))
    assert again.err.splitlines() == [
        f"{link} (shell): nothing to change: http://127.0.0.1:8642 is there already",
        f"{lima} (lima): nothing to change: http://127.0.0.1:8642 is there already",
    ]
    assert (real.stat().st_ino, real.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)

    assert cli("rewrite", "-i", "--undo", str(link), str(lima)).err.count("1 URL goes upstream again") == 2
    assert {path: path.read_bytes() for path in (real, lima)} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fetchonce.toml", "link", "real.sh", "t.yaml"]


def test_another_address_takes_the_place_of_the_first(cli, tmp_path):
    script = tmp_path / "get.sh"
    script.write_text(SCRIPT)
    cli("rewrite", "-i", str(script))
    cli("rewrite", "-i", "--proxy", "http://cache.example:9000/", str(script))
    assert script.read_text() == OURS.replace("127.0.0.1:8642", "cache.example:9000")
    told = cli("rewrite", "-i", "--undo", str(script)).err
    assert told == (
        f"{script} (shell): nothing to undo; if http://cache.example:9000 is fetchonce, "
        "add --proxy http://cache.example:9000\n"
    )
    cli("rewrite", "-i", "--undo", "--proxy", "http://cache.example:9000", str(script))
    assert script.read_text() == SCRIPT
    assert cli("rewrite", "--undo", str(script)).err == f"{script} (shell): nothing to undo\n"


def test_diff_and_json_say_what_changes(cli, tmp_path):
    script, packer = tmp_path / "get.sh", tmp_path / "x.pkr.hcl"
    script.write_text("curl https://images.example/pub/a\nend")
    packer.write_text('source "a" "b" {\n  iso_url = "https://images.example/pub/a.iso"\n}\n')
    diff, told, strict = cli.together(
        ["rewrite", "--diff", str(script), str(packer)],
        ["rewrite", "--json", str(script), str(packer)],
        ["rewrite", "--no-fallback", str(packer)],
    )
    assert diff.out == (
        f"--- {script}\n+++ {script}\n@@ -1,2 +1,2 @@\n-curl https://images.example/pub/a\n"
        "+curl http://127.0.0.1:8642/images.example/pub/a\n end\n\\ No newline at end of file\n"
        f"--- {packer}\n+++ {packer}\n@@ -1,3 +1,3 @@\n"
        ' source "a" "b" {\n-  iso_url = "https://images.example/pub/a.iso"\n'
        '+  iso_urls = ["http://127.0.0.1:8642/images.example/pub/a.iso", "https://images.example/pub/a.iso"]\n }\n'
    )
    ours = "http://127.0.0.1:8642/images.example/pub/a"
    expected = [
        {
            "file": str(script),
            "kind": "shell",
            "changed": [{"line": 1, "from": "https://images.example/pub/a", "to": ours}],
        },
        {
            "file": str(packer),
            "kind": "packer",
            "changed": [{"line": 2, "from": "https://images.example/pub/a.iso", "to": f"{ours}.iso"}],
        },
    ]
    assert told.json() == expected
    assert strict.out == f'source "a" "b" {{\n  iso_url = "{ours}.iso"\n}}\n'
    assert cli("rewrite", "-i", "--json", str(script), str(packer)).json() == expected
    for each in expected:
        for change in each["changed"]:
            change["from"], change["to"] = change["to"], change["from"]
    assert cli("rewrite", "-i", "--undo", "--json", str(script), str(packer)).json() == expected


def test_what_cannot_be_changed_is_told_and_the_others_are(cli, tmp_path):
    good, image, broken = tmp_path / "good.sh", tmp_path / "noble.img", tmp_path / "t.yaml"
    good.write_text(SCRIPT)
    image.write_bytes(b"QFI\xfb\0" + os.urandom(100_000))
    broken.write_text("vmType: qemu\nimages: [\n")
    ran = cli("rewrite", "-i", *map(str, (image, broken, tmp_path, tmp_path / "none", good)), code=1)
    assert ran.err.splitlines()[:-1] == [
        f"fetchonce: {image}: it is binary, or UTF-16; it stays as it is",
        f"fetchonce: {broken}: line 3: expected the node content, but found '<stream end>'; it stays as it is",
        f"fetchonce: {tmp_path}: Is a directory",
        f"fetchonce: {tmp_path / 'none'}: No such file or directory",
    ]
    assert good.read_text() == OURS


def test_wrong_usage_says_what_to_do(cli, tmp_path):
    config = tmp_path / "unix.toml"
    config.write_text('listen = ["unix:/tmp/x.sock"]\n')
    ran = cli.together(
        ["rewrite"],
        ["rewrite", "a", "b"],
        ["rewrite", "-i", "-"],
        ["rewrite", "--proxy", "127.0.0.1:8642", "a"],
        ["rewrite", "--config", str(config), "a"],
        code=2,
    )
    words = ["FILE...", "-i changes them", "standard input", "expected http://HOST:PORT", "--proxy http://HOST:PORT"]
    for each, word in zip(ran, words, strict=True):
        assert word in each.err


def test_a_guest_is_not_sent_to_its_own_loopback(cli, tmp_path):
    data, foreign = tmp_path / "user-data", tmp_path / "foreign"
    data.write_text("#cloud-config\nruncmd:\n- curl -O https://images.example/pub/x\n")
    container = tmp_path / "Dockerfile"
    container.write_text("FROM scratch\nADD https://images.example/pub/x /\n")
    assert "line 2 is read in the guest" in cli("rewrite", "-i", str(container), code=1).err
    foreign.write_text("#cloud-config\nruncmd:\n- curl -O https://n.example/pub/x\n")
    ran = cli("rewrite", str(data), code=1)
    assert ran.out == ""
    assert "line 3 is read in the guest" in ran.err
    assert "--proxy http://host.lima.internal:8642" in ran.err
    there = cli("rewrite", "-i", "--proxy", "http://host.lima.internal:8642", str(data))
    assert there.err.startswith(f"{data} (cloud-init): 1 URL goes through http://host.lima.internal:8642")
    assert "- curl -O http://host.lima.internal:8642/images.example/pub/x\n" in data.read_text()
    assert "nothing to change: http://host.lima.internal:8642 is there" in cli("rewrite", "-i", str(data)).err
    cli("rewrite", "-i", "--undo", str(data))
    assert "- curl -O https://images.example/pub/x\n" in data.read_text()
    assert "nothing to change" in cli("rewrite", str(foreign)).err


def test_standard_input_passes_byte_for_byte(cli):
    text = SCRIPT.encode() + b"\r\n\xff \x0c\xe2\x80\xa8end"
    ran = subprocess.run(
        cli.command("rewrite", "-"), input=text, env=cli.env(None), capture_output=True, check=True, timeout=30
    )
    assert ran.stdout == OURS.encode() + b"\r\n\xff \x0c\xe2\x80\xa8end"
    assert ran.stderr.startswith(b"standard input (shell): 1 URL")


@needs("curl")
async def test_a_changed_script_fetches_through_the_running_server(origin, cli, server, tmp_path):
    origin.body("/pub/noble.img", BODY).headers(cache_control=FRESH)
    script = tmp_path / "get.sh"
    script.write_text(
        f'#!/bin/sh\nNAME=noble\nBASE="{origin.url("/pub")}"\n'
        f'curl -fsS -o one "{origin.url("/pub/")}${{NAME}}.img"; curl -fsS $BASE/$NAME.img>two\n'
    )
    before = script.read_bytes()
    cli("rewrite", "-i", str(script))
    for _ in range(2):
        subprocess.run(["sh", script], cwd=tmp_path, check=True, timeout=30)
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == BODY
    assert origin.count("/pub/noble.img") == 1
    await until(lambda: len(server.accesses("GET", "/pub/noble.img")) == 4)
    server.terminate()
    cli("rewrite", "-i", "--undo", str(script))
    assert script.read_bytes() == before
