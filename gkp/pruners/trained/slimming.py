"""Network Slimming: batch norm scales made sparse by training, and cut by one ranking."""

from __future__ import annotations

from torch import Tensor, nn

from gkp.data import Split
from gkp.nets.channels.surgery import FilterLayer, default_input, filter_layers
from gkp.pruners.common.ranking import MINIMUM, own_norm
from gkp.pruners.common.registry import Cut, Session, register
from gkp.pruners.norms import bn_gamma
from gkp.train.hooks import Hooks, Step


def start_slimming(
    model: nn.Module,
    *,
    rate: float,
    epochs: int,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    sparsity: float = 1e-4,
    share: float = 0.5,
    minimum: float = MINIMUM,
) -> Session:
    """Sparse training: gradient of gamma += sparsity * sign(gamma). `rate` is not used before the cut."""
    example_input = default_input(model, example_input)
    if sparsity < 0:
        raise ValueError(f"sparsity={sparsity!r}: give the weight of the L1 penalty, 0 or more")
    bn_gamma(model, groups=groups, example_input=example_input, data=data)  # refuses what has no scales
    layers = filter_layers(model, example_input)
    penalised = [name for name, layer in layers.items() if _has_trained_scale(model, layer)]

    def before_step(model: nn.Module, at: Step) -> None:
        for name in penalised:
            norm = own_norm(model, layers[name])
            if norm is not None and norm.weight.grad is not None:  # none where the forward left it out
                norm.weight.grad.add_(norm.weight.detach().sign(), alpha=sparsity)

    def finish(model: nn.Module) -> Cut:
        return bn_gamma(model, groups=groups, example_input=example_input, data=data, minimum=minimum)

    return Session(Hooks(before_step=before_step), finish, share)


@register(
    "slimming",
    structure="filter",
    schedule="in training",
    citation="Liu et al. 2017 (ICCV), arXiv:1708.06519",
    summary="L1 penalty on batch norm scales while training, then the smallest of all layers go",
    start=start_slimming,
)
def slimming(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split | None,
    sparsity: float = 1e-4,
    share: float = 0.5,
    minimum: float = MINIMUM,
) -> Cut:
    """Network Slimming: train with loss + sparsity * sum |gamma|, cut by one ranking of |gamma|, fine-tune.

    sparsity: 1e-4 as for the original's VGG (1e-5 for its ResNet-164 and DenseNet), on the batch norms of
    filters that can go; the original's networks let it penalise all. share: of the epochs, with the
    penalty; the original trains 160 epochs with it and fine-tunes 160. The ranking is that of "bn-gamma",
    with the same `minimum`: the original's threshold is a quantile of |gamma| (0.7 for VGG, 0.4 for
    ResNet-164) and can empty a layer. Without training this is "bn-gamma".
    """
    return bn_gamma(model, groups=groups, example_input=example_input, data=data, minimum=minimum)


def _has_trained_scale(model: nn.Module, layer: FilterLayer) -> bool:
    """Whether the layer's filters have a batch norm of their own; ValueError when its scale cannot shrink.

    A scale that stays as it is beside scales that were made small would keep all its filters.
    """
    norm = own_norm(model, layer)
    if norm is None:
        return False
    if not norm.affine or not norm.weight.requires_grad:
        state = "is frozen" if norm.affine else "does not exist (affine=False)"
        raise ValueError(
            f"slimming makes scales of batch norms small by training, and that of {layer.norm}, behind "
            f"{layer.name}, {state}: give it a scale that requires a gradient, or use a method such as l1"
        )
    return True
