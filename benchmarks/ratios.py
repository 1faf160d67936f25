"""Times of several ways to do the same work, taken in turns, and their ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Times = Mapping[str, list[float]]  # way -> seconds of every round


def interleaved(ways: Mapping[str, Callable[[], Any]], rounds: int) -> Times:
    """Seconds of every way in every round, after a round that does not count.

    One after the other within a round, so that what else the machine does meets all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, work in ways.items():
            started = time.perf_counter()
            work()
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def row(what: str, times: Times, ours: str, against: str, goal: float | None = None) -> dict[str, Any]:
    """How many times as fast `ours` is as `against`: the median of the rounds' ratios and their quartiles.

    Seconds are medians. goal: the ratio that is wanted; None where there is none.
    """
    own, other = (np.array(times[name]) for name in (ours, against))
    low, ratio, high = np.quantile(other / own, [0.25, 0.5, 0.75])
    return {
        "what": what,
        "ours": ours,
        "against": against,
        "seconds": _short(np.median(own)),
        "against_seconds": _short(np.median(other)),
        "ratio": _short(ratio),
        "low": _short(low),
        "high": _short(high),
        "goal": goal,
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")
