"""One ranking of all filters of a network, cut at a share of the multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gkp.nets import products
from gkp.nets.channels.surgery import FilterLayer, prunable_layers, remove_filters
from gkp.nets.grouped import GroupedKernelConv2d
from gkp.pruners.common.registry import Cut

CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    GroupedKernelConv2d,
)
MINIMUM = 0.1  # share of a layer's filters that stays, as in LeGR: a ranking may empty a whole layer


def own_norm(model: nn.Module, layer: FilterLayer) -> nn.BatchNorm2d | None:
    """The batch norm with one channel per filter of the layer, in their order; None where it has none such.

    DenseNet's, which comes after a concatenation, normalises the channels of many layers.
    """
    norm = model.get_submodule(layer.norm) if layer.norm and not layer.reordered else None
    return norm if isinstance(norm, nn.BatchNorm2d) and norm.num_features == layer.filters else None


def filter_macs(
    model: nn.Module, layers: Mapping[str, FilterLayer], example_input: Tensor
) -> dict[str, float]:
    """Multiply-adds that one filter of each layer is worth: {layer's name: per image}.

    Its own, and those of the layers that read its channel, all in the network as it is now: what a layer
    costs in all its calls (each token or position once), divided by its output channels where it makes the
    channel and by its input channels where it reads it. So a transposed convolution counts by the positions
    of its input, and a grouped or depthwise one among the consumers by the weights that go with a channel.

    Linear layers that read a convolution are left out (published rankings are made so; behind a flattening
    one channel is many of their inputs); those that read a linear layer count, such as the second of an MLP.
    Depthwise convolutions between a layer and its consumers are left out unless they are named among them.
    """
    modules = {
        name: model.get_submodule(name) for layer in layers.values() for name in _counted(model, layer)
    }
    cost = products.by_layer(model, modules, example_input)
    worth: dict[str, float] = {}
    for name, layer in layers.items():
        own, *readers = _counted(model, layer)
        reading = sum(cost[reader] / _channels(modules[reader])[0] for reader in readers)
        worth[name] = cost[own] / _channels(modules[own])[1] + reading
    return worth


def _counted(model: nn.Module, layer: FilterLayer) -> list[str]:
    """The layer itself, then those of its consumers that `filter_macs` counts."""
    linear = isinstance(model.get_submodule(layer.name), nn.Linear)
    readers = {name: model.get_submodule(name) for name in layer.consumers}
    kinds = (*CONVOLUTIONS, nn.Linear) if linear else CONVOLUTIONS
    return [layer.name, *(name for name, module in readers.items() if isinstance(module, kinds))]


def _channels(module: nn.Module) -> tuple[int, int]:
    """Input and output channels."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, CONVOLUTIONS):
        return module.in_channels, module.out_channels
    raise TypeError(f"a {type(module).__name__} has no channels to lose: name convolutions and linear layers")


def lowest(
    scores: Mapping[str, Tensor], worth: Mapping[str, float], rate: float, minimum: float = MINIMUM
) -> dict[str, Tensor]:
    """Filters to drop per layer: up the common ranking until a share `rate` of the worth is gone.

    scores: {layer: (O,)}, higher is more important and comparable between layers; equal scores go in
    the order of the network. A filter that is worth more than what is left of the budget is passed
    over, so that small ones fill the budget and a search for a target finds a fine knob; within a
    layer no kept filter scores below a dropped one. A layer keeps at least a share `minimum`, and at
    least one filter, so a rate near 1 is not reached. Where layers lose equal shares, `rate` is it.
    """
    if not 0 <= minimum < 1:
        raise ValueError(f"minimum={minimum!r}: the share of filters that a layer keeps, from 0 to below 1")
    names = list(scores)
    sizes = torch.tensor([len(scores[name]) for name in names])
    owner = torch.arange(len(names)).repeat_interleave(sizes).tolist()
    within = torch.cat([torch.arange(size) for size in sizes.tolist()]).tolist()
    ranking = torch.cat([scores[name].cpu() for name in names]).sort(stable=True).indices.tolist()

    spare = [size - max(1, math.ceil(minimum * size)) for size in sizes.tolist()]
    budget = rate * sum(worth[name] * len(scores[name]) for name in names) * (1 + 1e-9)
    drop: dict[str, list[int]] = {name: [] for name in names}
    for position in ranking:
        layer = owner[position]
        name = names[layer]
        if spare[layer] and worth[name] <= budget:
            drop[name].append(within[position])
            spare[layer] -= 1
            budget -= worth[name]
    return {name: torch.tensor(sorted(indices), dtype=torch.long) for name, indices in drop.items()}


def global_cut(
    model: nn.Module, scores: Mapping[str, Tensor], example_input: Tensor, minimum: float = MINIMUM
) -> Cut:
    """Cut the whole network by one ranking, see `lowest`; rate 0 drops nothing."""
    layers = prunable_layers(model, example_input)
    worth = filter_macs(model, {name: layers[name] for name in scores}, example_input)

    def cut(rate: float) -> nn.Module:
        return remove_filters(model, lowest(scores, worth, rate, minimum), example_input)

    return cut
