"""The forms in which a layer of grouped kernels can run: dense, grouped, split; as layers of PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gkp.deploy.grouping import Grouping
from gkp.nets.channels.copying import copied
from gkp.nets.channels.replacement import channels_last, hooked, replace_module
from gkp.nets.grouped_layers import window

FORMS = ("dense", "grouped", "split")


def forms_of(layer: nn.Module, grouping: Grouping) -> tuple[str, ...]:
    """What the layer can run as.

    dense: one layer with zeros for the kernels that are gone. grouped: a gather, then one grouped
    convolution. split: for each group what it reads, then a dense layer; the results are concatenated.
    """
    if hooked(layer) or (isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros"):
        return ("dense",)
    if [len(channels) for channels in grouping.channels] == [layer.get_parameter("weight").shape[1]]:
        return ("dense",)  # one group of everything
    return FORMS if grouping.even and isinstance(layer, nn.Conv2d) else ("dense", "split")


def span(channels: Tensor) -> tuple[int, int] | None:
    """(first, number) of channels that follow one another, as a slice reads them; None where they do not."""
    first, number = int(channels[0]), len(channels)
    return (first, number) if torch.equal(channels, torch.arange(first, first + number)) else None


def in_forms(network: nn.Module, grouped: Mapping[str, Grouping], forms: Mapping[str, str]) -> nn.Module:
    """A copy of the dense `network` with the layers named in `forms` in these forms."""
    network = copied(network)
    for name, form in forms.items():
        layer = network.get_submodule(name)
        if form != "dense":
            replace_module(network, layer, _IN_FORM[form](layer, grouped[name]))
    return network


class Taken(nn.Module):
    """Some channels of images (N, C, H, W) or features (..., C): all, a slice, or a gather."""

    index: Tensor

    def __init__(self, channels: Tensor, inputs: int, images: bool) -> None:
        super().__init__()
        self.span = span(channels)
        self.everything = self.span == (0, inputs)
        self.images = images
        self.register_buffer("index", channels.clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.everything:
            return x
        if self.span is not None:
            return x.narrow(1 if self.images else -1, *self.span)
        if not self.images:
            return x.index_select(-1, self.index)
        # Channels last in, channels last out: index_select along axis 1 would give the other layout.
        return x.permute(0, 2, 3, 1).index_select(3, self.index).permute(0, 3, 1, 2)


class GatheredConv(nn.Module):
    """A gather, one grouped convolution, and the order of the filters."""

    def __init__(self, conv: nn.Module, grouping: Grouping) -> None:
        super().__init__()
        weight, grouping = conv.get_parameter("weight").detach(), grouping.even or grouping
        kernels = [grouping.part(weight, group) for group in range(len(grouping.filters))]
        self.taken = Taken(torch.cat(grouping.channels), weight.shape[1], True)
        self.conv = _part(conv, torch.cat(kernels), grouping.order, len(kernels))
        self.back = _back(grouping, True)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.conv(self.taken(x)))


class SplitLayer(nn.Module):
    """A dense layer for each group on what it reads; results concatenated, in the order of the filters."""

    def __init__(self, layer: nn.Module, grouping: Grouping) -> None:
        super().__init__()
        images, weight = isinstance(layer, nn.Conv2d), layer.get_parameter("weight").detach()
        self.axis = 1 if images else -1
        self.taken = nn.ModuleList(Taken(read, weight.shape[1], images) for read in grouping.channels)
        self.parts = nn.ModuleList(
            _part(layer, grouping.part(weight, group), filters)
            for group, filters in enumerate(grouping.filters)
        )
        self.back = _back(grouping, images)

    def forward(self, x: Tensor) -> Tensor:
        out = [part(take(x)) for take, part in zip(self.taken, self.parts, strict=True)]
        return self.back(torch.cat(out, self.axis) if len(out) > 1 else out[0])


_IN_FORM = {"grouped": GatheredConv, "split": SplitLayer}


def _back(grouping: Grouping, images: bool) -> nn.Module:
    back = grouping.back
    return nn.Identity() if back is None else Taken(back, len(back), images)


def _part(like: nn.Module, weight: Tensor, filters: Tensor, groups: int = 1) -> nn.Module:
    """A layer with `weight` (O, I / groups, ...), the window of `like`, and its biases at `filters`."""
    has_bias, inputs = like.bias is not None, weight.shape[1] * groups
    part: nn.Conv2d | nn.Linear
    with torch.random.fork_rng(devices=[]):
        if isinstance(like, nn.Conv2d):
            part = nn.Conv2d(inputs, len(weight), **window(like), groups=groups, bias=has_bias)
        else:
            part = nn.Linear(inputs, len(weight), bias=has_bias)
    last = channels_last(like.get_parameter("weight"))
    layout = torch.channels_last if last else torch.contiguous_format
    part.weight = nn.Parameter(weight.contiguous(memory_format=layout), requires_grad=False)
    if has_bias:
        part.bias = nn.Parameter(like.get_parameter("bias").detach()[filters], requires_grad=False)
    return part
