"""Which layer loses how much: one share for all layers, or a profile of shares over a network.

A profile gives each layer l a number p_l, and the rate r scales them all: layer l loses the share
min(k p_l, what leaves one) of its kernels or filters, with k such that the shares, weighted by the
multiply-adds of the layers, have the mean r. So a rate means what it means without a profile, and every
target between nothing and all but one kernel of each layer with p_l > 0 is met by some rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gkp.nets import products
from gkp.nets.channels.layers import unwrapped
from gkp.nets.channels.running import default_input, guessed_input, run
from gkp.nets.channels.surgery import filter_weight, prunable_layers
from gkp.pruners.common.images import scoring_copy

WHICH = ("all", "first")
FLAT, FALLING, SENSITIVITY = "flat", "falling", "sensitivity"
CURVE = (6.0, 3.0, 1.0)  # Li et al. 2017, ResNet-56-B, from the first stage to the last
FORMS = (
    'give "flat", "falling", "sensitivity", a ratio of stages such as "6:3:1", or numbers of layers such as '
    '"layer1=6,layer2=3" or {"layer1": 6}, where a name stands for all layers below it and the others stay'
)
EXACT = 1e-9  # to which a rate is a sum of layers' shares
LOST, DRAWS, IMAGES = 1 / 8, 8, 4  # share of the kernels that goes, how often, on how many random images

Profile = str | Mapping[str, float]
Removals = Callable[[float], dict[str, int]]  # rate -> how many kernels or filters of each layer go


def removals(
    model: nn.Module,
    profile: Profile,
    sizes: Mapping[str, int],
    worth: Mapping[str, float],
    example_input: Tensor,
) -> Removals:
    """How many kernels or filters each layer loses at a rate; a layer keeps at least one.

    sizes: {layer: how many it has}. worth: {layer: multiply-adds that one of them costs}. Rounding carries
    on from layer to layer, the dearest first, so that all together meet the rate to half of the cheapest
    where that one has still something to lose, and less exactly where it has not. A rate above what the
    layers of the profile can lose is a ValueError.
    """
    shares = layer_shares(model, profile, sizes, worth, example_input)
    order = sorted(shares, key=lambda name: -worth[name])
    whole = sum(worth[name] * sizes[name] for name in sizes)
    most = sum(worth[name] * (sizes[name] - 1) for name in sizes if shares[name]) / whole

    def at(rate: float) -> dict[str, int]:
        if rate > most + EXACT:
            raise ValueError(
                f"rate={rate:g} with profile={profile!r}: one kernel or filter stays of each, so that its "
                f"{sum(share > 0 for share in shares.values())} of {len(shares)} layers can lose {most:.4f} "
                "of the multiply-adds of all: choose a smaller rate, or a profile of more layers"
            )
        wanted, lack, counts = _scaled(rate, shares, sizes, worth), 0.0, {}
        for name in order:
            last = sizes[name] - 1 if shares[name] else 0
            exact = wanted[name] + lack / worth[name]
            counts[name] = min(max(math.floor(exact + 0.5), 0), last)
            lack += (wanted[name] - counts[name]) * worth[name]
        return {name: counts[name] for name in sizes}

    return at


def _scaled(
    rate: float, shares: Mapping[str, float], sizes: Mapping[str, int], worth: Mapping[str, float]
) -> dict[str, float]:
    """How many go of each layer, not rounded: `shares` times the factor that meets the rate."""
    budget = rate * sum(worth[name] * sizes[name] for name in sizes)

    def wanted(factor: float) -> dict[str, float]:
        return {name: min(factor * share * sizes[name], sizes[name] - 1) for name, share in shares.items()}

    low, high = 0.0, 1 / min(share for share in shares.values() if share)
    for _ in range(60):  # as exact as the numbers are
        middle = (low + high) / 2
        cost = sum(worth[name] * count for name, count in wanted(middle).items())
        low, high = (middle, high) if cost < budget else (low, middle)
    return wanted(high)


def layer_shares(
    model: nn.Module,
    profile: Profile,
    sizes: Mapping[str, int],
    worth: Mapping[str, float],
    example_input: Tensor,
) -> dict[str, float]:
    """{layer: its number in the profile, 0 or more}. ValueError for a profile that does not fit."""
    if isinstance(profile, Mapping) or (isinstance(profile, str) and "=" in profile):
        return _by_name(profile, sizes)
    if profile == FLAT:
        return dict.fromkeys(sizes, 1.0)
    if profile == SENSITIVITY:
        # What hurts least for its cost, if the damage of all layers adds up and grows with a share's square.
        hurt = damage(model, sizes, example_input)
        return {name: worth[name] * sizes[name] / max(hurt[name], 1e-12) for name in sizes}
    stages = stages_of(model, sizes, example_input)
    if profile == FALLING:
        numbers = _stretched(CURVE, len(stages))
    else:
        numbers = _numbers(str(profile).split(":"), profile)
        if len(numbers) != len(stages):
            listing = ", ".join(f"{_text(place)} ({len(names)} layers)" for place, names in stages.items())
            raise ValueError(
                f"profile={profile!r} has {len(numbers)} numbers, and this network {len(stages)} "
                f"stages, by the size of the feature maps: {listing}: give {len(stages)} numbers"
            )
    of_stage = dict(zip(stages, numbers, strict=True))
    return {name: of_stage[place] for place, names in stages.items() for name in names}


def _numbers(texts: Iterable[object], profile: Profile) -> list[float]:
    try:
        numbers = [float(str(text)) for text in texts]
    except ValueError:
        raise ValueError(f"profile={profile!r}: {FORMS}") from None
    if not all(math.isfinite(number) and number >= 0 for number in numbers) or not any(numbers):
        raise ValueError(f"profile={profile!r}: give numbers of 0 or more, and not 0 for all")
    return numbers


def _by_name(profile: Profile, layers: Iterable[str]) -> dict[str, float]:
    if isinstance(profile, str):
        pairs = [part.split("=", 1) for part in profile.split(",")]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"profile={profile!r}: {FORMS}")
        entries: dict[str, object] = {name.strip(): number for name, number in pairs}
    else:
        entries = dict(profile)
    shares = dict.fromkeys(layers, 0.0)
    for name, number in zip(entries, _numbers(entries.values(), profile), strict=True):
        below = [layer for layer in shares if layer == name or layer.startswith(f"{name}.")]
        if not below:
            raise ValueError(
                f"profile={profile!r}: no layer to prune is {name}: choose of {', '.join(shares)}"
            )
        shares |= dict.fromkeys(below, number)
    if not any(shares.values()):
        raise ValueError(f"profile={profile!r}: give a number above 0 for one layer or more")
    return shares


def _stretched(curve: tuple[float, ...], stages: int) -> list[float]:
    """The curve at `stages` points, spread evenly, with straight lines between its own."""
    points = []
    for stage in range(stages):
        place = stage / max(stages - 1, 1) * (len(curve) - 1)
        at = min(int(place), len(curve) - 2)
        points.append(curve[at] + (place - at) * (curve[at + 1] - curve[at]))
    return points


def stages_of(
    model: nn.Module, layers: Iterable[str], example_input: Tensor
) -> dict[tuple[int, ...], list[str]]:
    """The layers by the size of their feature maps (of its largest where a layer runs at several).

    {(H, W): names}, the largest maps first; a linear layer's map has the places at which it runs, () for one.
    """
    model = unwrapped(model)
    place: dict[str, tuple[int, ...]] = dict.fromkeys(layers, (0,))

    def note(name: str, module: nn.Module, _: object, output: Tensor) -> None:
        size = tuple(output.shape[1:-1] if isinstance(module, nn.Linear) else output.shape[2:])
        place[name] = max(place[name], size, key=math.prod)

    def watch(trial: nn.Module) -> Iterator[RemovableHandle]:
        return (trial.get_submodule(name).register_forward_hook(partial(note, name)) for name in place)

    products.run_once(model, example_input, watch)
    sizes = sorted(set(place.values()), key=lambda size: (-math.prod(size), size))
    return {size: [name for name in place if place[name] == size] for size in sizes}


def _text(place: tuple[int, ...]) -> str:
    return "x".join(map(str, place)) or "1"


def damage(model: nn.Module, layers: Iterable[str], example_input: Tensor) -> dict[str, float]:
    """What a layer's loss of an eighth of its kernels does to the output f of a network, without data.

    D_l = mean of |f_l(x) - f(x)|^2 / mean of |f(x)|^2, over random images x, uniform in [0, 1], of the shape
    of the example; f_l is the network with zeros for an eighth of the kernels (pairs of a filter and an input
    channel) of layer l, drawn at random. The same numbers in every call.
    """
    trial, generator = scoring_copy(unwrapped(model)), torch.Generator().manual_seed(0)
    x, damages = torch.rand(IMAGES, *example_input.shape[1:], generator=generator), {}
    x = x.to(example_input.device) if example_input.is_floating_point() else example_input
    with torch.no_grad():
        whole = run(trial, x)
        if not isinstance(whole, Tensor):
            raise ValueError(
                f'profile="sensitivity" compares outputs, and this network gives a {type(whole).__name__} '
                'and no tensor: choose "falling" or a ratio of stages'
            )
        size = whole.square().mean()
        for name in layers:
            weight = trial.get_submodule(name).get_parameter("weight")
            original, changes = weight.clone(), []
            for _ in range(DRAWS):
                stays = torch.rand(weight.shape[:2], generator=generator) >= LOST
                weight.copy_(original * stays.to(weight).view(*stays.shape, *[1] * (weight.dim() - 2)))
                changes.append((run(trial, x) - whole).square().mean())
            weight.copy_(original)
            damages[name] = float(torch.stack(changes).mean() / size)
    return damages


def chosen(
    model: nn.Module, layers: Iterable[str], which: str, example_input: Tensor | None
) -> tuple[str, ...]:
    """The layers that `which` means: "all", or "first", those whose filters no skip connection adds to.

    These are the first of each block of a basic ResNet, and all of a network without skip connections.
    """
    if which not in WHICH:
        raise ValueError(f"which={which!r}: choose one of {', '.join(WHICH)}")
    if which == "all":
        return tuple(layers)
    removable = prunable_layers(model, default_input(model, example_input))
    names = tuple(name for name in layers if name in removable)
    if not names:
        raise ValueError('which="first": a skip connection adds to every layer of this network: use "all"')
    return names


def kernel_rates(
    model: nn.Module,
    layers: Mapping[str, nn.Conv2d | nn.Linear],
    profile: Profile,
    which: str,
    example_input: Tensor | None,
) -> Callable[[float], dict[str, float]]:
    """For grouped kernel pruning: rate -> {layer: a rate for `gkp.search.select`}, but for whole layers."""
    names = chosen(model, layers, which, example_input)
    if profile == FLAT and which == "all":  # as published, each layer rounds for itself
        return lambda rate: dict.fromkeys(names, rate)
    example_input = guessed_input(model, example_input)
    sizes = {name: filter_weight(layers[name]).shape[1] for name in names}
    macs = products.by_layer(unwrapped(model), names, example_input)
    gone = removals(model, profile, sizes, {name: macs[name] / sizes[name] for name in names}, example_input)
    return lambda rate: {
        name: _rate_of(sizes[name], sizes[name] - count) for name, count in gone(rate).items() if count
    }


def _rate_of(channels: int, keep: int) -> float:
    """The rate at which `gkp.search.objective.kept_count` keeps `keep` of `channels`."""
    return 1 - (keep + 0.5) / (channels + 1)
