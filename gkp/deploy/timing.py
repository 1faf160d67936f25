"""Times of several functions on one input, measured in turns."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

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


def processor() -> str:
    """What this machine calls its processor: "Intel(R) Xeon(R) ..."."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text("utf-8").splitlines() if names.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor() or platform.machine()


def rounds_of(
    variants: Mapping[str, Callable[[Tensor], Tensor]], x: Tensor, *, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of each variant on x in each round; each round runs all, and begins with another one."""
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
    return times


def interleaved(
    variants: Mapping[str, Callable[[Tensor], Tensor]], x: Tensor, *, rounds: int
) -> dict[str, Timing]:
    """The times of each variant on x, by `rounds_of`.

    Choices go by the least: other work on the machine only ever adds to a time, and where processes share
    cores it adds more than what two variants differ by.
    """
    return {name: summary(times) for name, times in rounds_of(variants, x, rounds=rounds).items()}


def summary(times: list[float]) -> Timing:
    """Least and quartiles of times, or of other numbers."""
    cuts = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else 3 * times
    return Timing(min(times), *cuts)
