"""Grouped kernel pruning: groups of filters, each with its own subset of input channels."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from gkp.pruners.registry import Cut, register
from gkp.search import select
from gkp.surgery import kernel_layers, replace_convolutions


class SkippedLayers(UserWarning):
    """Some convolutions were left unpruned."""


def layers_to_prune(model: nn.Module, groups: int, indivisible: str) -> dict[str, nn.Conv2d]:
    """Names and convolutions to prune; the rest is reported in one warning, or refused.

    ValueError when a layer cannot be grouped and indivisible="refuse", or when none can.
    """
    if indivisible not in ("skip", "refuse"):
        raise ValueError(f'indivisible={indivisible!r}: choose "skip" or "refuse"')
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups={groups!r}: give a positive whole number, for example 8")
    layers, skipped = kernel_layers(model, groups)
    reasons = _summary(skipped)
    if not layers:
        raise ValueError(
            f"no convolution can be pruned with groups={groups} ({reasons or 'none is larger than 1x1'}): "
            "choose a divisor of the layers' filters"
        )
    if skipped and indivisible == "refuse":
        raise ValueError(f"cannot group every layer ({reasons}): choose other groups or indivisible='skip'")
    if skipped:
        warnings.warn(f"left unpruned: {reasons}", SkippedLayers, stacklevel=4)
    return layers


def _summary(skipped: dict[str, str]) -> str:
    """Reasons with the layers they concern, each reason once."""
    layers: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        layers.setdefault(reason, []).append(name)
    return "; ".join(
        f"{names[0] if len(names) == 1 else f'{names[0]} and {len(names) - 1} more'}: {reason}"
        for reason, names in layers.items()
    )


@register(
    "sr-gkp",
    structure="grouped kernel",
    citation="Zhong et al. 2023 (NeurIPS), this paper",
    summary="smoothness snaking, then the beam search for distant kernels that represent the pruned ones",
)
def sr_gkp(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: object,
    beam_width: int = 2,
    check_step: int = 3,
    alpha: float = 0.9,
    beta: str | float = "reference",
    neighbours: int = 1,
    outer_in_beam: bool = True,
    decision: str = "cost",
    strategy: str = "beam",
    grouping: str = "snaking",
    variant: str = "squared",
    seed: int = 0,
    execution: str = "dense",
    indivisible: str = "skip",
) -> Cut:
    """SR-GKP. Search options as in `gkp.search.select`; `seed` only matters for grouping="random"."""
    layers = layers_to_prune(model, groups, indivisible)

    def cut(rate: float) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        selections = {
            name: select(
                conv.weight,
                groups=groups,
                rate=rate,
                beam_width=beam_width,
                check_step=check_step,
                alpha=alpha,
                beta=beta,
                neighbours=neighbours,
                outer_in_beam=outer_in_beam,
                decision=decision,
                strategy=strategy,
                grouping=grouping,
                variant=variant,
                generator=generator,
            )
            for name, conv in layers.items()
        }
        return replace_convolutions(model, selections, execution)

    return cut
