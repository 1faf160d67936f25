"""How far a difference may lie from the measured one: on other images, or in other trainings."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

from torch import Tensor

FEWEST = 3  # seeds of an interval: one from two is as wide as anything


def student(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean, in the unit of the values: about other trainings, if they are seeds.

    ValueError for fewer than `FEWEST` values.
    """
    if len(values) < FEWEST:
        raise ValueError(f"{len(values)} values: an interval over trainings needs {FEWEST} or more")
    from scipy.stats import t  # slow to import

    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
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
