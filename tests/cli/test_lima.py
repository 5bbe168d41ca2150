"""`lima` without Lima: --templates. What Lima makes of it is in tests/clients."""

import pytest


@pytest.fixture
def lima(cli, tmp_path):
    """Runs a command of `lima` on a home of its own."""
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "vm.yaml").write_text("images:\n- location: https://images.example/pub/a.img\n")
    (tmp_path / "nothing").mkdir()

    def run(name, *args, code=0):
        where = ["--lima-home", str(tmp_path / "home")] + ([] if name == "remove" else ["--templates", str(templates)])
        return cli("lima", name, *where, *args, code=code, env={"PATH": str(tmp_path / "nothing")})

    return run


def test_status_is_of_what_was_installed(lima, tmp_path):
    elsewhere = ["--proxy", "http://cache.example:9000"]
    for given in (elsewhere, [*elsewhere, "--no-fallback"], []):
        assert f"`fetchonce lima install --lima-home {tmp_path}/home` would write 1 file" in lima("status", code=1).out
        lima("install", *given)
        assert "good: 1 file" in lima("status").out
        shadow = tmp_path / "home" / "_templates" / "vm.yaml"
        assert ("cache.example" in shadow.read_text()) == bool(given)
        shadow.write_text(shadow.read_text().replace("Lima unknown", "Lima 1.0"))
        mends = " ".join(["fetchonce lima install", *given, "--lima-home", f"{tmp_path}/home"])
        assert f"`{mends}` mends the others" in lima("status", code=1).out
        lima("remove")


def test_a_server_on_all_addresses_is_at_the_loopback_address(cli, lima, tmp_path):
    cli.config.write_text(f'listen = ["0.0.0.0:9000", "127.0.0.1:9000", "[::]:9000"]\n{cli.config.read_text()}')
    assert cli("url", "https://images.example/pub/a").out == "http://127.0.0.1:9000/images.example/pub/a\n"
    assert "goes through http://127.0.0.1:9000," in lima("install").out
    assert cli("url", "http://0.0.0.0:9000/images.example/pub/a").out.startswith("http://127.0.0.1:9000/images.ex")


def test_what_was_installed_for_another_port_is_stale(lima):
    lima("install", "--proxy", "http://127.0.0.1:9")
    assert "it leads to http://127.0.0.1:9" in lima("status", code=1).out
    lima("install")
    lima("status")
