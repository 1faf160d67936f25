"""Filter pruning by gradients: what the loss would lose, to first order, without a filter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkp.data import Split
from gkp.nets.channels.surgery import FilterLayer, convolution, default_input
from gkp.pruners.common.filters import convolutions_to_cut
from gkp.pruners.common.images import batch_logits, gradients, sample, scoring_copy
from gkp.pruners.common.ranking import MINIMUM, global_cut, own_norm
from gkp.pruners.common.registry import Cut, register


@register(
    "taylor",
    structure="filter",
    needs="images and labels",
    citation="Molchanov et al. 2019 (CVPR), Taylor-FO-BN",
    summary="filters whose removal changes the loss least to first order, one ranking for all layers",
)
def taylor(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    images: int = 1600,
    batch_size: int = 32,
    seed: int = 0,
    minimum: float = MINIMUM,
) -> Cut:
    """Taylor-FO-BN, one-shot: I = mean over batches of (gamma dL/dgamma + beta dL/dbeta)^2.

    gamma, beta: scale and shift of the filter's batch norm; I is (g dL/dg)^2 of a gate g = 1 behind it.
    A filter without a batch norm of its own is scored with the gate behind the convolution,
    (sum of w dL/dw + b dL/db)^2. L is the mean cross entropy of a batch, in eval mode. 50 batches of 32.

    Left out: the original removes 100 filters every 30 batches while it trains (learning rate 1e-3) and
    smooths scores with momentum 0.9. A layer keeps a share `minimum`, which is ours.
    """
    example_input = default_input(model, example_input)
    layers = convolutions_to_cut(model, example_input, "taylor")
    scores = first_order(model, layers, sample(data, images, seed), batch_size)
    return global_cut(model, scores, example_input, minimum)


def first_order(
    model: nn.Module, layers: dict[str, FilterLayer], data: Split, batch_size: int
) -> dict[str, Tensor]:
    """{layer: squared first-order change of the loss (O,)}, averaged over the batches of `data`.

    ValueError for labels that are no classes of the network, and where no gradient reaches its weights.
    """
    model = scoring_copy(model).requires_grad_(True)
    gates: dict[str, list[Tensor]] = {}
    for name, layer in layers.items():
        norm = own_norm(model, layer)
        scaled = norm if norm is not None and norm.affine else convolution(model, name)
        gates[name] = [p for p in (scaled.weight, scaled.bias) if p is not None]
    parameters = [p for gate in gates.values() for p in gate]
    totals = {name: torch.zeros(layer.filters, device=parameters[0].device) for name, layer in layers.items()}
    count = 0
    for output, labels in batch_logits(model, data, batch_size):
        # A layer that the logits do not depend on has no gradient, which is one of 0.
        derivatives = gradients(F.cross_entropy(output, labels), parameters)
        gradient = dict(zip(parameters, derivatives, strict=True))
        with torch.no_grad():
            for name, gate in gates.items():
                change = sum((_per_filter(p * gradient[p]) for p in gate), start=torch.zeros(()))
                totals[name] += change.square()
        count += 1
    return {name: total / count for name, total in totals.items()}


def _per_filter(products: Tensor) -> Tensor:
    """(O, ...) -> (O,), summed."""
    return products.reshape(len(products), -1).sum(1)
