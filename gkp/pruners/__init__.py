"""Pruning methods behind one call, `gkp.prune`."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from gkp.nets.channels.groups import forget, is_known
from gkp.nets.channels.layers import copied, uncompiled
from gkp.nets.channels.proof import UnlikeError, must_run
from gkp.nets.channels.running import undrawn
from gkp.nets.channels.surgery import guessed_input
from gkp.pruners import (  # noqa: F401, importing a family registers its methods
    activations,
    dependency,
    fisher,
    geometry,
    gradients,
    norms,
    nppm,
    reconstruction,
)
from gkp.pruners.common import plugins  # noqa: F401
from gkp.pruners.common.budget import match_macs, match_params
from gkp.pruners.common.group_numbers import Groups
from gkp.pruners.common.registry import Cut, Method, Session, get, methods, register
from gkp.pruners.common.weights_check import refuse_non_finite, refuse_other_than_networks
from gkp.pruners.kernels import grouped, rebuilt, staged, tmi  # noqa: F401
from gkp.pruners.lowrank import cc, lrf  # noqa: F401
from gkp.pruners.trained import admm, dhp, dhspg, gal, group_sl, hesso, masking, slimming  # noqa: F401
from gkp.search import check_rate
from gkp.train import fine_tune
from gkp.train.checks import laid_last, placed_back
from gkp.train.recipe import SHORT, Recipe
from gkp.utils.precision import full_precision
from gkp.utils.whole import is_whole, plain

__all__ = [
    "Cut",
    "Method",
    "Session",
    "get",
    "match_macs",
    "match_params",
    "methods",
    "prepare",
    "prune",
    "register",
    "start",
]


def prune(
    model: nn.Module,
    method: str = "sr-gkp",
    *,
    rate: float = 0.4375,
    groups: Groups = 8,
    example_input: Tensor | None = None,
    data: Any = None,
    recipe: Recipe = SHORT,
    **options: Any,
) -> nn.Module:
    """A pruned copy of `model`; the model itself is untouched.

    method: one of `gkp.methods()`. rate: fraction to remove from each prunable layer, in (0, 1):
    kernels for grouped kernel pruning, filters for filter pruning. groups: groups of filters, for
    grouped kernel pruning; {layer: number} gives single layers another number, see
    `gkp.deploy.fastest_groups`. example_input: (1, C, H, W), needed to trace a network that is not one of
    `gkp.nets.models`. data: a `gkp.data.Split` for methods that score with images, or that prune in
    training: those train on it by `recipe`, before and after the cut. options: the method's own, see
    `python -m gkp list`.

    What comes back keeps the modes, flags, hooks and memory layout of `model`; a network in torch.compile,
    and layers of it, come back without. Layers that are left as they are for a reason that one may not
    expect are named in a `gkp.SkippedLayers` warning. The result has been run on the example: see
    docs/ROBUST_USE.md.

    ValueError for an unknown method or option, missing data, values out of range, weights that are not
    finite, a rate that removes nothing, and networks of which nothing can be pruned or the result would not
    be what it should. TypeError for what is no network of layers, such as TorchScript.
    """
    common = {"groups": groups, "example_input": example_input, "data": data, **options}
    check_rate(rate)
    rate = plain(rate)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"the recipe is a {type(recipe).__name__}: give gkp.Recipe(epochs=..., lr=..., ...)")
    refuse_other_than_networks(model)
    inner = uncompiled(model)
    with torch.inference_mode(False):  # weights made inside of it could not be trained
        if get(method).start is None:
            pruned = prepare(inner, method, **common)(rate)
        else:
            pruned = _trained(copied(inner), method, rate, recipe, common)
        if _shapes(pruned) == _shapes(inner):
            raise ValueError(f"{method} removes nothing at rate={rate}: raise the rate")
        must_run(pruned, inner, guessed_input(inner, example_input))
    return _wrapped(pruned, model)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _trained(model: nn.Module, method: str, rate: float, recipe: Recipe, common: dict[str, Any]) -> nn.Module:
    """`model`, which is trained in place, pruned by a method that prunes in training."""
    device = next(model.parameters()).device
    modes = {name: module.training for name, module in model.named_modules()}
    teacher = copied(model) if recipe.distillation else None
    last = laid_last(model)
    session = start(model, method, rate=rate, epochs=recipe.epochs, **common)
    pruning, tuning = session.recipes(recipe)
    fine_tune(model, common["data"], pruning, hooks=session.hooks, device=device, teacher=teacher)
    pruned = session.finish(model)(rate)
    fine_tune(pruned, common["data"], tuning, device=device, teacher=teacher)
    placed_back(pruned, last)
    for name, module in pruned.named_modules():
        module.training = modes.get(name, module.training)
    return pruned


def _wrapped(pruned: nn.Module, model: nn.Module) -> nn.Module:
    """`pruned` in the DataParallel of `model`, where it is in one."""
    if not isinstance(model, nn.DataParallel):
        return pruned
    wrapper = copy.copy(model)  # with all that was set in it
    wrapper._modules = {"module": pruned}
    return wrapper


def prepare(
    model: nn.Module,
    method: str,
    *,
    groups: Groups = 8,
    example_input: Tensor | None = None,
    data: Any = None,
    **options: Any,
) -> Cut:
    """Everything of `prune` that does not depend on the rate, done once; the result maps rates to copies.

    Networks inside nn.DataParallel come back inside of it, as from `prune`. For a method that prunes in
    training this is its criterion applied without training, which tells what a rate costs.
    """
    entry = get(method)
    groups, options = plain(groups), {name: plain(value) for name, value in options.items()}
    _check_options(entry, options)
    refuse_other_than_networks(model)
    inner = uncompiled(model)
    refuse_non_finite(inner)
    if entry.needs.startswith("images") and data is None:
        raise ValueError(f"{method} scores with {entry.needs}: give data=gkp.data.load(...)")
    common = {"groups": groups, "example_input": example_input, "data": data, **options}
    cut = _Cut(inner, entry, common)
    return lambda rate: _wrapped(cut(rate), model)


class _Cut:
    """The `Cut` of a method; where it fails on channels known from an earlier call, on a new look at them."""

    def __init__(self, model: nn.Module, entry: Method, common: dict[str, Any]) -> None:
        self.model, self.known = model, is_known(model)
        self.make = functools.partial(entry.prepare, model, **common)
        try:
            self.cut = self._made()
        except ValueError:
            if not self.known:
                raise
            self.cut = self._made_anew()

    @full_precision()
    @undrawn()
    def __call__(self, rate: float) -> nn.Module:
        try:
            return self.cut(rate)
        except UnlikeError:
            if not self.known:
                raise
        self.cut = self._made_anew()
        return self.cut(rate)

    @full_precision()
    @undrawn()
    def _made(self) -> Cut:
        return self.make()

    def _made_anew(self) -> Cut:
        forget(self.model)
        self.known = False
        return self._made()


def start(
    model: nn.Module,
    method: str,
    *,
    rate: float,
    epochs: int,
    groups: Groups = 8,
    example_input: Tensor | None = None,
    data: Any = None,
    **options: Any,
) -> Session:
    """The session of a method that prunes in training. `model` is the one that will be trained in place."""
    entry = get(method)
    groups, options = plain(groups), {name: plain(value) for name, value in options.items()}
    _check_options(entry, options)
    refuse_other_than_networks(model)
    refuse_non_finite(model)
    if data is None:
        raise ValueError(f"{method} prunes in training: give data=gkp.data.load(...), and a recipe")
    if entry.start is None:
        raise TypeError(f"{method} does not prune in training: call gkp.pruners.prepare")
    return entry.start(
        model, rate=rate, epochs=epochs, groups=groups, example_input=example_input, data=data, **options
    )


def _check_options(entry: Method, options: dict[str, Any]) -> None:
    unknown = sorted(set(options) - set(entry.options))
    if unknown:
        known = ", ".join(entry.options) or "none"
        raise ValueError(f"{entry.name} has no option {', '.join(unknown)}; its options: {known}")
    seeded, seed = isinstance(entry.options.get("seed"), int), options.get("seed", 0)
    if seeded and (not is_whole(seed, -(2**63)) or seed >= 2**63):
        raise ValueError(f"seed={seed!r}: give an int of at most 64 bits, such as 0")


plugins.load_from_environment()
