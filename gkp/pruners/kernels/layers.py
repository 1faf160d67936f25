"""Which layers grouped kernel pruning takes, and what helps where it can take none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gkp.nets.channels.layers import spatial, unwrapped
from gkp.nets.channels.surgery import (
    default_input,
    filter_weight,
    kernel_layers,
    pointwise_layers,
    prunable_layers,
    summary,
    warn_of,
)
from gkp.nets.grouped_base import GroupedKernels
from gkp.pruners.common.group_numbers import USUAL, Groups, checked_number, mapped_layers

MINORITY = 1 / 3  # of the weights of convolutions: where less can be pruned, what stays whole is named


def layers_to_prune(
    model: nn.Module,
    groups: Groups,
    indivisible: str,
    example_input: Tensor | None = None,
    *,
    pointwise: bool = False,
) -> dict[str, nn.Conv2d | nn.Linear]:
    """Names and layers to prune; the rest is reported in one warning, or refused.

    pointwise: take 1x1 convolutions, else linear layers, of a network in which nothing larger can be pruned.
    Beside larger kernels, 1x1 convolutions are taken where `groups` is a mapping that names them.
    ValueError when a layer cannot be grouped and indivisible="refuse", or when none can.
    """
    if indivisible not in ("skip", "refuse"):
        raise ValueError(f'indivisible={indivisible!r}: choose "skip" or "refuse"')
    if not isinstance(groups, Mapping):
        checked_number(groups)
    if any(isinstance(module, GroupedKernels) for module in model.modules()):
        raise ValueError(
            "this network holds grouped kernels already: prune the network it was made from at a higher "
            "rate, or gkp.nets.grouped.to_dense(model), which has zeros for the kernels that are gone"
        )
    layers: dict[str, nn.Conv2d | nn.Linear]
    if isinstance(groups, Mapping):
        layers, skipped = mapped_layers(model, groups, example_input)  # type: ignore[assignment]
    else:
        layers, skipped = kernel_layers(model, groups, example_input)  # type: ignore[assignment]
        if not layers and pointwise and not any("does not divide" in reason for reason in skipped.values()):
            layers, smaller = pointwise_layers(model, groups, example_input)
            skipped |= smaller
    if not layers:
        raise ValueError(
            f"no convolution can be pruned with groups={groups} "
            f"({summary(skipped) or _none_there(model)}): {_remedy(model, skipped, example_input)}"
        )
    if skipped and indivisible == "refuse":
        raise ValueError(
            f"cannot group every layer ({summary(skipped)}): choose other groups or indivisible='skip'"
        )
    warn_of(_pointwise_majority(model, groups, layers, example_input) | skipped)
    return layers


def _pointwise_majority(
    model: nn.Module,
    groups: Groups,
    layers: Mapping[str, nn.Conv2d | nn.Linear],
    example_input: Tensor | None,
) -> dict[str, str]:
    """The 1x1 convolutions that stay whole beside larger ones, with the remedy, where they are the most."""
    if not any(isinstance(layer, nn.Conv2d) and spatial(layer) for layer in layers.values()):
        return {}
    taken = _weights(layers.values())

    def outweighed(others: Iterable[nn.Conv2d | nn.Linear]) -> bool:
        return taken < MINORITY * (taken + _weights(others))

    convolutions = [module for module in unwrapped(model).modules() if isinstance(module, nn.Conv2d)]
    if not outweighed(layer for layer in convolutions if not spatial(layer)):
        return {}  # without a look at what each of them reads
    every, _ = kernel_layers(model, 1, example_input, pointwise=True)
    whole = {name: layer for name, layer in every.items() if name not in layers and not spatial(layer)}
    named = USUAL if isinstance(groups, Mapping) else groups
    remedy = f"1x1, left whole beside larger kernels: groups={{name: {named}}} prunes those it names, too"
    return dict.fromkeys(whole, remedy) if outweighed(whole.values()) else {}


def _weights(layers: Iterable[nn.Conv2d | nn.Linear]) -> int:
    return sum(layer.weight.numel() for layer in layers)


def _none_there(model: nn.Module) -> str:
    """Why none of the network's layers came into question."""
    kinds = {type(module).__name__ for module in model.modules() if isinstance(module, _ConvNd)} - {"Conv2d"}
    if kinds:
        return f"it has {', '.join(sorted(kinds))}, and only kernels of Conv2d are grouped"
    return "none but what reads the image is a 2d convolution larger than 1x1"


def _remedy(model: nn.Module, skipped: Mapping[str, str], example_input: Tensor | None) -> str:
    """What helps when no layer can be grouped."""
    filters = [
        len(filter_weight(unwrapped(model).get_submodule(name)))
        for name, reason in skipped.items()
        if "does not divide" in reason
    ]
    common = math.gcd(*filters)
    if common > 1:
        divisors = [str(groups) for groups in range(2, common + 1) if common % groups == 0]
        return f"choose groups={' or '.join(divisors)}, which divide{'s' * (len(divisors) == 1)} them all"
    if filters:
        return f"choose a divisor of the filters of some of them, such as groups={max(filters)}"
    with suppress(ValueError):  # of a network that cannot be run without an example
        if not prunable_layers(unwrapped(model), default_input(model, example_input)):
            return "there is nothing to prune"
    return "prune filters instead, for instance with method='l1'"
