"""fetchonce service: the file that makes a service or a container of it, filled in for this installation.

The texts are in templates/. deploy/ holds each as it is made with the defaults of Installation.
"""

import html
import os
import site
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import click

from ..config import HTTPS, Settings, load

TEMPLATES = Path(__file__).parent / "templates"
DEFAULT = "127.0.0.1:8642"


@dataclass(frozen=True, slots=True)
class Installation:
    """What the files are filled in with."""

    program: tuple[str, ...] = ("/usr/local/bin/fetchonce",)
    options: tuple[str, ...] = ()
    """Of `serve`."""
    environment: tuple[tuple[str, str], ...] = ()
    listen: tuple[str, ...] = (DEFAULT,)
    cache_dir: str = ""
    """Empty: the default one."""
    max_size: str = "50GB"
    token_file: str = ""
    log: str = "/usr/local/var/log/fetchonce.log"

    @property
    def command(self) -> tuple[str, ...]:
        return (*self.program, "serve", *self.options)

    @property
    def is_at_home(self) -> bool:
        """Whether the program, or what it reads, lies where other users may not look."""
        paths = (*self.command, *(value for _, value in self.environment))
        return any(path.startswith(("/home/", "/root/", "/run/user/")) for path in paths)

    @property
    def plain(self) -> str:
        """HOST:PORT for plain http."""
        return next((each for each in self.listen if not each.startswith((HTTPS, "unix:"))), DEFAULT)


def system_unit(of: Installation) -> str:
    writable = [str(Path(each.removeprefix("unix:")).parent) for each in of.listen if each.startswith("unix:")]
    if of.cache_dir:
        sandbox = [f"User={_owner(of.cache_dir)}"]
        writable.append(of.cache_dir)
    else:
        sandbox = ["DynamicUser=yes", "CacheDirectory=fetchonce", "CacheDirectoryMode=0700"]
    sandbox += [f"ReadWritePaths={_unit_word(path)}" for path in dict.fromkeys(writable)]
    settings = [f"Environment={_unit_word(f'{name}={value}')}" for name, value in of.environment]
    if not of.cache_dir:
        settings.append("Environment=FETCHONCE_CACHE_DIR=%C/fetchonce")
    return _filled(
        "fetchonce-system.service",
        command=_unit_command(of.command),
        settings="\n".join(settings),
        token="" if of.token_file else "# ",
        token_file=_unit_word(of.token_file or "/etc/fetchonce/token"),
        sandbox="\n".join(sandbox),
        home="read-only" if of.is_at_home else "yes",
    )


def user_unit(of: Installation) -> str:
    settings = [f"Environment={_unit_word(f'{name}={value}')}" for name, value in of.environment]
    return _filled(
        "fetchonce-user.service", command=_unit_command(of.command), settings="".join(f"{line}\n" for line in settings)
    )


def socket_unit(of: Installation, *, is_user: bool = False) -> str:
    name = "fetchonce.socket"
    listen = [each.removeprefix(HTTPS).removeprefix("unix:") for each in of.listen]
    return _filled(
        name,
        scope="--user" if is_user else "--system",
        put=f"> ~/.config/systemd/user/{name}" if is_user else f"| sudo tee /etc/systemd/system/{name}",
        systemctl="systemctl --user" if is_user else "sudo systemctl",
        listen="\n".join(f"ListenStream={_unit_word(each)}" for each in listen),
    )


def plist(of: Installation) -> str:
    return _filled(
        "fetchonce.plist",
        arguments=_plist_lines(*(("string", word) for word in of.command)),
        environment="\n".join(_plist_lines(("key", name), ("string", value)) for name, value in of.environment),
        log=html.escape(of.log, quote=False),
    )


def _port_file(name: str) -> Callable[[Installation], str]:
    def fill(of: Installation) -> str:
        port = of.plain.rpartition(":")[2]
        return _filled(name, listen=of.plain, port="8642" if port == "0" else port, max_size=of.max_size)

    return fill


MADE: dict[str, Callable[[Installation], str]] = {
    "systemd": system_unit,
    "launchd": plist,
    "compose": _port_file("compose.yaml"),
    "container": _port_file("Containerfile"),
    "kubernetes": _port_file("kubernetes.yaml"),
    "github-actions": _port_file("github-actions.yaml"),
}
"""By the command's word."""


@click.command()
@click.argument("kind", type=click.Choice(list(MADE)))
@click.option("--user/--system", "is_user", default=None, help="systemd: whose service [--user, for root --system].")
@click.option("--socket", "is_socket", is_flag=True, help="systemd: the unit of its sockets, for socket activation.")
@click.option("--config", metavar="FILE", help="The configuration file that it reads [env: FETCHONCE_CONFIG].")
@click.option("--listen", multiple=True, metavar="ADDRESS", help="Where it listens, as for serve.")
@click.option("--cache-dir", metavar="DIR", help="The cache directory, as for serve.")
def service(kind: str, is_user: bool | None, is_socket: bool, **given: Any) -> None:
    """Print the file that runs fetchonce as a service: filled in, with where to put it on top.

    It names this installation. What an upgrade of a service does is said there too.
    """
    if kind != "systemd" and (is_socket or is_user is not None):
        raise click.UsageError("--user, --system and --socket are for systemd")
    config, listen = given["config"], given["listen"]
    overrides: dict[str, Any] = {"listen": listen} if listen else {}
    if given["cache_dir"]:
        overrides["cache"] = {"dir": given["cache_dir"]}
    of = installation(load(config, overrides), config or os.environ.get("FETCHONCE_CONFIG"), bool(listen))
    is_user = os.geteuid() != 0 if is_user is None else is_user
    if kind != "systemd":
        text = MADE[kind](of)
    elif is_socket:
        text = socket_unit(of, is_user=is_user)
    else:
        text = user_unit(of) if is_user else system_unit(of)
    click.echo(text, nl=False)
    if kind == "systemd" and not is_user and not is_socket and of.is_at_home:
        hint = "a service with a user of its own may not read home directories: pipx install --global, or --user here"
        click.echo(f"this unit names files in a home directory. {hint}", err=True)


def installation(settings: Settings, config: str | None, is_listen_given: bool) -> Installation:
    """This one. What is not in the file `config` becomes options."""
    file = settings.file
    script = Path(sys.argv[0]).absolute()
    is_script = script.name == "fetchonce" and os.access(script, os.X_OK)
    package = Path(__file__).absolute().parents[2]
    is_installed = str(package) in (*site.getsitepackages(), site.getusersitepackages())
    options = ["--config", str(Path(config).absolute())] if config else []
    if is_listen_given or "FETCHONCE_LISTEN" in os.environ:
        options += [word for each in file.listen for word in ("--listen", each)]
    cache_dir = str(settings.cache_dir.absolute()) if file.cache.dir else ""
    if cache_dir:
        options += ["--cache-dir", cache_dir]
    return Installation(
        program=(str(script),) if is_script else (sys.executable, "-m", "proxy"),
        options=tuple(options),
        environment=() if is_script or is_installed else (("PYTHONPATH", str(package)),),
        listen=file.listen,
        cache_dir=cache_dir,
        max_size=Installation().max_size if file.cache.max_size == 50 * 1000**3 else str(int(file.cache.max_size)),
        token_file=file.access.token_file and str(Path(file.access.token_file).expanduser().absolute()),
        log=str(Path("~/Library/Logs/fetchonce.log").expanduser()),
    )


def _filled(template: str, **values: str) -> str:
    return Template((TEMPLATES / template).read_text("utf-8")).substitute(values)


def _unit_word(text: str) -> str:
    """A value in a unit (systemd.syntax(7)): specifiers are escaped, and spaces quoted."""
    text = text.replace("%", "%%")
    if not any(char in text for char in " \t\"'\\;"):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unit_command(words: Sequence[str]) -> str:
    return " ".join(_unit_word(word.replace("$", "$$")) for word in words)


def _plist_lines(*elements: tuple[str, str]) -> str:
    """Elements by tag and text, as they stand within <array> or <dict>."""
    return "\n".join(f"\t\t<{tag}>{html.escape(text, quote=False)}</{tag}>" for tag, text in elements)


def _owner(directory: str) -> str:
    """Whose service it is that writes there."""
    try:
        return Path(directory).owner()
    except (OSError, KeyError):
        return "fetchonce"
