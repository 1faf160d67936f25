"""Pytest configuration for the whole repository: tests marked `slow` run only with GKP_SLOW=1."""

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("GKP_SLOW") == "1":
        return
    skip = pytest.mark.skip(reason="slow; set GKP_SLOW=1 to run it")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)
