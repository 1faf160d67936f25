"""Proof that channels can go: the smaller network against the whole one with silent channels.

One unit of every bundle is removed in a copy, then two. In another one the weights of the layers that read
them are set to zero instead. If what can be removed was understood, both compute the same at every layer.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gkp.nets.channels.groups import Bundle, Channels
from gkp.nets.channels.layers import channel_axis, copied, in_groups, mixes, run, tensors_in, unwrapped
from gkp.nets.channels.shrink import keep, shrink

TOLERANCE = 1e-4  # of the standard deviation of a layer's output, in float32, with random weights
ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3}  # of the logits', with the network's own; else 0.1
SECONDS = 600.0  # for one network


def proved(model: nn.Module, channels: Channels, x: Tensor) -> Channels:
    """`channels` without the bundles for which the proof fails; `refuted` says why."""
    model = copied(unwrapped(model)).eval().float().requires_grad_(False)
    x = x.detach().float()
    _scatter_weights(model, channels)
    left, refuted = list(channels.bundles), dict(channels.refuted)
    end = time.monotonic() + SECONDS
    while left:
        reason = failure(model, channels, left, x)
        if reason is None:
            break
        refuted |= _blamed(model, channels, left, x, reason, end)
        left = [bundle for bundle in left if bundle.producers not in refuted]
    return replace(channels, bundles=left, refuted=refuted)


def failure(model: nn.Module, channels: Channels, bundles: list[Bundle], x: Tensor) -> str | None:
    """Why units of `bundles` cannot go; None when one of each can, and two of each.

    One, because two may lie so that what is wrong with either hides the other: one in each half of the
    channels that a network takes apart, say.
    """
    one = {bundle.units[1] for bundle in bundles}
    two = {
        unit for bundle in bundles for unit in (bundle.units[0], bundle.units[-2]) if len(bundle.units) > 2
    }
    return difference(model, channels, one, x) or (difference(model, channels, two, x) if two else None)


def difference(model: nn.Module, channels: Channels, units: set[int], x: Tensor) -> str | None:
    """Why `model` without `units` is not what it should be; None when it is."""
    smaller = shrink(copied(model), channels, units)
    try:
        without = _outputs(smaller, channels, x)
    except Exception as error:
        return f"without some of its filters the network does not run ({type(error).__name__}: {error})"
    with silenced(model, channels, units):
        expected = _outputs(model, channels, x)
    filters, _ = channels.removed(units)
    if list(without) != list(expected):
        return "without some of its filters the network takes another way"
    for name, results in expected.items():
        for whole, rest in zip(results, without[name], strict=True):
            if name in filters:
                axis = channel_axis(model.get_submodule(name))
                whole = whole.index_select(axis, keep(whole.shape[axis], filters[name]).to(whole.device))
            if not alike(rest, whole):
                where = f"at {name}" if name else "in its output"
                return f"without some of its filters the network computes something else {where}"
    return None


def alike(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether the largest difference is at most `tolerance` times the standard deviation of b."""
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return True
    spread = b.std(correction=0) if b.numel() > 1 else b.abs().max()
    return bool((a - b)[~same].abs().max() <= tolerance * spread.clamp_min(1e-30))


def must_agree(pruned: nn.Module, reference: nn.Module, x: Tensor, how: str) -> None:
    """ValueError unless both networks give the same on x, up to rounding in their own precision.

    Both run in eval mode; their modes are put back.
    """
    precision = next((p.dtype for p in reference.parameters() if p.is_floating_point()), torch.float32)
    results = [_answers(which, x.to(precision)) for which in (reference, pruned)]
    agree = len(results[0]) == len(results[1]) and all(
        alike(b, a, ROUNDING.get(precision, 0.1)) for a, b in zip(*results, strict=True)
    )
    if not agree:
        raise ValueError(
            f"{how} the network would compute something else than the same network with zeros: it is not "
            "pruned; try another method, and please report the network"
        )


def must_run(pruned: nn.Module, model: nn.Module, x: Tensor) -> None:
    """ValueError unless `pruned` takes what `model` takes and gives results of the same shapes."""
    precision = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    shapes = [[tuple(t.shape) for t in _answers(which, x.to(precision))] for which in (model, pruned)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the pruned network gives results of shapes {shapes[1]}, the whole one {shapes[0]}")


def _answers(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What the network gives for x in eval mode; its modes are put back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return list(tensors_in(run(model.eval(), x)))
    finally:
        for module, mode in modes:
            module.training = mode


class silenced:
    """Within the block the readers of `units` have zeros for them; the weights come back afterwards."""

    def __init__(self, model: nn.Module, channels: Channels, units: set[int]) -> None:
        _, inputs = channels.removed(units)
        modules = dict(model.named_modules())
        self.readers = {modules[n]: gone for n, gone in inputs.items() if mixes(modules[n])}
        self.saved: dict[nn.Module, Tensor] = {}

    def __enter__(self) -> None:
        for reader, gone in self.readers.items():
            weight = reader.get_parameter("weight")
            self.saved[reader] = weight.detach().clone()
            axis = 0 if isinstance(reader, _ConvTransposeNd) else 1
            with torch.no_grad():
                weight.index_fill_(axis, gone.to(weight.device), 0)

    def __exit__(self, *_: object) -> None:
        for reader, weight in self.saved.items():
            with torch.no_grad():
                reader.get_parameter("weight").copy_(weight)


def _blamed(
    model: nn.Module, channels: Channels, bundles: list[Bundle], x: Tensor, reason: str, end: float
) -> dict[tuple[str, ...], str]:
    """{producers: why} of those of `bundles` that fail alone, by halving; together they fail for `reason`.

    The last one where they fail only together; all of them when the time is up.
    """
    if len(bundles) == 1 or time.monotonic() > end:
        return {bundle.producers: reason for bundle in bundles}
    found: dict[tuple[str, ...], str] = {}
    middle = len(bundles) // 2
    for half in (bundles[:middle], bundles[middle:]):
        why = failure(model, channels, half, x)
        if why:
            found |= _blamed(model, channels, half, x, why, end)
    return found or {bundles[-1].producers: reason}


def _scatter_weights(model: nn.Module, channels: Channels) -> None:
    """Random weights, so that the proof does not depend on what the network learned (zeros, say)."""
    generator = torch.Generator().manual_seed(0)
    for name in channels.filters:
        module = model.get_submodule(name)
        if isinstance(module, (_ConvNd, nn.Linear)):
            bound = module.weight[0].numel() ** -0.5
            for tensor, spread in ((module.weight, bound), (module.bias, 0.1)):
                if tensor is not None:
                    tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * spread)
            continue
        for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.dim():
                low = 0.5 if key in ("weight", "running_var") else -0.2
                high = 1.5 if key in ("weight", "running_var") else 0.2
                noise = torch.rand(tensor.shape, generator=generator) * (high - low) + low
                tensor.data.copy_(noise)


def _outputs(model: nn.Module, channels: Channels, x: Tensor) -> dict[str, list[Tensor]]:
    """What every layer that mixes or groups channels gives, call by call; "" is the network."""
    results: dict[str, list[Tensor]] = {}

    def keep_output(name: str) -> Any:
        def hook(_: nn.Module, __: object, output: Any) -> None:
            # what later works in place on it must not change what is kept
            results.setdefault(name, []).extend(t.clone() for t in tensors_in(output))

        return hook

    handles = [
        model.get_submodule(name).register_forward_hook(keep_output(name))
        for name in channels.filters
        if mixes(model.get_submodule(name)) or in_groups(model.get_submodule(name))
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            results[""] = [t.clone() for t in tensors_in(model(x))]
    finally:
        for handle in handles:
            handle.remove()
    return results
