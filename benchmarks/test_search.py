"""Speed of the search: the 18 layers of a ResNet-20, and its ratio to the same search in plain Python.

    python -m pytest benchmarks --benchmark-only

The released code takes 381 s for these 18 layers on a machine of this kind. The weights here are
random ones of the same shapes, because the time depends on the shapes.
"""

from __future__ import annotations

import pytest

from benchmarks.search import RELEASED_SECONDS, layers, plain_python_ratio
from gkp.search import select


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


def test_ratio_to_plain_python() -> None:
    """One 16-channel layer, both searches in the same run."""
    ratio = plain_python_ratio()["ratio"]
    print(f"\none 16-channel layer: {ratio:.0f} times the speed of the same search in plain Python")
