"""Every setting of the service: one typed place, read from the environment and from flags."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from `DEEPSDF_…` variables (and `REDIS_URL`); `python -m app` takes each as a flag too."""

    model_config = SettingsConfigDict(
        env_prefix="DEEPSDF_", cli_kebab_case=True, cli_prog_name="python -m app", populate_by_name=True
    )

    host: str = Field(default="127.0.0.1", description="Address that the API listens on.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port that the API listens on.")
    data_dir: Path = Field(
        default=Path("data/service"), description="Folder of scans, results and the embedded queue."
    )
    checkpoints_dir: Path = Field(
        default=Path("checkpoints"), description="Folder with one folder per trained model."
    )
    redis_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("REDIS_URL", "redis_url"),
        description="Redis or Valkey to use. Unset: `python -m app` starts the embedded one.",
    )

    max_body_bytes: int = Field(
        default=64 * 2**20, gt=0, description="Largest request body; larger ones get 413."
    )
    max_points: int = Field(
        default=2_000_000, ge=64, description="Most points in one scan, all its files together; more get 413."
    )
    max_pixels: int = Field(
        default=16_000_000, gt=0, description="Most pixels of a scan's depth maps together; more get 413."
    )
    max_queued: int = Field(default=64, gt=0, description="Completions that may wait; further ones get 429.")
    parse_slots: int = Field(
        default=2, gt=0, description="Uploads that one API process reads at the same time."
    )

    deadline_s: float = Field(
        default=300, gt=0, description="Seconds that one completion may run; then it fails."
    )
    retries: int = Field(
        default=3, ge=1, description="Times a completion starts again after its worker broke."
    )
    batch_slots: int = Field(
        default=0,
        ge=0,
        description="Completions that one worker fits at the same time; 0: 16 on a GPU, 1 on a CPU.",
    )
    max_running_per_key: int = Field(
        default=0,
        ge=0,
        description="Completions of one API key that run at the same time, while others wait; 0: any number.",
    )
    previews: bool = Field(
        default=True, description="Whether a coarse mesh can be had while a completion is being fitted."
    )
    model_memory_bytes: int = Field(
        default=4 * 2**30,
        gt=0,
        description="Memory for trained models in one worker; those least used make room for others.",
    )
    lease_s: int = Field(
        default=10, ge=2, description="Seconds without a worker's heartbeat until its work is given away."
    )
    drain_s: float = Field(
        default=5,
        ge=0,
        description="Seconds a stopping worker may use to finish before it gives its work back.",
    )
    result_ttl_s: int = Field(
        default=7 * 86400, gt=0, description="Seconds that the record of an ended completion is kept."
    )
    device: str = Field(
        default="auto",
        description="Where the worker computes: auto, cpu, cuda or cuda:N. A list: one worker for each.",
    )

    def environment(self) -> dict[str, str]:
        """The same settings as environment variables, for child processes."""
        values = {name: value for name, value in self if name != "redis_url"}
        named = {f"DEEPSDF_{name.upper()}": str(value) for name, value in values.items()}
        return named if self.redis_url is None else {**named, "REDIS_URL": self.redis_url}


@cache
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
