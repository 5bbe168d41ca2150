"""Other servers of ours: which of them is asked for what, and what their answers mean.

Every server may have the same list of parents, itself included: then each URL belongs to one of them, which alone asks
upstream, and the others ask that one (rendezvous hashing: a server that comes or goes moves no URL of the others).
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..errors import ConfigError, RequestError
from .entry import Headers
from .entry import field as field_of
from .mirrors import Mirror, Target, normal_host, proxied_path

MAX_CALLERS = 3
"""By so many servers of ours a request may have come, and parents are still asked: for a region, a site, a host."""
CAUSED_BY_US = frozenset({401, 407, 421})
"""Answers that say that the two servers are not set up for each other, whatever is asked."""
SAID_OF_THE_OBJECT = frozenset({404, 410})
"""Errors that a parent passes on, and that count as upstream's own. Of any other, upstream is asked itself."""

BY_LOGIN = "by-login"
"""A directive in the Cache-Control of a server that has a login: what anybody gets is of no use to it (RFC 9111
§5.2.3)."""

_BASE = re.compile(r"(https?)://([^/?#\s@]+)/?")
_BUCKET = re.compile(r"(s3a?|gs|az)://[^/\s@?#]+(/[^\s?#]*)?")
_CALLER = re.compile(r"\bfetchonce-[0-9a-f]+(?: \((https?://[^\s()]+)\))?")
_CONFIRMED = re.compile(r"; confirmed=(\d{1,9})\b")
_OPEN = re.compile(r"; open\b")
_LEFT = re.compile(r"; ttl=(\d{1,9})\b")
_ASKED = re.compile(r"; asked=([0-9a-f]{12})\b")


@dataclass(frozen=True, slots=True)
class Fleet:
    """The section [fleet]. Made by `of`."""

    own: str = ""
    """The base URL by which others reach this server; empty if they do not."""
    parents: tuple[str, ...] = ()
    """Base URLs, without a slash at their end."""
    token: str = field(default="", repr=False)

    @classmethod
    def of(cls, advertise: str, parents: Iterable[str], token: str) -> "Fleet":
        """Raises ConfigError for a URL or token that is malformed."""
        if token and not re.fullmatch(r"[\x21-\x7e]+", token):
            raise ConfigError("fleet.token: expected printable ASCII characters without spaces")
        own = _base("advertise", advertise) if advertise else ""
        return cls(own, tuple(dict.fromkeys(_base("parents", each) for each in parents)), token)

    @property
    def names(self) -> tuple[str, ...]:
        """The host by which others reach this server, if they do."""
        host = re.sub(r":\d+\Z", "", self.own.partition("://")[2]).strip("[]")
        return (host,) if host else ()

    def parents_of(self, target: Target, via: str | None) -> tuple[str, ...]:
        """The servers to ask for `target` before upstream is, in this order. `via`: by whom the request came.

        None that ranks behind us; none at all if one of them asks us, because then we are its parent.
        """
        named = list(callers(via))
        if not self.parents or len(named) >= MAX_CALLERS or not {*self.parents}.isdisjoint(filter(None, named)):
            return ()
        path = path_of(target)
        ranked = sorted(self.parents, key=lambda base: hashlib.sha256(f"{base}\0{path}".encode("latin-1")).digest())
        return tuple(ranked[: ranked.index(self.own)] if self.own in ranked else ranked)


def _base(key: str, url: str) -> str:
    if base := base_of(url):
        return base
    raise ConfigError(f'fleet.{key}: "{url}": expected http(s)://HOST[:PORT]')


def base_of(url: str) -> str | None:
    """The base URL of a server in its one form, without a slash at its end; None if it is none."""
    found = _BASE.fullmatch(url)
    try:
        return f"{found[1]}://{normal_host(found[2], found[1])}" if found else None
    except RequestError:
        return None


def check_stores(fleet: Fleet, redis: str, bucket: str, endpoint: str) -> None:
    """Raises ConfigError for an address that is malformed, or of no use. Empty ones are not given."""
    if redis and not re.fullmatch(r"(rediss?|unix)://\S+", redis):
        raise ConfigError("lease.redis: expected redis://[USER:PASSWORD@]HOST[:PORT][/NUMBER], rediss://... or unix://...")
    try:
        _ = urlsplit(redis).port
    except ValueError as error:  # its text would quote a part of the password
        raise ConfigError("lease.redis: expected a port, and / # ? @ in a password as %2F %23 %3F %40") from error
    if redis and not fleet.own:
        raise ConfigError("lease.redis: needs fleet.advertise, by which the others reach this server")

    if bucket and not _BUCKET.fullmatch(bucket):
        raise ConfigError(f's3.url: "{bucket}": expected s3://BUCKET/PREFIX, or gs:// or az://')
    if endpoint and not re.fullmatch(r"https?://[^/\s@]+/?", endpoint):
        raise ConfigError(f's3.endpoint: "{endpoint}": expected a URL')
    if endpoint and bucket and not bucket.startswith("s3"):
        raise ConfigError("s3.endpoint: is for s3:// alone")


def path_of(target: Target) -> str:
    """The path by which another server of ours has `target`: by host, since it may call the mirror another name."""
    path = proxied_path(target.url)
    return f"/{target.digest}{path}" if target.digest else path


def callers(via: str | None) -> Iterable[str]:
    """For each server of ours that a request came by (RFC 9110 §7.6.3): its base URL, or "" if it has not said it."""
    return (found[1] or "" for found in _CALLER.finditer(via or ""))


def asks_for_others(headers: Headers) -> bool:
    """Whether a request came by a server of ours."""
    return any(True for _ in callers(field_of(headers, "via")))


def is_ours(headers: Headers) -> bool:
    """Whether a server of ours gave the answer, and not whatever else listens at its address."""
    return _said(headers).partition(";")[0] == "fetchonce"


def is_of_upstream(status: int, headers: Headers) -> bool:
    """Whether an error that a server of ours gave is upstream's word about the object."""
    said = _said(headers)
    return status in SAID_OF_THE_OBJECT and (f"fwd-status={status}" in said or "detail=negative" in said)


def name_of(mirror: Mirror) -> str | None:
    """The same on all servers that ask the same upstreams for it, with a login or all without one.

    None where it has but one upstream, and no login: whoever asks that one gets its answer.
    """
    if len(mirror.upstreams) == 1 and not mirror.credentials:
        return None
    asked = " ".join((*mirror.upstreams, "login" if mirror.credentials else ""))
    return hashlib.sha256(asked.encode()).hexdigest()[:12]


def asked_of(headers: Headers) -> str | None:
    """Whom an error is of that a server of ours gave, as `name_of`."""
    found = _ASKED.search(_said(headers))
    return found[1] if found else None


def remembered(headers: Headers) -> Headers:
    """The fields of such an error: with the time for which it is still remembered there, if it was."""
    age, left = field_of(headers, "age") or "", _LEFT.search(_said(headers))
    kept = tuple(line for line in headers if line[0] != "cache-control")
    whole = int(left[1]) + int(age if re.fullmatch("[0-9]{1,9}", age) else 0) if left else 0
    return (*kept, ("cache-control", f"max-age={whole}")) if left else headers


def confirmed_ago(headers: Headers) -> int:
    """Seconds since upstream told the server of ours that gave the answer what it is."""
    found = _CONFIRMED.search(_said(headers))
    return int(found[1]) if found else 0


def is_open(headers: Headers) -> bool:
    """Whether a server of ours needed no login for what it gave, of a client or its own. An old one does not say."""
    return _OPEN.search(_said(headers)) is not None


def without_status(headers: Headers) -> Headers:
    """Without what a server of ours says of its cache: it was true of one answer."""
    return tuple(line for line in headers if line[0] != "cache-status" or not line[1].startswith("fetchonce"))


def _said(headers: Headers) -> str:
    """Its Cache-Status; those of caches behind it come first (RFC 9211 §2)."""
    return (field_of(headers, "cache-status") or "").rpartition(",")[2].strip()
