"""What the processes tell: lines for people on a terminal, JSON for machines elsewhere.

Modules log by `logging.getLogger(__name__)` and know nothing of this. The id of the request in hand is on
every line; a worker, which has several completions in hand, names them in `extra`.
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
        lambda _, __, event: _named(process, event),
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


def _named(process: str, event: EventDict) -> EventDict:
    event["process"] = process
    if asked := request_id.get():
        event.setdefault("request_id", asked)
    return event
