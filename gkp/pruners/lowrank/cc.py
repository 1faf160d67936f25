"""Collaborative Compression: the input channels and singular directions of a layer compete by damage."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkp.data import Split
from gkp.nets import products
from gkp.nets.channels.groups import channels_of
from gkp.nets.channels.layers import mixes, unwrapped
from gkp.nets.channels.shrink import keep
from gkp.nets.channels.surgery import (
    SkippedLayers,
    convolution,
    default_input,
    kernel_layers,
    remove_filters,
    summary,
)
from gkp.nets.grouped import GroupedKernelConv2d, replace_module, take_over, window
from gkp.pruners.common.gates import drops
from gkp.pruners.common.images import batch_logits, gradients, sample, scoring_copy
from gkp.pruners.common.registry import Cut, register
from gkp.pruners.lowrank.damage import Path, allocation, exponential


@register(
    "cc",
    structure="channel and rank",
    needs="images and labels",
    citation="Li et al. 2021 (CVPR), Collaborative Compression, arXiv:2105.11228",
    summary="input channels and singular directions of least expected damage; two convolutions for one",
)
def cc(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    images: int = 10000,
    batch_size: int = 100,
    seed: int = 0,
    gamma: float = 0.9,
    execution: str = "grouped",
) -> Cut:
    """CC: every convolution but the first loses input channels and singular directions, see `damage`.

    rate: share of the network's multiply-adds to remove, spread over the layers by one exponential curve of
    damage for each (`damage.allocation`). G, the mean gradient of the cross entropy in eval mode, without
    augmentation, is of `images` images; the original takes all 50,000 of the training set. gamma: weight of
    the damage expected of the next unit; 0 is quick, other values take hours for layers of 512 channels.

    A layer without channels gathers its inputs (`execution`, see `GroupedKernelConv2d`), one without
    directions is a convolution to R - z channels and one of 1x1. Unlike the original, filters that only such
    layers read and none of them reads any more are removed, too, with what makes them: the function is the
    same. Layers that cannot be split are named in a warning; ValueError when no convolution can be.
    """
    example_input = default_input(model, example_input)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma!r}: the weight of the next deletion's damage, from 0 to 1")
    layers, skipped = kernel_layers(model, 1, example_input, pointwise=True)
    if not layers:
        raise ValueError(
            "cc splits convolutions with groups=1 that do not read the image, and this network has none"
            f"{f' ({summary(skipped)})' if skipped else ''}: choose a method that removes filters, such as l1"
        )
    if skipped:
        warnings.warn(f"left unpruned: {summary(skipped)}", SkippedLayers, stacklevel=4)
    gradients = mean_gradients(model, list(layers), sample(data, images, seed), batch_size)
    weights = {name: conv.weight.detach().double().cpu().flatten(2) for name, conv in layers.items()}
    paths = {name: Path(weights[name], gradients[name].square(), gamma) for name in layers}
    curves = [exponential(path.weight, path.squares) for path in paths.values()]
    costs = products.by_layer(unwrapped(model), layers, example_input)
    whole = sum(number for _, number in products.products(model, example_input))

    def cut(rate: float) -> nn.Module:
        shares = allocation(curves, list(costs.values()), rate * whole)
        gone = {name: paths[name].until(share) for name, share in zip(paths, shares, strict=True)}
        return _without(model, gone, example_input, execution)

    return cut


def mean_gradients(model: nn.Module, names: list[str], data: Split, batch_size: int) -> dict[str, Tensor]:
    """{name: gradient of the mean cross entropy over `data` by the weight (O, I, K)}, float64 on the CPU."""
    scored = scoring_copy(unwrapped(model)).requires_grad_(False)
    weights = [convolution(scored, name).weight.requires_grad_(True) for name in names]
    totals = [torch.zeros_like(weight) for weight in weights]
    for output, labels in batch_logits(scored, data, batch_size):
        loss = F.cross_entropy(output, labels, reduction="sum")
        for total, gradient in zip(totals, gradients(loss, weights), strict=True):
            total += gradient
    return {
        name: (total / len(data)).double().cpu().flatten(2) for name, total in zip(names, totals, strict=True)
    }


def _without(
    model: nn.Module, gone: Mapping[str, tuple[list[int], int]], example_input: Tensor, execution: str
) -> nn.Module:
    """A copy of `model` in which each layer lacks the channels and the number of directions in `gone`."""
    channels = channels_of(model, example_input)
    units = set(unread_units(model, {name: lost for name, (lost, _) in gone.items()}, example_input))
    pruned = remove_filters(model, drops(channels, channels.bundles, units), example_input, channels=channels)
    filters, inputs = channels.removed(units)
    old, new = unwrapped(model), unwrapped(pruned)
    for name, (lost, directions) in gone.items():
        if lost or directions:
            conv, whole = convolution(new, name), convolution(old, name)
            weight, rows = whole.weight.detach(), keep(whole.out_channels, filters.get(name))
            left = keep(whole.in_channels, torch.tensor(lost, dtype=torch.long))
            rank = min(len(weight), weight[0].numel()) - directions if directions else None
            factors = split(weight[:, left.to(weight.device)], rank, rows)
            columns = keep(whole.in_channels, inputs.get(name))
            small = _layer(conv, factors, torch.searchsorted(columns, left), execution)
            replace_module(new, conv, small)
    return pruned


def unread_units(model: nn.Module, lost: Mapping[str, Iterable[int]], example_input: Tensor) -> list[int]:
    """Units of channels (`gkp.nets.channels.groups`) that no layer would read without its `lost` inputs.

    Not all that a layer makes: where nobody reads anything of it one stays.
    """
    channels, modules = channels_of(model, example_input), dict(unwrapped(model).named_modules())
    unread = []
    for bundle in channels.bundles:
        read: set[int] = set()
        for name in bundle.readers:
            if mixes(modules[name]):
                left = keep(
                    len(channels.inputs[name]), torch.tensor(list(lost.get(name, ())), dtype=torch.long)
                )
                read |= set(channels.inputs[name][left].tolist())
        useless = [unit for unit in bundle.units if unit not in read]
        unread += useless[len(useless) == len(bundle.units) :]
    return unread


def split(weight: Tensor, rank: int | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """`rows` of weight (O, I, kh, kw), with its `rank` largest singular directions alone (None: with all).

    As the weights (r, I, kh, kw), sqrt(S) V^T, and (rows, r), U sqrt(S), of two convolutions; as that of one
    and None where it is no dearer.
    """
    if rank is None:
        return weight[rows.to(weight.device)], None
    matrix = weight.double().cpu().flatten(1)
    left, values, right = (factor[..., :rank] for factor in _decomposed(matrix))
    left, right = left[rows] * values.sqrt(), (right * values.sqrt()).t()
    if len(right) * (len(rows) + matrix.shape[1]) >= len(rows) * matrix.shape[1]:
        return (left @ right).view(len(rows), *weight.shape[1:]), None
    return right.view(-1, *weight.shape[1:]), left


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (n, r), S (r,), V (m, r)."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right.t()


def _layer(conv: nn.Conv2d, factors: tuple[Tensor, Tensor | None], read: Tensor, execution: str) -> nn.Module:
    """The convolution `conv` with other weights, see `split`, for the input channels `read` alone."""
    weight, expand = factors
    with torch.random.fork_rng(devices=[]):  # new layers draw weights before they are given theirs
        bias = conv.bias is not None and expand is None
        if len(read) == conv.in_channels:
            first: nn.Module = nn.Conv2d(
                len(read), len(weight), **window(conv), bias=bias, padding_mode=conv.padding_mode
            )
        else:
            first = GroupedKernelConv2d(
                conv.in_channels,
                len(weight),
                **window(conv),
                bias=bias,
                filter_order=torch.arange(len(weight)),
                kept=read[None],
                execution=execution,
                padding_mode=conv.padding_mode,
            )
        layers = OrderedDict(conv=first)
        if expand is not None:
            layers["expand"] = nn.Conv2d(expand.shape[1], len(expand), 1, bias=conv.bias is not None)
    with torch.no_grad():
        layers["conv"].get_parameter("weight").copy_(weight)
        if expand is not None:
            layers["expand"].get_parameter("weight").copy_(expand[:, :, None, None])
        if conv.bias is not None:
            list(layers.values())[-1].get_parameter("bias").copy_(conv.bias)
    return take_over(nn.Sequential(layers) if len(layers) > 1 else first, conv)
