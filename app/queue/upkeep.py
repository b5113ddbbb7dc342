"""What must be done to records when something has ended, has expired or was deleted.

`app.housekeeping` says when. All of it may be done by several processes at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from redis import Redis
from redis.client import Pipeline
from rq.job import Job
from rq.utils import str_to_date

from app.deliveries import Deliveries
from app.queue.connection import watching
from app.queue.names import DELETED, INDEXES, OPEN, index_key
from app.queue.records import ENDED_JOBS, Records
from app.schemas import ENDED, Completion, Entry
from app.tallies import TALLIES

OLDEST = 1000
"""Ids of each list that are looked at in one sweep: what Redis drops is among the oldest."""

NOT_OPEN = """
-- Of the open ones (KEYS[1]) those whose status says that they have ended (ARGV). The lapsed are taken out.
local ended, found = {}, {}
for _, status in ipairs(ARGV) do ended[status] = true end
for _, id in ipairs(redis.call('HKEYS', KEYS[1])) do
    local status = redis.call('HGET', 'rq:job:' .. id, 'status')
    if not status then redis.call('HDEL', KEYS[1], id) end
    if ended[status] then table.insert(found, id) end
end
return found
"""


class Upkeep:
    """The steps, each carried out whole."""

    def __init__(self, connection: Redis, records: Records, deliveries: Deliveries) -> None:
        self.connection, self.records, self.deliveries = connection, records, deliveries
        self.not_open = connection.register_script(NOT_OPEN)

    def ended_ones(self) -> list[Entry]:
        """What has ended and was not settled yet. Of what waits and runs only the status is looked at."""
        ended = cast(list[bytes], self.not_open([OPEN], ENDED_JOBS))
        entries = self.records.look([name.decode() for name in ended]).wait() if ended else []
        return [one for one in entries if one is not None and one.status in ENDED]

    def settle(self, entry: Entry, tallies: Mapping[str, float]) -> bool:
        """Take what has ended out of the open ones, count it, and let its webhook be told; all or nothing.

        False when another process did it.
        """

        def settle(pipe: Pipeline) -> bool:
            if not pipe.hexists(OPEN, entry.id):
                return False
            pipe.multi()
            pipe.hdel(OPEN, entry.id)
            for name, value in tallies.items():
                pipe.hincrbyfloat(TALLIES, name, value)
            if isinstance(entry, Completion) and entry.webhook is not None:
                self.deliveries.schedule(pipe, entry.id)
            pipe.execute()
            return True

        return watching(self.connection, settle, OPEN)

    def tallies(self) -> dict[str, float]:
        """The sums over all that were settled."""
        sums = cast(dict[bytes, bytes], self.connection.hgetall(TALLIES))
        return {name.decode(): float(value) for name, value in sums.items()}

    def not_kept(self, ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """Which of these have expired, and which nothing is known of."""
        with self.connection.pipeline() as pipe:
            for name in ids:
                pipe.hmget(Job.key_for(name), "created_at", "ended_at")
            records = cast(list[list[bytes | None]], pipe.execute())
        expired, unknown = [], []
        for name, (created, ended) in zip(ids, records, strict=True):
            if created is None:
                unknown.append(name)
            elif ended and self.records.is_past(str_to_date(ended)):
                expired.append(name)
        return expired, unknown

    def deleted_before(self, moment: float) -> list[str]:
        """What was deleted before a time, in seconds since 1970: no worker writes of it any more."""
        names = cast(list[bytes], self.connection.zrangebyscore(DELETED, 0, moment))
        return [name.decode() for name in names]

    def forget_deleted(self, entry_id: str) -> None:
        """Nothing of it is left."""
        self.connection.zrem(DELETED, entry_id)

    def forget_lapsed(self) -> None:
        """Take what Redis has dropped out of the lists."""
        for task in INDEXES:
            for index in self.connection.scan_iter(index_key(task, "*")):
                self._forget_lapsed(index)

    def _forget_lapsed(self, index: bytes) -> None:
        ids = cast(list[bytes], self.connection.zrange(index, 0, OLDEST - 1))
        with self.connection.pipeline() as pipe:
            for name in ids:
                pipe.exists(Job.key_for(name.decode()))
            gone = [name for name, there in zip(ids, pipe.execute(), strict=True) if not there]
        if gone:
            self.connection.zrem(index, *gone)
