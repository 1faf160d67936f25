"""Smoothness of convolution kernels (Eq. 1 of the SR-GKP paper) and its variants.

A kernel is smooth when neighbouring weights are alike. Smaller is smoother. The sum is not scaled
by the kernel's magnitude, so that a large kernel counts as rough.
"""

from __future__ import annotations

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
    if variant not in DIFFERENCES:
        raise ValueError(f"smoothness variant {variant!r}: choose one of {', '.join(DIFFERENCES)}")
    if kernels.dim() < 2:
        raise ValueError(f"kernels must have shape (..., H, W), got {tuple(kernels.shape)}")
    difference = DIFFERENCES[variant]
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
