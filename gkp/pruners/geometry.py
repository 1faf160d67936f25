"""Filter pruning by where filters lie among the others of their layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gkp.pruners.common.filters import weight_cut
from gkp.pruners.common.profile import FLAT, Profile
from gkp.pruners.common.registry import Cut, register


def distance_to_others(weight: Tensor) -> Tensor:
    """Sum of the Euclidean distances from each filter to all of its layer: (O, I, kh, kw) -> (O,).

    Small near the geometric median of the layer. In float64, so that equal filters are at distance
    zero up to 1e-8 of their norm.
    """
    filters = weight.detach().double().flatten(1)
    return torch.cdist(filters, filters).sum(1)


@register(
    "fpgm",
    structure="filter",
    citation="He et al. 2019 (CVPR), arXiv:1811.00250",
    summary="filters nearest to the geometric median of their layer, which the others can replace",
)
def fpgm(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: object,
    profile: Profile = FLAT,
) -> Cut:
    """FPGM, one-shot. Score of filter i: sum_j ||W_i - W_j||_2; the smallest go, one share for all layers.

    profile: or another share for each layer, see `gkp.pruners.common.profile`.

    Left out: the original selects again after every epoch of 200 and holds the selected filters at zero
    in between ("fpgm-training"); its optional mix with the norm criterion is off there, too.
    """
    return weight_cut(model, example_input, lambda weight, _: distance_to_others(weight), profile)
