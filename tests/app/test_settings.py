"""Settings: each is described, and a wrong one is told in a line that says what to change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import BadSettings, Settings, loaded

ROOT = Path(__file__).resolve().parents[2]
WRONG = {
    "DEEPSDF_PORT": "many",
    "DEEPSDF_MAX_QUEUED": "0",
    "DEEPSDF_API_KEYS": '{"alice": "not a digest"}',
    "DEEPSDF_WEBHOOK_SECRET": "secret",
    "DEEPSDF_WEBHOOK_DELAYS_S": "[1, true, null]",
    "DEEPSDF_RATE_LIMIT": "often",
    "DEEPSDF_PARSE_MEMORY_BYTES": "1",
    "REDIS_URL": "localhost:6379",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_named(name, monkeypatch):
    monkeypatch.setenv(name, WRONG[name])
    with pytest.raises(BadSettings) as refused:
        loaded(Settings)
    assert name in str(refused.value) and "\n" not in str(refused.value)


def test_what_must_be_json_is_told(monkeypatch):
    monkeypatch.setenv("DEEPSDF_API_KEYS", "alice=1")
    with pytest.raises(BadSettings, match=r"api_keys.*JSON"):
        loaded(Settings)


@pytest.mark.parametrize("url", ["", "localhost", "http://localhost", "redis://a:many", "redis://a:99999"])
def test_what_is_no_address_of_a_queue_is_refused(url, monkeypatch):
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(BadSettings, match=r"REDIS_URL .*such as redis://"):
        loaded(Settings)


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "app", "--port", "many"],
        ["-m", "uvicorn", "app.main:create_app", "--factory", "--port", "1"],
        ["-m", "worker"],
    ],
    ids=["service", "api", "worker"],
)
def test_a_process_with_wrong_settings_ends_with_one_line(command):
    environment = {**os.environ, "DEEPSDF_PORT": "many", "REDIS_URL": "redis:/127.0.0.1:many"}
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode not in (0, None)
    assert "DEEPSDF_PORT" in ended.stderr and "REDIS_URL" in ended.stderr and "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr


def test_settings_pass_through_the_environment_unchanged(monkeypatch):
    given = Settings(api_keys={"a": "0" * 64}, webhook_delays_s=[0.5], allow_without_keys=True, max_queued=3)
    for name, value in given.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == given
