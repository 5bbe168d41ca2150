"""fetchonce hint: what to type so that a tool fetches through us, with the address of this server."""

from ipaddress import ip_address

import click
from click.shell_completion import CompletionItem

from ..config import HTTPS, Settings
from ..tools import hints
from .common import json_option, own_bases, print_json, settings_options, table

HTTPS_FIRST = "it insists on https: first `fetchonce tls init`, and `listen` on {https} too"
REMOTE = "ADDRESS is this machine's, as the other one sees it: `listen` there, and say in [access] who may ask"


def tool_names(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    names = (name for hint in hints.HINTS for name in hint.names if " " not in name)
    return [CompletionItem(name) for name in names if name.casefold().startswith(incomplete.casefold())]


@click.command()
@click.argument("tool", nargs=-1, shell_complete=tool_names)
@click.option("--env", "only_env", is_flag=True, help="Print only `export` lines, for eval.")
@json_option
@settings_options
def hint(settings: Settings, tool: tuple[str, ...], only_env: bool, as_json: bool) -> None:
    """Say what to type for TOOL, or for the tools that begin so; without TOOL, list them.

    HOST/PATH stands for the image's URL without https://.

    --env without TOOL prints only what does no harm while fetchonce does not run. With TOOL it prints all variables of
    that tool, which may then fetch nothing without fetchonce: eval "$(fetchonce hint --env minikube)"
    """
    bases, wanted = own_bases(settings), " ".join(tool)
    addresses, found = addresses_of(bases), chosen(wanted)
    if as_json:
        values = [hints.as_value(each, addresses) for each in found]
        print_json(values[0] if wanted and len(values) == 1 else values)
    elif only_env:
        variables = [step for each in found for step in each.variables if wanted or step.has_fallback]
        click.echo("".join(f"{addresses.fill(step.text)}\n" for step in variables), nl=False)
        if not variables:
            click.echo(f"{found[0].name} has no variable; `fetchonce hint {wanted}` says what it has", err=True)
    elif wanted:
        click.echo("\n\n".join(told(each, addresses, bases) for each in found))
    else:
        table([(each.name, addresses.fill(each.steps[0].text)) for each in found])
        click.echo("`fetchonce hint TOOL` says all about one", err=True)


def chosen(wanted: str) -> tuple[hints.Hint, ...]:
    """The hints for that tool, or all of them for ""."""
    found = hints.find(wanted) if wanted else hints.HINTS
    if not found:
        near = "".join(f", but for {name}" for name in hints.near(wanted))
        raise click.UsageError(f'there is no hint for "{wanted}"{near}; `fetchonce hint` lists all tools')
    return found


def told(hint: hints.Hint, addresses: hints.Addresses, bases: list[str]) -> str:
    before = []
    if hint.uses("https") and not any(base.startswith(HTTPS) for base in bases):
        before.append(addresses.fill(HTTPS_FIRST))
    if hint.uses("remote") and "//ADDRESS:" in addresses.remote:
        before.append(REMOTE)
    return hints.as_text(hint, addresses, before)


def addresses_of(bases: list[str]) -> hints.Addresses:
    """Where to ask the server that listens on `bases`: the first of a kind, http where it has that."""
    default = hints.Addresses()
    base = next((each for each in bases if not each.startswith(HTTPS)), bases[0] if bases else default.base)
    https = next((each for each in bases if each.startswith(HTTPS)), default.https)
    remote = next((each for each in bases if is_for_others(each)), None)
    scheme, _, port = base.partition("://")[0], *base.rpartition(":")[1:]
    return hints.Addresses(base, https, remote or f"{scheme}://ADDRESS:{port}")


def is_for_others(base: str) -> bool:
    """Whether another machine can use the address as it stands."""
    host = base.partition("://")[2].rpartition(":")[0]
    if host == "localhost":
        return False
    try:
        return not ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return True
