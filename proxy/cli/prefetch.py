"""fetchonce prefetch: bring URLs, and what templates and lists name, into the cache."""

import asyncio
from dataclasses import replace
from typing import Any

import click

from ..config import Settings
from ..rules.digests import Digest
from ..store.servers import running
from ..tools.wanted import Choice, is_source
from .common import jobs_option, json_option, leave, print_json, settings_options, url_text
from .fetching import Options, failed_step, fetch_all
from .sources import asked, choice_options


def digest_type(text: str) -> Digest:
    """The type of --digest."""
    digest = Digest.parse(text)
    if digest is None:
        raise click.UsageError(f'--digest "{text}": expected sha256: and 64 hex digits, or sha512: and 128')
    return digest


RESULT = ("url", "state", "bytes", "length", "digest", "message")
"""What --json tells of each URL; the other fields of Progress are about the way there."""


@click.command()
@click.argument("sources", nargs=-1, required=True, type=url_text, metavar="URL|FILE|template:NAME|-...")
@jobs_option
@click.option("--digest", type=digest_type, metavar="ALG:HEX", help="Expected of the one URL: sha256:... or sha512:...")
@click.option("--pin", is_flag=True, help="Keep them from being evicted; fetchonce unpin undoes it.")
@click.option("--provider", metavar="NAME", help="Of Vagrant metadata: virtualbox, libvirt, ...")
@choice_options
@json_option
@settings_options
def prefetch(
    settings: Settings, sources: tuple[str, ...], choice: Choice, digest: Digest | None, **given: Any
) -> None:
    """Bring URLs into the cache, in any spelling; exit 0 only when all are in.

    A file is read for what its tool would download on this machine, with the digests in it: a Lima template (or
    template:NAME of an installed one), Packer HCL or JSON, Vagrant metadata, a quickemu .conf, or a list with a URL on
    each line. "-" is standard input.

    A stored object that is fresh is not fetched again. If a server runs on the same cache directory, it does the
    fetching, and its clients share it.
    """
    if digest and (len(sources) > 1 or is_source(sources[0])):
        raise click.UsageError("--digest is for one URL; of several, each can be given as /sha256:HEX/HOST/PATH")
    options = Options(given["jobs"], given["pin"], quiet=given["as_json"])
    servers = running(settings.cache_dir)
    wanted, troubles = asked(settings, sources, replace(choice, provider=given["provider"]))
    failed = [failed_step(*trouble) for trouble in troubles]
    if not options.quiet:
        for _, why in troubles:
            click.echo(f"failed   {why}", err=True)
    try:
        wanted = [replace(each, digest=digest or each.digest) for each in wanted]
        results = asyncio.run(fetch_all(settings, servers, wanted, options)) if wanted else []
    except KeyboardInterrupt:
        kept = "the server goes on fetching" if servers else "what came is kept, and the next prefetch goes on with it"
        click.echo(f"stopped; {kept}", err=True)
        leave(130)
    results = failed + results
    if options.quiet:
        print_json([{key: value for key, value in result.items() if key in RESULT} for result in results])
    leave(any(result["state"] == "failed" for result in results))
