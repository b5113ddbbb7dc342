"""What the processes tell: lines for people on a terminal, JSON for machines elsewhere.

Modules log by `logging.getLogger(__name__)` and know nothing of this. The ids of the request and the
completion in hand are on every line.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structlog.types import EventDict, Processor

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""X-Request-ID of the request in hand, on this task or thread."""

completion_id: ContextVar[str] = ContextVar("completion_id", default="")
"""The completion that a worker has in hand."""


def configure(process: str) -> None:
    """Log to standard error, as the process of this name."""
    import structlog

    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.stdlib.ExtraAdder(),
        lambda _, __, event: _with_ids(process, event),
    ]
    last: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        *_rendering(people=sys.stderr.isatty()),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("httpx2", "httpcore2", "uvicorn.access", "rq.worker"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _rendering(people: bool) -> list[Processor]:
    import structlog

    if people:
        return [structlog.dev.ConsoleRenderer()]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(sort_keys=True)]


def _with_ids(process: str, event: EventDict) -> EventDict:
    event["process"] = process
    for name, variable in (("request_id", request_id), ("completion_id", completion_id)):
        if value := variable.get():
            event.setdefault(name, value)
    return event
