"""One question to one mirror, and what the answer means. It blocks, and runs in a transfer thread."""

import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..errors import UpstreamChanged, UpstreamError, UpstreamPage, UpstreamRange
from ..rules import vary
from ..rules.chain import combined
from ..rules.entry import Entry, Head, Headers, field
from ..rules.fleet import BY_LOGIN, confirmed_ago, is_open, without_status
from ..rules.freshness import initial_age
from ..rules.headers import http_date, stored_headers
from ..rules.pages import is_page
from ..rules.splice import Held, Known, Splice, is_the_same, judge, rest_fields, start_of_rest
from ..rules.validators import condition, confirms
from ..upstream.client import Started, Upstream
from ..upstream.exchange import Carrier, Exchange, Ready
from ..upstream.wording import status_error
from .peers import ask_peer

SAYS_NOTHING = frozenset({401, 403, 429})
"""Answers, beside 5xx, that say nothing about the object: what we have of it may still be of use."""

SMALL_BYTES = 64 * 1024
"""A body of at most this size is read where its head is, and kept in memory until it is stored."""
SOON_SECONDS = 0.1
"""... if it comes as soon as this after its head, which waits as long: 64 KB are a few round trips."""

UPSTREAMS_BYTES, NOT_STALE = "no-transform", "stale-if-error=0"
"""Said to other servers of ours: while upstream may have a fresh answer for us, a stale one does not help."""

Gap = tuple[int, int | None]
"""(start, end) of the bytes that are asked for; None: to the end."""


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What is asked: the object, the bytes of `gap` of the known body, or (no gap) whether the object is still that."""

    url: str
    """Of the mirror."""
    condition: Headers
    """The fields of the first question. Those of a client go with every further one."""
    stale: Entry | None
    """What a 304 to the first question confirms."""
    gap: Gap | None = None
    known: Known | None = None
    takes_parts: bool = True
    """False: all of the body is asked for, to be compared."""
    at: str | None = None
    """Where the mirror has redirected to before, if that is asked right away."""
    peer: bool = False
    """Whether `url` is that of another server of ours."""
    takes_stale: bool = False
    """Whether that may give what it could not confirm."""
    by_login: bool = False
    """Whether it must have a login too."""

    @property
    def asked_url(self) -> str:
        return self.at or self.url

    @property
    def asks_part(self) -> bool:
        return self.takes_parts and self.known is not None and self.known.can_resume and self.gap is not None

    def headers(self) -> Headers:
        if self.known is None:
            return self._first_headers()
        fields = vary.that_select(self.condition)
        if self.gap is None:
            is_same = self.known.is_from(self.asked_url)
            return (*fields, *(condition(self.known.head.headers) if is_same else ()))
        return (*fields, *rest_fields(self.known, *self.gap, self.asked_url)) if self.asks_part else fields

    def anew(self) -> "Inquiry":
        """The question for the object itself, on no condition."""
        return replace(self, condition=vary.that_select(self.condition), stale=None)

    def _first_headers(self) -> Headers:
        """The condition; but a redirector is not asked about the tag of one of its nodes: another node has another."""
        if self.stale and field(self.stale.head.headers, "last-modified") and not self._is_from_stale(self.asked_url):
            return tuple(line for line in self.condition if line[0] != "if-none-match")
        return self.condition

    def _is_from_stale(self, url: str) -> bool:
        return self.stale is None or not self.stale.head.node or Known(self.stale.head, "", Held.SAVED).is_from(url)

    def confirms(self, exchange: Exchange) -> bool:
        """Whether a 304 is about what is stored."""
        if self.stale is None:
            return False
        stored = self.stale.head.headers
        if not self._is_from_stale(exchange.final_url):
            stored = tuple(line for line in stored if line[0] != "etag")
        return confirms(stored, exchange.headers)


@dataclass(frozen=True, slots=True)
class Whole:
    """A body from its first byte on."""

    exchange: Carrier
    head: Head
    url: str
    body: bytes | None = None
    """The bytes of a small body, if they were all here soon. The exchange gives them too."""
    ago: int = 0
    """Seconds since upstream said it, to another server of ours. The age in the head does not include them."""
    recalled: Entry | None = None
    """What the bucket says of a body that comes from there."""


@dataclass(frozen=True, slots=True)
class Rest:
    """The known body, from byte `start` on. `compare`: what of it is here already must be equal."""

    exchange: Carrier
    start: int
    compare: bool


@dataclass(frozen=True, slots=True)
class Unchanged:
    """What we have is still the object (RFC 9110 §15.4.5)."""

    url: str
    head: Head
    ago: int = 0
    """As in Whole."""


@dataclass(frozen=True, slots=True)
class Another:
    """Instead of a saved body there is another one, or none that this question could tell of."""

    whole: Whole | None


Answer = Whole | Rest | Unchanged | Another


async def begin(inquiry: Inquiry, upstream: Upstream, method: str = "GET") -> Ready | Started | None:
    """On the event loop: the answer itself, or what `ask` and `ask_head` go on with in a thread."""
    if inquiry.peer:
        return None  # the lane knows neither its token nor its patience (upstream/peers.py)
    return await upstream.begin(inquiry.url, method=method, headers=inquiry.headers(), at=inquiry.at)


def ask(inquiry: Inquiry, upstream: Upstream, clock: Callable[[], float], started: Started | None) -> Answer:
    """Ask, and wait for the head of the answer. Close the exchange in it.

    Raises UpstreamError for an answer that helps nobody, UpstreamRange if a range was not answered with that range,
    UpstreamChanged if clients have bytes of the known body, and the object is another one now.
    """
    exchange = upstream.resume(started) if started else opened(inquiry, upstream)
    return understood(inquiry, exchange, clock) or ask(inquiry.anew(), upstream, clock, None)


def understood(inquiry: Inquiry, exchange: Exchange, clock: Callable[[], float]) -> Answer | None:
    """What an answer means, as `ask`. None: it is a 304 about something that we do not have; ask `inquiry.anew()`."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(exchange)
        answer = _read(inquiry, exchange, clock())
        if answer and exchange_of(answer):
            stack.pop_all()
    return answer


def opened(inquiry: Inquiry, upstream: Upstream, method: str = "GET") -> Exchange:
    """The answer to the question. Close it. Raises UpstreamError; of another server of ours, PeerFailed."""
    if inquiry.peer:
        wishes = UPSTREAMS_BYTES, "" if inquiry.takes_stale else NOT_STALE, BY_LOGIN if inquiry.by_login else ""
        return ask_peer(upstream.peers, inquiry.url, method, _wishing(inquiry.headers(), wishes))
    return upstream.open(inquiry.url, method=method, headers=inquiry.headers(), at=inquiry.at)


def _wishing(headers: Headers, directives: Sequence[str]) -> Headers:
    """The fields with further directives in Cache-Control."""
    others = tuple(line for line in headers if line[0] != "cache-control")
    return (*others, ("cache-control", ", ".join(filter(None, (field(headers, "cache-control"), *directives)))))


def ask_head(
    inquiry: Inquiry, upstream: Upstream, clock: Callable[[], float], started: Started | None
) -> Head | None:
    """What the mirror answers to HEAD; None if only GET can tell. Raises UpstreamError."""
    return head_in(inquiry, upstream.resume(started) if started else opened(inquiry, upstream, "HEAD"), clock)


def head_in(inquiry: Inquiry, exchange: Exchange, clock: Callable[[], float]) -> Head | None:
    """As `ask_head`, of an answer that is there."""
    with exchange:
        if exchange.status == 200:
            return _head_of(inquiry, exchange, clock(), "")
        if exchange.status in REFUSES_HEAD:
            return None
        raise status_error(exchange)


REFUSES_HEAD = frozenset({400, 403, 405, 501})
"""Answers to HEAD that say nothing about GET: not allowed, not implemented, or a URL signed for GET alone."""


def exchange_of(answer: Answer) -> Carrier | None:
    """The transfer that an answer has begun."""
    match answer:
        case Whole(exchange) | Rest(exchange) | Another(Whole(exchange)):
            return exchange
    return None


def _read(inquiry: Inquiry, exchange: Exchange, now: float) -> Answer | None:
    """What the answer is; None for a 304 that confirms nothing we have."""
    if inquiry.known and inquiry.gap:
        return _rest(inquiry, inquiry.known, inquiry.gap[0], exchange, now)
    if exchange.status == 304 and (inquiry.known or inquiry.stale):
        if inquiry.known is None and not inquiry.confirms(exchange):
            return None
        return Unchanged(inquiry.url, _head_of(inquiry, exchange, now, ""), _ago(inquiry, exchange))
    if inquiry.known is None:
        return _whole(inquiry, exchange, now)
    if is_the_same(inquiry.known, exchange):
        return Unchanged(inquiry.url, inquiry.known.head, _ago(inquiry, exchange))
    if inquiry.known.held is Held.SAVED:
        return _another(inquiry, exchange, now)
    raise _changed(exchange, is_final=inquiry.known.is_from(exchange.final_url))


def _rest(inquiry: Inquiry, known: Known, start: int, exchange: Exchange, now: float) -> Answer:
    asked = start_of_rest(known, start, inquiry.asked_url) if inquiry.asks_part else 0
    splice = judge(known, asked, exchange) if exchange.status in (200, 206) else None
    if exchange.status == 206 and inquiry.asks_part and splice in (Splice.PART, Splice.COMPARE):
        return Rest(exchange, asked, compare=splice is Splice.COMPARE)
    if known.held is Held.SAVED:
        return _another(inquiry, exchange, now)
    if splice is None:
        raise status_error(exchange)
    if exchange.status == 200 and splice is Splice.COMPARE:
        return Rest(exchange, 0, compare=True)
    if splice is Splice.OTHER:
        raise _changed(exchange, is_final=known.is_from(exchange.final_url))
    raise UpstreamRange(f"{exchange.url} does not go on at byte {start}, as it was asked to")


def _another(inquiry: Inquiry, exchange: Exchange, now: float) -> Another:
    """What is there in place of a saved body. Raises UpstreamError for an answer that says nothing about it."""
    if exchange.status >= 500 or exchange.status in SAYS_NOTHING:
        raise status_error(exchange)
    return Another(_whole(inquiry, exchange, now) if exchange.status == 200 else None)


def _whole(inquiry: Inquiry, exchange: Exchange, now: float) -> Whole:
    if exchange.status != 200:
        raise status_error(exchange)
    head = _head_of(inquiry, exchange, now, secrets.token_hex(8))
    is_small = exchange.length is not None and exchange.length <= SMALL_BYTES
    body = exchange.read_small(exchange.length or 0, SOON_SECONDS) if is_small else None
    return Whole(exchange, head, inquiry.url, body, _ago(inquiry, exchange))


def _ago(inquiry: Inquiry, exchange: Exchange) -> int:
    return confirmed_ago(exchange.headers) if inquiry.peer else 0


def _head_of(inquiry: Inquiry, exchange: Exchange, now: float, generation: str) -> Head:
    """What an answer says, with the Date it must have (RFC 9110 §6.6.1).

    Raises UpstreamPage if it is a web page under the name of an image.
    """
    chain = combined([each.headers for each in exchange.redirects], exchange.headers, inquiry.condition)
    headers = stored_headers(without_status(chain) if inquiry.peer else chain)
    urls = (*(each.url for each in exchange.redirects), exchange.final_url)
    if exchange.status == 200 and is_page(urls, headers, exchange.length):
        raise UpstreamPage(
            f"{exchange.url} answered with a web page (text/html) in place of the file. nothing was stored. is there a "
            "login or captive portal on the way? open the URL in a browser to see what it says"
        )
    if field(headers, "date") is None:
        headers += (("date", http_date(now)),)
    age = max(0.0, initial_age(exchange.headers, now, exchange.delay) - _ago(inquiry, exchange))
    nominated = vary.that_select(inquiry.condition)
    by_login = inquiry.peer and not is_open(exchange.headers)
    return Head(headers, exchange.length, generation, age, nominated, exchange.node, by_login)


def _changed(exchange: Exchange, *, is_final: bool) -> UpstreamError:
    return UpstreamChanged(f"{exchange.url} changed while it was fetched", is_final=is_final)
