"""The queue of completions and interpolations, on RQ: the only package of the app that knows RQ.

The job's record in Redis is the one source of truth. The API writes it when it enqueues; from then on only
the worker does that holds its lease. To cancel is to take the lease away: whoever has lost it writes no more.
"""

from app.queue.completions import AlreadyEnded, CompletionQueue, Page
from app.queue.connection import connect, watching
from app.queue.names import INTERPOLATE, QUEUE, SERIALIZER, TASK, WAKE, new_id
from app.queue.submission import Asked, QueueFull, Ticket, TooManyOpen

__all__ = [
    "INTERPOLATE",
    "QUEUE",
    "SERIALIZER",
    "TASK",
    "WAKE",
    "AlreadyEnded",
    "Asked",
    "CompletionQueue",
    "Page",
    "QueueFull",
    "Ticket",
    "TooManyOpen",
    "connect",
    "new_id",
    "watching",
]
