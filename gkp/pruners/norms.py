"""Filter pruning by the size of the weights, and the random control."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gkp.pruners.filters import weight_cut
from gkp.pruners.registry import Cut, register


@register(
    "random",
    structure="filter",
    citation="control",
    summary="filters chosen uniformly at random, the same share in every layer",
)
def random(
    model: nn.Module, *, groups: int, example_input: Tensor | None, data: object, seed: int = 0
) -> Cut:
    generator = torch.Generator().manual_seed(seed)
    return weight_cut(model, example_input, lambda weight, _: torch.rand(len(weight), generator=generator))


@register(
    "l1",
    structure="filter",
    citation="Li et al. 2017, arXiv:1608.08710",
    summary="filters of smallest L1 norm, the same share in every layer",
)
def l1(model: nn.Module, *, groups: int, example_input: Tensor | None, data: object) -> Cut:
    return weight_cut(model, example_input, lambda weight, _: weight.abs().sum((1, 2, 3)))
