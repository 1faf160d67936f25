"""The types that the package declares agree with one another."""

import subprocess
import sys
from pathlib import Path


def test_mypy_finds_no_error() -> None:
    """With the settings of pyproject.toml; half a minute where no earlier run left a cache."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
