"""Networks with grouped kernels: their layers, how they run, and the same function in ordinary layers."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import fx, nn

from gkp.grouped_base import EXECUTIONS, GroupedKernels
from gkp.grouped_layers import GroupedKernelConv2d, GroupedKernelLinear, unsupported, window
from gkp.replacement import altered, replace_module, shared_weights, take_over

__all__ = [
    "EXECUTIONS",
    "GroupedKernelConv2d",
    "GroupedKernelLinear",
    "shared_weights",
    "fold_permutations",
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

    ValueError names a layer that was changed since it was pruned (weight norm, masks, another forward).
    """
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if not isinstance(module, GroupedKernels):
            continue
        reason = altered(module, GroupedKernelConv2d, GroupedKernelLinear)
        if reason:
            raise ValueError(f"cannot make {name or 'the network'} dense: {reason}")
        if module is model:
            return module.to_dense()
        replace_module(model, module, module.to_dense())
    return model


ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.Dropout, nn.Identity)
CHANNELWISE = (*ELEMENTWISE, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
CHANNELWISE_FUNCTIONS = (F.relu, torch.relu, F.relu6, F.silu, F.gelu, F.max_pool2d, F.avg_pool2d)


def fold_permutations(model: nn.Module) -> nn.Module:
    """A copy in which output permutations are folded into what follows, where that is possible.

    A permutation can be folded when a single chain of batch norm and channel-wise operations leads
    from one grouped kernel convolution to the next: the channels in between get new names, the
    batch norm's entries and the next layer's gather follow. Values are unchanged, one gather less
    runs per folded layer. Layers that end in a residual sum keep their permutation.
    """
    model = copy.deepcopy(model)
    for first, norms, second in _chains(model):
        order = first.filter_order.clone()
        with torch.no_grad():
            for norm in norms:
                for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    if tensor is not None:
                        tensor.copy_(tensor[order])
            if first.bias is not None:
                first.bias.copy_(first.bias[order])
            kept, columns = order.argsort()[second.kept].sort(1)
            rows = second.out_channels // second.groups
            index = columns.repeat_interleave(rows, 0)[:, :, None, None].expand_as(second.weight)
            second.weight.copy_(second.weight.gather(1, index))
        first.filter_order.copy_(torch.arange(len(order)))
        second.kept.copy_(kept)
        first.derive_indices()
        second.derive_indices()
    return model


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, GroupedKernelConv2d) or super().is_leaf_module(module, qualified_name)


def _chains(model: nn.Module) -> list[tuple[GroupedKernelConv2d, list[nn.BatchNorm2d], GroupedKernelConv2d]]:
    """Pairs of grouped kernel convolutions with only channel-wise, single-use operations between them."""
    modules = dict(model.named_modules())
    graph = _Tracer().trace(model)
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    chains = []
    for node in graph.nodes:
        first = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(first, GroupedKernelConv2d) or first.in_order or calls.count(node.target) > 1:
            continue
        norms: list[nn.BatchNorm2d] = []
        while len(node.users) == 1:
            node = next(iter(node.users))
            module = modules.get(node.target) if node.op == "call_module" else None
            if isinstance(module, GroupedKernelConv2d) and calls.count(node.target) == 1:
                chains.append((first, norms, module))
            elif isinstance(module, nn.BatchNorm2d) and calls.count(node.target) == 1:
                norms.append(module)
                continue
            elif isinstance(module, CHANNELWISE) or node.target in CHANNELWISE_FUNCTIONS:
                continue
            break
    return chains
