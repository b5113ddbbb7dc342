"""Real processes for the tests: the service as a user starts it, and ways to hurt it."""

from __future__ import annotations

from pathlib import Path

from redis import Redis

from app.settings import Settings
from benchmarks.serving import ROOT, Service, eventually, free_port, start_service

__all__ = ["ROOT", "Service", "eventually", "free_port", "settings_at", "start_service"]


def settings_at(valkey: str, folder: Path) -> Settings:
    """Settings on an emptied queue and a folder, with a model that exists by its card only."""
    card = folder / "checkpoints" / "tiny" / "card.json"
    card.parent.mkdir(parents=True)
    card.write_text('{"name": "tiny", "description": "spheres and boxes", "category": "none"}')
    Redis.from_url(valkey).flushall()
    return Settings(
        redis_url=valkey,
        data_dir=folder / "data",
        checkpoints_dir=card.parent.parent,
        max_queued=4,
        max_body_bytes=4 * 2**20,
    )
