"""How sure a number is: intervals of proportions, of differences and of means, and paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

import torch
from torch import Tensor

FEWEST = 3  # seeds of an interval: one from two is as wide as anything


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927), as fractions in [0, 1].

    Written out because importing statsmodels for it takes seconds; a test compares the two.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n}: give 0 <= successes <= n and n >= 1")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, weight = successes / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    # At 0 and n successes the bound is exact; rounding must not leave it a hair off.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def mcnemar(a: Tensor, b: Tensor) -> float:
    """Exact two-sided p-value of McNemar's test (1947) that two models are equally often right.

    a, b: bool (N,), right or wrong on the same images in the same order. ValueError for unequal shapes.
    """
    from scipy.special import bdtr  # slow to import

    if a.shape != b.shape or a.dtype != torch.bool or b.dtype != torch.bool:
        raise ValueError("give two bool tensors (N,) about the same images in the same order")
    first, second = int((a & ~b).sum()), int((~a & b).sum())
    return min(1.0, 2 * float(bdtr(min(first, second), first + second, 0.5)))


def mcnemar_clustered(a: Tensor, b: Tensor) -> float:
    """Two-sided p-value that two methods, each with several networks, are equally often right.

    a, b: bool (S, N), network s of either method on image i. McNemar's test for clusters (Obuchowski 1998):
    an image is one observation, however many networks see it; normal approximation. For S = 1 it is
    McNemar's test without continuity correction. ValueError for unequal shapes.
    """
    if a.shape != b.shape or a.dim() != 2 or a.dtype != torch.bool or b.dtype != torch.bool:
        raise ValueError("give two bool tensors (S, N) about the same images in the same order")
    gains = (a.double() - b.double()).sum(0)
    squares = float(gains.square().sum())
    return 2 * NormalDist().cdf(-abs(float(gains.sum())) / squares**0.5) if squares else 1.0


def student(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean, in the unit of the values: about other trainings, if they are seeds.

    ValueError for fewer than `FEWEST` values.
    """
    if len(values) < FEWEST:
        raise ValueError(f"{len(values)} values: an interval over trainings needs {FEWEST} or more")
    from scipy.special import stdtrit  # slow to import

    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * stdev(values) / len(values) ** 0.5
    return fmean(values) - half, fmean(values) + half


def paired_difference(a: Tensor, b: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of accuracy(a) - accuracy(b), fractions in [-1, 1]: about the same networks on other images.

    a, b: bool (N,), right or wrong on the very same images. Bonett and Price (2012), equation 2: Wald's
    interval with one more image added to each kind of disagreement and two in all. Or bool (S, N), several
    networks on each side: Wald's interval of the images' mean differences; an image is one observation.
    """
    if a.shape != b.shape or not a.numel():
        raise ValueError(
            f"{a.shape[-1]} and {b.shape[-1]} images: give the same images to both, at least one"
        )
    if a.dim() == 2 and len(a) > 1:
        gains = (a.double() - b.double()).mean(0)
        half = NormalDist().inv_cdf((1 + confidence) / 2) * float(gains.std()) / len(gains) ** 0.5
        return max(-1.0, float(gains.mean()) - half), min(1.0, float(gains.mean()) + half)
    a, b = a.flatten(), b.flatten()
    n = len(a) + 2
    first, second = ((int((x & ~y).sum()) + 1) / n for x, y in ((a.bool(), b.bool()), (b.bool(), a.bool())))
    middle = first - second
    half = NormalDist().inv_cdf((1 + confidence) / 2) * ((first + second - middle**2) / n) ** 0.5
    return max(-1.0, middle - half), min(1.0, middle + half)
