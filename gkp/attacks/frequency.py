"""High-pass filtered images, as in the paper's Table 1 (after Wang et al. 2020).

An image's Fourier transform is split at a radius: what is nearer to the zero frequency makes the
low-frequency image, the rest the high-frequency one. Wang et al. give the radius in samples of the
transform (4, 8, 12 of at most 16 for CIFAR-10) and filter normalised images. The paper gives a theta of
0.3, 0.5 and 0.7 without a unit; here it is a fraction of the Nyquist frequency, which is an assumption.
"""

from __future__ import annotations

import torch
from torch import Tensor


def radius(height: int, width: int) -> Tensor:
    """(height, width) distance from the zero frequency, 1 the Nyquist frequency of each axis."""
    down, across = (2 * torch.fft.fftfreq(size) for size in (height, width))
    return torch.sqrt(down[:, None].square() + across.square())


def split(x: Tensor, theta: float) -> tuple[Tensor, Tensor]:
    """(low, high) of x (..., H, W): frequencies below theta and the others; low + high = x.

    theta is a fraction of the Nyquist frequency; 0 leaves everything in `high`, above sqrt(2) everything
    is in `low`. ValueError for a negative theta.
    """
    if not theta >= 0:
        raise ValueError(f"theta={theta}: give a fraction of the Nyquist frequency, 0 or more")
    mask = (radius(*x.shape[-2:]) >= theta).to(x.device)
    high = torch.fft.ifft2(torch.fft.fft2(x) * mask).real
    return x - high, high


def high_pass(x: Tensor, theta: float, mean: Tensor | float) -> Tensor:
    """The high-frequency part of x (N, C, H, W) around `mean`, a constant per channel, e.g. (1, C, 1, 1).

    Filtering x - mean is filtering the normalised image, whatever its standard deviation is. The result
    is not clipped and may leave [0, 1]. theta = 0 gives x itself.
    """
    return x if theta == 0 else split(x - mean, theta)[1] + mean
