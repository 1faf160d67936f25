"""The common measure of pruning: what a network costs, and the rate at which a method meets a target."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from gkp.nets import cost, products
from gkp.nets.channels.surgery import default_input
from gkp.pruners.common.registry import Cut

WORDS = {"macs": "multiply-adds", "params": "parameters"}
CLOSE = 0.001  # relative; the layers' widths are whole numbers, so that few targets are met exactly


def costs(model: nn.Module, example: Tensor) -> dict[str, Any]:
    """MACs and parameters in both conventions for one image, and the MACs that pruning is about."""
    counted = {name: asdict(cost.count(model, example, convention=name)) for name in cost.CONVENTIONS}
    return counted | {"prunable_macs": prunable_macs(model, example)}


def prunable_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds of all convolutions but the one that runs first, which reads the image; per image."""
    calls = products.products(model, example)
    convolutions = [number for operator, number in calls if operator in products.CONVOLUTIONS]
    return sum(convolutions[1:])


def cut_to(model: nn.Module, cut: Cut, ratio: float, example: Tensor) -> tuple[nn.Module, float]:
    """The copy of `model` that keeps `ratio` of its prunable MACs, and the rate of `cut` that gives it.

    Most methods remove the same share everywhere, so 1 - ratio is tried before the search for a rate.
    A method that cannot meet the target gives what comes nearest; `Record.misses_target` tells.
    ValueError for a network without prunable MACs.
    """
    prunable = prunable_macs(model, example)
    if not prunable:
        raise ValueError(
            "no convolution but the first: this network has no prunable multiply-adds to keep a share of; "
            "choose a rate instead (gkp.prune)"
        )
    with suppress(ValueError):  # of a layer that would lose all its kernels
        pruned = cut(1 - ratio)
        if abs(prunable_macs(pruned, example) - ratio * prunable) <= CLOSE * ratio * prunable:
            return pruned, 1 - ratio
    target = cost.count(model, example).macs - (1 - ratio) * prunable
    return match_macs(model, cut, target, example_input=example, tolerance=math.inf)


def match_macs(
    model: nn.Module, cut: Cut, macs: float, *, example_input: Tensor | None = None, tolerance: float = 0.01
) -> tuple[nn.Module, float]:
    """The pruned copy whose multiply-adds (usual convention) come nearest to `macs`, and its rate.

    Bisection on the method's own rate; `macs` is an absolute number per image. Rates at which the method
    refuses to cut, mostly because nothing of a layer would be left, are passed over. ValueError for macs
    that are no positive number, a tolerance below 0, when no rate can be cut at, and when the nearest
    copy is further off than `tolerance` (relative; math.inf takes what comes nearest).
    """
    return _nearest(model, cut, "macs", macs, example_input, tolerance)


def match_params(
    model: nn.Module, cut: Cut, params: float, *, example_input: Tensor | None = None, tolerance: float = 0.01
) -> tuple[nn.Module, float]:
    """As `match_macs`, for a number of parameters."""
    return _nearest(model, cut, "params", params, example_input, tolerance)


def _nearest(
    model: nn.Module, cut: Cut, size: str, target: float, example_input: Tensor | None, tolerance: float
) -> tuple[nn.Module, float]:
    """size: a field of `cost.Cost`."""
    if not 0 < target < math.inf or not tolerance >= 0:
        raise ValueError(
            f"{size}={target}, tolerance={tolerance}: give a positive number of {WORDS[size]} and "
            "a tolerance of 0 or more"
        )
    example_input = default_input(model, example_input)
    low, high = 0.0, 1.0
    error, nearest, nearest_rate = math.inf, model, 0.0
    refused: ValueError | None = None
    for _ in range(12):
        rate = (low + high) / 2
        try:
            pruned = cut(rate)
        except ValueError as reason:  # a smaller rate leaves more
            high, refused = rate, reason
            continue
        left = getattr(cost.count(pruned, example_input), size)
        if abs(left - target) < error:
            error, nearest, nearest_rate = abs(left - target), pruned, rate
        low, high = (rate, high) if left > target else (low, rate)
    if refused and nearest is model:
        raise refused
    if error > tolerance * target:
        raise ValueError(
            f"no rate comes within {100 * tolerance:g} % of {target / 1e6:.3f} M {WORDS[size]}: the nearest "
            f"misses by {error / target:.2%} (rate {nearest_rate:.4f}); raise the tolerance or choose "
            "another target"
        )
    return nearest, nearest_rate
