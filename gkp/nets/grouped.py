"""Networks with grouped kernels: their layers, how they run, and the same function in ordinary layers."""

from __future__ import annotations

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import fx, nn

from gkp.nets.channels.copying import CopyError, copied
from gkp.nets.channels.replacement import altered, hooked, replace_module, shared_weights, take_over
from gkp.nets.channels.tracing import Trace, trace
from gkp.nets.grouped_base import EXECUTIONS, GroupedKernels
from gkp.nets.grouped_layers import GroupedKernelConv2d, GroupedKernelLinear, unsupported, window

__all__ = [
    "EXECUTIONS",
    "GroupedKernelConv2d",
    "GroupedKernelLinear",
    "shared_weights",
    "fold_permutations",
    "is_channelwise",
    "replace_module",
    "set_execution",
    "take_over",
    "to_dense",
    "unsupported",
    "window",
]


def set_execution(model: nn.Module, execution: str) -> nn.Module:
    """Switch every layer of grouped kernels in `model`, in place; returns the model."""
    for module in model.modules():
        if isinstance(module, GroupedKernels):
            module.execution = execution
    return model


def to_dense(model: nn.Module) -> nn.Module:
    """A copy whose layers of grouped kernels are ordinary ones that hold zeros, under all their names.

    CopyError names a layer that was changed since it was pruned (weight norm, masks, another forward).
    """
    model = copied(model)
    for name, module in list(model.named_modules()):
        if not isinstance(module, GroupedKernels):
            continue
        reason = altered(module, GroupedKernelConv2d, GroupedKernelLinear)
        if reason:
            raise CopyError(f"cannot make {name or 'the network'} dense: {reason}")
        if module is model:
            return module.to_dense()
        replace_module(model, module, module.to_dense())
    return model


ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.Dropout, nn.Identity)
ELEMENTWISE_FUNCTIONS = (
    F.relu,
    torch.relu,
    "relu",
    "relu_",
    F.relu6,
    F.silu,
    F.gelu,
)  # texts: methods
# In convolutional networks these treat the channels alike, too.
CHANNELWISE = (*ELEMENTWISE, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
CHANNELWISE_FUNCTIONS = (*ELEMENTWISE_FUNCTIONS, F.max_pool2d, F.avg_pool2d)


def fold_permutations(model: nn.Module) -> nn.Module:
    """A copy in which output permutations are folded into what follows, where that is possible.

    The study times it beside the other executions; nothing else uses it, since `gkp.export` orders channels
    by `gkp.deploy.grouping.reordered`.

    A permutation can be folded when a single chain of batch norm and channel-wise operations leads
    from one layer of grouped kernels to the next: the channels in between get new names, the
    batch norm's entries and the next layer's gather follow. Values are unchanged, one gather less
    runs per folded layer. Layers that end in a residual sum keep their permutation, and so do those
    that run twice, share weights, have hooks, or whose output anything else reads, in training or in
    evaluation. ValueError when torch.fx cannot trace the network.
    """
    model = copied(model)
    in_training = _chains(trace(model, training=True))
    for first, norms, second in _chains(trace(model, training=False)):
        if (first, norms, second) not in in_training:
            continue
        order = first.filter_order.clone()
        with torch.no_grad():
            for norm in norms:
                for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    if tensor is not None:
                        tensor.copy_(tensor[order])
            if first.bias is not None:
                first.bias.copy_(first.bias[order])
            kept, columns = order.argsort()[second.kept].sort(1)
            index = columns.repeat_interleave(len(second.weight) // second.groups, 0)
            index = index.view(*index.shape, *(1,) * (second.weight.dim() - 2)).expand_as(second.weight)
            second.weight.copy_(second.weight.gather(1, index))
        first.filter_order.copy_(torch.arange(len(order)))
        second.kept.copy_(kept)
        first.derive_indices()
        second.derive_indices()
    return model


Chain = tuple[GroupedKernels, list[nn.BatchNorm2d], GroupedKernels]


def _chains(traced: Trace) -> list[Chain]:
    """Pairs of layers of grouped kernels with only channel-wise, single-use operations between them."""
    chains = []
    for node in traced.graph.nodes:
        first = traced.module(node)
        if not _is_grouped(first, traced) or first.in_order:
            continue
        norms: list[nn.BatchNorm2d] = []
        images = isinstance(first, GroupedKernelConv2d)
        after = traced.follower(node)
        while after is not None:
            module = traced.module(after)
            if _is_grouped(module, traced) and type(module) is type(first):
                chains.append((first, norms, module))
                break
            if images and type(module) is nn.BatchNorm2d and module in traced.single:
                if altered(module, nn.BatchNorm2d):
                    break
                norms.append(module)
            elif not is_channelwise(after, module, images):
                break
            after = traced.follower(after)
    return chains


def _is_grouped(module: nn.Module | None, traced: Trace) -> TypeGuard[GroupedKernels]:
    kinds = (GroupedKernelConv2d, GroupedKernelLinear)
    return type(module) in kinds and module in traced.single and not altered(module, *kinds)


def is_channelwise(node: fx.Node, module: nn.Module | None, images: bool = True) -> bool:
    """Whether `node` treats all channels alike: the second axis of images, else the last one of features.

    module: what `node` calls, None for a function.
    """
    if module is None:
        return node.target in (CHANNELWISE_FUNCTIONS if images else ELEMENTWISE_FUNCTIONS)
    plain = type(module) in (CHANNELWISE if images else ELEMENTWISE)
    return plain and "forward" not in vars(module) and not hooked(module)
