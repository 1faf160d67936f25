"""DepGraph's sparse learning: a weight decay that is stronger the smaller a dependency group's norm is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkp.data import Split
from gkp.nets.channels.groups import channels_of
from gkp.nets.channels.surgery import default_input
from gkp.pruners.common.ranking import MINIMUM
from gkp.pruners.common.registry import Cut, Session, register
from gkp.pruners.dependency import Slice, bundles_to_prune, group_norm, slices
from gkp.train.hooks import Hooks, Step

REGULARISED = 5e-4  # of the decay at the largest channel of a group
STRONGEST = 16.0  # times that at the smallest


def strengths(squares: Tensor) -> Tensor:
    """(channels,): 16^((n_max - n) / (n_max - n_min)), n the root of squares; 1 where all are alike."""
    norms = squares.sqrt()
    span = norms.max() - norms.min()
    return STRONGEST ** ((norms.max() - norms) / span.where(span > 0, torch.ones_like(span)))


@dataclass
class Decay:
    """The decay of one dependency group, and where the weights of each of its channels are."""

    parts: Sequence[Slice]
    channels: int

    def __post_init__(self) -> None:
        self.indices = [_indices(part.place, self.channels) for part in self.parts]
        self.places = [part.place.where(part.place >= 0, self.channels) for part in self.parts]

    def add(self, model: nn.Module, strength: float) -> None:
        """Add strength * `strengths` * w to the gradients of the group's weights w."""
        weights = [model.get_submodule(part.layer).get_parameter("weight") for part in self.parts]
        self.indices, self.places = (
            [index.to(w.device) for index, w in zip(tensors, weights, strict=True)]
            for tensors in (self.indices, self.places)
        )
        squares = weights[0].new_zeros(self.channels)
        for part, weight, index in zip(self.parts, weights, self.indices, strict=True):
            squares += nn.functional.pad(part.rows(weight.detach()).square().sum(1), (0, 1))[index].sum(1)
        factors = nn.functional.pad(strength * strengths(squares), (0, 1))
        for part, weight, place in zip(self.parts, weights, self.places, strict=True):
            if weight.grad is not None:
                shape = [1] * weight.dim()
                shape[part.axis] = -1
                weight.grad.add_(weight.detach() * factors[place].view(shape))


def _indices(place: Tensor, channels: int) -> Tensor:
    """(channels, most): the indices of each channel, then len(place). Sums over it have one order."""
    order = place.argsort(stable=True)[(place < 0).sum() :]
    counts = place[order].bincount(minlength=channels)
    column = torch.arange(len(order)) - (counts.cumsum(0) - counts)[place[order]]
    indices = torch.full((channels, int(counts.max())), len(place))
    indices[place[order], column] = order
    return indices


def start_group_sl(
    model: nn.Module,
    *,
    rate: float,
    epochs: int,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    strength: float = REGULARISED,
    share: float = 0.5,
    minimum: float = MINIMUM,
) -> Session:
    """Sparse training of all dependency groups without other weight decay; `rate` is for the cut alone."""
    if strength < 0:
        raise ValueError(
            f"strength={strength!r}: give the weight decay of a group's largest channel, 0 or more"
        )
    example = default_input(model, example_input)
    modules, channels = dict(model.named_modules()), channels_of(model, example)
    bundles = bundles_to_prune(model, channels)
    decays = [Decay(slices(modules, channels, bundle), len(bundle.units)) for bundle in bundles]

    def before_step(model: nn.Module, at: Step) -> None:
        for decay in decays:
            decay.add(model, strength)

    def finish(trained: nn.Module) -> Cut:
        return group_norm(trained, groups=groups, example_input=example, data=data, minimum=minimum)

    return Session(Hooks(before_step=before_step), finish, share, {"weight_decay": 0.0})


@register(
    "group-sl",
    structure="filter",
    schedule="in training",
    citation="Fang et al. 2023 (CVPR), DepGraph with sparse learning, arXiv:2301.12900",
    summary="training shrinks the small channels of every dependency group, then group-norm's ranking cuts",
    start=start_group_sl,
)
def group_sl(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split | None,
    strength: float = REGULARISED,
    share: float = 0.5,
    minimum: float = MINIMUM,
) -> Cut:
    """DepGraph: in every step the gradient of channel k's weights w gets strength * strengths[k] * w more.

    Weights: filters, input slices of their readers and scales of batch norms, as in "group-norm"; no
    biases, whose decay cost the original's later release its accuracy. The recipe's own weight decay is 0
    meanwhile. A channel's norm is taken over all its weights; strengths run from 1 at the largest to 16 at
    the smallest of a group.

    strength: 5e-4, for ResNet-56. share: of the epochs; the original trains 100 epochs so and fine-tunes
    100. The ranking is one of all groups, as "group-norm" cuts it (the original's is cut in up to 400 small
    steps without training between them). Without training this is "group-norm".
    """
    return group_norm(model, groups=groups, example_input=example_input, data=data, minimum=minimum)
