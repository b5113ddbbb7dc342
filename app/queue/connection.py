"""How we talk with Redis: patiently, and in transactions that are tried again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.exceptions import WatchError
from redis.retry import Retry as RedisRetry

from app.settings import Settings

T = TypeVar("T")


def connect(settings: Settings, patience_s: float) -> Redis:
    """A client that rides over an outage of about `patience_s` seconds, such as a restart of Redis."""
    if settings.redis_url is None:
        raise RuntimeError("REDIS_URL is not set. `python -m app` starts an embedded queue and sets it.")
    errors = (RedisConnectionError, RedisTimeoutError)
    backoff = ExponentialBackoff(cap=0.5, base=0.05)
    retry = RedisRetry(backoff, retries=3 + int(patience_s / 0.5), supported_errors=errors)
    return Redis.from_url(settings.redis_url, retry=retry, socket_connect_timeout=2, health_check_interval=15)


def watching(connection: Redis, transaction: Callable[[Pipeline], T], *keys: str) -> T:
    """Run a transaction until nobody touched `keys` meanwhile."""
    with connection.pipeline() as pipe:
        while True:
            try:
                pipe.watch(*keys)  # type: ignore[no-untyped-call]
                return transaction(pipe)
            except WatchError:
                continue
