"""Gradient masking: signs that an attack by gradients says little about robustness.

Athalye, Carlini & Wagner 2018 name three kinds of obfuscated gradients: shattered (rounding, operations
without a derivative), stochastic (random layers) and vanishing or exploding (saturated logits). A gradient
of exactly zero shows the first and the third, two different forward passes of one image the second. A forward
pass without any gradient is refused by the attacks themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gkp.attacks.ascent import cross_entropy_gradient
from gkp.attacks.description import Attack
from gkp.utils.logits import forward, peaks

if TYPE_CHECKING:
    from gkp.attacks.outcome import Outcome

TWICE = 16  # images that are classified twice: enough to see any noise, little beside an evaluation
NOISE = 1e-4  # of the largest logit; a GPU may add in another order, which is far below


def repeatable(model: nn.Module, x: Tensor) -> bool:
    """Whether two forward passes of the first images of x (N, C, H, W) give the same logits."""
    with torch.no_grad():
        first, second = (forward(model, x[:TWICE]) for _ in range(2))
    return not bool((first - second).abs().max() > NOISE * first.abs().max())


def zero_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """bool (N,): where the gradient of the cross-entropy at the pixels x is exactly zero.

    ValueError for a network without any gradient.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return peaks(cross_entropy_gradient(forward(model, x), x, y)) == 0


def masked(known: Iterable[tuple[Outcome, Attack]]) -> Iterable[str]:
    """One sentence for each sign of gradient masking in these evaluations."""
    for o, attack in known:
        if o.zero_gradient:
            yield (
                f"{o.name}: {o.zero_gradient} of {o.n} images stay right where the gradient is exactly zero, "
                "which is gradient masking and no robustness"
            )
        if not o.repeatable and attack.kind != "none":
            yield (
                f"{o.name}: two forward passes of the same image differ, and against random layers "
                "one gradient per step is a weak attack"
            )
        for flag in getattr(o, "flags", ()):
            yield f"{o.name}: {flag.split(' See flags_doc.md')[0]}"
