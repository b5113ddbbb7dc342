"""Files of completions in a local folder. What a worker writes is written by rename.

What came in is one file for each completion, since it is the making of files that takes time. What is made of
it lies in a folder for each.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from app.scans import Scan
from app.schemas import MeshFormat


class Storage:
    """Scans in, meshes and reports out. Whoever reads a file here sees all of it or nothing."""

    def __init__(self, root: Path) -> None:
        self.root, self.uploads = root / "completions", root / "uploads"

    def save_scan(self, completion_id: str, scan: Scan, originals: Mapping[str, bytes]) -> None:
        """Keep a scan, and beside it the files that it came from, by name. Those of the API's clients are
        written by its readers.

        Nobody has heard of the completion yet who could read half of it.
        """
        scan.save(self.upload_path(completion_id), originals)

    def load_scan(self, completion_id: str) -> Scan:
        """Read the scan back. Raises FileNotFoundError when there is none."""
        return Scan.load(self.upload_path(completion_id))

    def save_mesh(self, completion_id: str, mesh: bytes, format: MeshFormat, sample: int = 0) -> None:
        """Keep a finished mesh; a second attempt of the same completion replaces it whole."""
        self._write(self.mesh_path(completion_id, format, sample), mesh)

    def save_picture(self, completion_id: str, png: bytes) -> None:
        """Keep the picture of a finished mesh."""
        self._write(self.picture_path(completion_id), png)

    def save_preview(self, completion_id: str, mesh: bytes) -> None:
        """Keep a coarse mesh of a completion that is being fitted, in place of the one before."""
        self._write(self.preview_path(completion_id), mesh)

    def save_report(self, completion_id: str, report: dict[str, Any]) -> None:
        """Keep the whole report; what JSON has no number for becomes null."""
        self._write(self.report_path(completion_id), to_json(report, inf_nan_mode="null"))

    def load_report(self, completion_id: str) -> dict[str, Any]:
        """Read the report back. Raises FileNotFoundError when there is none."""
        report: dict[str, Any] = json.loads(self.report_path(completion_id).read_bytes())
        return report

    def upload_path(self, completion_id: str) -> Path:
        """Where the scan lies, with the files it came from."""
        return self.uploads / f"{_checked(completion_id)}.safetensors"

    def scan_ply(self, completion_id: str) -> Path:
        """Where its points lie for people and their tools; written when first asked for.

        Raises FileNotFoundError when there is no scan.
        """
        path = self._folder(completion_id) / "scan.ply"
        if not path.exists():
            self._write(path, self.load_scan(completion_id).to_ply())
        return path

    def picture_path(self, completion_id: str) -> Path:
        """Where the picture of the completed mesh lies, once there is one."""
        return self._folder(completion_id) / "preview.png"

    def mesh_path(self, completion_id: str, format: MeshFormat = "glb", sample: int = 0) -> Path:
        """Where a mesh lies, once there is one: the completion itself, or alternative 1, 2, …"""
        return self._folder(completion_id) / f"{f'sample-{sample}' if sample else 'mesh'}.{format}"

    def preview_path(self, completion_id: str) -> Path:
        """Where the newest preview lies, a GLB, once there is one."""
        return self._folder(completion_id) / "preview.glb"

    def report_path(self, completion_id: str) -> Path:
        """Where the report lies, once there is one."""
        return self._folder(completion_id) / "report.json"

    def ages(self) -> dict[str, float]:
        """Every completion of which there is anything, and how many seconds ago something was added last."""
        now, ages = time.time(), {}
        for path in chain(self.uploads.glob("*.safetensors"), self.root.glob("*")):  # results come later
            with suppress(FileNotFoundError):
                ages[path.stem] = now - path.stat().st_mtime
        return ages

    def remove(self, completion_id: str) -> None:
        """Forget everything of a completion; nothing there is fine."""
        self.upload_path(completion_id).unlink(missing_ok=True)
        shutil.rmtree(self._folder(completion_id), ignore_errors=True)

    def _folder(self, completion_id: str) -> Path:
        return self.root / _checked(completion_id)

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _checked(completion_id: str) -> str:
    """The id, if it is one: no path comes from outside."""
    if not completion_id.isalnum():
        raise ValueError(f"not an id of a completion: {completion_id!r}")
    return completion_id
