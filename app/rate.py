"""How often an API key may submit, counted in Redis, so that all replicas count together."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from redis import Redis

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.strategies import RateLimiter


class Rate:
    """So many a time, such as "5/second"; "" is any number."""

    def __init__(self, allowed: str, connection: Redis) -> None:
        self.allowed, self.connection = allowed, connection
        self.counting: tuple[RateLimiter, RateLimitItem] | None = None

    def hit(self, name: str) -> int:
        """Count one; 0, or if it was one too many the seconds until there is room."""
        if not self.allowed:
            return 0
        limiter, item = self.counting = self.counting or self._begin()
        if limiter.hit(item, name):
            return 0
        return max(1, math.ceil(limiter.get_window_stats(item, name).reset_time - time.time()))

    def _begin(self) -> tuple[RateLimiter, RateLimitItem]:
        """Where there are no keys, nobody waits for the library."""
        from limits import parse
        from limits.storage import RedisStorage
        from limits.strategies import SlidingWindowCounterRateLimiter

        storage = RedisStorage("redis://", self.connection.connection_pool, key_prefix="deepsdf:rate")
        return SlidingWindowCounterRateLimiter(storage), parse(self.allowed)
