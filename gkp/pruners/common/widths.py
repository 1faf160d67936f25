"""What a network costs when so many filters of each layer are gone, without cutting anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gkp.nets import products
from gkp.nets.channels.groups import channels_of
from gkp.nets.channels.layers import mixes, sizes, unwrapped


class Widths:
    """Multiply-adds of convolutions and linear layers as a function of the widths of `layers`.

    layers: names among `gkp.nets.channels.surgery.prunable_layers`, whose filters reach equal parts of their
    readers. Equal to what `gkp.nets.products` counts in the network that is cut.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str], example_input: Tensor) -> None:
        inner, channels = unwrapped(model), channels_of(model, example_input)
        modules = {name: inner.get_submodule(name) for name in channels.filters}
        counted = {n: m for n, m in modules.items() if isinstance(m, (_ConvNd, nn.Linear))}
        self.cost = products.by_layer(inner, counted, example_input)
        # Of a layer that keeps channels apart the two sides shrink as one.
        self.sizes = {n: sizes(m) if mixes(m) else (0, len(channels.filters[n])) for n, m in counted.items()}
        # By layer of a filter: sides (0 inputs, 1 filters) of layers that it is a part of, and which part.
        self.lost: dict[str, list[tuple[str, int, float]]] = {}
        for name in layers:
            owner = channels.filters[name]
            for side, gone in zip((1, 0), channels.removed(owner.tolist()), strict=True):
                for other, indices in gone.items():
                    if other in counted and self.sizes[other][side]:
                        share = len(indices) / self.sizes[other][side] / len(owner)
                        self.lost.setdefault(name, []).append((other, side, share))

    def macs(self, gone: Mapping[str, int]) -> float:
        """Multiply-adds per image without so many filters of each layer."""
        left = {name: [1.0, 1.0] for name in self.cost}
        for name, count in gone.items():
            for other, side, share in self.lost[name]:
                left[other][side] -= count * share
        return sum(cost * left[name][0] * left[name][1] for name, cost in self.cost.items())
