"""Finding what can be pruned in a network, and replacing or shrinking it.

Grouped kernel pruning swaps single convolutions. Filter pruning removes output channels for good,
with everything that depends on them, through torch-pruning's dependency graph. Every function
returns a copy and leaves its input alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gkp.grouped import GroupedKernelConv2d, unsupported
from gkp.models import CifarResNet, CifarVGG16
from gkp.search import Selection

if TYPE_CHECKING:
    from torch_pruning import DependencyGraph


def default_input(model: nn.Module, example_input: Tensor | None) -> Tensor:
    """`example_input`, or one 32x32 image for the CIFAR networks of `gkp.models`, on the model's device.

    ValueError for any other network without an example.
    """
    device = next(model.parameters()).device
    if example_input is not None:
        return example_input.to(device)
    if isinstance(model, (CifarResNet, CifarVGG16)):
        return torch.full((1, 3, 32, 32), 0.5, device=device)
    raise ValueError(
        "give example_input, a tensor (1, C, H, W) that the model accepts, such as torch.rand(1, 3, 224, 224)"
    )


def convolution(model: nn.Module, name: str) -> nn.Conv2d:
    """The convolution called `name`. TypeError when the layer of that name is another kind."""
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Conv2d):
        raise TypeError(f"{name} is a {type(layer).__name__}, not a convolution")
    return layer


def kernel_layers(model: nn.Module, groups: int) -> tuple[dict[str, nn.Conv2d], dict[str, str]]:
    """Convolutions that grouped kernel pruning can treat, and why it leaves the others alone.

    All convolutions larger than 1x1 except the first, which reads the image. Returns
    ({name: convolution}, {name: reason}).
    """
    layers, skipped = {}, {}
    convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    for position, (name, conv) in enumerate(convolutions):
        if position == 0 or max(conv.kernel_size) == 1:
            continue
        reason = unsupported(conv)
        if not reason and conv.out_channels % groups:
            reason = f"groups={groups} does not divide its {conv.out_channels} filters"
        if reason:
            skipped[name] = reason
        else:
            layers[name] = conv
    return layers, skipped


def replace_convolutions(
    model: nn.Module, selections: Mapping[str, Selection], execution: str = "dense"
) -> nn.Module:
    """A copy of `model` in which each named convolution keeps only its selected kernels."""
    pruned = copy.deepcopy(model)
    for name, selection in selections.items():
        conv = convolution(pruned, name)
        pruned.set_submodule(name, GroupedKernelConv2d.from_conv(conv, selection, execution))
    return pruned


@dataclass(frozen=True)
class FilterLayer:
    """A convolution whose filters can go without touching another convolution's filters."""

    name: str
    filters: int
    consumers: tuple[str, ...]  # layers that lose the matching input channels
    norm: str | None  # its batch norm


def filter_layers(model: nn.Module, example_input: Tensor) -> dict[str, FilterLayer]:
    """Layers for filter pruning, in the order of the network: {convolution's name: FilterLayer}.

    A convolution is left out when its filters are tied to those of another one by a residual sum or
    a concatenation that crosses blocks; depthwise convolutions follow the layer that feeds them.
    """
    names = {module: name for name, module in model.named_modules()}
    found = {}
    for group in _dependency_graph(model, example_input).get_all_groups(root_module_types=[nn.Conv2d]):
        producers, consumers, norms = [], [], []
        for dependency, _ in group:
            module, handler = dependency.target.module, dependency.handler.__name__
            if module not in names:
                continue
            if isinstance(module, nn.BatchNorm2d):
                norms.append(names[module])
            elif handler == "prune_in_channels":
                consumers.append(names[module])
            elif isinstance(module, nn.Conv2d) and module.groups == 1 and names[module] not in producers:
                producers.append(names[module])
        if len(producers) == 1 and consumers:
            conv = convolution(model, producers[0])
            norm = next(iter(norms), None)
            found[producers[0]] = FilterLayer(producers[0], conv.out_channels, tuple(consumers), norm)
    return {name: found[name] for name in names.values() if name in found}


def remove_filters(model: nn.Module, drop: Mapping[str, Tensor], example_input: Tensor) -> nn.Module:
    """A physically smaller copy without the filters `drop[name]` (indices) of each named convolution.

    ValueError when a layer would lose all its filters.
    """
    from torch_pruning import prune_conv_out_channels

    pruned = copy.deepcopy(model)
    trainable = {name: p.requires_grad for name, p in pruned.named_parameters()}
    graph = _dependency_graph(pruned, example_input)
    for name, indices in drop.items():
        conv = convolution(pruned, name)
        gone = sorted(set(torch.as_tensor(indices).tolist()))
        if len(gone) >= conv.out_channels:
            raise ValueError(
                f"layer {name} would lose all of its {conv.out_channels} filters: lower the rate"
            )
        if gone:
            graph.get_pruning_group(conv, prune_conv_out_channels, gone).prune()
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_(trainable[name])
        parameter.grad = None
    return pruned


def _dependency_graph(model: nn.Module, example_input: Tensor) -> DependencyGraph:
    """torch-pruning's graph. It traces with gradients, so the training flags are put back afterwards."""
    from torch_pruning import DependencyGraph  # takes seconds to import, and most uses of gkp need none

    flags = [(p, p.requires_grad) for p in model.parameters()]
    training = [(module, module.training) for module in model.modules()]
    for parameter, _ in flags:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            return DependencyGraph().build_dependency(model.eval(), example_input, verbose=False)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, flag in training:
            module.training = flag
