"""How often an API key may submit, counted in Redis, so that all replicas count together."""

from __future__ import annotations

import math
import time

from limits import parse
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import Redis


class Rate:
    """So many a time, such as "5/second"; "" is any number."""

    def __init__(self, allowed: str, connection: Redis) -> None:
        self.allowed = parse(allowed) if allowed else None
        self.connection = connection
        self.limiter: SlidingWindowCounterRateLimiter | None = None

    def hit(self, name: str) -> int:
        """Count one; 0, or if it was one too many the seconds until there is room."""
        if self.allowed is None:
            return 0
        if self.limiter is None:  # connecting can wait until someone comes
            storage = RedisStorage("redis://", self.connection.connection_pool, key_prefix="deepsdf:rate")
            self.limiter = SlidingWindowCounterRateLimiter(storage)
        if self.limiter.hit(self.allowed, name):
            return 0
        reset = self.limiter.get_window_stats(self.allowed, name).reset_time
        return max(1, math.ceil(reset - time.time()))
