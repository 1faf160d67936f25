"""Pytest configuration for the whole repository: tests marked `slow` run only with GKP_SLOW=1."""

import os
import sys
from pathlib import Path

import pytest

if sys.dont_write_bytecode:  # each of the hundred processes that tests start would compile PyTorch anew
    sys.dont_write_bytecode = False
    sys.pycache_prefix = sys.pycache_prefix or str(Path(__file__).parent / ".cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Of jsonschema, which nbformat imports: grammars of addresses, seconds in each process. No notebook has any.
sys.modules.setdefault("rfc3987_syntax", None)


def pytest_configure() -> None:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if workers > 1:  # which share the cores, and would wait for one another's threads
        import torch

        threads = max(1, torch.get_num_threads() // workers)
        torch.set_num_threads(threads)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of the processes that tests start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("GKP_SLOW") == "1":
        return
    skip = pytest.mark.skip(reason="slow; set GKP_SLOW=1 to run it")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)
