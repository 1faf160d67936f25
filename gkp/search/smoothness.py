"""Smoothness of convolution kernels (Eq. 1 of the SR-GKP paper) and its variants.

A kernel is smooth when neighbouring weights are alike. Smaller is smoother. The sum is not scaled
by the kernel's magnitude, so that a large kernel counts as rough.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

DIFFERENCES = {
    "squared": lambda a, b: (a.square() - b.square()).abs(),  # Eq. 1: blind to sign, +a next to -a is smooth
    "absolute": lambda a, b: (a - b).abs(),
    "quadratic": lambda a, b: (a - b).square(),
}


def smoothness(kernels: Tensor, variant: str = "squared") -> Tensor:
    """Sum over positions i and their up to eight neighbours j of the difference between k_i and k_j.

    kernels: (..., H, W), any real type; returns (...) in the same type. Every pair of neighbours counts
    twice, once from each side, as Eq. 1 is written. A 1x1 kernel has no neighbours: 0.

    variant: "squared" is Eq. 1, |k_j^2 - k_i^2|; "absolute" is |k_j - k_i|; "quadratic" (k_j - k_i)^2.
    """
    difference = _difference(kernels, variant)
    k = kernels
    pairs = (
        (k[..., :, :-1], k[..., :, 1:]),  # left, right
        (k[..., :-1, :], k[..., 1:, :]),  # above, below
        (k[..., :-1, :-1], k[..., 1:, 1:]),  # the two diagonals
        (k[..., :-1, 1:], k[..., 1:, :-1]),
    )
    return 2 * torch.stack([difference(a, b).sum((-2, -1)) for a, b in pairs]).sum(0)


def filter_smoothness(weight: Tensor, variant: str = "squared") -> Tensor:
    """Smoothness of each filter, the sum over its kernels. weight: (O, I, kh, kw); returns (O,)."""
    return smoothness(weight, variant).sum(1)


def summed_in_order(kernels: Tensor, variant: str = "squared") -> Tensor:
    """Smoothness of several kernels together, every addition in the released code's order.

    kernels: (..., K, H, W); returns (...). The eight differences of a position are added row by row,
    then position after position and kernel after kernel: `smoothness(kernels).sum(-1)` but for last bits.
    """
    difference = _difference(kernels, variant)
    height, width = kernels.shape[-2:]
    around = torch.zeros_like(kernels)
    for down, right in itertools.product((-1, 0, 1), repeat=2):
        if (down, right) != (0, 0):
            rows, columns = _inside(height, down), _inside(width, right)
            there_rows, there_columns = _inside(height, -down), _inside(width, -right)
            here, there = kernels[..., rows, columns], kernels[..., there_rows, there_columns]
            around[..., rows, columns] += difference(there, here)
    return around.flatten(-3).cumsum(-1)[..., -1]  # a plain sum would add in several lanes


def _inside(size: int, shift: int) -> slice:
    """Positions i for which i + shift lies in 0..size-1 too."""
    return slice(max(0, -shift), max(0, size - max(0, shift)))


def _difference(kernels: Tensor, variant: str) -> Callable[[Tensor, Tensor], Tensor]:
    if variant not in DIFFERENCES:
        raise ValueError(f"smoothness variant {variant!r}: choose one of {', '.join(DIFFERENCES)}")
    if kernels.dim() < 2:
        raise ValueError(f"kernels must have shape (..., H, W), got {tuple(kernels.shape)}")
    return DIFFERENCES[variant]
