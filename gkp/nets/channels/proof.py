"""Proof that channels can go: the smaller network against the whole one with silent channels.

One unit of every bundle is removed in a copy, then another number of each, then the last ones. In another
copy their readers have zeros for them instead. If what can be removed was understood, both compute the
same at every layer: in eval mode, in train mode where that differs, and on an example ten times as large.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gkp.nets.channels.copying import not_called
from gkp.nets.channels.groups import Bundle, Channels
from gkp.nets.channels.layers import answers_in, channel_axis, copied, in_groups, mixes, tensors_in, unwrapped
from gkp.nets.channels.running import OnePrecision, as_float, plainly, run, seeded, set_mode
from gkp.nets.channels.shrink import keep, own_ways, shrink, silenced
from gkp.utils.precision import full_precision

TOLERANCE = 1e-4  # of the standard deviation of a layer's output, in float32, with random weights
ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3}  # of the logits', with the network's own; else 0.1
LOUD = 10  # times the example, for clipping and other thresholds that the example itself does not reach
SECONDS = 600.0  # for one network


class UnlikeError(ValueError):
    """A pruned network does not compute what the whole one with zeros does."""


@dataclass(frozen=True)
class Trial:
    """One input of the proof; `where` says in words when it is, `tolerance` is that of `alike`."""

    x: Tensor
    training: bool
    where: str
    tolerance: float = TOLERANCE


def proved(model: nn.Module, channels: Channels, x: Tensor) -> Channels:
    """`channels` without the bundles for which the proof fails; `refuted` says why."""
    with torch.inference_mode(False):
        original = copied(unwrapped(model)).eval().float().requires_grad_(False)
        model = copied(original)
        _scatter_weights(model, channels)
        trials = _trials(model, channels)
        if any(_nothing_finite(results) for results in _outputs(model, channels, trials[0]).values()):
            model = original  # random weights lead out of what the network can compute
            trials = _trials(model, channels)
        left, refuted = list(channels.bundles), dict(channels.refuted)
        end = time.monotonic() + SECONDS
        while left:
            reason = failure(model, channels, left, trials)
            if reason is None:
                break
            refuted |= _blamed(model, channels, left, trials, reason, end)
            left = [bundle for bundle in left if bundle.producers not in refuted]
    return replace(channels, bundles=left, refuted=refuted)


def _trials(model: nn.Module, channels: Channels) -> list[Trial]:
    """The example in all modes, and ten times as large where the network takes that and gives numbers."""
    trials = [
        Trial(x.clone(), training, "in train mode, " if training else "")
        for training, x in channels.modes.runs
    ]
    x = trials[0].x
    if x.is_floating_point():
        # Larger numbers are rounded more coarsely where they meet a softmax.
        loud = Trial(x * LOUD, False, f"on an example {LOUD} times as large, ", LOUD * TOLERANCE)
        try:
            results = _outputs(model, channels, loud)
        except Exception:  # it takes images of a certain range only
            return trials
        if all(bool(t.isfinite().all()) for tensors in results.values() for t in tensors):
            trials.append(loud)
    return trials


def failure(model: nn.Module, channels: Channels, bundles: list[Bundle], trials: list[Trial]) -> str | None:
    """Why units of `bundles` cannot go; None when one of each can, of each another number, and the last ones.

    One, because two may lie so that what is wrong with either hides the other: one in each half of the
    channels that a network takes apart, say. Different numbers, because sizes may have to agree. The last
    ones, because a network may take apart what is left by its number: there halves are no halves any more.
    """
    one = {bundle.units[1] for bundle in bundles}
    many = [bundle.units for bundle in bundles if len(bundle.units) > 2]
    several = {unit for place, units in enumerate(many) for unit in _several(units, place)}
    last = {unit for units in many for unit in units[-max(2, len(units) // 4) :]}
    tried = ((one, trials), (several, trials[:1]), (last, trials[:1]))
    reasons = (difference(model, channels, units, on) for units, on in tried if units)
    return next((why for why in reasons if why), None)


def _several(units: tuple[int, ...], place: int) -> set[int]:
    """Two units or more, and not all but one if there is a choice; their number goes up with `place`."""
    count = 2 + place % max(1, len(units) - 3)
    others = [unit for unit in units if unit not in (units[0], units[-1])]
    step = 0.618 * len(others)
    order = sorted(range(len(others)), key=lambda i: (i * step) % max(1, len(others)))
    return {units[0], units[-1], *(others[i] for i in order[: count - 2])}


def difference(model: nn.Module, channels: Channels, units: set[int], trials: list[Trial]) -> str | None:
    """Why `model` without `units` is not what it should be; None when it is."""
    smaller = shrink(copied(model), channels, units)
    gone = channels.removed(units)[0]
    for trial in trials:
        try:
            without = _outputs(smaller, channels, trial)
        except Exception as error:
            return (
                f"{trial.where}without some of its filters the network does not run "
                f"({type(error).__name__}: {error})"
            )
        with silenced(model, channels, units):
            expected = _outputs(model, channels, trial)
        reason = _unlike(model, without, expected, gone, trial.tolerance)
        if reason:
            return trial.where + reason
    return None


def _unlike(
    model: nn.Module,
    without: dict[str, list[Tensor]],
    expected: dict[str, list[Tensor]],
    gone: dict[str, Tensor],
    tolerance: float,
) -> str | None:
    """Where `without` is not `expected` less the filters that are `gone`, in words."""
    if list(without) != list(expected):
        return "without some of its filters the network takes another way"
    for name, results in expected.items():
        where = f"at {name}" if name else "in its output"
        if _nothing_finite(results):
            return f"the network gives NaN or infinity only {where}, so that nothing can be proved"
        if len(results) != len(without[name]):
            return f"without some of its filters the network gives other results {where}"
        for whole, rest in zip(results, without[name], strict=True):
            if name in gone:
                axis = channel_axis(model.get_submodule(name))
                whole = whole.index_select(axis, keep(whole.shape[axis], gone[name]).to(whole.device))
            if not alike(rest, whole, tolerance):
                return f"without some of its filters the network computes something else {where}"
    return None


def _nothing_finite(results: list[Tensor]) -> bool:
    """Whether there are numbers, and all of them NaN or infinite."""
    return any(t.numel() for t in results) and not any(bool(t.isfinite().any()) for t in results)


def alike(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether the largest difference is at most `tolerance` times the standard deviation of b.

    Of integers and truth values at most that share may differ, or a thousandth: those at a threshold. NaN
    is like NaN, but tensors of nothing else say nothing and are not alike.
    """
    if a.shape != b.shape or a.dtype.is_complex != b.dtype.is_complex:
        return False
    if not a.numel():
        return True
    if not (a.is_floating_point() or a.is_complex()):
        return bool((a != b).double().mean() <= max(tolerance, 1e-3))
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(b.isnan().all()):
        return False
    if bool(same.all()):
        return True
    spread = b.std(correction=0) if b.numel() > 1 else b.abs().max()
    return bool((a - b)[~same].abs().max() <= tolerance * spread.clamp_min(1e-30))


@full_precision()
def must_agree(pruned: nn.Module, reference: nn.Module, x: Tensor, how: str) -> None:
    """UnlikeError unless both networks give the same on x, up to rounding in their own precision.

    Both run in eval mode, where a forward may change its network: of `pruned` a copy, `reference` itself.
    ValueError where there is nothing finite to compare.
    """
    whole = _answers(reference, x)
    if _nothing_finite(whole):
        raise ValueError(
            "the network gives NaN or infinity only on the example, so that nothing can be compared: give an "
            "example_input on which it works"
        )
    trial = copied(pruned)
    try:
        rest = _answers(trial, x)
    except ValueError as error:
        raise UnlikeError(
            f"{how} the network does not run any more ({error.__cause__!r}): it is not pruned; try another "
            "method, and please report the network"
        ) from error
    tolerance = max((ROUNDING.get(dtype, 0.1) for dtype in _precisions(reference)), default=0.1)
    if len(whole) != len(rest) or not all(alike(b, a, tolerance) for a, b in zip(whole, rest, strict=True)):
        raise UnlikeError(
            f"{how} the network would compute something else than the same network with zeros: it is not "
            "pruned; try another method, and please report the network"
        )


@full_precision()
def must_run(pruned: nn.Module, model: nn.Module, x: Tensor) -> None:
    """ValueError unless `pruned`, alone, takes what `model` takes and gives results of the same shapes.

    Copies of both run.
    """
    whole = [tuple(answer.shape) for answer in _answers(copied(model), x)]
    with not_called(model):
        pruned_shapes = [tuple(answer.shape) for answer in _answers(copied(pruned), x)]
    if pruned_shapes != whole:
        raise ValueError(f"the pruned network gives results of shapes {pruned_shapes}, the whole one {whole}")


def _precisions(model: nn.Module) -> list[torch.dtype]:
    """Floating types of the weights, that of the first parameter first; float32 where there is none."""
    return list(dict.fromkeys(p.dtype for p in model.parameters() if p.is_floating_point())) or [
        torch.float32
    ]


def _answers(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What the network gives for x, in its own precision and eval mode, in which it stays."""
    with torch.no_grad(), seeded():
        return list(answers_in(run(model.eval(), as_float(x, _precisions(model)[0]))))


def _blamed(
    model: nn.Module, channels: Channels, bundles: list[Bundle], trials: list[Trial], reason: str, end: float
) -> dict[tuple[str, ...], str]:
    """{producers: why} of those of `bundles` that fail alone, by halving; together they fail for `reason`.

    The last one where they fail only together; all of them when the time is up.
    """
    if len(bundles) == 1 or time.monotonic() > end:
        return {b.producers: reason + own_ways(model, (*b.producers, *b.readers)) for b in bundles}
    blamed: dict[tuple[str, ...], str] = {}
    middle = len(bundles) // 2
    for half in (bundles[:middle], bundles[middle:]):
        why = failure(model, channels, half, trials)
        if why:
            blamed |= _blamed(model, channels, half, trials, why, end)
    return blamed or {bundles[-1].producers: reason}


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


def _outputs(model: nn.Module, channels: Channels, trial: Trial) -> dict[str, list[Tensor]]:
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
        precision = OnePrecision(torch.float32, dropout=not trial.training)
        with torch.no_grad(), seeded(), plainly(), precision:
            out = set_mode(model, trial.training)(trial.x.clone())
            results[""] = [t.clone() for t in answers_in(out)]
    finally:
        for handle in handles:
            handle.remove()
    return results
