"""Filter pruning by what the feature maps of images hold: HRank and CHIP."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkp.data import Split
from gkp.nets.channels.surgery import default_input
from gkp.pruners.common.filters import convolutions_to_cut, uniform_cut
from gkp.pruners.common.images import sample, visit_feature_maps
from gkp.pruners.common.registry import Cut, register

# Quadrature of `channel_independence`: step of log s, ends of s in units of the largest singular value.
STEP, SMALLEST, LARGEST = 0.5, 1e-9, 1e8


@register(
    "hrank",
    structure="filter",
    needs="images",
    citation="Lin et al. 2020 (CVPR), arXiv:2002.10179",
    summary="filters whose feature maps have the lowest mean rank, one-shot, the same share in every layer",
)
def hrank(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    images: int = 500,
    batch_size: int = 100,
    seed: int = 0,
) -> Cut:
    """HRank, one-shot: score of a filter = mean over images of rank(feature map, an H x W matrix).

    The rank is `torch.linalg.matrix_rank` with its own tolerance, of the map after batch norm and ReLU.
    Left out: the original prunes one convolution at a time and fine-tunes after each one (15 epochs in
    the released script; the paper is remembered to use 30, not verified), with a hand-made rate per
    layer; here every layer is scored on the unpruned network and cut at once at one rate.
    """
    return _scored_cut("hrank", model, example_input, data, images, batch_size, seed, feature_ranks)


@register(
    "chip",
    structure="filter",
    needs="images",
    citation="Sui et al. 2021 (NeurIPS), arXiv:2110.13981",
    summary="filters whose feature maps the others span best (nuclear norm), the same share in every layer",
)
def chip(
    model: nn.Module,
    *,
    groups: int,
    example_input: Tensor | None,
    data: Split,
    images: int = 640,
    batch_size: int = 64,
    seed: int = 0,
) -> Cut:
    """CHIP: score of a filter = mean over images of its channel independence, see that function.

    Images: 5 batches of 128, as released. Left out: the hand-made rate per layer (one rate here), and
    the authors' own fine-tuning (400 epochs, weight decay 5e-3): every method gets the same recipe.
    """
    return _scored_cut("chip", model, example_input, data, images, batch_size, seed, channel_independence)


def feature_ranks(maps: Tensor) -> Tensor:
    """Feature maps (B, C, H, W) -> ranks (B, C)."""
    return torch.linalg.matrix_rank(maps.float()).double()


def channel_independence(maps: Tensor) -> Tensor:
    """Feature maps (B, C, H, W) -> (B, C): how much the nuclear norm falls without each channel.

    CI_i = |A|_* - |A with row i zeroed|_*, where A (C, HW) holds one image's maps as rows. By definition
    that takes C + 1 singular value decompositions. Here it takes one, of K = A A^T = V diag(l) V^T:
    zeroing row i deletes row and column i of K, and with sqrt(x) = (2/pi) int_0^inf x / (x + s^2) ds and
    det(K_-i + t) / det(K + t) = [(K + t)^-1]_ii,

        CI_i = (2/pi) int_0^inf f(s^2) ds,   f(t) = sum_j v_ij^2 l_j / (l_j + t)^2 / sum_j v_ij^2 / (l_j + t).

    f lies in [0, 1] and is smooth in log s, so the trapezoidal rule there errs by
    about 1e-8 of the largest singular value.
    """
    rows = maps.flatten(2).double()
    squares, values = _spectrum(rows)
    scale = values.amax(1).clamp_min(torch.finfo(torch.float64).tiny)  # (B,)
    values = values / scale[:, None]
    steps = math.ceil(math.log(LARGEST / SMALLEST) / STEP)
    s = SMALLEST * torch.exp(STEP * torch.arange(steps + 1, dtype=torch.float64, device=rows.device))
    shifted = 1 / (values[:, :, None] + s.square())  # (B, n, steps)
    share = (squares @ (values[:, :, None] * shifted.square())) / (squares @ shifted)  # f: (B, C, steps)
    return (2 / math.pi) * STEP * (share @ s) * scale.sqrt()[:, None]


def _spectrum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """v_ij^2 (B, C, n) and l_j (B, n) of A A^T, from whichever of A A^T and A^T A is smaller."""
    if rows.shape[1] <= rows.shape[2]:
        values, vectors = torch.linalg.eigh(rows @ rows.mT)
        return vectors.square(), values.clamp_min(0)
    values, vectors = torch.linalg.eigh(rows.mT @ rows)
    values = torch.where(values > 1e-15 * values.amax(1, keepdim=True), values, 0)
    squares = (rows @ vectors).square() / torch.where(values > 0, values, torch.inf)[:, None]
    null_space = (1 - squares.sum(2, keepdim=True)).clamp_min(0)  # all eigenvectors of eigenvalue 0 together
    return torch.cat([squares, null_space], 2), F.pad(values, (0, 1))


def _scored_cut(
    method: str,
    model: nn.Module,
    example_input: Tensor | None,
    data: Split,
    images: int,
    batch_size: int,
    seed: int,
    criterion: Callable[[Tensor], Tensor],
) -> Cut:
    """Cut by the mean over images of criterion(feature maps (B, C, H, W)) -> (B, C)."""
    example_input = default_input(model, example_input)
    layers = convolutions_to_cut(model, example_input, method)
    totals: dict[str, Tensor] = {}

    def add(name: str, maps: Tensor) -> None:
        totals[name] = totals.get(name, 0) + criterion(maps).sum(0)

    samples = sample(data, images, seed)
    visit_feature_maps(model, layers, samples, batch_size, add)
    return uniform_cut(model, {name: totals[name] / len(samples) for name in layers}, example_input)
