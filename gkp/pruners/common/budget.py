"""The common measure of pruning: what a network costs, and the rate at which a method meets a target."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from gkp import pruners
from gkp.nets import cost, products
from gkp.pruners import Cut

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
    return pruners.match_macs(model, cut, target, example_input=example, tolerance=math.inf)
