"""Numbers that channels are multiplied with where layers read them, and what a network costs under them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gkp.nets import products
from gkp.nets.channels.groups import Bundle, Channels
from gkp.nets.channels.layers import channel_axis, in_groups, mixes, unwrapped


class Gates:
    """Gates of units of channels (`gkp.nets.channels.groups`), put into `model` for good by hooks.

    model: a copy to score with. units: which have a gate, in this order. Every layer that reads a unit reads
    it times its gate; with zeros the network is the one that is left without these units. values: (units,),
    or (images, units), see `each_image`.
    """

    def __init__(self, model: nn.Module, channels: Channels, units: Sequence[int]) -> None:
        self.values = torch.ones(len(units), device=next(model.parameters()).device)
        self.mask: Tensor | None = None
        self.apart = True
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        for name, module in unwrapped(model).named_modules():
            if name in channels.inputs and mixes(module):
                places = places_of(units, channels.inputs[name]).to(self.values.device)
                if (places < len(units)).any():
                    hook = partial(self._multiply, channel_axis(module), places)
                    module.register_forward_pre_hook(hook, with_kwargs=True)

    def each_image(self, mask: Tensor) -> None:
        """From now on every image has gates of its own that begin at mask (units,): their gradients differ.

        `apart` then tells whether the first axis of all that is read is the images; else the values make
        sense for one image at a time only.
        """
        self.mask, self.apart = mask, True

    def _begin(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self.mask is not None:
            x = next(iter((*inputs, *named.values())))
            self.values = self.mask.repeat(len(x), 1).requires_grad_(True)

    def _multiply(
        self, axis: int, places: Tensor, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = next(iter((*inputs, *named.values())))
        factor = with_others(self.values)[..., places].to(x.dtype)
        shape = [1] * x.dim()
        shape[axis] = -1
        if factor.dim() == 2:
            if len(factor) not in (1, len(x)):
                self.apart, factor = False, factor[:1]
            shape[0] = len(factor)
        x = x * factor.view(shape)
        return ((x, *inputs[1:]), named) if inputs else (inputs, {**named, next(iter(named)): x})


def places_of(units: Sequence[int], owners: Tensor) -> Tensor:
    """Where each of `owners` (n,) stands in `units`; len(units) for those that do not."""
    place = {unit: position for position, unit in enumerate(units)}
    return torch.tensor([place.get(owner, len(units)) for owner in owners.tolist()], dtype=torch.long)


def with_others(values: Tensor) -> Tensor:
    """values (..., units) and a 1 for everything that has no gate."""
    return torch.cat([values, values.new_ones(*values.shape[:-1], 1)], -1)


class Costs:
    """What the layers that write or read some units cost when some of these are gone.

    Both functions are of the gates (units,), between 0 and 1, and can be differentiated.
    """

    def __init__(
        self, model: nn.Module, channels: Channels, units: Sequence[int], example_input: Tensor
    ) -> None:
        model, gated = unwrapped(model), torch.tensor(sorted(units), dtype=torch.long)
        sides = {name: (channels.inputs[name], channels.filters[name]) for name in channels.filters}
        names = [
            name for name, owners in sides.items() if any(torch.isin(side, gated).any() for side in owners)
        ]
        macs = products.by_layer(model, names, example_input)
        elements = _elements(model, names, example_input)
        self.layers: list[tuple[int, int, Tensor | None, Tensor]] = []
        for name in names:
            read, written = (places_of(units, side) for side in sides[name])
            if in_groups(model.get_submodule(name)):  # its input channels go with its filters
                self.layers.append((macs[name], 0, None, written))
            else:
                self.layers.append((macs[name], elements[name], read, written))

    def macs(self, gates: Tensor) -> Tensor:
        """Multiply-adds of one image."""
        gates = with_others(gates)
        macs = [
            cost * gates[written].mean() * (1 if read is None else gates[read].mean())
            for cost, _, read, written in self.layers
        ]
        return torch.stack(macs).sum()

    def elements(self, gates: Tensor) -> Tensor:
        """Numbers that the layers write for one image, those that mix channels."""
        gates = with_others(gates)
        return torch.stack([count * gates[written].mean() for _, count, _, written in self.layers]).sum()


def _elements(model: nn.Module, names: Iterable[str], example_input: Tensor) -> dict[str, int]:
    """{layer: numbers that it writes for one image, in all its calls}."""
    elements = dict.fromkeys(names, 0)

    def note(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        elements[name] += output.numel()

    def watch(trial: nn.Module) -> Iterator[RemovableHandle]:
        return (trial.get_submodule(name).register_forward_hook(partial(note, name)) for name in elements)

    products.run_once(model, example_input, watch)
    return elements


def drops(channels: Channels, bundles: Iterable[Bundle], units: set[int]) -> dict[str, Tensor]:
    """{producer: its filters in `units`}, for `gkp.nets.channels.surgery.remove_filters`."""
    dropped = {}
    for bundle in bundles:
        owner = channels.filters[bundle.producers[0]]
        gone = torch.isin(owner, torch.tensor(sorted(units & set(bundle.units)), dtype=torch.long))
        if gone.any():
            dropped[bundle.producers[0]] = gone.nonzero()[:, 0]
    return dropped
