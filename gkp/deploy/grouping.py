"""Which filters of a dense layer read which channels, and new orders of channels that spare work.

Everything here rewrites dense networks that hold zeros (`gkp.nets.deploy.folded`) and keeps their function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from gkp.nets.channels.copying import copied
from gkp.nets.channels.replacement import altered
from gkp.nets.channels.tracing import Trace, UntraceableError, trace
from gkp.nets.grouped import is_channelwise
from gkp.nets.grouped_base import GroupedKernels

BLOCK = 8  # channels that vector units take at once: numbers of channels stay multiples of it
REPEATED = 2  # times as many groups as there are sets of channels, at most, to have them of one size
WORTH = 1 / 16  # of the channels; fewer are not removed


@dataclass(frozen=True)
class Grouping:
    """filters: output channels of each group, (n,) each; channels: input channels they read, (k,) each."""

    filters: tuple[Tensor, ...]
    channels: tuple[Tensor, ...]

    @property
    def order(self) -> Tensor:
        """(O,): the filter behind each row when the groups' outputs are concatenated."""
        return torch.cat(self.filters)

    @property
    def back(self) -> Tensor | None:
        """(O,): what brings concatenated outputs into the order of the filters; None where they are in it."""
        order = self.order
        return None if torch.equal(order, torch.arange(len(order))) else order.argsort()

    @property
    def even(self) -> Grouping | None:
        """The same in groups of one size, for one grouped convolution; None where that takes too many.

        Several groups that read equally many channels; what is larger than another is cut into parts.
        """
        size = math.gcd(*(len(filters) for filters in self.filters))
        parts = [
            (part, channels)
            for filters, channels in zip(self.filters, self.channels, strict=True)
            for part in filters.split(size)
        ]
        several = 1 < len(parts) <= REPEATED * len(self.filters)
        if not several or len({len(channels) for channels in self.channels}) > 1:
            return None
        return Grouping(*(tuple(sets) for sets in zip(*parts, strict=True)))

    def part(self, weight: Tensor, group: int) -> Tensor:
        """(n, k, ...): the kernels of one group in the dense `weight` (O, I, ...)."""
        return weight[self.filters[group]][:, self.channels[group]]


def groupings(model: nn.Module) -> dict[str, Grouping]:
    """Name and grouping of each layer of grouped kernels in `model`; groups that read the same are one."""
    return {
        name: _wider(module.filter_order.cpu().view(module.groups, -1), module.kept.cpu().sort(1).values)
        for name, module in model.named_modules()
        if isinstance(module, GroupedKernels) and name
    }


def _wider(order: Tensor, kept: Tensor) -> Grouping:
    """The grouping of filters (G, n) that read channels (G, k), each set of channels once."""
    readers: dict[tuple[int, ...], list[Tensor]] = {}
    for filters, channels in zip(order, kept, strict=True):
        readers.setdefault(tuple(channels.tolist()), []).append(filters)
    together = (
        members[0] if len(members) == 1 else torch.cat(members).sort().values for members in readers.values()
    )
    return Grouping(tuple(together), tuple(torch.tensor(channels) for channels in readers))


def reordered(
    network: nn.Module, grouped: Mapping[str, Grouping]
) -> tuple[nn.Module, dict[str, Grouping], dict[str, int]]:
    """(a copy of the dense `network` with better orders of channels, its groupings, removed filters).

    Between two convolutions that only channel-wise operations join, channels may have any order. The first
    then writes them as its groups compute them; or, when it is a plain one and the second has two groups, so
    that each group reads a slice. What no group of the second reads is not computed. As it is when torch.fx
    cannot trace the network.
    """
    network, grouped = copied(network), dict(grouped)
    removed: dict[str, int] = {}
    for first, second in edges(network):
        if first not in grouped and second not in grouped:
            continue
        order = _order(network.get_submodule(first), grouped.get(first), grouped.get(second))
        writer, reader = network.get_submodule(first), network.get_submodule(second)
        assert isinstance(writer, nn.Conv2d)  # both from `edges`
        assert isinstance(reader, nn.Conv2d)
        if len(order) < writer.out_channels:
            removed[first] = writer.out_channels - len(order)
        place = torch.full((writer.out_channels,), -1)
        place[order] = torch.arange(len(order))
        _select(writer, order, 0)
        _select(reader, order, 1)
        if first in grouped:
            filters = (place[f] for f in grouped[first].filters)
            grouped[first] = Grouping(
                tuple(f[f >= 0].sort().values for f in filters), grouped[first].channels
            )
        if second in grouped:
            channels = (place[c].sort().values for c in grouped[second].channels)
            grouped[second] = Grouping(grouped[second].filters, tuple(channels))
    return network, grouped, removed


def edges(network: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and of the only other one that reads each, through channel-wise operations.

    [] when torch.fx cannot trace the network.
    """
    try:
        return list(_edges(trace(network)))
    except UntraceableError:
        return []


def _edges(traced: Trace) -> Iterator[tuple[str, str]]:
    for node in traced.graph.nodes:
        after = traced.follower(node) if _plain(node, traced) else None
        while after is not None:
            if _plain(after, traced):
                yield str(node.target), str(after.target)
                break
            after = traced.follower(after) if is_channelwise(after, traced.module(after)) else None


def _plain(node: fx.Node, traced: Trace) -> bool:
    module = traced.module(node)
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and module in traced.single
        and not altered(module, nn.Conv2d)
    )


def _order(conv: nn.Module, writer: Grouping | None, reader: Grouping | None) -> Tensor:
    """The channels between a convolution and its reader in their new order, without what nobody reads."""
    channels = conv.get_parameter("weight").shape[0]
    order = torch.arange(channels) if writer is None else writer.order
    if reader is None:
        return order
    readers = torch.zeros(len(reader.channels), channels, dtype=torch.bool)
    for group, read in enumerate(reader.channels):
        readers[group, read] = True
    alive = readers.any(0)
    room = -int(alive.sum()) % BLOCK  # channels that stay for a round number
    alive[(~alive).nonzero().flatten()[:room]] = True
    if (~alive).sum() < WORTH * channels:
        alive[:] = True
    if writer is None and len(readers) == 2:
        # what the first group alone reads, what both read, the second's own, what nobody reads
        first, second = readers.int()
        order = torch.where(readers.any(0), second - first, 2).argsort(stable=True)
    return order[alive[order]]


def _select(conv: nn.Conv2d, order: Tensor, axis: int) -> None:
    """Only the channels `order` of output (axis 0) or input (axis 1), in place."""
    layout = torch.channels_last if not conv.weight.is_contiguous() else torch.contiguous_format
    weight = conv.weight.detach().index_select(axis, order).contiguous(memory_format=layout)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    if axis:
        conv.in_channels = len(order)
        return
    conv.out_channels = len(order)
    if conv.bias is not None:
        conv.bias = nn.Parameter(conv.bias.detach()[order], requires_grad=False)
