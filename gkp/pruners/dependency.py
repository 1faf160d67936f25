"""Filter pruning by dependency groups: everything that must lose a channel together is scored together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gkp.nets.channels.groups import Bundle, Channels, channels_of
from gkp.nets.channels.layers import mixes, unwrapped
from gkp.nets.channels.surgery import (
    FilterLayer,
    default_input,
    filter_weight,
    left_out,
    remove_filters,
    summary,
)
from gkp.pruners.common.filters import kernel_methods, warn_of_whole
from gkp.pruners.common.ranking import MINIMUM, filter_macs, lowest
from gkp.pruners.common.registry import Cut, register


@dataclass(frozen=True)
class Coupled:
    """Layers that lose channel k together, k in 0..channels-1.

    producers: layers whose filter goes; consumers: layers whose input channel goes. squares: (channels,) sum
    of ||w[k]||^2 over all their weights and the scales of the batch norms in between, float64. filters:
    (channels,) a filter of the first producer that is in channel k, k itself where filters go one by one.
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    squares: Tensor
    filters: Tensor


def coupled_groups(model: nn.Module, example_input: Tensor) -> list[Coupled]:
    """The groups of channels of `model` that can be removed, see `gkp.nets.channels.groups`; proved.

    Those of convolutions; of linear layers, such as a transformer's MLPs, where no convolution has any. A
    group is left out when it holds a part of a layer's filters only: those of a CIFAR ResNet's stages, whose
    first channels run on into the next stage beside its own.
    """
    model = unwrapped(model)
    channels, modules = channels_of(model, example_input), dict(model.named_modules())
    return [_coupled(modules, channels, bundle) for bundle in bundles_to_prune(model, channels)]


def _coupled(modules: Mapping[str, nn.Module], channels: Channels, bundle: Bundle) -> Coupled:
    squares = torch.zeros(len(bundle.units), dtype=torch.float64)
    parts = slices(modules, channels, bundle)
    for part in parts:
        weight = modules[part.layer].weight
        assert isinstance(weight, Tensor)
        squared = part.rows(weight.detach().double().cpu()).square().sum(1)
        squares.index_add_(0, part.place[part.place >= 0], squared[part.place >= 0])
    owner = next(part.place for part in parts if part.layer == bundle.producers[0] and part.filters)
    first = torch.tensor([int((owner == k).nonzero()[0]) for k in range(len(bundle.units))])
    return Coupled(bundle.producers, bundle.readers, squares, first)


@dataclass(frozen=True)
class Slice:
    """How the weight of a layer is divided among the channels of a group: filters, input slices or scales.

    axis: of the weight. place: of each index along the axis, the channel it goes with; -1 for none.
    """

    layer: str
    axis: int
    place: Tensor
    filters: bool

    def rows(self, weight: Tensor) -> Tensor:
        """The weight as one row per index of the axis."""
        return weight.transpose(0, self.axis).flatten(1) if weight.dim() > 1 else weight[:, None]


def slices(modules: Mapping[str, nn.Module], channels: Channels, bundle: Bundle) -> list[Slice]:
    """All weights that lose channels with the group; no biases, which are no part of its norm."""
    size = 1 + max(
        int(owner.max()) for side in (channels.filters, channels.inputs) for owner in side.values()
    )
    place = torch.full((size,), -1)
    place[torch.tensor(bundle.units)] = torch.arange(len(bundle.units))
    parts = []
    for name in dict.fromkeys((*bundle.producers, *bundle.between, *bundle.readers)):
        layer = modules[name]
        filters, inputs = place[channels.filters[name]], place[channels.inputs[name]]
        transposed = isinstance(layer, _ConvTransposeNd)  # rows of its weight are input channels
        if transposed and not mixes(layer):
            parts.append(Slice(name, 0, inputs, False))
        elif isinstance(layer, (_ConvNd, nn.Linear)):
            parts.append(Slice(name, int(transposed), filters, True))
            if mixes(layer):
                parts.append(Slice(name, int(not transposed), inputs, False))
        elif isinstance(layer, nn.BatchNorm2d) and layer.weight is not None:
            parts.append(Slice(name, 0, filters, True))
    return parts


def bundles_to_prune(model: nn.Module, channels: Channels) -> list[Bundle]:
    """Those of convolutions; of linear layers where no convolution has any. channels: of that model."""
    modules = dict(unwrapped(model).named_modules())
    bundles = channels.bundles
    return [b for b in bundles if any(isinstance(modules[n], _ConvNd) for n in b.producers)] or bundles


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
    of each block is pruned. Filters that a grouped convolution or a GroupNorm reads go in whole groups.

    Left out: the sparse learning before, which "group-sl" has, and pruning in several steps. A group keeps
    a share `minimum`, which is ours.
    """
    example_input = default_input(model, example_input)
    coupled = {group.producers[0]: group for group in coupled_groups(model, example_input)}
    refuse_uncoupled(model, [group.producers for group in coupled.values()], example_input)
    scores = {name: group.squares / group.squares.mean() for name, group in coupled.items()}
    worth = _worth(unwrapped(model), coupled, example_input)

    def cut(rate: float) -> nn.Module:
        drop = lowest(scores, worth, rate, minimum)
        filters = {name: coupled[name].filters[channels] for name, channels in drop.items()}
        return remove_filters(model, filters, example_input)

    return cut


def refuse_uncoupled(model: nn.Module, groups: list[tuple[str, ...]], example_input: Tensor) -> None:
    """ValueError where there are no groups (given by producers); a warning of unusual layers outside them."""
    producers = {name for group in groups for name in group}
    if not groups:
        reasons = left_out(model, example_input)
        why = f" ({summary(reasons)})" if reasons else ""
        raise ValueError(f"no dependency group of this network can lose channels{why}{kernel_methods(model)}")
    warn_of_whole(model, example_input, producers)


def _worth(model: nn.Module, coupled: Mapping[str, Coupled], example_input: Tensor) -> dict[str, float]:
    """Multiply-adds that one channel of each group is worth, those of its readers included."""
    sizes = {
        name: len(filter_weight(model.get_submodule(name)))
        for group in coupled.values()
        for name in group.producers
    }
    readers = {name: group.consumers for name, group in coupled.items()}
    layers = {name: FilterLayer(name, size, readers.get(name, ()), None) for name, size in sizes.items()}
    per_filter = filter_macs(model, layers, example_input)
    return {
        name: sum(per_filter[producer] * sizes[producer] for producer in group.producers) / len(group.squares)
        for name, group in coupled.items()
    }
