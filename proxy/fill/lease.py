"""The lease of an object: which of several machines asks upstream for it. The others read along with that one.

It lies in Redis or Valkey, and nothing depends on it: without it, each machine asks for itself. Whoever loses it goes
on with its fill, as a body is stored by its content; whoever finds that the holder is gone takes it over. Redis alone
counts the time, so that clocks do not matter.
"""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Awaitable
from dataclasses import replace
from logging import INFO, WARNING
from typing import Any

from ..config import Settings
from ..log import events, log
from ..rules.circuit import ABSENT_SECONDS, Circuit
from ..rules.fleet import base_of, path_of
from ..rules.mirrors import Target
from ..stats import Stats

LEASE_MS = 30_000
"""A machine that is gone without a word keeps an object for so long from those who cannot see that."""
RENEW_SECONDS = 10.0
LAST_MS = 30_000
"""For so long whoever has fetched an object is still asked for it first."""
CONNECTIONS = 32

# KEYS: the lease, and who fetched last. ARGV: our value, the value that may be replaced, LEASE_MS, " " and our URL.
TAKE = """
local function is_ours(value) return string.sub(value, -string.len(ARGV[4])) == ARGV[4] end
local now = redis.call('GET', KEYS[1])
if now and now ~= ARGV[2] and not is_ours(now) then return now end
local last = not now and redis.call('GET', KEYS[2])
if last and last ~= ARGV[2] and not is_ours(last) then return last end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return ARGV[1]
"""
# ARGV: our value, LEASE_MS. A Redis that was started anew has forgotten us.
RENEW = """
local now = redis.call('GET', KEYS[1])
if now == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
if now then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
# ARGV: our value, LAST_MS or 0.
RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] ~= '0' then redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2]) end
return redis.call('DEL', KEYS[1])
"""


class Leases:
    """Of one process."""

    def __init__(self, settings: Settings, stats: Stats) -> None:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as Unreachable
        from redis.exceptions import RedisError

        self.own = settings.fleet.own
        self._timeout = timeout = settings.file.lease.timeout
        # ValueError: what answers is no Redis.
        self._errors = (RedisError, OSError, TimeoutError, ValueError)
        pool = BlockingConnectionPool.from_url(
            settings.file.lease.redis,
            max_connections=CONNECTIONS,
            timeout=timeout,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            # An idle connection may have been ended by the other side.
            retry=Retry(NoBackoff(), 1, supported_errors=(Unreachable,)),
        )
        self._redis: Any = Redis(connection_pool=pool)
        self._circuit = Circuit()
        self._stats = stats
        self._behind: set[asyncio.Future[Any]] = set()

    @property
    def state(self) -> str:
        """For people."""
        return "left alone" if self._circuit.is_given_up else "answers"

    def turn(self, target: Target) -> "Turn":
        return Turn(self, target)

    async def take(self, keys: tuple[str, str], value: str, instead_of: str) -> str | None:
        """Whose it is now, ours or another value; None if nobody can say. `instead_of`: one whose owner is gone."""
        if not self._circuit.may_ask(asyncio.get_running_loop().time()):
            return None
        args = (value, instead_of, LEASE_MS, f" {self.own}")
        answer = await self._ask(self._redis.eval(TAKE, 2, *keys, *args))
        found = answer.decode("latin-1") if isinstance(answer, bytes) else None
        outcome = "unknown" if found is None else "held" if found == value else "elsewhere"
        self._stats.leases[outcome,] += 1
        return found

    async def renew(self, keys: tuple[str, str], value: str) -> bool:
        """False if it is another's by now."""
        return bool(await self._ask(self._redis.eval(RENEW, 1, keys[0], value, LEASE_MS)) != 0)

    def release(self, keys: tuple[str, str], value: str, *, has_it: bool) -> None:
        """Behind the fill, which does not wait for it."""
        self.behind(self._ask(self._redis.eval(RELEASE, 2, *keys, value, LAST_MS if has_it else 0)))

    def behind(self, work: Awaitable[Any]) -> asyncio.Future[Any]:
        task = asyncio.ensure_future(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)
        return task

    async def _ask(self, asking: Awaitable[Any]) -> Any:
        """The answer; None if there is none, which is told once."""
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(self._timeout):
                answer = await asking
        except self._errors as error:
            if self._circuit.failed(now()):
                again = ABSENT_SECONDS
                log(events, WARNING, "lease.none", error=repr(error), means="each server for itself", again_in=again)
            return None
        if self._circuit.answered():
            log(events, INFO, "lease.back")
        return answer

    async def close(self) -> None:
        """After the fills."""
        if self._behind:
            await asyncio.wait(self._behind, timeout=self._timeout)
        with contextlib.suppress(*self._errors):
            await self._redis.aclose()
            await self._redis.connection_pool.disconnect()


class Turn:
    """The part of one fill in the lease of its object. `end` it."""

    def __init__(self, leases: Leases, target: Target) -> None:
        name = hashlib.sha256(path_of(replace(target, digest=None)).encode("latin-1")).hexdigest()
        # Braces: both keys lie on one node of a cluster.
        self._keys = f"fetchonce:{{{name}}}:lease", f"fetchonce:{{{name}}}:last"
        self._leases, self._name = leases, target.key[:12]
        self._value = f"{secrets.token_hex(8)} {leases.own}"
        self._other = ""
        self._renewing: asyncio.Future[Any] | None = None

    async def next(self, *, is_gone: bool = False) -> str | None:
        """The base URL of the server to read along with; None if we are to ask upstream.

        `is_gone`: the one that was named before does not answer any more.
        """
        found = await self._leases.take(self._keys, self._value, self._other if is_gone else "")
        if found is None or (is_gone and found == self._other):
            return None  # what does not take our word for it is no Redis
        if found == self._value:
            if self._other and is_gone:
                log(events, INFO, "lease.taken_over", key=self._name, of=self._other.partition(" ")[2])
            self._renewing = self._leases.behind(self._renew())
            return None
        self._other = found
        return base_of(found.partition(" ")[2])

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            if not await self._leases.renew(self._keys, self._value):
                log(events, INFO, "lease.lost", key=self._name)
                return

    def end(self, *, has_it: bool) -> None:
        """`has_it`: others can have the object here now."""
        if self._renewing:
            self._renewing.cancel()
            self._leases.release(self._keys, self._value, has_it=has_it)
            self._renewing = None
