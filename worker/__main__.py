"""`python -m worker`: load every model once, then listen."""

from __future__ import annotations

import logging
import sys
import time

from app import logs
from app.queue import connect
from app.settings import Settings, get_settings
from worker.listener import Listener

log = logging.getLogger("worker")


def main() -> int:
    """Returns 0 after a requested stop, 1 when there is nothing to serve."""
    logs.configure("worker")
    settings = get_settings()
    if not _load(settings):
        return 1
    Listener(connect(settings, patience_s=10), settings).listen()
    return 0


def _load(settings: Settings) -> int:
    """Load every checkpoint before anyone hears of this worker; how many there were."""
    from worker.tasks import completer

    names = sorted(card.parent.name for card in settings.checkpoints_dir.glob("*/card.json"))
    for name in names:
        start = time.perf_counter()
        device = completer(name).checkpoint.device
        log.info("model %s loaded on %s in %.1f s", name, device, time.perf_counter() - start)
    if not names:
        log.error("there is no checkpoint in %s", settings.checkpoints_dir.resolve())
    return len(names)


if __name__ == "__main__":
    sys.exit(main())
