"""A bucket of an object store: S3 and what speaks it, Google's and Azure's by their URL schemes.

The only file that knows obstore, and it imports it when a bucket is made: whoever has none needs no such package.
Everything here is asynchronous and may be cancelled at any point, but for what a Download does in a transfer thread.
"""

import asyncio
import configparser
import contextlib
import datetime
import hashlib
import os
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures import Future as ThreadFuture
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..config import S3Section, UpstreamSection
from ..errors import BucketError, ConfigError, UpstreamError, UpstreamTimeout
from ..rules.entry import Headers
from ..rules.pace import FLOOR_RATE, Meter, Pace
from ..version import VERSION

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ObjectStore, S3Credential

PART_BYTES = 5 * 1024**2
"""Of a multipart upload, at least; two are in memory at once. S3 takes 10,000 of them, and none that is smaller."""
READ_BYTES = 1024**2
"""From our own disk at once."""
MAX_PARTS = 10_000
SINGLE_BYTES = 2 * PART_BYTES
"""What is longer goes in parts: obstore has the whole of a single upload in memory, and we promise to stay small."""
PIECE_BYTES = 256 * 1024
"""A Download gives so much at once, or more: 1 GiB takes 0.8 s of processor time so, and 0.6 s by 1 MiB."""
ANSWER_SECONDS = 60.0
"""For any answer but that to a body of ours, or a copy: a store that hangs is noticed by then."""
WRITE_SECONDS = 900.0
"""For a part of an upload, 5 MiB, or for 10 MiB at once: so slow a line takes it, at 12 KB/s."""
STALL_SECONDS = 5.0
"""Without a byte, in the middle of a download. A mirror goes on then; some clients give up after 10 s of silence."""
SHOWN_CHARACTERS = 300  # of an error; stores send whole pages
_EVERYWHERE = "*,0.0.0.0/0,::/0"
"""What obstore takes for every name and address, in a list of those that are reached without a proxy."""
_NO_CONDITIONS = re.compile(r"status code: 501\b|<Code>NotImplemented<")
"""What some stores answer to If-None-Match: others take it for nothing, and overwrite."""
_STATUS = re.compile(r"status code: (\d{3}[^:]*)")
_ERROR_PAGE = re.compile(r"<Code>([^<]+)</Code>.*?<Message>([^<]+)</Message>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Seen:
    """An object that is in the bucket."""

    size: int
    changed_at: float
    """Unix time, by the store's clock, at which it was written."""


class Bucket:
    """Its methods raise BucketError. No request of it lists anything."""

    def __init__(self, section: S3Section, upstream: UpstreamSection | None = None) -> None:
        """`upstream`: who is trusted, and by which proxy to go. Raises ConfigError."""
        self._url = section.url.rstrip("/")
        self.name = hashlib.sha256(f"{section.endpoint} {self._url}".encode()).hexdigest()[:12]
        """Another bucket has another name."""
        self._takes_conditions = True
        self._came = 0
        """Bytes, of all downloads."""
        try:
            self._store = _store(section, upstream or UpstreamSection())
        except Exception as error:  # obstore has a class for each, and ValueError
            raise ConfigError(f"s3.url: {section.url} cannot be used: {_said(error)}") from None

    def url(self, path: str) -> str:
        """For people."""
        return f"{self._url}/{path}"

    async def look(self, path: str) -> Seen | None:
        """None if there is no such object."""
        import obstore

        async with self._answering("HEAD", path):
            try:
                meta = await obstore.head_async(self._store, path)
            except FileNotFoundError:
                return None
            return _seen(meta)

    async def read(self, path: str, limit: int) -> tuple[Seen, bytes] | None:
        """A small object, whole; None if there is none. Nothing is read of one longer than `limit`: it is b""."""
        import obstore

        async with self._answering("GET", path):
            try:
                result = await obstore.get_async(self._store, path)
            except FileNotFoundError:
                return None
            seen = _seen(result.meta)
            return seen, b"" if seen.size > limit else bytes(await result.bytes_async())

    async def open(self, path: str, start: int, stop: int, pace: Pace | None = None) -> "tuple[Seen, Download] | None":
        """The bytes from `start` to `stop`, which are some; None if there is no such object. Close it.

        `pace`: it breaks off once that is slow.
        """
        import obstore

        async with self._answering("GET", path):
            try:
                # Not every store gives parts, and from the first byte on none is needed.
                options: GetOptions | None = {"range": (start, stop)} if start else None
                result = await obstore.get_async(self._store, path, options=options)
            except FileNotFoundError:
                return None
            seen = _seen(result.meta)
            if result.range[0] != start or result.range[1] < min(stop, seen.size):
                raise BucketError(f"{self.url(path)} was asked for bytes {start} to {stop}, and gave {result.range}")
            pieces = aiter(result.stream(PIECE_BYTES))

        now = asyncio.get_running_loop().time
        meter = Meter(now(), self._came)

        async def piece() -> bytes:
            if pace and pace.is_slow:
                raise UpstreamTimeout(f"{self.url(path)} came with less than {FLOOR_RATE / 1e6:g} MB/s")
            began = now()
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    with self._translated("GET", path):
                        data = await anext(pieces, b"")
            except TimeoutError:
                if pace:
                    pace.rate = pace.rate or 0.0
                raise UpstreamTimeout(f"{self.url(path)} gave nothing for {STALL_SECONDS:g} s") from None
            self._came += len(data)
            rate = meter.came(len(data), now() - began, now(), self._came)
            if pace and rate is not None:
                pace.rate = rate
            return data

        return seen, Download(self.url(path), stop - start, piece)

    async def write(self, path: str, data: bytes, *, is_new: bool = False) -> bool:
        """Make `data` the object. `is_new`: only if there is none, which is the answer, if the store can do that."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError

        with self._translated("PUT", path):
            if is_new and self._takes_conditions:
                try:
                    await obstore.put_async(self._store, path, data, mode="create", use_multipart=False)
                    return True
                except AlreadyExistsError:
                    return False
                except BaseError as error:
                    if not _NO_CONDITIONS.search(str(error)):
                        raise
                    self._takes_conditions = False
            await obstore.put_async(self._store, path, data, mode="overwrite", use_multipart=False)
            return True

    async def write_parts(self, path: str, size: int, read: Callable[[int, int], Awaitable[bytes]]) -> None:
        """Make the object of what `read(offset, count)` gives, in parts. It is there with the last byte, or not at all.

        Whatever breaks it off has the parts removed again. What is left where that fails too, or we are killed, is
        seen in no list: a rule of the bucket has to remove it.
        """
        import obstore

        part = max(PART_BYTES, -(-size // MAX_PARTS))
        with self._translated("PUT", path):
            async with obstore.open_writer_async(self._store, path, buffer_size=part, max_concurrency=1) as writer:
                for offset in range(0, size, READ_BYTES):
                    await writer.write(await read(offset, min(READ_BYTES, size - offset)))
                # What fails in here is aborted; at the end of the block it is not.
                await writer.flush()

    async def delete(self, path: str) -> None:
        import obstore

        async with self._answering("DELETE", path):
            with contextlib.suppress(FileNotFoundError):
                await obstore.delete_async(self._store, path)

    async def renew(self, path: str) -> None:
        """Have it count as written now, without moving its bytes through here.

        By way of a second object, because S3 refuses to copy one to itself. At any moment it is there, whole.
        """
        import obstore

        beside = f"renewed/{path.rpartition('/')[2]}"
        with self._translated("COPY", path):
            await obstore.copy_async(self._store, path, beside)
            await obstore.copy_async(self._store, beside, path)
            await obstore.delete_async(self._store, beside)

    @contextlib.asynccontextmanager
    async def _answering(self, method: str, path: str) -> AsyncIterator[None]:
        with self._translated(method, path):
            async with asyncio.timeout(ANSWER_SECONDS):
                yield

    @contextlib.contextmanager
    def _translated(self, method: str, path: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except TimeoutError as error:
            raise BucketError(f"{method} of {self.url(path)}: no answer in time") from error
        except (BaseError, OSError, ValueError) as error:
            raise BucketError(f"{method} of {self.url(path)}: {_said(error)}") from error


class Download:
    """A part of an object on its way: `read_into` in a transfer thread, all else in the event loop. Close it."""

    status = 206

    def __init__(self, url: str, length: int, piece: Callable[[], Awaitable[bytes]]) -> None:
        """`piece` gives the next bytes, and b"" behind the last. Made in the loop that it runs in."""
        self.url = self.final_url = url
        self.headers: Headers = ()
        self.length: int | None = length
        self._left = length
        self._piece: Callable[[], Awaitable[bytes]] | None = piece
        self._loop = asyncio.get_running_loop()
        self._rest = memoryview(b"")
        self._lock = threading.Lock()
        self._waiting: ThreadFuture[bytes] | None = None
        self._is_aborted = False

    @classmethod
    def of(cls, url: str, data: bytes) -> Self:
        """One whose bytes are here already."""

        async def none() -> bytes:
            return b""

        download = cls(url, len(data), none)
        download._rest = memoryview(data)
        return download

    def read_into(self, buffer: memoryview) -> int:
        """As Exchange.read_into."""
        if not self._left:
            return 0
        if not self._rest:
            self._rest = memoryview(self._next())
            if not self._rest:
                raise UpstreamError(f"{self.url} broke off {self._left} bytes before its end")
        count = min(len(buffer), len(self._rest), self._left)
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._left -= count
        return count

    def _next(self) -> bytes:
        with self._lock:
            if self._is_aborted or self._piece is None:
                raise UpstreamError(f"the transfer of {self.url} was stopped")
            self._waiting = waiting = asyncio.run_coroutine_threadsafe(self._ask(self._piece), self._loop)
        try:
            return waiting.result()
        except CancelledError:
            raise UpstreamError(f"the transfer of {self.url} was stopped") from None

    @staticmethod
    async def _ask(piece: Callable[[], Awaitable[bytes]]) -> bytes:
        return await piece()

    def abort(self) -> None:
        """From any thread: whoever reads gets an UpstreamError at once."""
        with self._lock:
            self._is_aborted = True
            if self._waiting:
                self._waiting.cancel()

    def drop(self) -> None:
        self.abort()
        self.close()

    def close(self) -> None:
        self._piece = None  # the last that holds the connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _seen(meta: "ObjectMeta") -> Seen:
    return Seen(meta["size"], meta["last_modified"].timestamp())


def _store(section: S3Section, upstream: UpstreamSection) -> "ObjectStore":
    from obstore.store import from_url

    config: dict[str, Any] = {}
    provider: Callable[[], S3Credential] | None = None
    if section.url.startswith("s3"):
        names = ("endpoint", "region", "access_key_id", "secret_access_key")
        config = {name: value for name in names if (value := getattr(section, name))}
        if not section.access_key_id and not {"AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"} & os.environ.keys():
            provider = _renewed if _profile() else None
    options: dict[str, Any] = {
        "allow_http": True,  # where the endpoint says so
        "connect_timeout": "2s",
        "read_timeout": f"{WRITE_SECONDS:g}s",  # which counts while we send, too
        "timeout": "1d",  # from the question to the last byte, and 30 s by default
        "user_agent": f"fetchonce/{VERSION}",
    }
    if upstream.ca_bundle:
        options["root_certificate"] = Path(upstream.ca_bundle).read_bytes()
    # Without a word from us it is as the environment says: for a store of yours, as for everything by "env".
    if not upstream.proxy:
        options |= {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": _EVERYWHERE}
    elif upstream.proxy != "env" and not section.endpoint:
        options["proxy_url"] = upstream.proxy
    milliseconds = datetime.timedelta(milliseconds=1)
    backoff = {"init_backoff": 50 * milliseconds, "max_backoff": 500 * milliseconds, "base": 2}
    retry: Any = {"max_retries": 2, "backoff": backoff, "retry_timeout": 60_000 * milliseconds}
    return from_url(  # type: ignore[call-overload,no-any-return]
        section.url, config=config, client_options=options, retry_config=retry, credential_provider=provider
    )


def _renewed() -> "S3Credential":
    """The keys of the profile, which others may renew at any time: it is read again whenever it is asked for them."""
    if keys := _profile():
        return {**keys, "expires_at": datetime.datetime.now(datetime.UTC)}
    raise ValueError("the profile in ~/.aws/credentials has no keys any more")


def _profile() -> "S3Credential | None":
    """The keys of AWS_PROFILE, or else of the default one, in AWS' own file, which obstore does not read."""
    file = configparser.RawConfigParser()
    with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
        file.read(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path("~/.aws/credentials").expanduser())
    name = os.environ.get("AWS_PROFILE", "default")
    found = dict(file.items(name)) if file.has_section(name) else {}
    key, secret = found.get("aws_access_key_id"), found.get("aws_secret_access_key")
    if not key or not secret:
        return None
    token = found.get("aws_session_token")
    return {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": None}


def _said(error: BaseException) -> str:
    """What an exception says, on one line: the store's own words, if it has sent some, or its status."""
    text = str(error)
    if found := _ERROR_PAGE.search(text):
        return f"{found[1]}: {' '.join(found[2].split())}"[:SHOWN_CHARACTERS]
    text = text.partition("\n\nDebug source")[0]  # how Rust would show it
    if found := _STATUS.search(text):
        return f"it answered {found[1]}"
    return " ".join(text.split())[:SHOWN_CHARACTERS] or type(error).__name__
