"""How a question is put: on the event loop where a connection is at hand, else in a thread of its server."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any, TypeVar

from ..rules.entry import Head
from ..upstream.client import Started, Upstream
from ..upstream.exchange import Ready
from .asking import Answer, Inquiry, ask, ask_head, begin, exchange_of, head_in, understood
from .context import FillContext

T = TypeVar("T")
Asks = Callable[[Inquiry, Upstream, Callable[[], float], Started | None], T]


async def inquire(inquiry: Inquiry, context: FillContext) -> Answer:
    """As `ask`."""
    begun = await begin(inquiry, context.upstream)
    if isinstance(begun, Ready):
        if answer := understood(inquiry, begun, context.clock):
            return answer
        inquiry, begun = inquiry.anew(), None
    return await _in_thread(ask, inquiry, context, begun)


async def inquire_head(inquiry: Inquiry, context: FillContext) -> Head | None:
    """As `ask_head`."""
    begun = await begin(inquiry, context.upstream, "HEAD")
    if isinstance(begun, Ready):
        return head_in(inquiry, begun, context.clock)
    return await _in_thread(ask_head, inquiry, context, begun)


async def _in_thread(asks: Asks[T], inquiry: Inquiry, context: FillContext, started: Started | None) -> T:
    asking = asyncio.get_running_loop().run_in_executor(
        context.threads.of(inquiry.url), asks, inquiry, context.upstream, context.clock, started
    )
    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError:
        # The thread cannot be stopped; nobody wants what it brings.
        asking.add_done_callback(functools.partial(_drop, started))
        raise


def _drop(started: Started | None, asking: asyncio.Future[Any]) -> None:
    if asking.cancelled():
        if started:
            started.close()  # no thread has begun with it
    elif not asking.exception() and (exchange := exchange_of(asking.result())):
        exchange.drop()
