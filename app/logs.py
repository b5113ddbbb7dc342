"""What the processes tell: lines for people on a terminal, JSON for machines elsewhere.

Modules log by `logging.getLogger(__name__)` and know nothing of this. The id of the request in hand is on
every line; a worker, which has several completions in hand, names them in `extra`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""X-Request-ID of the request in hand, on this task or thread."""


OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""What a record has of itself. All else came by `extra`."""


def configure(process: str) -> None:
    """Log to standard error, as the process of this name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines(process, people=sys.stderr.isatty()))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Of a record nobody is told these.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for noisy in ("httpx2", "httpcore2", "uvicorn.access", "rq.worker"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class Lines(logging.Formatter):
    """A line of JSON for each record, or what people rather read.

    With structlog's chain of processors a line takes half as long again (decision 34).
    """

    def __init__(self, process: str, people: bool) -> None:
        super().__init__()
        self.process = process
        self.render = _for_people() if people else self._as_json

    def format(self, record: logging.LogRecord) -> str:
        """The line, and below it for people the traceback."""
        event = {name: value for name, value in vars(record).items() if name not in OWN}
        at = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
        event |= {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
        event |= {"process": self.process, "timestamp": at}
        if asked := request_id.get():
            event.setdefault("request_id", asked)
        if record.exc_info:
            event["exc_info"] = record.exc_info
        return self.render(event)

    def _as_json(self, event: dict[str, Any]) -> str:
        if "exc_info" in event:
            event["exception"] = self.formatException(event.pop("exc_info"))
        return json.dumps(event, sort_keys=True, default=repr)


def _for_people() -> Callable[[dict[str, Any]], str]:
    import structlog

    renderer = structlog.dev.ConsoleRenderer()
    return lambda event: str(renderer(None, "", event))
