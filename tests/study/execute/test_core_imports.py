"""Training needs few packages: those of the machines with GPUs.

CORE is what such a machine has; whatever these packages require themselves is there as well.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CORE = ("torch", "torchvision", "pandas", "pyarrow", "scikit-learn", "safetensors", "rich", "typer")

# Runs `gkp run` on a tiny suite of the methods argv[2:] below argv[1], where nothing but the packages in
# the environment variable ALLOWED can be imported.
SCRIPT = """
import importlib.metadata, os, sys

allowed = {*os.environ["ALLOWED"].split(), "gkp"}
owners = importlib.metadata.packages_distributions()


class Without:  # a finder that does not see what is not allowed, as if it were not installed
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        packages = {package.lower().replace("_", "-") for package in owners.get(name.partition(".")[0], ())}
        return None if packages and not packages & allowed else self.finder.find_spec(name, path, target)


sys.meta_path[:] = map(Without, sys.meta_path)

from tiny_suite import IMAGES, tiny_suite

from gkp import cli, data
from gkp.study.runs import suites

root, methods = sys.argv[1], sys.argv[2:]
load = data.load
data.load = lambda name, part, **_: load(name, part).take(IMAGES)
suites.SUITES["tiny"] = lambda: tiny_suite(*methods)
sys.argv = ["gkp", "run", "--suite", "tiny", "--root", root]
cli.main()
"""


def with_requirements(packages: tuple[str, ...]) -> set[str]:
    """Names of the packages and of all that they require without extras, in lower case with hyphens."""
    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # required on other systems only
        found.add(name)
        waiting += [re.match(r"[\w.-]+", line)[0] for line in required if "extra ==" not in line]
    return found


def run_with_core_packages(root: Path, *methods: str) -> str:
    allowed = " ".join(with_requirements(CORE))
    environment = os.environ | {
        "ALLOWED": allowed,
        "PYTHONPATH": f"{Path(__file__).parents[2] / 'helpers'}:.",
    }
    command = [sys.executable, "-c", SCRIPT, str(root), *methods]
    done = subprocess.run(
        command, env=environment | {"GKP_PROGRESS": "off"}, capture_output=True, text=True, timeout=600
    )
    return f"exit {done.returncode}\n{done.stdout}{done.stderr}"


def test_a_one_shot_method_and_one_in_training_need_the_core_packages_alone(tmp_path: Path) -> None:
    output = run_with_core_packages(tmp_path, "sr-gkp", "sfp")
    assert output.startswith("exit 0\ntiny: 5 done, 0 had a record, 0 left"), output


@pytest.mark.slow
def test_every_method_needs_the_core_packages_alone(tmp_path: Path) -> None:
    from gkp.study.runs.suites import grids

    names = grids.by_value()
    output = run_with_core_packages(tmp_path, *names)
    assert output.startswith(f"exit 0\ntiny: {len(names) + 3} done, 0 had a record, 0 left"), output
