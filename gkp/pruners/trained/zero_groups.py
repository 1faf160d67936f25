"""Zero-invariant groups: a filter with its bias, scale and shift. While they are zero, so is its channel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from gkp.nets.channels.groups import channels_of
from gkp.nets.channels.layers import copied
from gkp.nets.channels.proof import must_agree
from gkp.nets.channels.surgery import FilterLayer, default_input, remove_filters, warn_of
from gkp.pruners.common.filters import layers_to_cut
from gkp.pruners.common.ranking import filter_macs, lowest, own_norm
from gkp.pruners.common.registry import Cut
from gkp.pruners.common.widths import Widths

SHIFTED = "a filter of zeros is not zero where it is read"
GAP = 3  # groups of the dearest layer: what a target may be missed by
STIRRED = 0.1  # standard deviation of what is added to biases, scales, shifts and running means for the trial


class ZeroGroups:
    """The groups of a network's layers, numbered layer by layer, N in all.

    OTOv2 also has groups of filters that a residual sum ties, and no reader's inputs; here a group is one
    filter that goes on its own. A layer whose channel would not be zero with its group is left out, in a
    warning (`gkp.SkippedLayers`): what follows the filter shifts it. ValueError when none is left.
    """

    def __init__(self, model: nn.Module, example_input: Tensor | None) -> None:
        self.example = default_input(model, example_input)
        layers = layers_to_cut(model, self.example)
        if not _vanish(model, layers, self.example):
            single = {name: _vanish(model, {name: layer}, self.example) for name, layer in layers.items()}
            shifted = dict.fromkeys((name for name, good in single.items() if not good), SHIFTED)
            layers = {name: layer for name, layer in layers.items() if single[name]}
            if not layers:
                raise ValueError(
                    f"{SHIFTED}, even with its bias, scale and shift zero, in {', '.join(shifted)}: use a "
                    "method that does not train groups to zero, such as l1"
                )
            warn_of(shifted)
        self.layers = layers
        self.names = list(layers)
        self.sizes = [layer.filters for layer in layers.values()]
        self.widths = Widths(model, layers, self.example)

    def tensors(self, model: nn.Module, name: str) -> list[Tensor]:
        """The tensors of one layer's groups, detached views with the filters in front."""
        return _tensors(model, self.layers[name])

    def vectors(self, model: nn.Module) -> list[Tensor]:
        """Per layer (O, D): a copy of every group, as one row."""
        return [torch.cat([t.flatten(1) for t in self.tensors(model, name)], 1) for name in self.names]

    def put(self, model: nn.Module, vectors: Sequence[Tensor]) -> None:
        """Write `vectors` back."""
        for name, rows in zip(self.names, vectors, strict=True):
            tensors = self.tensors(model, name)
            for tensor, part in zip(tensors, rows.split([t[0].numel() for t in tensors], 1), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def scale(self, model: nn.Module, factors: Tensor) -> None:
        """Multiply every group by its factor; factors: (N,)."""
        for name, part in self.split(factors).items():
            for tensor in self.tensors(model, name):
                tensor.mul_(part.to(tensor).view(-1, *[1] * (tensor.dim() - 1)))

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """(N,) -> {layer: (O,)}."""
        return dict(zip(self.names, flat.split(self.sizes), strict=True))

    def removable(self, scores: Tensor, minimum: float, gone: Tensor | None = None) -> list[int]:
        """Groups that may go beside those gone, lowest score first; a layer keeps a share `minimum`, and one.

        scores: (N,); gone: (N,) bool.
        """
        gone = torch.zeros(len(scores), dtype=torch.bool) if gone is None else gone.cpu()
        owner = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes)).tolist()
        lost = [int(part.sum()) for part in gone.split(self.sizes)]
        spare = [n - max(1, math.ceil(minimum * n)) - k for n, k in zip(self.sizes, lost, strict=True)]
        groups = []
        for group in scores.cpu().sort(stable=True).indices.tolist():
            if not gone[group] and spare[owner[group]] > 0:
                spare[owner[group]] -= 1
                groups.append(group)
        return groups

    def vanished(self, model: nn.Module) -> Tensor:
        """(N,) bool: which groups are zero."""
        return torch.cat([~rows.any(1) for rows in self.vectors(model)])

    def macs(self, gone: Tensor) -> float:
        """Multiply-adds per image of the network without these groups; gone: (N,) bool."""
        return self.widths.macs({name: int(part.sum()) for name, part in self.split(gone).items()})

    def cut(self, model: nn.Module, scores: Tensor, zero: Tensor, rate: float, minimum: float) -> Cut:
        """A cut that removes exactly the groups `zero` (N,) at `rate`, below it a part of them.

        Clearly above it those of lowest score go, too: a target that is missed by the last group alone is no
        reason to take one that is not zero. scores: (N,).
        """
        worth = filter_macs(model, self.layers, self.example)
        total = sum(worth[name] * layer.filters for name, layer in self.layers.items())
        at_zero = self.split(zero.cpu())
        vanished = sum(worth[name] * int(part.sum()) for name, part in at_zero.items()) / total
        first = self.split(scores.cpu().double().masked_fill(zero.cpu(), -torch.inf))
        clearly = GAP * max(worth.values()) / total if rate else 0.0

        def drop(wanted: float) -> dict[str, Tensor]:
            more = max(0.0, wanted - rate) / (1 - rate) * (1 - vanished)
            if more > clearly:
                return lowest(first, worth, vanished + more, minimum)
            share = min(1.0, wanted / rate) * vanished if rate else 0.0
            dropped = lowest(first, worth, share, minimum)
            return {name: indices[at_zero[name][indices]] for name, indices in dropped.items()}

        return lambda wanted: remove_filters(model, drop(wanted), self.example)


def global_norm(scores: Sequence[Tensor]) -> Tensor:
    """(N,) of per-layer (O,), divided by its norm over all groups; as it is where that is 0."""
    flat = torch.cat(list(scores))
    norm = flat.norm()
    return flat / norm.where(norm > 0, torch.ones_like(norm))


def cosine(x: Tensor, g: Tensor) -> Tensor:
    """(O,) between rows of x and g (O, D); 0 where one of them is 0."""
    return nn.functional.cosine_similarity(x, g, dim=1, eps=1e-30)


def _tensors(model: nn.Module, layer: FilterLayer) -> list[Tensor]:
    module, norm = model.get_submodule(layer.name), own_norm(model, layer)
    weight = module.get_parameter("weight").detach()
    rest = [module._parameters["bias"], *(() if norm is None else (norm.weight, norm.bias))]
    filters = weight.transpose(0, 1) if isinstance(module, _ConvTransposeNd) else weight
    return [filters, *(tensor.detach()[:, None] for tensor in rest if tensor is not None)]


@torch.no_grad()
def _vanish(model: nn.Module, layers: Mapping[str, FilterLayer], example: Tensor) -> bool:
    """Whether the channels of these layers are zero with their groups, in a network as after training.

    Half of the filters of each layer are set to zero in a copy, which then must compute what it does
    without them.
    """
    channels = channels_of(model, example)
    zeroed, generator = copied(model), torch.Generator().manual_seed(0)
    means = [buffer for name, buffer in zeroed.named_buffers() if name.endswith("running_mean")]
    for tensor in [*(p for p in zeroed.parameters() if p.dim() <= 1), *means]:
        tensor.add_(STIRRED * torch.randn(tensor.shape, generator=generator).to(tensor))
    drop = {
        name: torch.arange((layer.filters + 1) // 2) for name, layer in layers.items() if layer.filters > 1
    }
    for name, indices in drop.items():
        for tensor in _tensors(zeroed, layers[name]):
            tensor[indices.to(tensor.device)] = 0
    try:
        must_agree(remove_filters(zeroed, drop, example, channels=channels), zeroed, example, "without zeros")
    except ValueError:
        return False
    return True
