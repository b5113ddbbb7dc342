"""What webhooks were told, and what they are still to be told: kept in Redis, so that no restart loses it."""

from __future__ import annotations

import time
from typing import cast

from redis import Redis
from redis.client import Pipeline

from app.schemas import Webhook, WebhookAttempt
from app.settings import Settings

DUE = "deepsdf:webhooks"
"""A sorted set: completions whose webhook is to be told, by the time of the next attempt."""

TOLD = "deepsdf:webhook:"
"""And the id of a completion: how it stands with its webhook, as JSON, once there was an attempt."""

LEASE_S = 60.0
"""How long an attempt is left to the process that has taken it."""

GONE = 410
"""A receiver that answers this wants nothing any more."""


class Deliveries:
    """One attempt after the other, until the receiver has it or all are used up."""

    def __init__(self, connection: Redis, settings: Settings) -> None:
        self.connection, self.settings = connection, settings

    def schedule(self, pipe: Pipeline, completion_id: str) -> None:
        """To be told now, once the pipeline is carried out."""
        pipe.zadd(DUE, {completion_id: time.time()})

    def take(self, limit: int) -> list[str]:
        """Completions whose webhook is due. Whoever takes one has it alone, until its lease ends."""
        now = time.time()
        due = cast(list[bytes], self.connection.zrangebyscore(DUE, 0, now, 0, limit)) if limit > 0 else []
        return [name.decode() for name in due if self._is_taken(name.decode(), now)]

    def _is_taken(self, name: str, now: float) -> bool:
        if not self.connection.set(f"{self._key(name)}:lease", 1, nx=True, px=int(1000 * LEASE_S)):
            return False
        self.connection.zadd(DUE, {name: now + LEASE_S}, xx=True)  # makes room for others that are due
        return True

    def drop(self, completion_id: str) -> None:
        """There is nothing to tell any more."""
        self.connection.zrem(DUE, completion_id)

    def record(self, completion_id: str, webhook: Webhook, attempt: WebhookAttempt) -> Webhook:
        """Note an attempt, and when the next one is due, if any."""
        tried = [*webhook.attempts, attempt]
        delays = self.settings.webhook_delays_s
        delivered = attempt.status is not None and 200 <= attempt.status < 300
        over = attempt.status == GONE or len(tried) > len(delays)
        state = "delivered" if delivered else "failed" if over else "waiting"
        after = Webhook.model_validate({"url": webhook.url, "state": state, "attempts": tried})
        with self.connection.pipeline() as pipe:
            pipe.set(self._key(completion_id), after.model_dump_json(), ex=self.settings.record_ttl_s)
            if after.state == "waiting":
                pipe.zadd(DUE, {completion_id: time.time() + delays[len(tried) - 1]})
            else:
                pipe.zrem(DUE, completion_id)
            pipe.delete(f"{self._key(completion_id)}:lease")
            pipe.execute()
        return after

    def forget(self, pipe: Pipeline, completion_id: str) -> None:
        """Nothing of it is left, once the pipeline is carried out."""
        pipe.zrem(DUE, completion_id)
        pipe.delete(self._key(completion_id))

    def _key(self, completion_id: str) -> str:
        return f"{TOLD}{completion_id}"
