"""Layers and selections that several tests take."""

import copy

import torch
from torch import nn

from gkp.nets.grouped import GroupedKernelConv2d, GroupedKernelLinear
from gkp.search import Selection


def random_selection(
    filters: int, channels: int, groups: int, keep: int, generator: torch.Generator | None = None
) -> Selection:
    """Any order of the filters, any `keep` of the channels in each group."""
    generator = generator or torch.Generator().manual_seed(0)
    order = torch.randperm(filters, generator=generator)
    rows = [torch.randperm(channels, generator=generator)[:keep].sort().values for _ in range(groups)]
    return Selection(order, torch.stack(rows), torch.zeros(groups))


def grouped_kernels(
    layer: nn.Conv2d | nn.Linear, groups: int, keep: int, seed: int = 0
) -> GroupedKernelConv2d | GroupedKernelLinear:
    """`layer` with random kernels left, of its own kind."""
    outputs, inputs = layer.weight.shape[:2]
    selection = random_selection(outputs, inputs, groups, keep, torch.Generator().manual_seed(seed))
    if isinstance(layer, nn.Conv2d):
        return GroupedKernelConv2d.from_conv(layer, selection)
    return GroupedKernelLinear.from_linear(layer, selection)


def masked(layer: nn.Module, selection: Selection) -> nn.Module:
    """A copy of `layer` whose pruned kernels are zero, written down without any index arithmetic."""
    mask = torch.zeros_like(layer.weight)
    rows = selection.filter_order.view(len(selection.kept), -1)
    for filters, channels in zip(rows, selection.kept, strict=True):
        for f in filters:
            mask[f, channels] = 1
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.mul_(mask)
    return layer
