"""Those who wait, and how a worker takes the next one."""

from __future__ import annotations

from redis import Redis
from rq import Queue
from rq.job import Job

from app.queue.names import SERIALIZER, WAKE
from app.settings import Settings

CLAIM = """
-- The first in line (KEYS[1]) whose owner may have one more running (ARGV[1]; 0: any number) goes to the
-- intermediate list (KEYS[2]). What runs is in KEYS[3].
local limit = tonumber(ARGV[1])
if limit == 0 then return redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT') end
local function owner_of(id)
    local meta = redis.call('HGET', 'rq:job:' .. id, 'meta')
    return meta and cjson.decode(meta).owner or ''
end
local busy, seen = {}, {}
local function count(id)
    if seen[id] then return end
    seen[id] = true
    local owner = owner_of(id)
    busy[owner] = (busy[owner] or 0) + 1
end
for _, lease in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do count(string.match(lease, '^[^:]+')) end
for _, id in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do count(id) end
for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
    local owner = owner_of(id)
    if owner == '' or (busy[owner] or 0) < limit then
        redis.call('LREM', KEYS[1], 1, id)
        redis.call('RPUSH', KEYS[2], id)
        return id
    end
end
return false
"""


class Line:
    """What waits, first come first served but for priorities, which `app.queue.submission` knows."""

    def __init__(self, connection: Redis, settings: Settings, queue: Queue) -> None:
        self.connection, self.settings, self.queue = connection, settings, queue

    def __len__(self) -> int:
        return int(self.queue.count)

    def claim(self) -> Job | None:
        """Take the first in line whose owner has not too many running; None when there is none such.

        It lies in RQ's intermediate list until the worker has a lease of it.
        """
        limit = self.settings.max_running_per_key
        keys = self.queue.key, self.queue.intermediate_queue_key, self.queue.started_job_registry.key
        while claimed := self.connection.eval(CLAIM, len(keys), *keys, limit):
            (job,) = Job.fetch_many([claimed.decode()], self.connection, SERIALIZER)
            if job is not None:
                return job
            self.queue.intermediate_queue.remove(claimed.decode())  # forgotten while it waited
        return None

    def unclaim(self, job: Job) -> None:
        """Put a claimed one back to the front of the line."""
        with self.connection.pipeline() as pipe:
            pipe.lrem(self.queue.intermediate_queue_key, 1, job.id)
            pipe.lpush(self.queue.key, job.id)
            pipe.execute()

    def wait(self, seconds: float) -> None:
        """Return when something was enqueued, or after a while."""
        self.connection.blpop([WAKE], seconds)
