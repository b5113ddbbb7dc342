"""The images of the Dockerfile, as far as that can be told without building them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.__main__ import _children
from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
MODULES = {"scikit-image": "skimage", "libigl": "igl"}
"""Where a package is not imported by its own name."""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    told = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=told, capture_output=True, text=True)


def test_the_api_needs_nothing_that_its_image_lacks() -> None:
    found = re.search(r"heavy = \(([^)]*)\)", DOCKERFILE)
    assert found
    lacking = [MODULES.get(name, name) for name in re.findall(r"'([\w-]+)'", found[1])]
    assert "torch" in lacking
    hidden = f"import sys; sys.modules.update(dict.fromkeys({lacking}))"
    ended = run(f"{hidden}; import app.main, app.metrics, app.webhooks, app.scans.child")
    assert ended.returncode == 0, ended.stderr


def test_the_api_is_started_in_its_image_as_it_is_elsewhere() -> None:
    found = re.search(r'CMD (\["uvicorn".*?\])', DOCKERFILE.replace("\\\n", ""))
    assert found
    there, here = json.loads(found[1]), _children(Settings(redis_url="redis://127.0.0.1"))[-1].command
    after_port = [command[command.index("--port") + 2 :] for command in (there, here)]
    assert after_port[0] == after_port[1] != []


@pytest.mark.parametrize("lives", [False, True])
def test_the_health_check_of_the_worker_tells_whether_one_lives(settings: Settings, lives: bool) -> None:
    command = next(line for line in DOCKERFILE.splitlines() if "CompletionQueue" in line)
    _, _, code = json.loads(command.strip().removeprefix("CMD "))
    if lives:
        code = (
            "from app.queue import QUEUE, SERIALIZER, connect; from app.settings import get_settings\n"
            "from rq import SimpleWorker\n"
            "connection = connect(get_settings(), 1)\n"
            "SimpleWorker([QUEUE], connection=connection, serializer=SERIALIZER).register_birth()\n"
        ) + code
    ended = run(code, REDIS_URL=str(settings.redis_url))
    assert (ended.returncode, ended.stderr) == (0 if lives else 1, "")
