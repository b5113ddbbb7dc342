"""The code of the notebook and of the documents, on the running service with the tiny model."""

from __future__ import annotations

import json
import re
import shutil

import matplotlib as mpl
import pytest
import trimesh
from processes import ROOT

from app.client import Client

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(service, tmp_path, monkeypatch):
    service.ready()
    shutil.copy(ROOT / "examples" / "chair.ply", tmp_path)
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    url = str(service.client.http.base_url)
    swaps = {
        "http://127.0.0.1:8000": url,
        '"chairs"': '"tiny", resolution=40',
        ".vertices)\n": ".vertices)[::20]\n",
    }
    for there, here in swaps.items():
        assert there in code
        code = code.replace(there, here)
    exec(compile(code, NOTEBOOK.name, "exec"), {})
    assert trimesh.load(tmp_path / "completed.glb", force="mesh").is_watertight
    assert trimesh.load(tmp_path / "completed.ply").is_watertight


def test_the_notebook_is_kept_without_outputs():
    """They would be stale with the next checkpoint, and make every change unreadable."""
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/quickstart.md", "docs/api.md"])
def test_the_python_of_the_documents_runs(service, document, tmp_path, monkeypatch, capsys):
    service.ready()
    as_written = Client.complete

    def complete(client, scan, **more):
        easy = {"model": "tiny", "resolution": 40, "pose": "canonical"}
        return as_written(client, scan, **{**more, **easy})

    monkeypatch.setattr(Client, "complete", complete)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        assert "http://127.0.0.1:8000" in block
        code = block.replace("http://127.0.0.1:8000", str(service.client.http.base_url))
        exec(compile(code, document, "exec"), {})
    for file in (*tmp_path.glob("completed.*"), *tmp_path.glob("out/*")):
        assert trimesh.load(file, force="mesh").is_watertight
