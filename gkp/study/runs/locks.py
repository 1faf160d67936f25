"""Locks of runs: the operating system's, so that those of a killed process are free again at once."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock


def alone(name: str, root: Path) -> FileLock:
    """The lock of that name, for a `with` block in which no other process is; nothing is held yet."""
    path = root / "work" / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, mode=0o666)
