"""A pruned network inside the network it was pruned from: zeros where something is gone, and a mask.

No convolution then has an odd number of channels, which are slow on a GPU. Which channels they were does not
matter: those that are left stand first, the rest compute zeros that nothing reads. Trained under the mask it
stays the same function. `widened` proves on an example that it is one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gkp.nets.grouped_base import GroupedKernels
from gkp.utils.logits import logits

TOLERANCE = 1e-4  # of the largest logit; float32, summed in another order
ONES = ("running_var",)  # what is 1 where nothing is
OF_GROUPS = ("filter_order", "kept")  # buffers that the wide network does not have

State = dict[str, Tensor]


@dataclass(frozen=True)
class Wide:
    """`model`, wide, computes what `narrow` computes.

    places: for every tensor of the narrow state_dict that the wide one has, where its entries lie among those
    of the wide tensor, both flattened; None for all.
    """

    model: nn.Module
    narrow: nn.Module
    places: dict[str, Tensor | None]

    def widen(self, state: State) -> State:
        """Tensors of the narrow network, all or some, as the wide one's: zeros elsewhere, variances one."""
        shapes = {name: value.shape for name, value in self.model.state_dict().items()}
        return {
            name: _spread(value, self.places[name], shapes[name], name.endswith(ONES))
            for name, value in state.items()
            if name in self.places and name in shapes
        }

    def narrowed(self, state: State) -> State:
        """Tensors of the wide network, all or some, as those of the narrow one, in its order."""
        tensors = {}
        for name, value in self.narrow.state_dict().items():
            if name in state:
                places = self.places[name]
                tensors[name] = state[name] if places is None else _taken(state[name], places, value)
        return tensors

    def mask(self) -> State:
        """1 where the narrow network has a parameter, else 0, by name; only tensors that have zeros."""
        ones = {name: torch.ones_like(p, device="cpu") for name, p in self.narrow.named_parameters()}
        return self.widen({name: value for name, value in ones.items() if self.places[name] is not None})


def alone(model: nn.Module) -> Wide:
    """The network as its own wide one."""
    return Wide(model, model, dict.fromkeys(model.state_dict()))


def widened(narrow: nn.Module, start: nn.Module | None, example: Tensor) -> Wide:
    """`narrow` in a copy of `start`, the network it was pruned from; `alone` where that does not fit.

    example: (B, C, H, W) pixels on the device of both, on which equality is proved.
    """
    if start is None or (places := _places(narrow, start)) is None:
        return alone(narrow)
    wide = Wide(copy.deepcopy(start), narrow, places)
    missing = wide.model.load_state_dict(wide.widen(narrow.state_dict()), strict=False)
    with torch.no_grad():
        expected, computed = (logits(model.eval(), example) for model in (narrow, wide.model))
    same = torch.allclose(computed, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
    return wide if same and not missing.missing_keys else alone(narrow)


def _places(narrow: nn.Module, start: nn.Module) -> dict[str, Tensor | None] | None:
    """`Wide.places`; None when the two differ in more than sizes and grouped kernels."""
    narrow_state, wide_state = narrow.state_dict(), start.state_dict()
    grouped = {name: m for name, m in narrow.named_modules() if isinstance(m, GroupedKernels)}
    extra = {f"{name}.{buffer}" for name in grouped for buffer in OF_GROUPS}
    if narrow_state.keys() - extra != wide_state.keys():
        return None
    places: dict[str, Tensor | None] = {}
    for name, wide in wide_state.items():
        value, module = narrow_state[name], name.rpartition(".")[0]
        numbers = torch.arange(wide.numel()).view(wide.shape)
        if module in grouped and name.endswith(".weight"):
            places[name] = numbers.flatten(0, 1)[grouped[module].positions.cpu()].flatten()
        elif value.shape == wide.shape:
            places[name] = None
        elif value.dim() == wide.dim() and all(a <= b for a, b in zip(value.shape, wide.shape, strict=True)):
            places[name] = numbers[tuple(slice(size) for size in value.shape)].flatten()
        else:
            return None
    return places


def _spread(value: Tensor, places: Tensor | None, shape: torch.Size, ones: bool) -> Tensor:
    if places is None:
        return value
    flat = torch.full((shape.numel(),), 1.0 if ones else 0.0, dtype=value.dtype, device=value.device)
    flat[places.to(value.device)] = value.flatten()
    return flat.view(shape)


def _taken(wide: Tensor, places: Tensor, like: Tensor) -> Tensor:
    # reshape, because the wide tensor may lie with its channels last.
    return wide.reshape(-1)[places.to(wide.device)].view(like.shape)
