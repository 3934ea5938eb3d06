"""Counts that gateways share for a minute, and places that they hand out: in this process, or in Redis for replicas."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

import structlog
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.errors import StorageError

from kala.errors import InvalidArgumentError, UnavailableError

if TYPE_CHECKING:
    from redis.asyncio import Redis

MEMORY: Final = "memory"
LIMITS_UNAVAILABLE: Final = "LIMITS_UNAVAILABLE"

PREFIX: Final = "kala"

REDIS_SECONDS: Final = 1.0
"""For one answer of Redis, which takes a tenth of a millisecond: a request must not hang on a store that is away."""

MAX_CONNECTIONS: Final = 32
"""An answer takes a tenth of a millisecond, so that a few connections serve every request of a gateway."""

LEASE_SECONDS: Final = 60
"""How long a place stays taken after its gateway died; the living renew theirs in time."""

RENEW_EVERY_SECONDS: Final = 20.0

_ENTER: Final = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[2])
redis.call('EXPIRE', KEYS[1], tonumber(ARGV[3]) * 2)
return 1
"""
_RENEW: Final = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], 'XX', now + tonumber(ARGV[2]), ARGV[1])
redis.call('EXPIRE', KEYS[1], tonumber(ARGV[2]) * 2)
"""


class Counters(Protocol):
    """Atomic counts and places; UnavailableError, reason LIMITS_UNAVAILABLE, where they cannot be asked."""

    async def add(self, name: str, amount: int, *, seconds: int) -> int:
        """Add to a count, and give it as it is then; it is forgotten after so many seconds."""
        ...

    async def enter(self, name: str, holder: str, *, places: int) -> bool:
        """Take one of so many places, or tell that none is free."""
        ...

    async def leave(self, name: str, holder: str) -> None:
        """Give a place back; never raises."""
        ...


class MemoryCounters:
    """Those of one process."""

    def __init__(self) -> None:
        self._storage = MemoryStorage()
        self._holders: defaultdict[str, set[str]] = defaultdict(set)

    async def add(self, name: str, amount: int, *, seconds: int) -> int:
        """Add to a count."""
        return await self._storage.incr(name, seconds, amount)

    async def enter(self, name: str, holder: str, *, places: int) -> bool:
        """Take a place."""
        holders = self._holders[name]
        if len(holders) >= places:
            return False
        holders.add(holder)
        return True

    async def leave(self, name: str, holder: str) -> None:
        """Give a place back."""
        holders = self._holders[name]
        holders.discard(holder)
        if not holders:
            del self._holders[name]


class RedisCounters:
    """Those of all gateways on one Redis. A place is a lease that its gateway renews."""

    def __init__(self, client: Redis, url: str) -> None:
        self._client = client
        self._storage = RedisStorage(
            f"async+{url}",
            wrap_exceptions=True,
            implementation="redispy",
            key_prefix=PREFIX,
            # The library passes it on as it is.
            connection_pool=client.connection_pool,  # type: ignore[arg-type]
        )
        self._where = where(url)
        self._enter = client.register_script(_ENTER)
        self._renew = client.register_script(_RENEW)
        self._held: set[tuple[str, str]] = set()

    async def add(self, name: str, amount: int, *, seconds: int) -> int:
        """Add to a count."""
        with self._translated():
            return await self._storage.incr(name, seconds, amount)

    async def enter(self, name: str, holder: str, *, places: int) -> bool:
        """Take a place."""
        with self._translated():
            if not await self._enter(keys=[_key(name)], args=[places, holder, LEASE_SECONDS]):
                return False
        self._held.add((name, holder))
        return True

    async def leave(self, name: str, holder: str) -> None:
        """Give a place back; one that cannot be given back ends with its lease."""
        self._held.discard((name, holder))
        with contextlib.suppress(UnavailableError), self._translated():
            await self._client.zrem(_key(name), holder)

    async def renew(self) -> None:
        """Keep what is held, once."""
        for name, holder in list(self._held):
            with self._translated():
                await self._renew(keys=[_key(name)], args=[holder, LEASE_SECONDS])

    async def keep_renewing(self) -> None:
        """Keep what is held, until cancelled."""
        while True:
            await asyncio.sleep(RENEW_EVERY_SECONDS)
            try:
                await self.renew()
            except UnavailableError as error:
                structlog.get_logger().warning("places are not renewed", reason=error.message)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from redis.exceptions import RedisError

        try:
            yield
        except (StorageError, RedisError, OSError, TimeoutError) as error:
            raise UnavailableError(
                f"the store of rate limits ({self._where}) does not answer; start it, or, with one gateway only, set "
                f"KALA_GATEWAY_LIMITS_STORAGE={MEMORY}",
                reason=LIMITS_UNAVAILABLE,
                retry_after_seconds=REDIS_SECONDS,
            ) from error


@asynccontextmanager
async def open_counters(storage: str) -> AsyncIterator[Counters]:
    """Open what `KALA_GATEWAY_LIMITS_STORAGE` names; Redis need not be there yet."""
    if storage == MEMORY:
        yield MemoryCounters()
        return
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    pool = BlockingConnectionPool.from_url(
        storage,
        max_connections=MAX_CONNECTIONS,
        timeout=REDIS_SECONDS,
        socket_timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
        # One more try, for a connection that the server closed while it was idle.
        retry=Retry(NoBackoff(), 1),
    )
    client = Redis.from_pool(pool)
    counters = RedisCounters(client, storage)
    renewing = asyncio.ensure_future(counters.keep_renewing())
    try:
        yield counters
    finally:
        renewing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await renewing
        await client.aclose()


def checked_storage(storage: str) -> str:
    """Give the setting back, or raise InvalidArgumentError; its text may hold a password and is never repeated."""
    if storage == MEMORY or urlsplit(storage).scheme in {"redis", "rediss"}:
        return storage
    raise InvalidArgumentError(
        "limits_storage", f"must be `{MEMORY}` or a URL that begins with redis:// or rediss://"
    )


def where(url: str) -> str:
    """Name a server without its password."""
    parts: Any = urlsplit(url)  # Any: urllib's results are untyped tuples
    return f"{parts.scheme} at {parts.hostname or 'localhost'}:{parts.port or 6379}"


def _key(name: str) -> str:
    return f"{PREFIX}:places:{name}"
