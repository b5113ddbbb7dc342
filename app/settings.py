"""Every setting of the service: one typed place, read from the environment and from flags."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable
from functools import cache
from pathlib import Path

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from app.keys import checked_digests


class BadSettings(Exception):
    """A setting has a value that it cannot have."""


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

    api_keys: dict[str, str] = Field(
        default={},
        description="API keys, as JSON: names and their SHA-256, from `python -m app.keys`. Empty: none.",
    )
    allow_without_keys: bool = Field(
        default=False,
        description="Whether others than this machine may ask where there are no API keys, as behind a proxy "
        "that asks for them.",
    )
    rate_limit: str = Field(
        default="120/minute",
        description="Submissions of one API key, such as 5/second or 120/minute; further ones get 429. "
        "Empty: any number.",
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
    max_open_per_key: int = Field(
        default=32,
        gt=0,
        description="Completions of one API key that may wait or run; further ones get 429.",
    )
    parse_slots: int = Field(
        default=2, gt=0, description="Uploads that one API process reads at the same time, each in a child."
    )
    parse_memory_bytes: int = Field(
        default=2 * 2**30, ge=2**27, description="Memory that reading one upload may take; more gets 413."
    )
    parse_s: float = Field(
        default=30, gt=0, description="Seconds that reading one upload may take; then it gets 422."
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
        description="Completions that one worker fits at the same time; 0: 16 on a GPU, fewer where several "
        "workers share it, 1 on a CPU.",
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
        default=7 * 86400,
        gt=0,
        description="Seconds that an ended completion, its scan and its results are kept.",
    )
    expired_ttl_s: int = Field(
        default=30 * 86400,
        gt=0,
        description="Seconds after that, in which it is known to have expired (410).",
    )
    sweep_s: float = Field(
        default=60, gt=0, description="Seconds between two sweeps of what has expired from the disk."
    )
    webhook_secret: str = Field(
        default="",
        description="Secret that signs webhooks (Standard Webhooks): whsec_ and 24 to 64 bytes in base64. "
        "Empty: no webhooks.",
    )
    webhook_delays_s: list[float] = Field(
        default=[5, 300, 1800, 7200, 18000, 36000],
        description="Seconds between the attempts to tell a webhook, as JSON.",
    )
    webhook_private_addresses: bool = Field(
        default=False,
        description="Whether webhooks may lead into private networks and to this machine.",
    )
    device: str = Field(
        default="auto",
        description="Where the worker computes: auto, cpu, cuda or cuda:N. A list: workers on each.",
    )
    workers_per_device: int = Field(
        default=1,
        ge=1,
        description="Workers on each device. One keeps a CPU busy; a GPU has time for several, each of which "
        "holds the models anew.",
    )

    @field_validator("api_keys")
    @classmethod
    def _digests(cls, given: dict[str, str]) -> dict[str, str]:
        return checked_digests(given)

    @field_validator("redis_url")
    @classmethod
    def _url(cls, given: str | None) -> str | None:
        from redis.connection import parse_url

        try:
            if given is not None:
                parse_url(given)  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise ValueError(f"must be such as redis://localhost:6379/0 or unix:///path: {error}") from None
        return given

    @field_validator("rate_limit")
    @classmethod
    def _rate(cls, given: str) -> str:
        from limits import parse

        try:
            if given:
                parse(given)
        except ValueError:
            raise ValueError("must be such as 5/second or 120/minute, or empty") from None
        return given

    @field_validator("webhook_secret")
    @classmethod
    def _secret(cls, given: str) -> str:
        try:
            known = given == "" or 24 <= len(b64decode(given.removeprefix("whsec_"), validate=True)) <= 64
        except ValueError:
            known = False
        if not known:
            raise ValueError("must be whsec_ and 24 to 64 bytes in base64, or empty")
        return given

    @property
    def record_ttl_s(self) -> int:
        """Seconds that the record of an ended completion stays in the queue."""
        return self.result_ttl_s + self.expired_ttl_s

    def environment(self) -> dict[str, str]:
        """The same settings as environment variables, for child processes."""
        values = {name: value for name, value in self if name != "redis_url"}
        named = {f"DEEPSDF_{name.upper()}": _text(value) for name, value in values.items()}
        return named if self.redis_url is None else {**named, "REDIS_URL": self.redis_url}


def _text(value: object) -> str:
    """A value as an environment variable has it."""
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


@cache
def get_settings() -> Settings:
    """The settings of this process, read once. Raises BadSettings."""
    return loaded(Settings)


def loaded(load: Callable[[], Settings]) -> Settings:
    """What `load` loads. Raises BadSettings, which says in a line what to change."""
    try:
        return load()
    except ValidationError as error:
        raise BadSettings("; ".join(map(_told, error.errors()))) from None
    except SettingsError as error:
        raise BadSettings(f"{error}: it must be JSON") from None


def _told(error: ErrorDetails) -> str:
    """Which variable or flag is wrong, and how."""
    name = str(error["loc"][0]) if error["loc"] else "settings"
    variable = "REDIS_URL" if name.lower() == "redis_url" else f"DEEPSDF_{name.upper()}"
    return f"{variable} (--{name.lower().replace('_', '-')}): {error['msg']}"
