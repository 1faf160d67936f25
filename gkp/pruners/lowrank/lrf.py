"""LRF: filters that the others can express linearly go, and 1x1 convolutions express them."""

from __future__ import annotations

import warnings
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init  # whose layers draw no random numbers

from gkp.nets.channels.copying import copied
from gkp.nets.channels.surgery import SkippedLayers, convolution, kernel_layers
from gkp.nets.grouped import replace_module, take_over, window
from gkp.pruners.common.registry import Cut, register

RIDGE = 1e-10  # times the mean squared norm: makes dead and equal filters harmless, moves nothing else


def gram(vectors: Tensor) -> Tensor:
    """Inner products (n, n) of the rows of vectors (n, ...), float64, with the ridge on the diagonal."""
    rows = vectors.flatten(1)
    products = rows @ rows.t()
    ridge = RIDGE * products.diagonal().mean() + torch.finfo(products.dtype).tiny
    return products + ridge * torch.eye(len(products), dtype=products.dtype)


def removal_order(products: Tensor, count: int) -> list[int]:
    """Which `count` of n vectors to remove, one at a time, in this order; products: their `gram` (n, n).

    Each time the vector i goes whose removal changes least: eps_i = ||f_i - F^T lambda|| * ||c_i||, where
    F are the other vectors still there, lambda = (F F^T)^-1 F f_i, and c_i is the column of the 1x1
    convolution that reads f_i; then c_j += lambda_j c_i.
    """
    # One inverse serves all regressions: with P = (F F^T)^-1 over the vectors that are left, f_i minus its
    # projection on the others has squared norm 1 / P_ii, and lambda_j = -P_ij / P_ii.
    inverse = torch.linalg.inv(products)
    columns = torch.eye(len(products), dtype=products.dtype)
    left = torch.ones(len(products), dtype=torch.bool)
    order = []
    for _ in range(count):
        error = columns.norm(dim=0) / inverse.diagonal().clamp_min(1e-300).sqrt()
        i = int(error.masked_fill(~left, torch.inf).argmin())
        coefficients = -inverse[i] / inverse[i, i]  # -1 at i itself, which clears its row and column
        columns.addr_(columns[:, i].clone(), coefficients)
        inverse.addr_(inverse[i].clone(), coefficients)
        left[i] = False
        order.append(i)
    return order


def mixture(products: Tensor, kept: Tensor) -> Tensor:
    """Coefficients (n, len(kept)) of the best approximation of all n vectors by the kept ones.

    The compensation of `removal_order`, all at once: projecting on smaller and smaller sets of the
    vectors ends where projecting on the last set ends. Rows of kept vectors hold a single 1.
    """
    mixed = torch.linalg.solve(products[kept][:, kept], products[kept]).t().clone()
    mixed[kept] = torch.eye(len(kept), dtype=products.dtype)
    return mixed


def _rest(n: int, gone: list[int]) -> Tensor:
    return torch.tensor(sorted(set(range(n)) - set(gone)))


def factorise(conv: nn.Conv2d, rate: float, products: Tensor, order: list[int]) -> nn.Module:
    """`conv` as 1x1 convolution, smaller convolution, 1x1 convolution: (N, I, H, W) -> (N, O, H', W').

    round(rate * O) filters go first, then round(rate * I) input channels of what is left; at least one
    stays. A side that loses nothing gets no 1x1 convolution. products, order: of the filters, all of them.
    Hooks, flags and layout of `conv` go to the three together, see `gkp.nets.channels.replacement.take_over`.
    """
    weight = conv.weight.detach().double().cpu()
    filters, channels = weight.shape[:2]
    drop_out, drop_in = (min(int(rate * n + 0.5), n - 1) for n in (filters, channels))
    if not drop_out and not drop_in:
        return conv
    kept = _rest(filters, order[:drop_out])
    weight = weight[kept]
    if drop_in:
        slices = gram(weight.transpose(0, 1))
        inputs = _rest(channels, removal_order(slices, drop_in))
        weight = weight[:, inputs]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if drop_in:
        layers["reduce"] = _pointwise(mixture(slices, inputs).t(), conv)
    last = layers["conv"] = skip_init(
        nn.Conv2d,
        weight.shape[1],
        weight.shape[0],
        **window(conv),
        bias=conv.bias is not None and not drop_out,
        padding_mode=conv.padding_mode,
        dtype=conv.weight.dtype,
        device=conv.weight.device,
    )
    with torch.no_grad():
        last.weight.copy_(weight)
    if drop_out:
        last = layers["expand"] = _pointwise(mixture(products, kept), conv, bias=conv.bias is not None)
    if last.bias is not None and conv.bias is not None:  # both or neither
        with torch.no_grad():
            last.bias.copy_(conv.bias)
    return take_over(nn.Sequential(layers), conv)


def _pointwise(matrix: Tensor, like: nn.Conv2d, bias: bool = False) -> nn.Conv2d:
    """The 1x1 convolution that multiplies channels by `matrix` (out, in)."""
    conv = skip_init(
        nn.Conv2d,
        matrix.shape[1],
        matrix.shape[0],
        1,
        bias=bias,
        dtype=like.weight.dtype,
        device=like.weight.device,
    )
    with torch.no_grad():
        conv.weight.copy_(matrix[:, :, None, None])
    return conv


@register(
    "lrf",
    structure="channel",
    citation="Joo et al. 2021 (AAAI), Linearly Replaceable Filters",
    summary="filters and input channels that the others express linearly, replaced by 1x1 convolutions",
)
def lrf(model: nn.Module, *, groups: int, example_input: Tensor | None, data: object) -> Cut:
    """LRF: every convolution larger than 1x1 but the first loses filters, then input channels.

    eps_i = ||f_i - F^T lambda|| ||c_i||, the smallest goes, one at a time; see `removal_order`. The 1x1
    convolutions that put the layer's own channels back together start as identities, take up lambda, stay
    in the network and are counted, so that `rate` removes less than (1 - rate)^2 of a layer would say.

    Left out: the original trains the 1x1 convolutions 20 epochs before pruning, and fine-tunes one epoch
    with distillation after each side of each layer. That filters go before input channels within a layer
    is not verified. Layers that cannot be split are named in a warning, SkippedLayers; ValueError when no
    convolution can be split.
    """
    layers, skipped = kernel_layers(model, 1, example_input)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
    if not layers:
        raise ValueError(
            "lrf splits convolutions larger than 1x1 with groups=1, and this network has none"
            f"{f' ({reasons})' if reasons else ''}: choose a method that removes filters, such as l1"
        )
    if skipped:
        warnings.warn(f"left unpruned: {reasons}", SkippedLayers, stacklevel=4)
    products = {name: gram(conv.weight.detach().double().cpu()) for name, conv in layers.items()}
    # All filters but the last, once; every rate takes a first part of the order.
    orders = {name: removal_order(matrix, len(matrix) - 1) for name, matrix in products.items()}

    def cut(rate: float) -> nn.Module:
        pruned = copied(model)
        for name in layers:
            conv = convolution(pruned, name)
            replace_module(pruned, conv, factorise(conv, rate, products[name], orders[name]))
        return pruned

    return cut
