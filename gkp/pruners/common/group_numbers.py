"""One number of groups for all layers, or one for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gkp.nets.channels.layers import convolution, spatial, unwrapped
from gkp.nets.channels.surgery import filter_weight, kernel_layers
from gkp.utils.nearest import unknown
from gkp.utils.whole import is_whole

Groups = int | Mapping[str, int]
USUAL = 8  # the paper's, for layers that a mapping does not name, and for the command line


def groups_of(groups: Groups, name: str) -> int:
    """The number of groups of the layer called `name`."""
    return groups.get(name, USUAL) if isinstance(groups, Mapping) else groups


def checked_number(groups: Any) -> None:
    """ValueError unless `groups` is a positive whole number."""
    if not is_whole(groups):
        measured = groups == "auto"
        other = ", or measure which are fastest here with gkp.deploy.fastest_groups" if measured else ""
        raise ValueError(f"groups={groups!r}: give a positive whole number, for example 8{other}")


def mapped_layers(
    model: nn.Module, groups: Mapping[str, int], example_input: Tensor | None
) -> tuple[dict[str, nn.Conv2d], dict[str, str]]:
    """As `gkp.nets.channels.surgery.kernel_layers`, each layer with its own number of groups.

    ValueError for a name that is none of a layer that can be pruned, and for a number that does not divide
    the layer's filters. Layers that `groups` does not name have `USUAL` groups; 1x1 convolutions are there
    only where it names them.
    """
    every, unable = kernel_layers(model, 1, example_input, pointwise=True)
    inner = unwrapped(model)
    modules = dict(inner.named_modules())
    meant = {name for name in (*every, *unable) if name in groups or spatial(convolution(inner, name))}
    layers = {name: layer for name, layer in every.items() if name in meant}
    skipped = {name: reason for name, reason in unable.items() if name in meant}
    for name, number in groups.items():
        if name in skipped:
            raise ValueError(f"groups names {name}, which cannot be pruned: {skipped[name]}; leave it out")
        if name not in layers and isinstance(modules.get(name), nn.Conv2d):
            raise ValueError(f"groups names {name}, which reads nothing but the image: leave it out")
        if name not in layers:
            raise ValueError(unknown("layer in groups", name, every))
        checked_number(number)
        filters = len(filter_weight(layers[name]))
        if filters % number:
            raise ValueError(
                f"groups: {number} does not divide the {filters} filters of {name}: give a divisor"
            )
    for name in [name for name in layers if name not in groups]:
        if len(filter_weight(layers[name])) % USUAL:
            filters = len(filter_weight(layers.pop(name)))
            skipped[name] = f"groups={USUAL} does not divide its {filters} filters"
    return layers, skipped
