"""Speed of the search: the 18 layers of a ResNet-20, and its ratio to the same search in plain Python.

    python -m pytest benchmarks --benchmark-only

The released code takes 381 s for these 18 layers on a machine of this kind. The weights here are
random ones of the same shapes, because the time depends on the shapes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gkp.nets import models
from gkp.search import select

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from plain_search import plain_select  # noqa: E402

RELEASED_SECONDS = 381.0


def layers(network: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    convolutions = [m for m in models.create(network).modules() if isinstance(m, nn.Conv2d)]
    return [conv.weight.detach() for conv in convolutions[1:]]


@pytest.mark.parametrize("arithmetic", ["fast", "released"])
def test_resnet20(benchmark, arithmetic: str) -> None:
    weights = layers("resnet20")
    benchmark.pedantic(
        lambda: [select(weight, arithmetic=arithmetic) for weight in weights], rounds=5, warmup_rounds=1
    )
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["times_faster_than_released"] = round(RELEASED_SECONDS / seconds)
    print(
        f"\n18 layers in {seconds:.2f} s: {RELEASED_SECONDS / seconds:.0f} times the released search's speed"
    )


@pytest.mark.parametrize("strategy", ["greedy", "exact"])
def test_other_strategies_on_a_16_channel_layer(benchmark, strategy: str) -> None:
    weight = layers("resnet8")[0]
    benchmark(lambda: select(weight, strategy=strategy))


def test_ratio_to_plain_python(benchmark) -> None:
    """One 16-channel layer, both searches in the same run."""
    weight = layers("resnet8")[0]
    selection = benchmark(lambda: select(weight))
    started = time.perf_counter()
    assert plain_select(weight) == (selection.filter_order.tolist(), selection.kept.tolist())
    ratio = (time.perf_counter() - started) / benchmark.stats.stats.median
    benchmark.extra_info["times_faster_than_plain_python"] = round(ratio)
    print(f"\none 16-channel layer: {ratio:.0f} times the speed of the same search in plain Python")


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


def seconds(weights: list[torch.Tensor], repeats: int, **options: Any) -> dict[str, float | int]:
    """Wall time of `select` on all layers, in seconds: median, smallest and largest of the repeats."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for weight in weights:
            select(weight, **options)
        times.append(time.perf_counter() - started)
    return {"median": statistics.median(times), "least": min(times), "most": max(times), "repeats": repeats}


def resnet20_seconds(repeats: int = 5) -> dict[str, dict[str, float | int]]:
    """The 18 layers of a ResNet-20, alone and beside a process that keeps two cores busy, see `seconds`."""
    weights = layers("resnet20")
    alone = seconds(weights, repeats)
    with busy():
        return {"alone": alone, "beside": seconds(weights, repeats)}


def seconds_by_size(
    widths: tuple[int, ...] = (64, 128, 256, 512), groups: tuple[int, ...] = (2, 4, 8, 16), repeats: int = 1
) -> list[dict[str, float | int]]:
    """One square 3x3 layer of each width in each number of groups: width, groups and `seconds`."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for width in widths:
        weight = torch.randn(width, width, 3, 3, generator=draw)
        found += [
            {"width": width, "groups": count, **seconds([weight], repeats, groups=count)} for count in groups
        ]
    return found


def plain_python_ratio(repeats: int = 3) -> dict[str, float]:
    """One 16-channel layer: seconds of the same search in plain Python over the median of ours."""
    weight = layers("resnet8")[0]
    ours = seconds([weight], repeats)["median"]
    started = time.perf_counter()
    plain_select(weight)
    plain = time.perf_counter() - started
    return {"plain": plain, "ours": ours, "ratio": plain / ours}
