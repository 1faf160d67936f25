"""The command that runs the suite "tiny" in jobs of a cluster, and the environment that it and they need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HELPERS = Path(__file__).parent


def environment(methods: tuple[str, ...], **more: object) -> dict[str, str]:
    paths = [HELPERS, HELPERS.parents[1], *filter(None, [os.environ.get("PYTHONPATH")])]
    given = {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "GKP_PLUGINS": str(HELPERS / "tiny_cluster.py"),
        "TINY_METHODS": " ".join(methods),
    }
    return os.environ | given | {name: str(value) for name, value in more.items()}


def command(root: Path, slurm: str) -> list[str]:
    """`python -m gkp run` for the suite "tiny"; jobs compute with one thread."""
    options = ["--root", str(root), "--device", "cpu", "--slurm", f"{slurm},cpus=1"]
    return [sys.executable, "-m", "gkp", "run", "--suite", "tiny", *options]


def run(root: Path, slurm: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The command until its end, jobs and all."""
    return subprocess.run(command(root, slurm), env=variables, capture_output=True, text=True, timeout=900)


def written_records(log: Path) -> int:
    """How many records TINY_LOG saw written; an assertion fails when one was written twice."""
    paths = [line.split()[1] for line in log.read_text().splitlines() if "/results/" in line]
    assert len(paths) == len(set(paths)), paths
    return len(paths)
