"""Files of Debian packages, downloaded and unpacked without root."""

from __future__ import annotations

import subprocess
import tempfile
import zipfile
from pathlib import Path

from model.training.shapes import SourceError


def unpacked(package: str, folder: Path) -> Path:
    """Folder of a Debian package's files under `folder`, downloaded and unpacked there unless it was before.

    A file `folder`/PACKAGE_*.deb is used in place of a download. Raises SourceError.
    """
    root = folder / package
    if root.is_dir():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    archive = _archive(package, folder) or _downloaded(package, folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        files = Path(scratch).resolve() / "files"
        _call(["dpkg-deb", "-x", str(archive.resolve()), str(files)], folder, f"{archive} cannot be unpacked")
        files.rename(root)
    return root


def read_member(root: Path, file: str) -> bytes:
    """Bytes of `file` under `root`; "archive.zip!/a/b" names member a/b of a zip archive.

    Raises SourceError when there is no such file.
    """
    archive, _, member = file.partition("!")
    try:
        if not member:
            return (root / archive).read_bytes()
        with zipfile.ZipFile(root / archive) as container:
            return container.read(member.lstrip("/"))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(f"{root}: no {file}: {error}") from error


def _archive(package: str, folder: Path) -> Path | None:
    return max(folder.glob(f"{package}_*.deb"), default=None)


def _downloaded(package: str, folder: Path) -> Path:
    hint = f"put {package}_*.deb into {folder} by hand, or run `apt-get update` and try again"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _call(["apt-get", "download", package], Path(scratch), f"{package} cannot be downloaded; {hint}")
        archive = _archive(package, Path(scratch))
        if archive is None:
            raise SourceError(f"apt-get brought no {package}; {hint}")
        return archive.rename(folder / archive.name)


def _call(command: list[str], folder: Path, trouble: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise SourceError(
            f"{trouble} ({command[0]} is not installed: this needs Debian or Ubuntu)"
        ) from error
    except subprocess.CalledProcessError as error:
        raise SourceError(f"{trouble} ({error.stderr.strip()})") from error
