"""Files of completions in a local directory: one folder each, everything in it written by rename."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from app.scans import Scan


class Storage:
    """Scans in, meshes out. Whoever reads a file here sees all of it or nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root / "completions"

    def save_scan(self, completion_id: str, scan: Scan, original: bytes) -> None:
        """Keep the scan in our own format, and beside it the bytes that the client sent."""
        self._write(self._folder(completion_id) / "original", original)
        self._write(self.scan_path(completion_id), scan.to_bytes())

    def load_scan(self, completion_id: str) -> Scan:
        """Read the scan back. Raises FileNotFoundError when there is none."""
        return Scan.from_bytes(self.scan_path(completion_id).read_bytes())

    def save_mesh(self, completion_id: str, glb: bytes) -> None:
        """Keep the finished mesh; a second attempt of the same completion replaces it whole."""
        self._write(self.mesh_path(completion_id), glb)

    def scan_path(self, completion_id: str) -> Path:
        """Where the scan lies."""
        return self._folder(completion_id) / "scan.npz"

    def mesh_path(self, completion_id: str) -> Path:
        """Where the mesh lies, once there is one."""
        return self._folder(completion_id) / "mesh.glb"

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
