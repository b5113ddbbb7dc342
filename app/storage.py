"""Files of completions in a local directory: one folder each. What a worker writes is written by rename."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from app.scans import PackedScan, Scan
from app.schemas import MeshFormat


class Storage:
    """Scans in, meshes and reports out. Whoever reads a file here sees all of it or nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root / "completions"

    def save_scan(self, completion_id: str, scan: Scan | PackedScan, originals: Mapping[str, bytes]) -> None:
        """Keep the scan in our own format, and beside it the files that the client sent, by name.

        Nobody has heard of the completion yet who could read half of it.
        """
        folder = self._folder(completion_id)
        (folder / "original").mkdir(parents=True, exist_ok=True)
        files = {f"original/{name}": data for name, data in originals.items()}
        for name, data in {**files, "scan.npz": scan.to_bytes()}.items():
            (folder / name).write_bytes(data)

    def load_scan(self, completion_id: str) -> Scan:
        """Read the scan back. Raises FileNotFoundError when there is none."""
        return Scan.from_bytes(self.scan_path(completion_id).read_bytes())

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

    def scan_path(self, completion_id: str) -> Path:
        """Where the scan lies."""
        return self._folder(completion_id) / "scan.npz"

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

    def folders(self) -> Iterator[tuple[str, float]]:
        """Every completion of which there is anything, and how many seconds ago something was added last."""
        now = time.time()
        for folder in self.root.glob("*"):
            with suppress(FileNotFoundError):
                yield folder.name, now - folder.stat().st_mtime

    def remove(self, completion_id: str) -> None:
        """Forget everything of a completion; nothing there is fine."""
        shutil.rmtree(self._folder(completion_id), ignore_errors=True)

    def _folder(self, completion_id: str) -> Path:
        if not completion_id.isalnum():
            raise ValueError(f"not an id of a completion: {completion_id!r}")
        return self.root / completion_id

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
