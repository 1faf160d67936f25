"""Ratios of the times of several ways to do the same work, which were taken in turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Times = Mapping[str, list[float]]  # way -> seconds of every round


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
