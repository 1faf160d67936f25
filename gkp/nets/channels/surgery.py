"""Finding what can be pruned in a network, and replacing or shrinking it.

Grouped kernel pruning swaps single convolutions. Filter pruning removes output channels for good, with
everything that depends on them; `gkp.nets.channels.groups` says what does. Every function returns a copy and
leaves its input alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gkp.nets.channels.feeds import feeds, readers_of_image
from gkp.nets.channels.groups import ORDINARY, TIED, Bundle, Channels, channels_of
from gkp.nets.channels.layers import convolution, copied, mixes, spatial, unwrapped
from gkp.nets.channels.layers import filter_weight as filter_weight
from gkp.nets.channels.probe import OUTPUT, Probe, probe
from gkp.nets.channels.proof import must_agree
from gkp.nets.channels.replacement import replace_module, shared_weights
from gkp.nets.channels.running import default_input as default_input
from gkp.nets.channels.running import guessed_input as guessed_input
from gkp.nets.channels.shrink import shrink, silenced
from gkp.nets.grouped_base import GroupedKernels
from gkp.nets.grouped_layers import GroupedKernelConv2d, GroupedKernelLinear, unsupported
from gkp.search import Selection


class SkippedLayers(UserWarning):
    """Some layers were left unpruned."""


def summary(reasons: Mapping[str, str]) -> str:
    """Reasons with the layers they concern, each reason once."""
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    return "; ".join(
        f"{names[0] if len(names) == 1 else f'{names[0]} and {len(names) - 1} more'}: {reason}"
        for reason, names in layers.items()
    )


def kernel_layers(
    model: nn.Module, groups: int, example_input: Tensor | None = None, *, pointwise: bool = False
) -> tuple[dict[str, nn.Conv2d], dict[str, str]]:
    """Convolutions that grouped kernel pruning can treat, and why it leaves the others alone.

    All convolutions larger than 1x1 (pointwise: of any size) except those that read nothing but the image.
    Returns ({name: convolution}, {name: reason}), in the order of the network.
    """
    first, probed = readers_of_image(model, guessed_input(model, example_input))
    convolutions = {
        name: module
        for name, module in unwrapped(model).named_modules()
        if isinstance(module, nn.Conv2d) and (pointwise or spatial(module)) and name not in first
    }
    return _groupable(model, convolutions, groups, probed)


def pointwise_layers(
    model: nn.Module, groups: int, example_input: Tensor | None = None
) -> tuple[dict[str, nn.Conv2d | nn.Linear], dict[str, str]]:
    """As `kernel_layers`, for networks without larger kernels: 1x1 convolutions, else linear layers.

    Not those that read nothing but the image, and not the last one, whose output is the network's.
    """
    x = guessed_input(model, example_input)
    first, _ = readers_of_image(model, x)
    with probe(model, x) as probed:
        ends = first | {edge.source for edge in feeds(probed, {OUTPUT})}
    for kind in (nn.Conv2d, nn.Linear):
        layers = {
            name: module
            for name, module in unwrapped(model).named_modules()
            if isinstance(module, kind) and name not in ends
        }
        groupable, skipped = _groupable(model, layers, groups, probed)
        if groupable:
            break
    return groupable, skipped


def _groupable(
    model: nn.Module, layers: Mapping[str, nn.Conv2d | nn.Linear], groups: int, probed: Probe
) -> tuple[dict, dict[str, str]]:
    tied = shared_weights(unwrapped(model))
    groupable, skipped = {}, {}
    for name, layer in layers.items():
        reason = unsupported(layer)
        if not reason and name not in probed.calls:
            reason = "it is never called, so that its weight may be used in another way"
        reason = reason or tied.get(name) or "it reads one channel only" * (layer.weight.shape[1] == 1)
        if not reason and layer.weight.shape[0] % groups:
            kind = "filters" if isinstance(layer, nn.Conv2d) else "outputs"
            reason = f"groups={groups} does not divide its {layer.weight.shape[0]} {kind}"
        if reason:
            skipped[name] = reason
        else:
            groupable[name] = layer
    return groupable, skipped


def replace_kernels(
    model: nn.Module,
    selections: Mapping[str, Selection],
    execution: str = "dense",
    example_input: Tensor | None = None,
) -> nn.Module:
    """A copy of `model` in which each named layer keeps only its selected kernels.

    With an example the copy is run on it beside the same network with zeros for the other kernels;
    ValueError where the two differ.
    """
    pruned = copied(model)
    masked = _with_groups(pruned, selections, execution)
    if example_input is not None:
        reference = copied(model)
        with torch.no_grad():
            for name, new in masked.items():
                weight = unwrapped(reference).get_submodule(name).get_parameter("weight")
                weight.copy_(new.dense_weight())
        must_agree(pruned, reference, example_input, "with grouped kernels")
    return pruned


def _with_groups(
    model: nn.Module, selections: Mapping[str, Selection], execution: str
) -> dict[str, GroupedKernels]:
    """Put layers of grouped kernels in place of those named, in `model` itself; {name: new layer}."""
    new: dict[str, GroupedKernels] = {}
    with torch.random.fork_rng(devices=[]):  # new layers draw weights before they are given theirs
        for name, selection in selections.items():
            layer = unwrapped(model).get_submodule(name)
            if isinstance(layer, nn.Linear):
                new[name] = GroupedKernelLinear.from_linear(layer, selection, execution)
            else:
                layer = convolution(unwrapped(model), name)
                new[name] = GroupedKernelConv2d.from_conv(layer, selection, execution)
            replace_module(model, layer, new[name])
    return new


@dataclass(frozen=True)
class FilterLayer:
    """A layer whose filters can go without touching another layer's filters.

    gates: layers that only scale its feature maps and lose the same filters (squeeze-and-excitation).
    reordered: whether the norm's channels are not the filters, one by one and in their order.
    """

    name: str
    filters: int
    consumers: tuple[str, ...]  # layers that lose the matching input channels
    norm: str | None  # its batch norm
    gates: tuple[str, ...] = ()
    reordered: bool = False


def filter_layers(model: nn.Module, example_input: Tensor) -> dict[str, FilterLayer]:
    """2d convolutions for filter pruning, in the order of the network: {name: FilterLayer}.

    A convolution is left out when its filters are tied to those of another one by a residual sum, or when
    they cannot go one by one; `left_out` says why. What is offered is proved, see `gkp.nets.channels.proof`.
    """
    return _own_filters(model, example_input, (nn.Conv2d,))[0]


def prunable_layers(model: nn.Module, example_input: Tensor) -> dict[str, FilterLayer]:
    """Layers whose filters can go: convolutions of all kinds, or linear layers where none of them can.

    The hidden channels of a transformer's MLPs are such linear layers.
    """
    convolutions = _own_filters(model, example_input, (_ConvNd,))[0]
    return convolutions or _own_filters(model, example_input, (nn.Linear,))[0]


def left_out(model: nn.Module, example_input: Tensor) -> dict[str, str]:
    """Why a layer is not among `prunable_layers`: {name: reason}, linear ones where no convolution is."""
    convolutions, reasons = _own_filters(model, example_input, (_ConvNd,))
    return reasons if convolutions else reasons | _own_filters(model, example_input, (nn.Linear,))[1]


def training_only(model: nn.Module, example_input: Tensor) -> dict[str, str]:
    """{what the example does not show: why, and what may follow}; empty where it shows everything."""
    channels = channels_of(model, example_input)
    notes = {"layers of training only": channels.modes.note} if channels.modes.note else {}
    if channels.unread:
        notes[channels.unread] = (
            "the example does not reach it, so that what feeds it elsewhere may lose channels that it reads: "
            "give an example that reaches it, or take it out of the network"
        )
    return notes


def warn_of(reasons: Mapping[str, str]) -> None:
    """One `SkippedLayers` warning about the reasons that a user may not expect."""
    unusual = {name: reason for name, reason in reasons.items() if not reason.startswith(ORDINARY)}
    if unusual:
        warnings.warn(f"left unpruned: {summary(unusual)}", SkippedLayers, stacklevel=4)


def _own_filters(
    model: nn.Module, example_input: Tensor, kinds: tuple[type[nn.Module], ...]
) -> tuple[dict[str, FilterLayer], dict[str, str]]:
    channels = channels_of(model, example_input)
    bundles = {name: bundle for bundle in channels.bundles for name in bundle.producers}
    layers, reasons = {}, {}
    for name, module in unwrapped(model).named_modules():
        if name not in channels.filters or not isinstance(module, kinds) or not mixes(module):
            if isinstance(module, kinds) and name in channels.filters:
                reasons[name] = f"it has groups={module.groups}, which go as a whole"
            continue
        bundle, filters = bundles.get(name), len(channels.filters[name])
        scaling = channels.gates.get(name, frozenset())
        if bundle is None or not {name, *scaling} >= set(bundle.producers):
            reasons[name] = _reason(channels, name, bundle)
        elif len(bundle.units) < filters:
            reasons[name] = f"its {filters} filters go in {len(bundle.units)} sets only: try group-norm"
        else:
            norm = _own_norm(channels, unwrapped(model), bundle, name)
            others = tuple(each for each in bundle.producers if each != name)
            moved = norm is not None and not torch.equal(channels.filters[norm], channels.filters[name])
            layers[name] = FilterLayer(name, filters, bundle.readers, norm, others, moved)
    gates = {gate for layer in layers.values() for gate in layer.gates}
    return layers, {name: reason for name, reason in reasons.items() if name not in gates}


def _own_norm(channels: Channels, model: nn.Module, bundle: Bundle, name: str) -> str | None:
    """The norm that the filters reach first; else the first between them and their readers."""
    norms = [n for n in bundle.between if isinstance(model.get_submodule(n), nn.BatchNorm2d)]
    nearest = [n for n in channels.direct.get(name, ()) if n in norms]
    return next(iter(nearest or norms), None)


def _reason(channels: Channels, name: str, bundle: Bundle | None) -> str:
    """Why the filters of layer `name` cannot go on their own."""
    if bundle is not None:
        return f"{TIED} {next(each for each in bundle.producers if each != name)}"
    for producers, reason in channels.refuted.items():
        if name in producers:
            return reason
    units = channels.filters[name].tolist()
    for unit in units:
        if unit in channels.pinned:
            of, reason = channels.pinned[unit]
            return reason if of in ("", name) else f"{of} must lose the same channels and cannot: {reason}"
    for other, owner in channels.filters.items():
        if other != name and torch.isin(owner, channels.filters[name]).any():
            return f"{TIED} {other}"
    if len(units) == 1:
        return "it has a single filter"
    if len(set(units)) == 1:
        return "an operation on all its filters ties them together"
    return (
        "no layer is found to read its filters: none does, or no gradient passes on the way (detach, "
        "inference mode, NumPy)"
    )


def remove_filters(
    model: nn.Module,
    drop: Mapping[str, Tensor],
    example_input: Tensor,
    *,
    channels: Channels | None = None,
) -> nn.Module:
    """A physically smaller copy without the filters `drop[name]` (indices) of each named layer.

    Everything that depends on them goes, too. channels: of a network like `model` that is known already.
    The copy is run on `example_input` beside a network in which the layers that read those filters have
    zeros for them. ValueError when a layer would lose all its filters, when filters cannot go, or when the
    two networks differ.
    """
    channels = channels or channels_of(model, example_input)
    offered = {unit for bundle in channels.bundles for unit in bundle.units}
    units: set[int] = set()
    for name, indices in drop.items():
        owner = channels.filters.get(name)
        if owner is None:
            raise ValueError(f"there is no layer {name} whose filters could be removed")
        chosen = set(owner[torch.as_tensor(indices, dtype=torch.long, device=owner.device)].tolist())
        if len(owner.unique()) <= len(chosen):
            raise ValueError(f"layer {name} would lose all of its {len(owner)} filters: lower the rate")
        if not chosen <= offered:
            raise ValueError(f"filters of layer {name} cannot be removed: {_reason(channels, name, None)}")
        units |= chosen
    pruned = copied(model)
    if units:
        shrink(unwrapped(pruned), channels, units)
        reference = copied(model)
        with silenced(unwrapped(reference), channels, units):
            must_agree(pruned, reference, example_input, "without its filters")
    for parameter in pruned.parameters():
        parameter.grad = None
    return pruned
