"""Times of several functions on one input, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WARM = 2  # rounds before those that count: caches, and whatever a runtime does at first


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call: the least, the quartiles."""

    least: float
    low: float
    median: float
    high: float


def interleaved(
    variants: Mapping[str, Callable[[Tensor], Tensor]], x: Tensor, *, rounds: int
) -> dict[str, Timing]:
    """The times of each variant on x; all run once in every round, each round beginning with another one.

    Choices go by the least: other work on the machine only ever adds to a time, and where processes share
    cores it adds more than what two variants differ by.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    with torch.inference_mode():
        for turn in range(rounds + WARM):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                start = time.perf_counter()
                variants[name](x)
                if turn >= WARM:
                    times[name].append(1e3 * (time.perf_counter() - start))
    return {name: _summary(each) for name, each in times.items()}


def _summary(times: list[float]) -> Timing:
    cuts = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else 3 * times
    return Timing(min(times), *cuts)
