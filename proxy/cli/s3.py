"""fetchonce s3: does the bucket that servers share do what is needed? And have it forget."""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

import click

from ..config import Settings
from ..errors import BucketError, ConfigError
from ..rules.bucket import entry_path
from ..upstream.objects import Bucket
from .common import json_option, leave, print_json, resolve, settings_options, url_text

STEP_SECONDS = 15.0
UNUSED_DAYS = 30


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    error: str | None
    """None: it works."""
    is_needed: bool
    """Whether nothing can be shared without it."""


@click.group()
def s3() -> None:
    """The bucket that servers share."""


@s3.command(short_help="Try it: write, write only what is new, read, renew, delete.")
@json_option
@settings_options
def check(settings: Settings, as_json: bool) -> None:
    """Try the bucket of [s3] with one small object, and print the rule by which it forgets what nobody uses.

    Exit 0 if servers can share it.
    """
    steps = asyncio.run(_check(_bucket(settings)))
    is_fine = all(step.error is None for step in steps if step.is_needed)
    url, rule = settings.file.s3.url, lifecycle(settings.file.s3.url)
    if as_json:
        print_json({"url": url, "is_fine": is_fine, "steps": [asdict(step) for step in steps], "lifecycle": rule})
    else:
        click.echo(_text(url, steps, rule))
    leave(0 if is_fine else 1)  # obstore's threads do not outlive Python well: one exit of ten was an abort


@s3.command("rm", short_help="Have it forget URLs: who has not got them asks upstream.")
@click.argument("urls", nargs=-1, required=True, type=url_text, metavar="URL...")
@json_option
@settings_options
def forget(settings: Settings, urls: tuple[str, ...], as_json: bool) -> None:
    """Remove what the bucket of [s3] says of URLs, in any spelling. Their bodies go by the bucket's own rule.

    A server that has one stored keeps it, and puts it back once it has used it for a day: rm it there too, after this.
    """
    paths = {target.url: entry_path(target.key) for target in (resolve(settings, url) for url in urls)}
    forgotten = asyncio.run(_forget(_bucket(settings), paths))
    if as_json:
        print_json([{"url": url, "was_there": was_there} for url, was_there in forgotten.items()])
    else:
        click.echo("\n".join(f"{'removed' if there else 'was not there:'} {url}" for url, there in forgotten.items()))
    leave(0)


def _bucket(settings: Settings) -> Bucket:
    if not settings.file.s3.url:
        raise ConfigError(f"{settings.sources[0]}: there is no bucket: s3.url is empty")
    return Bucket(settings.file.s3, settings.file.upstream)


async def _forget(bucket: Bucket, paths: dict[str, str]) -> dict[str, bool]:
    """Whether there was something, by URL. Raises BucketError."""
    found = {url: await bucket.look(path) is not None for url, path in paths.items()}
    for path in paths.values():
        await bucket.delete(path)
    return found


async def _check(bucket: Bucket) -> list[Step]:
    path, data = f"check/{secrets.token_hex(8)}", b"fetchonce s3 check\n"

    async def write() -> None:
        await bucket.write(path, data, is_new=True)

    async def write_again() -> None:
        if await bucket.write(path, data, is_new=True):
            raise BucketError("an object that was there was overwritten: the store takes If-None-Match for nothing")

    async def read() -> None:
        if not (found := await bucket.read(path, len(data))) or found[1] != data:
            raise BucketError("it gave something else than was written")

    async def read_part() -> None:
        if not (opened := await bucket.open(path, 2, 9)):
            raise BucketError("it does not give a part")
        opened[1].drop()

    async def renew() -> None:
        await bucket.renew(path)

    async def delete() -> None:
        await bucket.delete(path)
        if await bucket.look(path):
            raise BucketError("it is still there")

    works: tuple[tuple[str, Callable[[], Awaitable[None]], bool], ...] = (
        ("write", write, True),
        ("write only what is new", write_again, False),
        ("read", read, True),
        ("read a part", read_part, False),
        ("renew", renew, False),
        ("delete", delete, True),
    )
    return [Step(name, await _error(work), is_needed) for name, work, is_needed in works]


async def _error(work: Callable[[], Awaitable[None]]) -> str | None:
    try:
        async with asyncio.timeout(STEP_SECONDS):
            await work()
    except BucketError as error:
        return error.message
    except TimeoutError:
        return f"no answer within {STEP_SECONDS:g} s"
    return None


WITHOUT = {
    "write only what is new": "two servers may send the same body at the same time. nothing wrong can come of it",
    "read a part": "what breaks off in the middle goes on from upstream",
    "renew": "what is used goes as early as what is not, and comes from upstream again",
}


def _text(url: str, steps: list[Step], rule: str | None) -> str:
    lines = [url]
    for step in steps:
        lines.append(f"  {step.name:24} {'ok' if step.error is None else step.error}")
        if step.error and (meaning := WITHOUT.get(step.name)):
            lines.append(f"  {'':24} so {meaning}")
    about = f"what was not used for {UNUSED_DAYS} days, and the parts of uploads that were broken off"
    if rule:
        bucket = url.partition("://")[2].partition("/")[0]
        lines += ["", f"its rules must remove {about}. such a rule, to be pasted:", rule]
        lines += [f"with AWS' command line: aws s3api put-bucket-lifecycle-configuration --bucket {bucket} \\"]
        lines += ["  --lifecycle-configuration file://RULE.json"]
    else:
        lines += ["", f"its rules must remove {about}: objects that were last written so long ago"]
    return "\n".join(lines)


def lifecycle(url: str) -> str | None:
    """The rule for the bucket, as S3 takes it; None for another kind of store.

    fetchonce has what is used count as written anew each day, so old is what nobody uses.
    """
    scheme, _, rest = url.partition("://")
    if not scheme.startswith("s3"):
        return None
    prefix = rest.partition("/")[2].strip("/")
    rule = {
        "ID": "fetchonce",
        "Status": "Enabled",
        "Filter": {"Prefix": f"{prefix}/" if prefix else ""},
        "Expiration": {"Days": UNUSED_DAYS},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    }
    return json.dumps({"Rules": [rule]}, indent=2)
