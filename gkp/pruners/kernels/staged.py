"""Grouped kernel pruning that spares the last stages of a network."""

from __future__ import annotations

from torch import Tensor, nn

from gkp.pruners.common.group_numbers import Groups
from gkp.pruners.common.profile import FALLING, Profile
from gkp.pruners.common.registry import Cut, register
from gkp.pruners.kernels.grouped import sr_gkp


@register(
    "sr-gkp-b",
    structure="grouped kernel",
    citation="Zhong et al. 2023 (NeurIPS), with the stages of Li et al. 2017, arXiv:1608.08710, ResNet-56-B",
    summary="SR-GKP with the stages in the proportion 6:3:1, as l1-b has them",
)
def sr_gkp_b(
    model: nn.Module,
    *,
    groups: Groups,
    example_input: Tensor | None,
    data: object,
    strategy: str = "beam",
    grouping: str = "snaking",
    seed: int = 0,
    execution: str = "dense",
    indivisible: str = "skip",
    share: float = 0.0,
    profile: Profile = FALLING,
    which: str = "all",
) -> Cut:
    """SR-GKP where early stages lose the most: 6:3:1 of three stages, points of that curve of others.

    `rate` is the mean of the layers' shares by multiply-adds. No stage is left whole, other than in "l1-b".
    """
    return sr_gkp(
        model,
        groups=groups,
        example_input=example_input,
        data=data,
        strategy=strategy,
        grouping=grouping,
        seed=seed,
        execution=execution,
        indivisible=indivisible,
        share=share,
        profile=profile,
        which=which,
    )
