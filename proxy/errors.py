"""What can go wrong, whose fault it is, and the status a client gets.

ProxyError                    500
├── RequestError              400   the client's: a target, header or body we cannot make sense of
│   ├── Unauthorized          401   the token is wanted
│   ├── UnknownMirror         403   no mirror names this host
│   ├── Forbidden             403   who asks, or from where, may not
│   ├── MethodNotAllowed      405
│   ├── ProxyUnauthorized     407   the token is wanted, by us as a proxy
│   ├── PreconditionFailed    412
│   ├── RangeNotSatisfiable   416
│   ├── Misdirected           421   Host is none of our names
│   └── LoopDetected          508   a request of our own has come back
├── NotInCache                504   only-if-cached or offline, and we do not have it (RFC 9111 §5.2.1.7)
├── UpstreamError             502   theirs: refused, broke off, answered nonsense
│   ├── UpstreamTimeout       504
│   ├── Unconfirmed           504   there is no asking, and without it what is stored may not be used
│   ├── DigestMismatch        502   the body is whole, and another than it must be
│   ├── UpstreamPage          502   a web page where a file should be
│   ├── UpstreamRange         502   these two only within a fill, which deals with them
│   ├── UpstreamChanged       502
│   └── UpstreamStatus        its own status for 4xx, 503 and 508; 502 for all else
├── StoreError                500   ours: the cache directory
│   └── OutOfSpace            507
└── ConfigError               (exit 2; never reaches a client)
ClientGone                    (no ProxyError: there is nobody to answer)
FileEnded                     (nor this: whoever sends the file may have its bytes from elsewhere)

A message says what happened, which URL, what is kept and what to do; it is shown to people word for word.
Errors are made at the seams (httpx, OSError, msgspec) and turned into HTTP once, in app.py.
"""

from typing import Self


class ProxyError(Exception):
    status = 500

    def __init__(self, message: str, *, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.headers = headers
        """Extra response headers, such as Allow or Retry-After."""

    def with_header(self, name: str, value: str) -> Self:
        """The same error with one more header; others may be holding this one."""
        other = type(self).__new__(type(self), *self.args)
        other.__dict__.update(self.__dict__)
        other.headers = (*self.headers, (name, value))
        return other


class RequestError(ProxyError):
    status = 400


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

    def __init__(self, message: str, *, allow: str = "GET, HEAD") -> None:
        super().__init__(message, headers=(("allow", allow),))


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


class UpstreamError(ProxyError):
    status = 502
    may_pass = False
    """Whether asking again soon may well succeed: the connection broke, or upstream says it is busy."""
    retry_after: float | None = None
    """Seconds upstream wants to be left alone (RFC 9110 §10.2.3)."""
    detail = "unreachable"
    """Why there is no answer, for Cache-Status (RFC 9211 §2.8)."""


class UpstreamRange(UpstreamError):
    """Asked for a range, upstream gave something else."""


class UpstreamChanged(UpstreamError):
    """The object is another one now: what came of it cannot be completed."""


class UpstreamPage(UpstreamError):
    detail = "web-page"


class UpstreamTimeout(UpstreamError):
    status = 504


class Unconfirmed(UpstreamError):
    status = 504


class DigestMismatch(UpstreamError):
    """`next_url` is the mirror that has not been tried yet; None: there is none."""

    detail = "digest-mismatch"

    def __init__(self, message: str, next_url: str | None = None) -> None:
        super().__init__(message)
        self.next_url = next_url


class UpstreamStatus(UpstreamError):
    """Upstream answered, with an error status; `upstream_status` is what it said, `fields` are its header fields."""

    fields: tuple[tuple[str, str], ...] = ()

    def __init__(self, message: str, upstream_status: int, *, retry_after: str | None = None) -> None:
        super().__init__(message, headers=(("retry-after", retry_after),) if retry_after else ())
        self.upstream_status = upstream_status
        # A mirror's own trouble is a gateway error to the client; 503 keeps its meaning, "try again", and 508, "it is
        # you". A 2xx or 3xx that we can make nothing of must not become a success of ours.
        self.status = upstream_status if 400 <= upstream_status < 500 or upstream_status in (503, 508) else 502
        self.may_pass = upstream_status in (429, 502, 503, 504)


class StoreError(ProxyError):
    status = 500


class OutOfSpace(StoreError):
    status = 507


class ConfigError(ProxyError):
    pass


class FileEnded(EOFError):
    """A file that is being sent has no more bytes, `sent` bytes on; nothing but these has gone."""

    def __init__(self, message: str, sent: int) -> None:
        super().__init__(message)
        self.sent = sent


class ClientGone(OSError):
    """The client has left; nobody is there to be told. An OSError, as the ASGI specification (2.4) has it."""
