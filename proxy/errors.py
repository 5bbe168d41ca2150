"""What can go wrong, whose fault it is, and the status a client gets.

ProxyError                    500
├── RequestError              400   the client's fault: a target, header or body that makes no sense
│   ├── Unauthorized          401   the token is missing
│   ├── UnknownMirror         403   no mirror names this host
│   ├── Forbidden             403   this client, or this page, may not ask
│   ├── MethodNotAllowed      405
│   ├── ProxyUnauthorized     407   the token is missing, and the client uses us as its proxy
│   ├── NotStored             404   an entry that the API was asked about
│   ├── Busy                  409   what is to be changed is being fetched right now
│   ├── PreconditionFailed    412
│   ├── RangeNotSatisfiable   416
│   ├── Misdirected           421   Host is not one of our names
│   └── LoopDetected          508   one of our own requests has come back
├── NotInCache                504   only-if-cached or offline, and it is not stored (RFC 9111 §5.2.1.7)
├── UpstreamError             502   upstream's fault: it refused, broke off, or answered nonsense
│   ├── UpstreamTimeout       504
│   ├── Unconfirmed           504   a stored answer must be confirmed first, and upstream cannot be asked
│   ├── DigestMismatch        502   the body is whole, but it is not the expected one
│   ├── UnreadableChecksums   502   the checksum file of the body cannot be read
│   ├── UpstreamPage          502   a web page where a file should be
│   ├── UpstreamRange         502   raised and handled within a fill, as are the next three
│   ├── UpstreamChanged       502
│   ├── BucketError           502   the object store
│   ├── PeerFailed            502   another server of ours does not help
│   └── UpstreamStatus        upstream's status for 4xx, 503 and 508; 502 for any other
├── StoreError                500   our fault: the cache directory
│   ├── OutOfSpace            507
│   └── EntryGone             500   raised and handled within a request: its entry was removed meanwhile
└── ConfigError               (exit 2; never reaches a client)
ClientGone                    (not a ProxyError: there is nobody to answer)
FileEnded                     (not a ProxyError: the body may have another way to the bytes)

A message says what happened, which URL, what is kept and what to do. People see it word for word.
Errors are made at the seams (httpx, OSError, msgspec) and turned into HTTP once, in app.py.
"""

import enum
import re
from typing import Self

from .rules.cache_status import CacheStatus


class ProxyError(Exception):
    status = 500
    cache_status = CacheStatus(detail="failed")
    """What Cache-Status says, unless whoever raises the error knows more (`with_cache_status`)."""

    def __init__(self, message: str, *, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.headers = headers
        """Extra response headers, such as Allow or Retry-After."""

    @property
    def cause(self) -> str:
        """The kind of error in a word for metrics and lists: UpstreamTimeout is "upstream-timeout"."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(self).__name__).lower()

    def with_cache_status(self, cache_status: CacheStatus, *headers: tuple[str, str]) -> Self:
        """A copy that has `cache_status`, and `headers` besides. A copy, because other requests may hold this one."""
        other = type(self).__new__(type(self), *self.args)
        other.__dict__.update(self.__dict__)
        other.cache_status, other.headers = cache_status, (*self.headers, *headers)
        return other


class RequestError(ProxyError):
    status = 400
    cache_status = CacheStatus(detail="refused")


class Unauthorized(RequestError):
    status = 401


class ProxyUnauthorized(RequestError):
    status = 407


class UnknownMirror(RequestError):
    status = 403


class Forbidden(RequestError):
    status = 403


class MethodNotAllowed(RequestError):
    status = 405

    def __init__(self, message: str) -> None:
        super().__init__(message, headers=(("allow", "GET, HEAD"),))


class NotStored(RequestError):
    status = 404


class Busy(RequestError):
    status = 409


class PreconditionFailed(RequestError):
    status = 412


class RangeNotSatisfiable(RequestError):
    status = 416


class Misdirected(RequestError):
    status = 421


class LoopDetected(RequestError):
    status = 508


class NotInCache(ProxyError):
    status = 504
    cache_status = CacheStatus(detail="not-in-cache")


class UpstreamError(ProxyError):
    status = 502
    cache_status = CacheStatus(fwd="uri-miss", detail="unreachable")
    is_transient = False
    """Whether asking again soon may well succeed: the connection broke, or upstream says it is busy."""
    retry_after: float | None = None
    """How many seconds upstream wants to be left alone (RFC 9110 §10.2.3)."""


class UpstreamRange(UpstreamError):
    """Upstream was asked for a range, and sent something else."""


class UpstreamChanged(UpstreamError):
    """Upstream has another generation now: the bytes that came of the old one cannot be completed there."""

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        """`is_final`: the very node that gave the old one says so; nobody else needs to be asked."""
        super().__init__(message)
        self.is_final = is_final


class BucketError(UpstreamError):
    """The object store failed: whatever it was asked for is had elsewhere, or done later."""


class Unhelpful(enum.Enum):
    """Why another server of ours does not help."""

    GONE = "gone"
    """It cannot be reached, or gave no byte of the body that it began."""
    SLOW = "slow"
    """It is there, and says nothing."""
    FOREIGN = "foreign"
    """It does not let us in, or is no fetchonce."""
    BROKEN = "broken"
    """It broke off in the middle. Whether it is there the next question shows."""
    CIRCLE = "circle"
    """It waits for us."""
    UNABLE = "unable"
    """It has not got this."""


class PeerFailed(UpstreamError):
    def __init__(self, message: str, why: Unhelpful) -> None:
        super().__init__(message)
        self.why = why


class UpstreamPage(UpstreamError):
    cache_status = CacheStatus(fwd="uri-miss", detail="web-page")


class UpstreamTimeout(UpstreamError):
    status = 504


class Unconfirmed(UpstreamError):
    status = 504


class DigestMismatch(UpstreamError):
    """`next_url` is a mirror that has not been tried yet; None if all have been."""

    cache_status = CacheStatus(fwd="uri-miss", detail="digest-mismatch")

    def __init__(self, message: str, next_url: str | None = None) -> None:
        super().__init__(message)
        self.next_url = next_url


class UnreadableChecksums(UpstreamError):
    cache_status = CacheStatus(fwd="uri-miss", detail="checksums-unreadable")


class UpstreamStatus(UpstreamError):
    """Upstream answered with an error: `upstream_status` and the header fields `fields`."""

    fields: tuple[tuple[str, str], ...] = ()

    def __init__(self, message: str, upstream_status: int, *, retry_after: str | None = None) -> None:
        super().__init__(message, headers=(("retry-after", retry_after),) if retry_after else ())
        self.upstream_status = upstream_status
        self.cache_status = CacheStatus(fwd="uri-miss", fwd_status=upstream_status)
        # To the client, a mirror's own trouble is a gateway error. 503 keeps its meaning ("try again"), and so does
        # 508 ("the loop is yours"). A 2xx or 3xx that we cannot use must not become a success.
        self.status = upstream_status if 400 <= upstream_status < 500 or upstream_status in (503, 508) else 502
        self.is_transient = upstream_status in (429, 502, 503, 504)


class StoreError(ProxyError):
    status = 500


class OutOfSpace(StoreError):
    status = 507


class EntryGone(StoreError):
    """An entry that was just looked up has been removed."""


class ConfigError(ProxyError):
    pass


class FileEnded(EOFError):
    """A file ended while it was being sent. Of the bytes asked for, `sent` were sent, and nothing after them.

    `is_growing`: it ends here for now.
    """

    def __init__(self, message: str, sent: int, *, is_growing: bool = False) -> None:
        super().__init__(message)
        self.sent, self.is_growing = sent, is_growing


class ClientGone(OSError):
    """The client has left: there is nobody to tell. An OSError, as ASGI 2.4 specifies."""
