"""Which filters reach which channels, read off the gradients of a `gkp.nets.channels.probe`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gkp.nets.channels.probe import IMAGE, Leaf, Probe, Reading

BASE = 4096  # codes of a channel: two digits in this base


@dataclass(frozen=True)
class Feed:
    """That filters of `source` reach channels of `target`.

    filters, channels: index tensors of equal length, pair by pair; mixed: filters that reach several
    channels at once, or channels nobody can name.
    """

    source: str
    target: str
    filters: Tensor
    channels: Tensor
    mixed: Tensor


def feeds(found: Probe, targets: set[str] | None = None) -> Iterator[Feed]:
    """Everything that reaches every layer (or those in `targets`), reading by reading."""
    for reading in found.readings:
        if reading.tensor.requires_grad and (targets is None or reading.name in targets):
            yield from _decode(reading, found.leaves, found.exact)


def readers_of_image(found: Probe) -> set[str]:
    """Layers that read the image and nothing else."""
    sources: dict[str, set[str]] = {}
    for reading in found.readings:
        if reading.axis is not None and reading.tensor.requires_grad:
            slopes = _pull(reading, found.leaves, torch.ones_like(reading.tensor))
            reached = [
                leaf.name for leaf, slope in zip(found.leaves, slopes, strict=True) if slope is not None
            ]
            sources.setdefault(reading.name, set()).update(reached)
    return {name for name, known in sources.items() if known == {IMAGE}}


def _pull(reading: Reading, leaves: list[Leaf], weight: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the weighted sum of the reading for every leaf; None where there is no way."""
    total = (reading.tensor * weight).sum()  # grad_outputs= would make torch import sympy, for seconds
    of = [leaf.values for leaf in leaves]
    try:
        return torch.autograd.grad(total, of, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise ValueError(
            f"what reaches {reading.name} cannot be followed back to the filters, because an operation "
            f"on the way has no gradient ({error})"
        ) from error


def _decode(reading: Reading, leaves: list[Leaf], tolerance: float) -> Iterator[Feed]:
    tensor, empty = reading.tensor, torch.empty(0, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)  # the caller's random numbers stay
    scale = torch.rand(tensor.shape, generator=generator).to(tensor) + 1
    touched = [
        (leaf, slope)
        for leaf, slope in zip(leaves, _pull(reading, leaves, scale), strict=True)
        if slope is not None
    ]
    if reading.axis is None:
        for leaf, slope in touched:
            yield Feed(leaf.name, reading.name, empty, empty, _filters(slope.ne(0), leaf.axis))
        return
    shape = [1] * tensor.dim()
    shape[reading.axis] = -1
    index = torch.arange(tensor.shape[reading.axis], device=tensor.device)
    codes = (index // BASE + 1, index % BASE + 1, torch.rand(len(index), generator=generator).to(tensor) + 1)
    of = [leaf for leaf, _ in touched]
    pulled = [_pull(reading, of, scale * code.view(shape)) for code in codes]
    for position, (leaf, slope) in enumerate(touched):
        alive = slope.ne(0)
        high, low, check = (p[position][alive] / slope[alive] for p in pulled)  # type: ignore[index]
        channel = (high.round() - 1) * BASE + low.round() - 1
        known = channel.isfinite() & (channel >= 0) & (channel < len(index))
        channel = channel.where(known, 0).long()
        exact = (high - high.round()).abs() + (low - low.round()).abs() < tolerance
        single = known & exact & ((check - codes[2][channel]).abs() < tolerance)
        owner = torch.arange(slope.shape[leaf.axis], device=slope.device)
        owner = owner.view([-1 if i == leaf.axis % slope.dim() else 1 for i in range(slope.dim())])
        owner = owner.expand(slope.shape)[alive]
        pairs = (owner[single] * len(index) + channel[single]).unique().cpu()
        mixed = owner[~single].unique().cpu()
        if len(pairs) or len(mixed):
            yield Feed(leaf.name, reading.name, pairs // len(index), pairs % len(index), mixed)


def _filters(hit: Tensor, axis: int) -> Tensor:
    """Indices along `axis` of the slices of a bool tensor that hold a True."""
    return hit.movedim(axis, 0).flatten(1).any(1).nonzero()[:, 0].cpu()
