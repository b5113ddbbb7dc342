"""What is served is what the sources say."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import ROOT

PAGE = ROOT / "app" / "page"


def test_the_bundle_is_of_these_sources():
    """Without Node: the build notes a digest of what it read."""
    sources = [*sorted((PAGE / "src").iterdir()), PAGE / "build.mjs", PAGE / "package-lock.json"]
    digest = hashlib.sha256()
    for file in sources:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    assert (PAGE / "static" / "sources.sha256").read_text().strip() == digest.hexdigest(), "npm run build"


def test_a_new_build_gives_the_same_bytes(tmp_path: Path):
    if shutil.which("node") is None or not (PAGE / "node_modules" / "esbuild").exists():
        pytest.skip("no Node, or no packages: npm ci in app/page")
    subprocess.run(["node", "build.mjs", str(tmp_path)], cwd=PAGE, check=True, capture_output=True)
    built = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert built == {file.name: file.read_bytes() for file in (PAGE / "static").iterdir()}
