"""What all filter pruning methods share: scores in, a physically smaller network out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gkp.nets.channels.groups import channels_of
from gkp.nets.channels.surgery import (
    FilterLayer,
    default_input,
    filter_layers,
    filter_weight,
    left_out,
    prunable_layers,
    remove_filters,
    summary,
    training_only,
    warn_of,
)
from gkp.pruners.common.profile import FLAT, Profile, removals
from gkp.pruners.common.ranking import filter_macs
from gkp.pruners.common.registry import Cut


def filters_to_drop(scores: Tensor, rate: float) -> Tensor:
    """Indices of the round(rate * filters) filters of lowest score, ascending; at least one filter stays.

    scores: (O,), higher is more important. Equal scores: the earlier filter goes first. Rate 0 drops none.
    """
    count = min(int(rate * len(scores) + 0.5), len(scores) - 1)
    return scores.sort(stable=True).indices[:count].sort().values


def uniform_cut(
    model: nn.Module, scores: Mapping[str, Tensor], example_input: Tensor, profile: Profile = FLAT
) -> Cut:
    """Cut every scored layer by its own scores: at the same rate, or at the rates of a profile."""
    if profile != FLAT:
        return _profile_cut(model, scores, example_input, profile)

    def cut(rate: float) -> nn.Module:
        drop = {name: filters_to_drop(score, rate) for name, score in scores.items()}
        return remove_filters(model, drop, example_input)

    return cut


def _profile_cut(
    model: nn.Module, scores: Mapping[str, Tensor], example_input: Tensor, profile: Profile
) -> Cut:
    layers = prunable_layers(model, example_input)
    worth = filter_macs(model, {name: layers[name] for name in scores}, example_input)
    sizes = {name: len(score) for name, score in scores.items()}
    gone = removals(model, profile, sizes, worth, example_input)

    def cut(rate: float) -> nn.Module:
        drop = {
            name: filters_to_drop(scores[name], count / sizes[name]) for name, count in gone(rate).items()
        }
        return remove_filters(model, drop, example_input)

    return cut


def weight_cut(
    model: nn.Module,
    example_input: Tensor | None,
    score: Callable[[Tensor, FilterLayer], Tensor],
    profile: Profile = FLAT,
) -> Cut:
    """Cut by a score of the filters' weights alone: weight (O, I, kh, kw) -> (O,)."""
    example_input = default_input(model, example_input)
    layers = layers_to_cut(model, example_input)
    with torch.no_grad():
        scores = {
            name: score(filter_weight(model.get_submodule(name)), layer) for name, layer in layers.items()
        }
    return uniform_cut(model, scores, example_input, profile)


def layers_to_cut(model: nn.Module, example_input: Tensor) -> dict[str, FilterLayer]:
    """`prunable_layers`; ValueError with the reasons where there is none, a warning about unusual ones."""
    layers = prunable_layers(model, example_input)
    if not layers:
        reasons = left_out(model, example_input)
        why = f" ({summary(reasons)})" if reasons else ""
        others = ": try group-norm" if channels_of(model, example_input).bundles else kernel_methods(model)
        raise ValueError(
            f"this network has no convolution whose filters can be removed on their own{why}{others}"
        )
    warn_of_whole(model, example_input, layers)
    return layers


def kernel_methods(model: nn.Module) -> str:
    """Methods to try where no filter can go, as the end of a sentence; "" where those cannot prune either.

    Of convolutions they know 2d ones only, without the one that reads the image, and linear layers where
    there is no convolution.
    """
    kinds = [type(module) for module in model.modules() if isinstance(module, _ConvNd | nn.Linear)]
    if sum(issubclass(kind, nn.Conv2d) for kind in kinds) > 1:
        return ": try sr-gkp or lrf"
    return ": try sr-gkp" if kinds and all(issubclass(kind, nn.Linear) for kind in kinds) else ""


def warn_of_whole(model: nn.Module, example_input: Tensor, producers: Iterable[str]) -> None:
    """A warning of the unusual layers that lose nothing when filters of `producers` go.

    Depthwise and grouped convolutions behind those do, and are none of them.
    """
    pruned = set(producers)
    bundles = [b for b in channels_of(model, example_input).bundles if pruned.intersection(b.producers)]
    shrunk = pruned.union(*(bundle.between for bundle in bundles))
    reasons = {name: why for name, why in left_out(model, example_input).items() if name not in shrunk}
    warn_of(reasons | training_only(model, example_input))


def convolutions_to_cut(model: nn.Module, example_input: Tensor, method: str) -> dict[str, FilterLayer]:
    """`layers_to_cut` for a method that knows 2d convolutions alone; ValueError where there is none."""
    offered = layers_to_cut(model, example_input)
    layers = filter_layers(model, example_input)
    if not layers:
        raise ValueError(
            f"{method} is for filters of 2d convolutions, and {next(iter(offered))}, which can lose some, "
            "is none: use another method, such as l1"
        )
    return layers
