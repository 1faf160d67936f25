"""Which filters reach which channels, read off the gradients of a `gkp.nets.channels.probe`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from gkp.nets.channels.layers import copied, unwrapped
from gkp.nets.channels.probe import Leaf, Probe, Reading, cut_run, probe, watch
from gkp.nets.channels.running import OnePrecision, as_float

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


def feeds(probed: Probe, targets: set[str] | None = None) -> Iterator[Feed]:
    """Everything that reaches every layer (or those in `targets`), reading by reading."""
    for reading in probed.readings:
        if reading.tensor.requires_grad and (targets is None or reading.name in targets):
            with _disable_current_modes():  # the probe watches for work in place: none here
                edges = list(_decode(reading, probed.leaves, probed.exact))
            yield from edges


def readers_of_image(model: nn.Module, x: Tensor) -> tuple[set[str], Probe]:
    """(layers that read the image and nothing else, the probe without gradients that tells).

    Found by values: what reaches them changes with the image and not with the results of other layers. So
    it does not matter where a network switches gradients off.
    """
    with torch.inference_mode(False), torch.no_grad():
        model, x = copied(unwrapped(model)).float().requires_grad_(False), as_float(x).clone()
        watched = Probe()
        shapes = watch(model, x, watched, False)
        runs: list[list[Reading]] = []
        for seeds in ((0, 1), (2, 1), (0, 3)):
            probed = Probe()
            try:
                with OnePrecision(torch.float32):
                    cut_run(model, shapes, x, probed, frozenset(), seeds)
            except Exception as error:
                raise ValueError(
                    "the layers of this network cannot be looked at one by one: with other numbers in them "
                    f"it takes another way ({type(error).__name__}: {error})"
                ) from error
            runs.append([reading for reading in probed.readings if reading.axis is not None])
    only: dict[str, bool] = {}
    for first, other_image, other_layers in zip(*runs, strict=False):
        by_image = not torch.equal(first.tensor, other_image.tensor)
        by_layers = not torch.equal(first.tensor, other_layers.tensor)
        only[first.name] = only.get(first.name, True) and by_image and not by_layers
    return {name for name, alone in only.items() if alone}, watched


def gates(
    model: nn.Module,
    x: Tensor,
    groups: Iterable[tuple[str, ...]],
    direct: Mapping[str, list[str]],
    between: set[str],
) -> dict[str, frozenset[str]]:
    """{producer: the others of its group, where they only scale what it gives}.

    They do when, with zeros instead of what the producer gives, no reader depends on them any more
    (squeeze-and-excitation, gated linear units); the filters of a residual sum do not. groups: layers
    whose filters go together, in the order of the calls. direct: {layer: layers between that it reaches
    first}. between: layers that keep channels apart.
    """
    mains = {group[0]: group[1:] for group in groups if len(group) > 1}
    if not mains:
        return {}

    def chain(name: str) -> set[str]:
        reached, todo = {name}, [name]
        while todo:
            for target in direct.get(todo.pop(), ()):
                if target not in reached:
                    reached.add(target)
                    todo.append(target)
        return reached

    chains = {name: chain(name) for group in mains.items() for name in (group[0], *group[1])}
    silent = frozenset(name for main in mains for name in chains[main])
    heard: set[str] = set()
    with probe(model, x, silent) as probed:
        for edge in feeds(probed):
            if edge.target not in between:
                heard.add(edge.source)
    return {
        main: frozenset(others)
        for main, others in mains.items()
        if not any(chains[other] & (heard | chains[main]) for other in others)
    }


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
