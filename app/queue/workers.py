"""Workers, as the queue knows them: who lives, and what each says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from redis import Redis
from rq import Queue
from rq.utils import as_text
from rq.worker_registration import get_keys

from app.queue.names import facts_key


class Workers:
    """They register once their models are loaded, and live as long as their heartbeat is fresh."""

    def __init__(self, connection: Redis, queue: Queue) -> None:
        self.connection, self.queue = connection, queue

    def live(self) -> list[str]:
        """The names of those that live."""
        return [
            as_text(key).rpartition(":")[2]
            for key in get_keys(queue=self.queue)
            if self.connection.exists(key) and not self.connection.hexists(key, "death")
        ]

    def facts(self) -> dict[str, dict[str, float]]:
        """What each that lives says of itself by `tell_facts`, by its name; nothing if it says nothing."""
        facts = {}
        for name in self.live():
            told = cast(dict[bytes, bytes], self.connection.hgetall(facts_key(name)))
            facts[name] = {fact.decode(): float(value) for fact, value in told.items()}
        return facts

    def tell_facts(self, worker: str, facts: Mapping[str, float], ttl_s: float) -> None:
        """What a worker says of itself: `batch_size`, and `gpu_memory_bytes` where there is a GPU."""
        with self.connection.pipeline() as pipe:
            pipe.delete(facts_key(worker))
            pipe.hset(facts_key(worker), mapping={name: str(value) for name, value in facts.items()})
            pipe.pexpire(facts_key(worker), int(1000 * ttl_s))
            pipe.execute()
