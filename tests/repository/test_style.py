"""The code is formatted, free of what ruff finds, and its types agree, by the settings of pyproject.toml."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("gkp", "tests", "benchmarks", "conftest.py")


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", *CODE), ("ruff", "format", "--check", *CODE), ("mypy",)],
    ids=lambda command: " ".join(command[:2]) if command[0] == "ruff" else command[0],
)
def test_it_finds_nothing(command: tuple[str, ...]) -> None:
    """mypy takes half a minute where no earlier run left a cache."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
