"""fetchonce tls: a certificate for tools that insist on https. Nothing outside its own directory is changed."""

import ipaddress
import re
import shlex
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import HTTPS, Settings, tls_dir
from ..errors import ConfigError, ProxyError
from ..rules.access import OWN_NAMES
from .common import json_option, print_json, settings_options

if TYPE_CHECKING:
    from .authority import Made

NAME = r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
PORT = 8643


@click.group()
def tls() -> None:
    """A certificate for tools that insist on https."""


@tls.command(short_help="Make a local CA and a certificate; say how to trust it.")
@click.option("--host", "hosts", multiple=True, metavar="NAME", help="A further name or address of this machine.")
@click.option("--dir", "directory", metavar="DIR", help="Where to keep it [tls/ in your configuration directory].")
@click.option("--renew", is_flag=True, help="Make a new server certificate even if the one there is good.")
@json_option
@settings_options
def init(settings: Settings, hosts: tuple[str, ...], directory: str | None, renew: bool, as_json: bool) -> None:
    """Make a certificate authority and a server certificate, and say how to trust them.

    The certificate is for localhost, the names under which guests and containers reach this machine, its host name,
    [access] hosts and each --host. Run it again to renew one that ends within 30 days, or to read this again: the
    authority stays the same. Nothing outside its directory is changed.
    """
    try:
        from .authority import make  # here, because cryptography is optional
    except ImportError as error:
        raise ProxyError(
            "tls init needs the package cryptography: pipx inject fetchonce cryptography, or pip install "
            f"'fetchonce[tls]' ({error})"
        ) from None
    if wrong := [host for host in hosts if not _is_name(host)]:
        raise ConfigError(f"--host {wrong[0]}: expected a name or an address, without a port")
    optional = ["localhost", "127.0.0.1", "::1", *sorted(OWN_NAMES - {"localhost"})]
    optional += filter(_is_name, map(str.lower, (socket.gethostname(), *sorted(settings.access.hosts))))
    where = Path(directory).expanduser().absolute() if directory else tls_dir()
    made = make(where, _normal(hosts), _normal(optional), renew=renew)
    if made.left_out:
        click.echo(f"left out, since the authority was made without: {', '.join(made.left_out)}", err=True)
    if as_json:
        print_json(
            {
                "ca": str(made.authority),
                "cert": str(made.server),
                "names": made.names,
                "until": made.until.isoformat(),
                "is_new": made.is_new,
            }
        )
    else:
        click.echo(_instructions(settings, made, is_default=where == tls_dir()))


def _is_name(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return bool(re.fullmatch(NAME, text.lower()))
    return "%" not in text  # a certificate cannot name an interface of this machine


def _normal(names: Iterable[str]) -> list[str]:
    """Names in lower case, addresses in their shortest form, without duplicates."""
    return list(dict.fromkeys(str(ipaddress.ip_address(each)) if ":" in each else each.lower() for each in names))


def _instructions(settings: Settings, made: "Made", *, is_default: bool) -> str:
    listen = list(settings.file.listen)
    if not settings.listens_for_https:
        listen.append(f"{HTTPS}127.0.0.1:{PORT}")
    port = next(each for each in listen if each.startswith(HTTPS)).rpartition(":")[2]
    base, ca = f"{HTTPS}localhost:{port}", shlex.quote(str(made.authority))
    section = "" if is_default else f'\n  [server]\n  tls_cert = "{made.server}"'
    return f"""\
authority    {made.authority}
certificate  {made.server}, {"new" if made.is_new else "unchanged"}, valid until {made.until:%Y-%m-%d}
             for {", ".join(made.names)}

to serve https, put this into your configuration file and restart fetchonce (a new certificate alone needs only SIGHUP):
  listen = [{", ".join(f'"{each}"' for each in listen)}]{section}

to trust it (you have to do this yourself; it can sign for the names above and no others):
  Debian, Ubuntu  sudo cp {ca} /usr/local/share/ca-certificates/fetchonce.crt && sudo update-ca-certificates
  Fedora, RHEL    sudo cp {ca} /etc/pki/ca-trust/source/anchors/fetchonce.pem && sudo update-ca-trust
  openSUSE        sudo cp {ca} /etc/pki/trust/anchors/fetchonce.pem && sudo update-ca-certificates
  Arch            sudo trust anchor --store {ca}
  macOS           sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain {ca}

then restart the tool's daemon:
  Incus, LXD      incus remote add fetchonce {base}/images.linuxcontainers.org --protocol=simplestreams
  Multipass       multipass set local.image.mirror={base}/cloud-images.ubuntu.com
  curl            needs none of this: curl --cacert {ca} {base}/..."""
