"""Filter pruning by dependency groups: everything that must lose a channel together is scored together."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gkp.pruners.ranking import MINIMUM, filter_macs, lowest
from gkp.pruners.registry import Cut, register
from gkp.surgery import FilterLayer, default_input, remove_filters

if TYPE_CHECKING:
    from torch_pruning._helpers import GroupItem

SCORED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


@dataclass(frozen=True)
class Coupled:
    """Layers that lose channel k together, k in 0..channels-1.

    producers: convolutions whose filter k goes; removing it from the first removes the rest.
    consumers: layers whose input channel k goes. squares: (channels,) sum of ||w[k]||^2 over all their
    weights and the scales of the batch norms in between, float64.
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    squares: Tensor


def coupled_groups(model: nn.Module, example_input: Tensor) -> list[Coupled]:
    """The dependency groups of `model` whose channels can be removed.

    A group is left out when its convolutions differ in width. torch-pruning then took an operation that
    moves channels for an element-wise one: it couples channel k before the zero padding in the shortcut
    of a CIFAR ResNet with channel k behind it, whatever number of zeros stands in front. Groups with
    grouped convolutions that are not depthwise are left out as well.
    """
    from torch_pruning import DependencyGraph  # takes seconds to import

    traced = copy.deepcopy(model).eval().requires_grad_()
    names = {module: name for name, module in traced.named_modules()}
    with torch.enable_grad():  # it traces with gradients
        graph = DependencyGraph().build_dependency(traced, example_input, verbose=False)
    groups = []
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d]):
        items = [item for item in group.items if isinstance(item.dep.target.module, SCORED)]
        writers: list[nn.Module] = []
        readers: list[nn.Module] = []
        for item in items:
            (readers if _reads(item) else writers).append(item.dep.target.module)
        filters = [layer for layer in writers if isinstance(layer, nn.Conv2d)]
        producers = tuple(names[layer] for layer in filters if layer.groups == 1)
        one_width = len({layer.out_channels for layer in filters}) == 1
        plain = all(layer.groups in (1, layer.in_channels) for layer in filters)
        if not (producers and readers and one_width and plain):
            continue
        squares = torch.zeros(filters[0].out_channels, dtype=torch.float64)
        for item in items:
            each = _squares(item.dep.target.module, _reads(item))[item.idxs]
            squares.index_add_(0, torch.tensor(item.root_idxs), each)
        groups.append(Coupled(producers, tuple(names[layer] for layer in readers), squares))
    return groups


def _reads(item: GroupItem) -> bool:
    """Whether the layer of this entry loses input channels, not output channels."""
    return item.dep.handler.__name__ == "prune_in_channels"


def _squares(layer: nn.Conv2d | nn.Linear | nn.BatchNorm2d, reads: bool) -> Tensor:
    """Sum of squared weights for each output channel, or input channel if `reads`; (channels,), float64."""
    if isinstance(layer, nn.BatchNorm2d) and layer.weight is None:  # it has no scale
        return torch.zeros(layer.num_features, dtype=torch.float64)
    weight = layer.weight.detach().double().cpu()
    return (weight.transpose(0, 1) if reads else weight.unsqueeze(1)).flatten(1).square().sum(1)


@register(
    "group-norm",
    structure="filter",
    citation="Fang et al. 2023 (CVPR), DepGraph, arXiv:2301.12900",
    summary="channels of smallest norm over all coupled layers, residual sums too, in one ranking",
)
def group_norm(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: object,
    minimum: float = MINIMUM,
) -> Cut:
    """DepGraph's group norm without sparse learning. I_k = sum over the group's tensors of ||w[k]||^2.

    Divided by the mean of the group, then ranked over the network. Tensors: filters, input slices of the
    layers that read them, scales of batch norms; no biases. Where a residual sum couples layers their
    channels go together, except in CIFAR ResNets, see `coupled_groups`; there only the first convolution
    of each block is pruned.

    Left out: the sparse learning before (1e-4 times 2^(4 (I_max - I_k) / (I_max - I_min)) on the
    gradients) and pruning in several steps. A group keeps a share `minimum`, which is ours.
    """
    example_input = default_input(model, example_input)
    coupled = {group.producers[0]: group for group in coupled_groups(model, example_input)}
    if not coupled:
        raise ValueError("no dependency group of this network can lose channels: try sr-gkp or lrf")
    scores = {name: group.squares / group.squares.mean() for name, group in coupled.items()}
    worth = {name: _worth(model, group, example_input) for name, group in coupled.items()}

    def cut(rate: float) -> nn.Module:
        return remove_filters(model, lowest(scores, worth, rate, minimum), example_input)

    return cut


def _worth(model: nn.Module, group: Coupled, example_input: Tensor) -> float:
    """Multiply-adds that one channel of the group is worth, those of its readers included."""
    readers = {group.producers[0]: group.consumers}
    layers = {
        name: FilterLayer(name, len(group.squares), readers.get(name, ()), None) for name in group.producers
    }
    return sum(filter_macs(model, layers, example_input).values())
