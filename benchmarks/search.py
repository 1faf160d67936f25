"""Seconds of the kernel search: alone and beside other work, by width and groups, beside plain Python."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gkp.nets import models
from gkp.search import objective, select

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
from plain_search import plain_select

RELEASED_SECONDS = 381.0  # the released code, for the 18 layers of a ResNet-20, on a machine of this kind


def layers(network: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    convolutions = [m for m in models.create(network).modules() if isinstance(m, nn.Conv2d)]
    return [conv.weight.detach() for conv in convolutions[1:]]


@contextmanager
def busy(threads: int = 2) -> Iterator[None]:
    """Beside another process that computes with so many threads without a pause."""
    code = (
        f"import torch; torch.set_num_threads({threads}); x = torch.rand(500, 500)\n"
        "print('ready', flush=True)\nwhile True: x @ x"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            yield
        finally:
            other.kill()


@contextmanager
def without_numba() -> Iterator[None]:
    """The search as it is where Numba is not installed."""
    compiles = objective.compiles
    try:
        objective.compiles = lambda: False
        yield
    finally:
        objective.compiles = compiles


def seconds(weights: list[torch.Tensor], repeats: int, **options: Any) -> dict[str, float | int]:
    """Wall time of `select` on all layers, in seconds: median, smallest and largest of the repeats."""
    times = []
    select(torch.randn(8, 8, 3, 3))  # loads or compiles what it needs
    for _ in range(repeats):
        started = time.perf_counter()
        for weight in weights:
            select(weight, **options)
        times.append(time.perf_counter() - started)
    return {"median": statistics.median(times), "least": min(times), "most": max(times), "repeats": repeats}


def resnet20_seconds(repeats: int = 5) -> dict[str, dict[str, float | int]]:
    """The 18 layers of a ResNet-20, alone, without Numba, and beside a process that keeps two cores busy."""
    weights = layers("resnet20")
    alone = seconds(weights, repeats)
    with without_numba():
        tensors = seconds(weights, repeats)
    with busy():
        return {"alone": alone, "tensors": tensors, "beside": seconds(weights, repeats)}


def wide_seconds(width: int = 512, repeats: int = 3) -> dict[str, dict[str, float | int]]:
    """One square 3x3 layer, as `resnet20_seconds`."""
    weights = [torch.randn(width, width, 3, 3, generator=torch.Generator().manual_seed(0))]
    alone = seconds(weights, repeats)
    with without_numba():
        tensors = seconds(weights, 1)
    with busy():
        return {"alone": alone, "tensors": tensors, "beside": seconds(weights, repeats)}


def seconds_by_size(
    widths: tuple[int, ...] = (16, 32, 64, 128, 256, 512), groups: tuple[int, ...] = (2, 4, 8, 16)
) -> list[dict[str, float | int]]:
    """One square 3x3 layer of each width in each number of groups: width, groups and `seconds`."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for width in widths:
        weight = torch.randn(width, width, 3, 3, generator=draw)
        repeats = 3 if width <= 64 else 1  # milliseconds need more than one look
        found += [
            {"width": width, "groups": count, **seconds([weight], repeats, groups=count)} for count in groups
        ]
    return found


def plain_python_ratio(repeats: int = 3) -> dict[str, float]:
    """One 16-channel layer: seconds of the same search in plain Python over the median of ours."""
    weight = layers("resnet8")[0]
    ours, selection = seconds([weight], repeats)["median"], select(weight)
    started = time.perf_counter()
    assert plain_select(weight) == (selection.filter_order.tolist(), selection.kept.tolist())
    plain = time.perf_counter() - started
    return {"plain": plain, "ours": ours, "ratio": plain / ours}
