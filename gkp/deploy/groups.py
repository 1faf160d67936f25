"""How many groups each layer should have to run fast."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gkp.deploy import runtimes
from gkp.deploy.choice import GAIN, Setting, Times, input_shapes, measured, positive, work
from gkp.deploy.grouping import Grouping, edges, reordered
from gkp.nets.channels.copying import copied
from gkp.nets.channels.layers import uncompiled
from gkp.nets.channels.running import default_input, seeded
from gkp.nets.channels.surgery import kernel_layers
from gkp.search import check_rate
from gkp.search.objective import kept_count
from gkp.utils.progress import each_shown

PAPER = 8  # groups, where none is faster than the dense layer


@seeded()
def fastest_groups(
    model: nn.Module,
    rate: float,
    example_input: Tensor | None = None,
    runtime: str = "torch",
    batch: int = 1,
    *,
    groups: Sequence[int] = (2, 4, 8, 16),
    threads: int | None = None,
    cache: str | Path | None = None,
    rounds: int = 10,
) -> dict[str, int]:
    """{layer: groups} for `gkp.prune(model, "sr-gkp", groups=...)`: what runs fastest on this machine.

    Each convolution that grouped kernel pruning can treat is measured with each number of `groups` that
    divides its filters, in its fastest form (`gkp.deploy.forms`), at `rate` and with random kernels: which
    ones stay does not change the time. Where it alone reads a convolution, that one is measured with it: few
    groups leave filters unread, which are not computed. The paper's 8 groups are taken where nothing is
    faster than them or than the dense layer; where 8 does not divide the filters, the largest number that
    does. One group keeps the same channels for all filters, which is no grouping: only on request.
    """
    runtimes.check(runtime)
    check_rate(rate)
    network = copied(uncompiled(model)).cpu().float().eval().requires_grad_(False)
    example = default_input(network, example_input)
    x = example[:1].expand(positive("batch", batch), -1, -1, -1)
    layers, _ = kernel_layers(network, 1, example)
    threads = torch.get_num_threads() if threads is None else positive("threads", threads)
    setting = Setting(runtime, threads, positive("rounds", rounds), Times(cache))
    before = {second: first for first, second in edges(network)}
    shapes = input_shapes(network, {**layers, **dict.fromkeys(before.values())}, x)
    places = {name: Place(network.get_submodule(name), shape) for name, shape in shapes.items()}
    once = {name: layer for name, layer in layers.items() if name in shapes}
    shares = {name: work(network, name, shapes[name]) for name in once}
    chosen = {}
    for name, layer in each_shown("groups", once, shares):
        numbers = [
            number for number in groups if positive("groups", number) and layer.out_channels % number == 0
        ]
        usual = PAPER if layer.out_channels % PAPER == 0 else max(numbers, default=1)
        place, first = places[name], places.get(before.get(name, ""))
        best = {g: least_ms(place, first, drawn(layer, g, rate), setting) for g in {*numbers, usual}}
        fastest = min(numbers or [usual], key=lambda number: best[number])
        chosen[name] = fastest if best[fastest] < GAIN * best[usual] else usual
    return chosen


@dataclass(frozen=True)
class Place:
    """A convolution and the shape of what it reads."""

    layer: nn.Module
    shape: torch.Size

    def ms(self, grouping: Grouping, setting: Setting) -> dict[str, float]:
        layer = self.layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return measured(layer, grouping, self.shape, setting)


def least_ms(place: Place, before: Place | None, grouping: Grouping, setting: Setting) -> float:
    """Milliseconds of a layer in its fastest form, and of the convolution that it alone reads, if any.

    Filters of the other that no group of `grouping` reads are not computed.
    """
    if before is None:
        return min(place.ms(grouping, setting).values())
    pair = nn.Sequential(OrderedDict(first=before.layer, second=place.layer))
    network, grouped, _ = reordered(pair, {"second": grouping})
    first, second = network.get_submodule("first"), network.get_submodule("second")
    filters, channels = (torch.arange(size) for size in first.get_parameter("weight").shape[:2])
    shape = torch.Size((place.shape[0], len(filters), *place.shape[2:]))
    whole = Place(first, before.shape).ms(Grouping((filters,), (channels,)), setting)["dense"]
    return whole + min(Place(second, shape).ms(grouped["second"], setting).values())


def drawn(layer: nn.Conv2d, groups: int, rate: float) -> Grouping:
    """Random groups of the filters and channels of `layer`, by a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = layer.weight.shape[:2]
    order = torch.randperm(outputs, generator=generator).view(groups, -1)
    keep = kept_count(inputs, rate)
    channels = [torch.randperm(inputs, generator=generator)[:keep].sort().values for _ in range(groups)]
    return Grouping(tuple(order), tuple(channels))
