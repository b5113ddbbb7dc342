"""What must happen by itself: count what has ended, tell webhooks, sweep away what was kept long enough.

Every API process does this, on a thread of its own. All of it may be done by several at once, or by one after
another was killed half way: each step is carried out whole in Redis by one of them, or can be repeated.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Thread
from typing import TYPE_CHECKING

from app.queue import CompletionQueue
from app.settings import Settings
from app.storage import Storage
from app.tallies import tallies_of

if TYPE_CHECKING:
    from app.webhooks import Sender

log = logging.getLogger(__name__)

INTERVAL_S = 1.0

POSTS = 8
"""Webhooks that one process tells at the same time."""

LAST_WRITES_S = 30.0
"""How long after a deletion a worker may still write a file that it had begun."""


def _sender(settings: Settings) -> Sender:
    """Imported only where there are webhooks: the HTTP client takes its time."""
    from app.webhooks import Sender

    return Sender(settings.webhook_secret, settings.webhook_private_addresses)


class Housekeeper:
    """The thread, and what it does."""

    def __init__(self, queue: CompletionQueue, storage: Storage, settings: Settings) -> None:
        self.queue, self.storage, self.settings = queue, storage, settings
        self.sender = _sender(settings) if settings.webhook_secret else None
        self.posts = ThreadPoolExecutor(POSTS, "webhook")
        self.telling: set[Future[None]] = set()
        self.stopped = Event()
        self.next_sweep = 0.0

    def start(self) -> None:
        """Begin, on a thread that ends with the process."""
        Thread(target=self._run, name="housekeeping", daemon=True).start()

    def stop(self) -> None:
        """End soon; a webhook that is being told may still be."""
        self.stopped.set()
        self.posts.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self.stopped.wait(INTERVAL_S):
            try:
                self.settle()
                self.deliver()
                if time.monotonic() >= self.next_sweep:
                    self.next_sweep = time.monotonic() + self.settings.sweep_s
                    self.sweep()
            except Exception as error:  # the queue or the disk is away: the next time will do
                log.warning("housekeeping goes on after an error: %s: %s", type(error).__name__, error)

    def settle(self) -> int:
        """Take what has ended out of the open ones; how many there were."""
        return sum(self.queue.upkeep.settle(one, tallies_of(one)) for one in self.queue.upkeep.ended_ones())

    def deliver(self) -> None:
        """Tell the webhooks that are due; those that take their time hold nobody up."""
        self.telling = {one for one in self.telling if not one.done()}
        if self.sender is not None:
            for completion_id in self.queue.deliveries.take(POSTS - len(self.telling)):
                self.telling.add(self.posts.submit(self._deliver, completion_id))

    def _deliver(self, completion_id: str) -> None:
        try:
            completion = self.queue.get(completion_id)
            if self.sender is None or completion is None or completion.webhook is None:
                self.queue.deliveries.drop(completion_id)
                return
            attempt = self.sender.send(completion.webhook.url, completion)
            after = self.queue.deliveries.record(completion_id, completion.webhook, attempt)
            log.info("webhook of completion %s: %s", completion_id, after.state)
        except Exception as error:  # its lease ends, and then it is tried again
            log.warning("webhook of completion %s: %s", completion_id, error)

    def sweep(self) -> int:
        """Remove the files of what has expired, and of what the queue has forgotten; how many there were."""
        ages = self.storage.ages()
        expired, unknown = self.queue.upkeep.not_kept(list(ages))
        swept = [*expired, *(name for name in unknown if ages[name] > self.settings.result_ttl_s)]
        for name in swept:
            self.storage.remove(name)
        for completion_id in self.queue.upkeep.deleted_before(time.time() - LAST_WRITES_S):
            self.storage.remove(completion_id)
            self.queue.upkeep.forget_deleted(completion_id)
        self.queue.upkeep.forget_lapsed()
        return len(swept)
