"""`python -m worker`: load the models once, then listen.

It takes no flags: what it needs are environment variables, REDIS_URL and those of docs/operations.md.
"""

from __future__ import annotations

import argparse
import logging
import sys

from app import logs, tracing
from app.queue import connect
from app.settings import BadSettings, Settings, get_settings

log = logging.getLogger("worker")

SLOTS, LEAST_SLOTS = 16, 2
"""Completions on a GPU unless the setting says otherwise: of all its workers together, and of each at least,
so that one takes steps while another is observed or meshed. On a CPU there is one, which keeps it busy."""


def main() -> int:
    """Returns 0 after a requested stop, 1 when there is nothing to serve.

    What needs torch is imported once the settings are known to be sound.
    """
    argparse.ArgumentParser(prog="python -m worker", description=__doc__).parse_args()
    logs.configure("worker")
    tracing.configure("deepsdf-worker")
    try:
        settings = get_settings()
        connection = connect(settings, patience_s=10)
    except (BadSettings, RuntimeError, ValueError) as error:  # also a REDIS_URL that is none
        log.error("the worker cannot start: %s", error)
        return 1
    if (slots := _load(settings)) == 0:
        return 1

    from worker.listener import Listener

    Listener(connection, settings, slots).listen()
    return 0


def _load(settings: Settings) -> int:
    """Load models before anyone hears of this worker; how many completions it does at a time, or 0."""
    from worker.tasks import completer, models

    if not (names := models().load_all()):
        log.error("there is no checkpoint in %s", settings.checkpoints_dir.resolve())
        return 0
    return settings.batch_slots or slots_on(completer(names[-1]).checkpoint.device.type, settings)


def slots_on(kind: str, settings: Settings) -> int:
    """How many completions at a time a worker on a device of that kind does, unless it is told."""
    return max(LEAST_SLOTS, SLOTS // settings.workers_per_device) if kind == "cuda" else 1


if __name__ == "__main__":
    sys.exit(main())
