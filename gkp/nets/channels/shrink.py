"""Layers without some of their channels, or with zeros for them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gkp.nets.channels.copying import with_attributes
from gkp.nets.channels.groups import Channels
from gkp.nets.channels.layers import in_groups, mixes


def keep(size: int, gone: Tensor | None) -> Tensor:
    """Indices 0..size-1 without `gone`."""
    left = torch.ones(size, dtype=torch.bool)
    if gone is not None:
        left[gone] = False
    return left.nonzero()[:, 0]


def own_ways(model: nn.Module, names: Iterable[str]) -> str:
    """What to add to the reason why `names` cannot shrink: classes among them with a forward of their own.

    It may compute weights from all filters or inputs at once. Empty where there is no such class.
    """
    kinds = {
        kind.__name__: None
        for name in names
        for kind in type(model.get_submodule(name)).__mro__
        if issubclass(kind, (_ConvNd, nn.Linear))
        and not kind.__module__.startswith("torch.")
        and not {"forward", "_conv_forward"}.isdisjoint(vars(kind))
    }
    if not kinds:
        return ""
    return (
        f"; {', '.join(kinds)}, with a forward of its own, may compute with all filters or inputs at once: "
        "put plain layers in its place that have the weights it computes"
    )


def shrink(model: nn.Module, channels: Channels, units: set[int]) -> nn.Module:
    """`model` itself without the channels of `units`, in place; returned. Layers keep hooks and flags."""
    filters, inputs = channels.removed(units)
    modules = dict(model.named_modules())
    for name in {**filters, **inputs}:
        module = modules[name]
        if isinstance(module, _ConvNd):
            _shrink_convolution(module, filters.get(name), inputs.get(name))
        elif isinstance(module, nn.Linear):
            rows = keep(module.out_features, filters.get(name))
            columns = keep(module.in_features, inputs.get(name))
            _set(module, "weight", module.weight[rows.to(module.weight.device)], columns, 1)
            _set(module, "bias", module.bias, rows, 0)
            module.out_features, module.in_features = len(rows), len(columns)
        else:
            _shrink_norm(module, filters[name])
    return model


def _shrink_convolution(conv: _ConvNd, gone_filters: Tensor | None, gone_inputs: Tensor | None) -> None:
    filters, inputs = keep(conv.out_channels, gone_filters), keep(conv.in_channels, gone_inputs)
    weight = conv.weight
    own, given = (1, 0) if isinstance(conv, _ConvTransposeNd) else (0, 1)  # axes of the weight
    if conv.groups > 1:  # whole groups go: rows of the weight belong to groups, columns are inside them
        conv.groups = len(inputs) * conv.groups // conv.in_channels
        _set(conv, "weight", weight, inputs if isinstance(conv, _ConvTransposeNd) else filters, 0)
    else:
        weight = weight.index_select(own, filters.to(weight.device))
        _set(conv, "weight", weight, inputs, given)
    _set(conv, "bias", conv.bias, filters, 0)
    conv.out_channels, conv.in_channels = len(filters), len(inputs)


def _shrink_norm(norm: nn.Module, gone: Tensor) -> None:
    """GroupNorm loses whole groups; the others have one number a channel in each of their tensors."""
    if isinstance(norm, nn.GroupNorm):
        left = keep(norm.num_channels, gone)
        norm.num_groups = len(left) * norm.num_groups // norm.num_channels
        norm.num_channels = len(left)
    else:
        size = in_groups(norm)
        left = keep(size, gone)
        for count in ("num_features", "num_parameters"):
            if hasattr(norm, count):
                setattr(norm, count, len(left))
    for name, tensor in [*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)]:
        if tensor.dim():  # not the counter of batches
            _set(norm, name, tensor, left, 0)


def _set(module: nn.Module, name: str, tensor: Tensor | None, index: Tensor, axis: int) -> None:
    """Replace the parameter or buffer `name` by the entries `index` of `tensor`: same flag, same layout."""
    if tensor is None:
        return
    old = getattr(module, name)
    new = tensor.detach().index_select(axis, index.to(tensor.device))
    last = new.dim() == 4 and not old.is_contiguous() and old.is_contiguous(memory_format=torch.channels_last)
    new = new.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    if name in module._parameters:
        module._parameters[name] = with_attributes(nn.Parameter(new, requires_grad=old.requires_grad), old)
    else:
        module._buffers[name] = new


class silenced:
    """Within the block the readers of `units` have zeros for them; the weights come back afterwards."""

    def __init__(self, model: nn.Module, channels: Channels, units: set[int]) -> None:
        _, inputs = channels.removed(units)
        modules = dict(model.named_modules())
        self.readers = {modules[n]: gone for n, gone in inputs.items() if mixes(modules[n])}
        self.saved: dict[nn.Module, Tensor] = {}

    def __enter__(self) -> None:
        for reader, gone in self.readers.items():
            weight = reader.get_parameter("weight")
            self.saved[reader] = weight.detach().clone()
            axis = 0 if isinstance(reader, _ConvTransposeNd) else 1
            with torch.no_grad():
                weight.index_fill_(axis, gone.to(weight.device), 0)

    def __exit__(self, *_: object) -> None:
        for reader, weight in self.saved.items():
            with torch.no_grad():
                reader.get_parameter("weight").copy_(weight)
