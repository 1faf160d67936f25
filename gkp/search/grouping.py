"""Which filters form a group: smoothness snaking (section 3.2.1 of the SR-GKP paper) and controls."""

from __future__ import annotations

import torch
from torch import Tensor

from gkp.search.smoothness import filter_smoothness, summed_in_order


def snake(scores: Tensor, groups: int) -> Tensor:
    """Deal filters, in ascending order of `scores` (O,), to groups 0..n-1, n-1..0, 0..n-1 and so on.

    Returns (groups, O / groups) filter indices, ascending in each group. Groups have equal size and
    nearly equal total score. ValueError when the groups do not divide the filters.
    """
    _check_divides(len(scores), groups)
    rounds = torch.sort(scores, stable=True).indices.view(-1, groups).clone()
    rounds[1::2] = rounds[1::2].flip(1)
    return rounds.t().sort(1).values


def snaking(weight: Tensor, groups: int, *, variant: str = "squared", arithmetic: str = "fast") -> Tensor:
    """Smoothness snaking of a weight (O, I, kh, kw); returns (groups, O / groups).

    arithmetic: "released" adds in the released code's order, which may matter to filters that are equally
    smooth but for last bits. Equal ones are dealt in the order in which they stand.
    """
    smoothness = summed_in_order if arithmetic == "released" else filter_smoothness
    return snake(smoothness(weight.double(), variant), groups)


def contiguous(weight: Tensor, groups: int) -> Tensor:
    """The filters in the order they stand; returns (groups, O / groups)."""
    _check_divides(len(weight), groups)
    return torch.arange(len(weight)).view(groups, -1)


def random(weight: Tensor, groups: int, *, generator: torch.Generator) -> Tensor:
    """A uniformly random partition into groups of equal size; returns (groups, O / groups)."""
    _check_divides(len(weight), groups)
    return torch.randperm(len(weight), generator=generator).view(groups, -1).sort(1).values


def _check_divides(filters: int, groups: int) -> None:
    if groups < 1 or filters % groups:
        raise ValueError(
            f"groups={groups} does not divide the layer's {filters} filters: choose a divisor of {filters}"
        )
